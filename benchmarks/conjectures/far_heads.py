"""Conjecture: most heads that look far look at rare, specific tokens.

    python benchmarks/conjectures/far_heads.py

Far heads move at least a tenth of what they move (probability × length of what the key's value writes) from more than 128
tokens back (a quarter of a shorter context), tokens that start a text left out. Enrichment: how many times more of that comes
from the rarest quarter of tokens than they are of the keys. Null: the same on text in random order. Of heads
enriched more than 1.5 times, far keys are then taken away, beside as many other far heads drawn at random, and the loss on
tokens that occurred earlier in their window is compared.

Rule, set before the run: refuted for a model where fewer than half of its far heads are enriched more than 1.5 times.
"""

import argparse
import random

import _shared
import torch
from torch import Tensor

from stitch.evaluation.scores import Batch, Logits, evaluate, mean_of, whole_model
from stitch.internals.attention import Attended, attending
from stitch.layers.heads import measure_heads
from stitch.layers.heads_report import ENRICHED, LOOKS_FAR, far_of
from stitch.layers.tokens import shuffled_windows

Head = tuple[int, int]


class Repeated:
    """Predicted tokens by whether they occurred earlier in their window; stands for `Bins`."""

    def __len__(self) -> int:
        return 2

    def sums(self, ids: Tensor, owner: Tensor, values: Tensor, documents: int) -> Tensor:
        targets = ids[:, 1:]
        earlier = (targets[:, :, None] == ids[:, None, :-1]).tril().any(-1).flatten().long()
        total = torch.zeros(2 * documents, dtype=torch.float64)
        total.index_add_(0, earlier * documents + owner, values.double().cpu())
        return total.view(2, documents)


def without_far(found: _shared.Subject, heads: list[Head], far: int) -> Logits:
    """The model in which these heads do not see keys more than `far` tokens back, but the first."""
    whole = whole_model(found.model.net)
    by_block: dict[int, list[int]] = {}
    for block, head in heads:
        by_block.setdefault(block, []).append(head)

    def attend(seen: Attended) -> Tensor:
        if seen.block not in by_block:
            return seen.exact
        place = torch.arange(seen.pattern.shape[-1])
        near = ((place[:, None] - place <= far) | (place == 0)).to(seen.pattern.device)
        pattern, chosen = seen.pattern.clone(), by_block[seen.block]
        left = pattern[:, chosen] * near
        pattern[:, chosen] = left / left.sum(-1, keepdim=True).clamp_min(1e-30)
        return pattern @ seen.values

    def logits(batch: Batch) -> Tensor:
        with attending(found.model, attend):
            return whole(batch)

    return logits


def measure(name: str, given: argparse.Namespace) -> None:
    found = _shared.subject(name, context=512, windows=28 if given.small else 112)
    far = far_of(found.windows.context)
    heads = measure_heads(found.model, found.windows, far=far, costs=False)
    null = measure_heads(found.model, shuffled_windows(found.windows, 0), far=far, sizes=(16,), costs=False)
    places = [(block, head) for block, row in enumerate(heads) for head in range(len(row))]
    far_heads = [(b, h) for b, h in places if (heads[b][h]["far_moved"] or 0) >= LOOKS_FAR]
    rare = [(b, h) for b, h in far_heads if (heads[b][h]["rare"] or 0) > ENRICHED]
    copies = [(b, h) for b, h in far_heads if (heads[b][h]["copies"] or 0) > 5]
    other_copies = [(b, h) for b, h in far_heads if (heads[b][h]["copies_null"] or 0) > 5]
    share = len(rare) / max(len(far_heads), 1)
    enrichment = torch.tensor([heads[b][h]["rare"] or 0.0 for b, h in far_heads])
    shuffled = torch.tensor([null[b][h]["rare"] or 0.0 for b, h in far_heads])
    line: dict = {
        "share": share, "far": len(far_heads), "of": len(places), "enriched": len(rare), "after_copies": len(copies),
        "after_other_copies": len(other_copies),
        "median": float(enrichment.median()), "median_shuffled": float(shuffled.median()),
        "context": found.windows.context, "far_from": far,
        "heads": [
            {"block": b, "head": h, **{key: heads[b][h][key] for key in ("keys", "sink", "far_moved", "rare", "copies")}}
            for b, h in places
        ],
    }  # fmt: skip
    others = [place for place in far_heads if place not in rare]
    if rare and len(others) >= len(rare):
        line |= _ablated(found, rare, others, far)
    _shared.tell("far_heads", name, "refuted" if share < 0.5 else "holds", **line)


def _ablated(found: _shared.Subject, rare: list[Head], others: list[Head], far: int) -> dict:
    """What it costs that the enriched heads do not see far, beside as many other far heads, on repeated tokens."""
    rows: dict[str, Logits] = {"model": whole_model(found.model.net), "rare": without_far(found, rare, far)}
    for seed in _shared.SEEDS:
        rows[f"others {seed}"] = without_far(found, random.Random(seed).sample(others, len(rare)), far)
    scores = evaluate(
        rows,
        found.windows,
        vocabulary=found.model.vocabulary,
        bins=Repeated(),
        binned=list(rows),  # pyright: ignore
    )
    random_heads = mean_of([scores[f"others {seed}"] for seed in _shared.SEEDS])

    def on_repeated(row: str) -> float:
        nats = scores[row].binned
        assert nats is not None
        return float(nats[1].sum())

    count = Repeated().sums(
        found.windows.ids.long(), found.windows.document[:, 1:].flatten().long(),
        torch.ones(found.windows.ids[:, 1:].numel()), int(found.windows.document.max()) + 1,
    )[1].sum()  # fmt: skip
    draws = [(on_repeated(f"others {seed}") - on_repeated("model")) / float(count) for seed in _shared.SEEDS]
    return {
        "without_rare": scores["rare"].difference(scores["model"]),
        "without_others": random_heads.difference(scores["model"]),
        "repeated_without_rare": (on_repeated("rare") - on_repeated("model")) / float(count),
        "repeated_without_others": draws,
        **_shared.documents(scores["model"]),
    }


if __name__ == "__main__":
    _shared.run(__doc__, ["demo:gpt2", "demo:llama", "smollm2"], measure)
