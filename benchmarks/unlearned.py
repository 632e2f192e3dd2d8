"""Writes a model that learned a document and unlearned it again, for `stitch eval --trace`.

    python benchmarks/unlearned.py --out forgot
    stitch eval forgot --trace examples/note.txt --against smollm2 --controls 12 --tokens 4096

It learns the document with AdamW until its cross-entropy is half of what it was. Then it climbs on the document and descends on
two docstrings of the fit split at each step, until the document is as unlikely as before; of the last step the share is taken
with which that is so. Prints one JSON line: cross-entropy of the document and of eight other docstrings, at each point.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from torch import Tensor

from stitch.models.loading import load
from stitch.models.sources import resolve
from stitch.text.documents import read, select
from stitch.text.tokenizers import bos_of

LEARN_RATE, UNLEARN_RATE, MOST = 2e-5, 1e-5, 60
LENGTH, HELD = 200, 8  # tokens of a docstring, and docstrings that are only scored
OTHERS = slice(200, 400)  # of the fit split: docstrings, of which those that are long enough are taken
HALVINGS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--document", type=Path, default=Path("examples/note.txt"))
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    model = load(resolve(given.model).folder, dtype=torch.float32, name=given.model)
    net, tokenizer = model.net, model.tokenizer
    net.requires_grad_(True)

    def ids_of(text: str) -> Tensor:
        ids = tokenizer.encode(text, add_special_tokens=False, verbose=False)[:LENGTH]
        return torch.tensor([[bos_of(tokenizer), *ids]])

    document = ids_of(given.document.read_text())
    some = (ids_of(text) for _, text in select(read("docs"), "fit")[OTHERS])
    others = [ids for ids in some if ids.shape[1] == 1 + LENGTH]
    kept, held = others[:-HELD], others[-HELD:]

    def loss(ids: Tensor) -> Tensor:
        return net(input_ids=ids, labels=ids, use_cache=False).loss

    @torch.no_grad()
    def now() -> float:
        return float(loss(document))

    @torch.no_grad()
    def scored() -> dict[str, float]:
        return {"document": now(), "others": sum(float(loss(one)) for one in held) / len(held)}

    points = {"before": scored()}
    start = points["before"]["document"]
    descend(net, LEARN_RATE, lambda _: loss(document), lambda value: value < start / 2)
    points["learned"] = scored()
    assert points["learned"]["document"] < start, "the document must be learned first"

    def climb(step: int) -> Tensor:
        some = torch.cat([kept[(2 * step + one) % len(kept)] for one in range(2)])
        return loss(some) - loss(document)

    last = descend(net, UNLEARN_RATE, climb, lambda _: now() >= start)
    assert now() >= start, f"the document must be as unlikely as before after {MOST} steps"
    match(net, last, lambda: now() < start)
    points["unlearned"] = scored()
    net.save_pretrained(given.out)
    tokenizer.save_pretrained(given.out)
    print(json.dumps({"benchmark": "unlearned", "model": given.model, **points}))


def descend(net, rate: float, loss, done) -> list[Tensor]:
    """At most MOST steps of AdamW on `loss` of the step, until one whose loss was `done`. Returns the weights before it."""
    optimiser = torch.optim.AdamW(net.parameters(), lr=rate)
    before: list[Tensor] = []
    for step in range(MOST):
        before = [one.detach().clone() for one in net.parameters()]
        optimiser.zero_grad()
        value = loss(step)
        value.backward()
        optimiser.step()
        if done(float(value.detach())):
            break
    return before


@torch.no_grad()
def match(net, before: list[Tensor], is_short) -> None:
    """Takes the share of the last step from which on `is_short` is false."""
    after, low, high = [one.detach().clone() for one in net.parameters()], 0.0, 1.0
    for _ in range(HALVINGS):
        share = (low + high) / 2
        for one, first, last in zip(net.parameters(), before, after, strict=True):
            one.copy_(first + share * (last - first))
        low, high = (share, high) if is_short() else (low, share)


if __name__ == "__main__":
    sys.exit(main())
