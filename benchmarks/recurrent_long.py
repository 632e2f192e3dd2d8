"""Reading and recall beyond the donor's own context, at equal bytes of state: one JSON line per row.

    python benchmarks/recurrent_long.py demo:llama                      cross-entropy by position, and recall by distance
    python benchmarks/recurrent_long.py demo:induction-llama --only recall

Nothing is trained on long texts: forms are fitted in windows of the donor's context. Rows of as many bytes as `slots by head`:

    slots by head       the converted model: exact keys shared out among heads, and the mean of all others as its fast weights
    no fast weights     the same keys, the others dropped
    hybrid by head      an eighth as many fitted features as a head has dimensions in the fast weights, and fewer keys
    sizes at random     the null of `slots by head`: its sizes dealt to other heads
    tail                the null of every form: the last keys, the first, and the mean of all others
    window              only the last keys
    fast weights        no exact keys at all: fitted features in linear attention
    streaming, h2o, snapkv, adakv, duo, matching    other work (`_cache_peers.py`), each in its best setting

and references: `donor` as it is, and `re-reading`, the donor on windows of its context, each half a context after the one before,
so that it computes every token twice.

Two texts of the report split: `documents`, the first tokens of documents that are four contexts long; and `streams` of 32
contexts, the first two contexts of documents one after the other, a BOS between two. Intervals are over documents.

Settings of cache policies are chosen for each text on the same text of the sweep split, by nats per token beyond the context; for
recall on other prompts, by nats per answer over all distances. Whatever else there is to choose is the same for every row.
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import torch
from _cache_peers import CachePeer
from _cache_settings import PEERS, Loss, tuned
from jaxtyping import Float, Int
from torch import Tensor, nn

from stitch.circuits.behaviours.prompts import Prompts
from stitch.circuits.score import answered, logits_of, share_right, sums_of
from stitch.conversions.donor import Donor, read_donor
from stitch.conversions.recurrence.allocation import allocate, shuffled_sizes
from stitch.conversions.recurrence.fit import donor_moments, fit
from stitch.conversions.recurrence.forms import (
    RecurrentForm,
    cache_bytes,
    check_convertible,
    matching_bytes,
    sibling,
    state_bytes,
    wrap,
)
from stitch.conversions.recurrence.recall import recall_prompts
from stitch.evaluation.intervals import effective_number, ratio_interval
from stitch.modeling.modeling_recurrent import RecurrentForCausalLM, attentions, shape_of
from stitch.text.documents import Split, select
from stitch.text.tokenizers import bos_of
from stitch.text.windows import Windows, read_for

ENDS = (1, 4, 8, 16, 32)  # of the bins of positions, in contexts
LONG, LONGEST = 4, 2  # contexts that a document of the first text has, and has at most in the second
OURS = "slots by head"
TEXTS = ("documents", "streams")
ROWS = (
    "no fast weights", "hybrid by head", "sizes at random", "tail", "window", "fast weights", *PEERS, "donor", "re-reading",
)  # fmt: skip
AT_ONCE = 2048  # tokens whose logits are computed together
RECALLED = (1 / 4, 1 / 2, 1, 2)  # lengths of the prompts, in contexts


class Rereading(nn.Module):
    """A stock model that reads a long text in windows of `context` tokens, each with BOS in front, which move on by `stride`."""

    def __init__(self, net: nn.Module, bos: int, context: int, stride: int):
        super().__init__()
        self.net, self.bos, self.context, self.stride = net, bos, context, stride

    def forward(self, input_ids: Int[Tensor, "batch tokens"], use_cache: bool = False):
        tokens = input_ids.shape[1]
        found = [self.net(input_ids=input_ids[:, : self.context], use_cache=False).logits]
        for end in range(self.context + self.stride, tokens + self.stride, self.stride):
            new, end = min(self.stride, tokens - end + self.stride), min(end, tokens)
            window = input_ids[:, end - self.context + 1 : end]
            bos = torch.full_like(window[:, :1], self.bos)
            found.append(self.net(input_ids=torch.cat([bos, window], 1), use_cache=False).logits[:, -new:])
        return SimpleNamespace(logits=torch.cat(found, 1))


@dataclass(frozen=True)
class Row:
    net: nn.Module
    state: int | None  # bytes at any length; None: it grows with the text
    passes: int = 1  # how often a token is computed
    choice: dict[str, Any] = field(default_factory=dict)  # the setting, and what was tried, where there was a choice


Tune = Callable[[Loss], Iterator[tuple[str, Row]]]


def forms(donor: Donor, given: argparse.Namespace) -> tuple[dict[str, Row], RecurrentForCausalLM]:
    """The converted model and its alternatives, fitted; and a net with a feature map in every block."""
    context, width = donor.context, shape_of(attentions(donor.model.net)[0].config).width
    common: dict[str, Any] = {"sinks": 1, "hidden": 2 * width, "steps": given.steps}
    window, few = context // 32, width // 8
    slots = (round(given.share * context) - 1 - window) * 2 * width // (2 * width + 1)
    first = wrap(donor.model, RecurrentForm(features="mean", window=1, sinks=1))
    sums = donor_moments(first, donor)

    alike = RecurrentForm(features="mean", window=window, slots=slots, **common)
    own = replace(alike, keys=allocate(first, donor, alike, sums))
    assert own.keys is not None
    net = sibling(first, own)
    fit(net, donor, own, sums)
    size = state_bytes(net, context)
    dropped = sibling(first, replace(own, features="none"))
    dropped.memories.load_state_dict({k: v for k, v in net.memories.state_dict().items() if ".map." not in k})
    found = {OURS: net, "no fast weights": dropped}

    fewer = slots - -(-few * (width + 2) // (2 * width + 1))
    features = size // sum(map(len, own.keys)) // 4 // (width + 2)  # float32: a row of values, a sum and a shift
    others = {
        "hybrid by head": replace(alike, features="hedgehog", slots=fewer, dimension=few),
        "sizes at random": replace(own, keys=shuffled_sizes(first, own.keys, own.seed)),
        "tail": matching_bytes(net, donor.model, replace(alike, slots=0, window=1), context),
        "window": matching_bytes(net, donor.model, RecurrentForm(features="none", window=1, sinks=0), context),
        "fast weights": replace(alike, features="hedgehog", window=0, sinks=0, slots=0, dimension=features),
    }
    for name, form in others.items():
        if name in given.rows:
            if name == "hybrid by head":
                form = replace(form, keys=allocate(first, donor, form, sums))
            found[name] = sibling(first, form)
            fit(found[name], donor, form, sums)
    return {name: Row(one, state_bytes(one, context)) for name, one in found.items()}, first


def rows_of(donor: Donor, given: argparse.Namespace) -> tuple[dict[str, Row], Tune]:
    """All rows by name, the converted model first, but for cache policies; and these, by the loss that chooses their settings."""
    model, context = donor.model, donor.context
    rows, first = forms(donor, given)
    size = rows[OURS].state
    assert size is not None
    rows["donor"] = Row(model.net, None)
    again = Rereading(model.net, bos_of(model.tokenizer), context, context // 2)
    rows["re-reading"] = Row(again, cache_bytes(model, context), passes=2)

    def tune(loss: Loss) -> Iterator[tuple[str, Row]]:
        for name, one in tuned(first, size, context, loss, [name for name in PEERS if name in given.rows]):
            yield name, Row(one.peer, one.peer.state_bytes(), choice={"setting": one.setting, "tried": one.tried})

    return {name: row for name, row in rows.items() if name == OURS or name in given.rows}, tune


def texts(donor: Donor, given: argparse.Namespace, split: Split, documents: int, streams: int) -> dict[str, Windows]:
    """`documents` and `streams` of a split, all of one length each."""
    tokenizer, context = donor.model.tokenizer, donor.context
    bos, long, length = bos_of(tokenizer), LONG * context, ENDS[-1] * context
    wanted: dict[Split, int] = {"fit": given.tokens, "sweep": 16_384, "report": 2 * given.streams * length}
    read = [
        [bos, *tokenizer.encode(text, add_special_tokens=False, verbose=False)[: long - 1]]
        for _, text in select(read_for("docs", wanted, tokenizer, context).documents, split)
    ]
    some = [number for number, ids in enumerate(read) if len(ids) >= long][:documents]
    alone = torch.tensor([read[number][:long] for number in some])
    parts = [ids[: LONGEST * context] for ids in read]
    every = torch.tensor([id for ids in parts for id in ids][: streams * length])
    owner = torch.arange(len(parts)).repeat_interleave(torch.tensor(list(map(len, parts))))[: len(every)]
    return {
        "documents": Windows(alone, torch.tensor(some)[:, None].expand_as(alone)),
        "streams": Windows(every.view(-1, length), owner.view(-1, length)),
    }


@contextmanager
def without_head(nets: Sequence[Any]) -> Iterator[nn.Module]:
    """Inside, these nets give their last hidden states as logits; the head is what comes with it. Long logits fill memory."""
    heads = [net.get_output_embeddings() for net in nets]
    for net in nets:
        net.set_output_embeddings(nn.Identity())
    try:
        yield heads[0]
    finally:
        for net, head in zip(nets, heads, strict=True):
            net.set_output_embeddings(head)


@torch.no_grad()
def nats_of(net: nn.Module, head: nn.Module, ids: Tensor, at_once: int) -> Float[Tensor, "streams predictions"]:
    """Nats of every token after the first, where `net` gives hidden states."""
    found = []
    for some in ids.long().split(at_once):
        hidden, target = net(input_ids=some, use_cache=False).logits[:, :-1].flatten(0, 1), some[:, 1:].flatten()
        parts = [
            nn.functional.cross_entropy(head(x).float(), y, reduction="none")
            for x, y in zip(hidden.split(AT_ONCE), target.split(AT_ONCE), strict=True)
        ]
        found.append(torch.cat(parts).view(len(some), -1))
    return torch.cat(found).double()


def by_position(
    nats: Float[Tensor, "streams predictions"], windows: Windows, context: int, minus: Tensor | None = None
) -> list[dict]:
    """Mean and interval over documents for every bin of positions that the text reaches, or those of a paired difference.

    A prediction at position t is made after t + 1 tokens, with BOS.
    """
    owner = windows.document[:, 1:].long()
    values, found = nats if minus is None else nats - minus, []
    for start, end in itertools.pairwise((0, *ENDS)):
        part = slice(start * context, min(end * context, values.shape[1]))
        if part.start >= values.shape[1]:
            break
        sums, counts = (
            torch.zeros(int(owner.max()) + 1, dtype=torch.float64).index_add_(0, owner[:, part].flatten(), each)
            for each in (values[:, part].flatten(), torch.ones_like(values[:, part].flatten()))
        )
        low, high = ratio_interval(sums, counts)
        found.append({
            "from": part.start, "to": part.stop - 1, "contexts": end, "ce": float(sums.sum() / counts.sum()),
            "ce_low": low, "ce_high": high, "documents": int((counts > 0).sum()),
            "effective": round(effective_number(counts), 1),
        })  # fmt: skip
    return found


def read(rows: Mapping[str, Row], tune: Tune, donor: Donor, given: argparse.Namespace) -> Iterator[dict]:
    """A line per text and row: cross-entropy by position, and by how much the converted model's is lower or higher."""
    to_choose_on = texts(donor, given, "sweep", given.choose_on, streams=given.choose_on * LONG // ENDS[-1])
    with without_head([rows[OURS].net.base, donor.model.net]) as head:  # pyright: ignore

        def nats(net: nn.Module, windows: Windows) -> Float[Tensor, "streams predictions"]:
            return nats_of(net, head, windows.ids, max(1, given.at_once // windows.context))

        for text, windows in texts(donor, given, "report", given.documents, given.streams).items():
            if text not in given.texts:
                continue

            def beyond(peer: CachePeer, chosen_on: Windows = to_choose_on[text]) -> float:
                return float(nats(peer, chosen_on)[:, donor.context :].mean())

            ours = None
            for name, row in itertools.chain(rows.items(), tune(beyond)):
                began = time.perf_counter()
                found = nats(row.net, windows)
                ours = found if ours is None else ours
                yield {
                    "kind": "reading", "text": text, "name": name, "state_bytes": row.state, "passes": row.passes, **row.choice,
                    "bins": by_position(found, windows, donor.context),
                    "ours_minus": [] if name == OURS else by_position(ours, windows, donor.context, minus=found),
                    "seconds": round(time.perf_counter() - began, 1),
                }  # fmt: skip


def later(asked: Prompts, before: int) -> Prompts:
    """The same prompts with the last `before` tokens between both copies in front of the first."""
    copy = int(asked.asked[0].sum()) + 1

    def moved(ids: Tensor) -> Tensor:
        return torch.cat([ids[:, :1], ids[:, 1:-copy].roll(before, 1), ids[:, -copy:]], 1)

    clean = moved(asked.clean)
    return replace(asked, clean=clean, corrupt=moved(asked.corrupt), answers=clean.roll(-1, 1))


def remembered(rows: Mapping[str, Row], tune: Tune, donor: Donor, given: argparse.Namespace) -> Iterator[dict]:
    """A line per row: the share of a sequence's tokens that are answered where it comes again, by distance.

    The sequence comes first behind `given.before` other tokens, as policies differ in what they keep of a text's start. The line
    `chance` is the donor's where another sequence came before.
    """

    def prompts(part: float, seed: int) -> Prompts:
        length = round(part * donor.context) + given.before
        return later(recall_prompts(donor.model.tokenizer, length, count=given.prompts, seed=seed), given.before)

    others = [prompts(part, seed=1) for part in RECALLED]

    def nats(peer: CachePeer) -> float:  # over all distances: where a policy has no answer, nats say nothing of it
        return sum(float(answered(logits_of(peer), asked.clean, asked)["nats"]) for asked in others) / len(others)

    for name, row in itertools.chain(rows.items(), tune(nats), [("chance", Row(donor.model.net, None))]):
        lengths = []
        for part in RECALLED:
            asked = prompts(part, seed=0)
            ids = asked.corrupt if name == "chance" else asked.clean
            distance = ids.shape[1] - int(asked.asked[0].sum()) - 2 - given.before
            right = share_right(sums_of(logits_of(row.net), ids, asked, None))
            lengths.append({"contexts": part, "distance": distance, **right})
        yield {
            "kind": "recall", "before": given.before, "name": name, "state_bytes": row.state, **row.choice, "lengths": lengths,
        }  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model")
    options.add_argument("--only", choices=("reading", "recall"))
    options.add_argument("--share", type=float, default=0.2, help="Of the donor's cache at its context.")
    options.add_argument("--tokens", type=int, default=65_536)
    options.add_argument("--steps", type=int, default=100, help="Of every fit, by attention outputs.")
    options.add_argument("--rows", nargs="*", default=ROWS, choices=ROWS, help=f"Beside {OURS}.")
    options.add_argument("--texts", nargs="*", default=TEXTS, choices=TEXTS)
    options.add_argument("--documents", type=int, default=100)
    options.add_argument(
        "--choose-on",
        type=int,
        default=24,
        help="Documents, for settings of cache policies; and as many tokens of streams.",
    )
    options.add_argument("--streams", type=int, default=5)
    options.add_argument("--at-once", type=int, default=81_920, help="Tokens in a batch.")
    options.add_argument("--prompts", type=int, default=48)
    options.add_argument("--before", type=int, default=64, help="Tokens before the sequence that is recalled.")
    given = options.parse_args()
    donor = read_donor(given.model, text="docs", tokens=given.tokens, held_out=16_384)
    check_convertible(donor.model, donor.context)
    rows, tune = rows_of(donor, given)
    parts = {"reading": read, "recall": remembered}
    for part in [given.only] if given.only else parts:
        for line in parts[part](rows, tune, donor, given):
            about = {
                "benchmark": "recurrent_long",
                "model": given.model,
                "context": donor.context,
                "share": given.share,
            }
            print(json.dumps({**about, **line}), flush=True)


if __name__ == "__main__":
    main()
