"""Weights of A merged into B's attention through optimal transport, at B's own cost. One JSON line per row and direction.

    python benchmarks/transport_merge.py > build/transport_merge.jsonl

Transport and Merge (arXiv:2602.05495), from its formulas: plans between the channels of both models, by the correlation of what
the four matrices of attention read and write on some text; a plan between their blocks from what these plans cost, of which three
blocks of A stay for each of B; then W ← (1 − α) W + α Σ (share of the block) · plan of outputs · A's W · plan of inputs. The
training that the paper does afterwards is left out. α is chosen on the sweep split, from those that the paper searches.

    plans       plans as they are, whose entries sum to one, as in the authors' code
    maps        plans whose rows sum to one, so that A's weights keep their size
    null        `maps` with A's channels in random order
    shrunk      W ← (1 − α) W: nothing of A
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import ot
import torch
from torch import Tensor

from stitch.config import Settings
from stitch.evaluation.scores import Scores, evaluate, whole_model
from stitch.internals import weights
from stitch.jobs.pair.models import load_pair
from stitch.jobs.pair.settings import complete
from stitch.jobs.pair.text import read_windows
from stitch.models.model import Model
from stitch.models.module_inputs import module_inputs
from stitch.text.documents import Split

DIRECTIONS = (("demo:gpt2", "demo:llama"), ("demo:llama", "demo:gpt2"))
ALPHAS = (0.005, 0.01, 0.03, 0.05, 0.1, 0.2)
TEXT = 4_096  # tokens that channels are compared on
ENTROPY = 0.1  # regularisation of the plans
BLOCKS = 3  # of A, for each block of B
KINDS = ("q", "k", "v", "o")


@dataclass(frozen=True)
class Matrix:
    """A matrix of attention [inputs, outputs], and what it reads and writes [tokens, …]."""

    weight: Tensor
    read: Tensor
    written: Tensor


@torch.no_grad()
def matrices(model: Model, ids: Tensor) -> dict[str, list[Matrix]]:
    """By kind, the matrices of every block."""
    places = {}
    for number, block in enumerate(model.blocks):
        attention = getattr(block, "attn", None) or block.self_attn
        places[number, "in"] = getattr(attention, "c_attn", None) or attention.q_proj
        places[number, "out"] = getattr(attention, "c_proj", None) or attention.o_proj
    parts = [module_inputs(model.net, places, input_ids=some) for some in ids.split(4)]
    read = {place: torch.cat([part[place] for part in parts]).flatten(0, 1) for place in places}
    found: dict[str, list[Matrix]] = {kind: [] for kind in KINDS}
    for number in range(model.depth):
        own = weights.attention(model, number)
        for kind in KINDS:
            weight = flat(kind, getattr(own, kind))
            inputs = read[number, "out" if kind == "o" else "in"]
            bias = getattr(own, f"{kind}_bias")
            found[kind].append(Matrix(weight, inputs, inputs @ weight + (0 if bias is None else bias.flatten())))
    return found


def flat(kind: str, weight: Tensor) -> Tensor:
    """A matrix [inputs, outputs] of one by heads."""
    return (weight.flatten(0, 1) if kind == "o" else weight.flatten(1)).clone()


def plan(ours: Tensor, theirs: Tensor) -> tuple[Tensor, float]:
    """The plan between the channels of two sets of activations of the same tokens, and what it costs."""

    def standard(x: Tensor) -> Tensor:
        return (x - x.mean(0)) / x.std(0).clamp_min(1e-6)

    cost = 1 - standard(ours).T @ standard(theirs) / (len(ours) - 1)
    found = transported(cost)
    return found, float((found * cost).sum())


def transported(cost: Tensor) -> Tensor:
    rows, columns = (torch.full((count,), 1 / count, dtype=torch.float64) for count in cost.shape)
    found = ot.sinkhorn(
        rows.numpy(), columns.numpy(), cost.double().numpy(), ENTROPY, method="sinkhorn_log", warn=False
    )
    return torch.as_tensor(found).float()


def strongest(shares: Tensor) -> Tensor:
    """The BLOCKS largest entries of each row, with the row's sum."""
    kept = torch.zeros_like(shares).scatter(1, shares.topk(BLOCKS).indices, 1.0) * shares
    return kept * shares.sum(1, keepdim=True) / kept.sum(1, keepdim=True)


