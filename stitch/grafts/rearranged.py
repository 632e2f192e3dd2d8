"""A circuit chosen again in a donor that is rearranged into as many blocks as a shallower host has."""

from dataclasses import replace

import torch

from stitch.circuits.behaviours.named import BEHAVIOURS, OF_TEXT, make_prompts
from stitch.circuits.behaviours.prompts import Prompts
from stitch.circuits.find import LEAST, ChosenCircuit
from stitch.circuits.score import answered
from stitch.circuits.shallow import Arrangement, token_tables, with_reads
from stitch.circuits.squeeze import squeeze, within_capacity
from stitch.errors import StitchError, UsageError
from stitch.grafts.neurons import units
from stitch.internals import weights
from stitch.models.model import Model
from stitch.progress import Progress

READ_ON = 128  # prompts that read maps are fitted on


def rearranged_circuit(
    donor: Model,
    behaviour: str,
    chosen: ChosenCircuit,
    host: Model,
    given: Arrangement | None = None,
    *,
    keep: float = 0.98,
    seed: int = 0,
    text: str = "docs",
    progress: Progress | None = None,
) -> ChosenCircuit:
    """The circuit of the donor rearranged into as many blocks as the host has, as many components per block as fit into the host.

    A `given` arrangement comes with its components, which are then those of `chosen`.
    Raises: UsageError for an arrangement that does not end with the donor's last block or has more groups than the host has
    blocks; StitchError when the rearranged donor no longer has the behaviour.
    """
    if given is not None and (given.groups[-1][-1] != donor.depth - 1 or len(given.groups) > host.depth):
        raise UsageError(
            f"the arrangement has {len(given.groups)} groups, the last of {given.groups[-1]}; {donor.name} has {donor.depth} "
            f"blocks and {host.name} {host.depth}: leave it out, or choose a deeper host."
        )
    arrangement = given or squeeze(donor, chosen.first, host.depth, seed, progress)
    tables = token_tables(donor, torch.arange(len(donor.embedding.weight)), {arrangement.first}, seed, progress)
    read_on = _prompts_for_reads(donor, behaviour, chosen, seed, text)
    whole = with_reads(donor, arrangement, tables, read_on, progress=progress)
    if given is None:
        shallow = within_capacity(whole, chosen.first, _capacity(donor, host), keep, progress)
    else:
        shallow = replace(whole, kept=chosen.kept, means=whole.mean_outputs(chosen.first))
    assert shallow.kept is not None
    right = answered(shallow.logits, chosen.other.clean, chosen.other)["right"]
    if right - chosen.corrupt["right"] < LEAST:
        raise StitchError(
            f"the circuit of {donor.name} is in {len(chosen.kept.blocks())} blocks, one after another; rearranged into the "
            f"{host.depth} of {host.name} it must still have the behaviour; it answers {right:.1%} right: choose a deeper host."
        )
    return replace(chosen, kept=shallow.kept, means=shallow.means, shallow=shallow, stability=None)


def _prompts_for_reads(donor: Model, behaviour: str, chosen: ChosenCircuit, seed: int, text: str) -> Prompts:
    """New prompts where they can be made at will; those from text or a file are few, so those chosen on are used again."""
    if behaviour in BEHAVIOURS and behaviour not in OF_TEXT:
        longest = chosen.first.clean.shape[1]
        return make_prompts(behaviour, donor.tokenizer, count=READ_ON, seed=seed + 1, longest=longest, text=text)
    return chosen.first


def _capacity(donor: Model, host: Model) -> dict[str, int]:
    """How many of the donor's heads and neurons fit into a block of the host. One neuron is left to write constants."""
    per_neuron = max(units(weights.mlp(donor, block), weights.mlp(host, 0)) for block in range(donor.depth))
    return {
        "heads": weights.attention(host, 0).k.shape[1],
        "neurons": (weights.mlp(host, 0).up.shape[1] - 1) // per_neuron,
    }
