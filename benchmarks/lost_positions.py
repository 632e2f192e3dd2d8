"""What of its learned positions does a circuit need? Parts of them are taken away in the donor itself; nothing is grafted.

    python benchmarks/lost_positions.py > build/lost_positions.jsonl

A JSON line per arm: the donor's circuit alone, with its positions changed for every read or for some. 256 prompts of held-out
text, half of them to choose the circuit on and half to score; right answers, and those beyond corrupt prompts, in per cent.

    circuit alone        positions as they are
    mean                 every token has the mean position
    BOS, others mean     BOS has its own, all others their mean
    attention of block 0 positions for the first attention alone; later reads find the mean
    all but that         positions for all later reads; the first attention finds the mean
    rank r               BOS has its own, the others their best approximation of rank r around their mean
    null: shuffled       BOS has its own, the others each another's
"""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from stitch.circuits.components import replaced
from stitch.circuits.find import choose_circuit
from stitch.circuits.score import Reference, logits_of, score
from stitch.internals import weights
from stitch.models.loading import load
from stitch.models.model import Model
from stitch.models.sources import resolve

RANKS = (1, 2, 4, 8)
ENDS = ("", "_low", "_high")


@contextmanager
def table_of(model: Model, table: Tensor) -> Iterator[None]:
    """Inside, the model has these positions."""
    own = weights.positions(model)
    assert own is not None
    before = own.clone()
    own.copy_(table)
    try:
        yield
    finally:
        own.copy_(before)


@contextmanager
def positions_for(model: Model, differences: Tensor, *, first_attention: bool) -> Iterator[None]:
    """Inside, only the first attention reads positions, or all else does; the other finds them less the `differences`."""
    block: torch.nn.Module = model.blocks[0]

    def behind(module: torch.nn.Module, args: tuple, output: tuple) -> tuple:
        return output[0] - differences[: output[0].shape[1]], *output[1:]

    def before(module: torch.nn.Module, args: tuple) -> tuple:
        return args[0] - differences[: args[0].shape[1]], *args[1:]

    if first_attention:
        handle = block.get_submodule("attn").register_forward_hook(behind)
    else:
        handle = block.get_submodule("ln_1").register_forward_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()


def arms(model: Model, length: int, seed: int) -> Iterator[tuple[str, Callable]]:
    """Names, and contexts in which the circuit runs."""
    table = weights.positions(model)
    assert table is not None
    table = table.clone()
    mean, others = table[:length].mean(0), table[1:length].mean(0)

    def changed(rows: Tensor) -> Tensor:
        """The table with these rows after that of BOS."""
        return torch.cat([table[:1], rows, table[1 + len(rows) :]])

    centred = table[1:length] - others
    u, s, vh = torch.linalg.svd(centred, full_matrices=False)
    order = torch.randperm(length - 1, generator=torch.Generator().manual_seed(seed))
    yield "circuit alone", lambda: table_of(model, table)
    yield "mean", lambda: table_of(model, mean.expand_as(table))
    yield "BOS, others mean", lambda: table_of(model, changed(others.expand_as(centred)))
    yield "attention of block 0", lambda: positions_for(model, table - mean, first_attention=True)
    yield "all but that", lambda: positions_for(model, table - mean, first_attention=False)
    for rank in RANKS:
        rows = others + (u[:, :rank] * s[:rank]) @ vh[:rank]
        yield f"rank {rank}", lambda rows=rows: table_of(model, changed(rows))
    yield "null: shuffled", lambda: table_of(model, changed(table[1:length][order]))


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--donor", default="demo:gpt2", help="A GPT-2.")
    parser.add_argument("--behaviour", default="natural-ngram")
    parser.add_argument("--keep", type=float, default=0.9)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    donor = load(resolve(given.donor).folder, dtype=torch.float32, name=given.donor)
    chosen = choose_circuit(donor, given.behaviour, keep=given.keep, constant=True, seed=given.seed)
    prompts, logits = chosen.other, logits_of(donor.net)

    def alone(ids: Tensor) -> Tensor:
        with replaced(donor, chosen.kept, chosen.means):
            return logits(ids)

    reference = Reference(alone, prompts)
    # Its first arm is the circuit as it is, whose answers the reference keeps.
    for name, context in arms(donor, prompts.clean.shape[1], given.seed):
        with context():
            row = score(alone, prompts, reference=reference)[0]
        numbers = {f"{key}{end}": 100 * row[f"{key}{end}"] for key in ("right", "beyond") for end in ENDS}
        line = {"benchmark": "lost_positions", "donor": given.donor, "behaviour": given.behaviour, "seed": given.seed}
        print(json.dumps({**line, "prompts": len(prompts.clean), "arm": name, **numbers, "kl": row["kl"]}), flush=True)


if __name__ == "__main__":
    main()