def merged(target: list[Matrix], source: list[Matrix], maps: bool, order: Callable[[int], Tensor]) -> list[Tensor]:
    """What is added of A's matrices of a kind, for every block of B. `order` permutes A's channels."""
    plans = [[(plan(b.read, a.read), plan(b.written, a.written)) for a in source] for b in target]
    costs = [torch.tensor([[pair[side][1] for pair in row] for row in plans]) for side in (0, 1)]
    shares = strongest(torch.stack([transported(cost) for cost in costs]).sqrt().prod(0))
    added = []
    for number, row in enumerate(plans):
        total = torch.zeros_like(target[number].weight)
        for other, ((reads, _), (writes, _)) in enumerate(row):
            size = reads.shape[0] * writes.shape[0] if maps else 1
            reads, writes = reads[:, order(reads.shape[1])], writes[:, order(writes.shape[1])]
            total += size * shares[number, other] * (reads @ source[other].weight @ writes.T)
        added.append(len(plans) * total)
    return added


@torch.no_grad()
def put(model: Model, own: dict[str, list[Matrix]], added: dict[str, list[Tensor]] | None, alpha: float) -> None:
    """Sets the model's matrices to (1 − α) of its own and α of what is added."""
    for kind in KINDS:
        for number, matrix in enumerate(own[kind]):
            value = (1 - alpha) * matrix.weight + (0 if added is None else alpha * added[kind][number])
            place = getattr(weights.attention(model, number), kind)
            place.copy_(value.reshape(place.shape))


def lines(names: tuple[str, str], tokens: int) -> Iterator[dict]:
    settings = Settings(model_a=names[0], model_b=names[1], layer=1, tokens=tokens)
    a, b, _ = load_pair(settings)
    settings = complete(settings, a, b)
    windows = read_windows(settings, a, b)
    ids = windows["fit"].first(TEXT).ids.long()
    source, target = matrices(a, ids), matrices(b, ids)
    generator = torch.Generator().manual_seed(0)

    def same(count: int) -> Tensor:
        return torch.arange(count)

    def shuffled(count: int) -> Tensor:
        return torch.randperm(count, generator=generator)

    rows: dict[str, dict[str, list[Tensor]] | None] = {
        "plans": {kind: merged(target[kind], source[kind], False, same) for kind in KINDS},
        "maps": {kind: merged(target[kind], source[kind], True, same) for kind in KINDS},
        "null": {kind: merged(target[kind], source[kind], True, shuffled) for kind in KINDS},
        "shrunk": None,
    }

    def scored(split: Split, added: dict[str, list[Tensor]] | None, alpha: float) -> Scores:
        put(b, target, added, alpha)
        return evaluate({"it": whole_model(b.net)}, windows[split], vocabulary=b.vocabulary)["it"]

    untouched, whole = scored("report", None, 0.0), scored("sweep", None, 0.0).ce
    yield described(names, "b", untouched, untouched, None, {}, windows["report"].tokens)
    for name, added in rows.items():
        swept = {alpha: scored("sweep", added, alpha).ce for alpha in ALPHAS}
        alpha = min(swept, key=lambda one: swept[one])
        found = scored("report", added, alpha)
        course = {str(one): ce - whole for one, ce in swept.items()}
        yield described(names, name, found, untouched, alpha, course, windows["report"].tokens)


def described(
    names: tuple[str, str], row: str, found: Scores, b: Scores, alpha: float | None, course: dict, tokens: int
) -> dict:
    low, high = found.interval()
    minus = dict(zip(("minus_b_low", "minus_b_high"), found.interval(minus=b), strict=True))
    return {
        "benchmark": "transport_merge", "source": names[0], "target": names[1], "row": row, "alpha": alpha, "ce": found.ce,
        "ce_low": low, "ce_high": high, "minus_b": found.ce - b.ce, **minus, "sweep_minus_b": course,
        "documents": found.documents, "tokens": tokens,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=20_000)
    given = parser.parse_args()
    for names in DIRECTIONS:
        for line in lines(names, given.tokens):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
