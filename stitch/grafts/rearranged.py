"""The circuit of a donor that is deeper than the host, rearranged into as many blocks as that has."""

from dataclasses import replace

import torch

from stitch.circuits.behaviours import BEHAVIOURS, make_prompts
from stitch.circuits.find import LEAST, ChosenCircuit
from stitch.circuits.score import answered
from stitch.circuits.shallow import Arrangement, token_tables, with_reads
from stitch.circuits.squeeze import squeeze, within_capacity
from stitch.errors import StitchError, UsageError
from stitch.grafts.neurons import units
from stitch.internals import weights
from stitch.models.model import Model
from stitch.progress import Progress

READ_ON = 128  # prompts that reads are fitted on


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
    """The circuit of a donor rearranged into as many blocks as the host has, with as many heads and neurons as fit into each;
    `given` an arrangement, with the components that are chosen already.

    Raises: UsageError for an arrangement of other blocks than donor and host have; StitchError when it does not have the
    behaviour any more.
    """
    if given is not None and (given.groups[-1][-1] != donor.depth - 1 or len(given.groups) > host.depth):
        raise UsageError(
            f"the arrangement has {len(given.groups)} groups, the last of {given.groups[-1]}; {donor.name} has {donor.depth} "
            f"blocks and {host.name} {host.depth}: leave it out, or choose a deeper host."
        )
    arrangement = given or squeeze(donor, chosen.first, host.depth, seed, progress)
    known = token_tables(donor, torch.arange(len(donor.embedding.weight)), {arrangement.first}, seed, progress)
    # Reads need no answers, so more prompts can be made for them; n-grams and a file's prompts are those that there are.
    drawn = behaviour in BEHAVIOURS and behaviour != "ngram"
    more = make_prompts(behaviour, donor.tokenizer, count=READ_ON, seed=seed + 1, text=text) if drawn else chosen.first
    as_many = max(units(weights.mlp(donor, block), weights.mlp(host, 0)) for block in range(donor.depth))
    most = {
        "heads": weights.attention(host, 0).k.shape[1],
        "neurons": (weights.mlp(host, 0).up.shape[1] - 1) // as_many,  # one may have to write constants
    }
    whole = with_reads(donor, arrangement, known, more, progress=progress)
    if given is None:
        shallow = within_capacity(whole, chosen.first, most, keep, progress)
    else:
        shallow = replace(whole, kept=chosen.kept, means=whole.mean_outputs(chosen.first))
    assert shallow.kept is not None
    left = answered(shallow.logits, chosen.other.clean, chosen.other)["right"]
    if left - chosen.corrupt["right"] < LEAST:
        raise StitchError(
            f"the circuit of {donor.name} is in {len(chosen.kept.blocks())} blocks, one after another; rearranged into the "
            f"{host.depth} of {host.name} it must still have the behaviour; it answers {left:.1%} right: choose a deeper host."
        )
    return replace(chosen, kept=shallow.kept, means=shallow.means, shallow=shallow, stability=None)
