"""KL to the donor against the bytes of a recurrent state: one JSON line per row.

At each share of the donor's cache every row takes the same number of bytes, and all but `window` keep the first key
exactly. With all heads alike:

    window      only the last keys
    tail        the last keys and one fitted feature for all others: the null of every fitted row
    slots       the last 1/32 of the context, keys kept by a learned priority, one feature for all others
    hindsight   slots that hold the keys which will get the most attention: a ceiling, not a usable model

and with exact keys allocated to heads by need (`allocation.py`):

    tail by head, slots by head
    hybrid by head      slots, and one feature for every eight dimensions of a head; only for small states
    double by head      twice as many features as dimensions, and as many last keys as fit beside them
    slots at random     the sizes of `slots by head` assigned to heads at random
    slots by strongest keys     sizes from `stitch inspect --heads`: what it costs that a head knows only its n strongest keys

other work at no more bytes (`_cache_peers.py`), in settings chosen on the first windows of the sweep split by KL:

    streaming, h2o, snapkv, adakv, duo, matching
    matching by head    Attention Matching in its best setting, with the sizes of `slots by head`

and with sizes of their own:

    pure        hedgehog features and the first key: one, two and four times as many features as dimensions
    linear      twice as many features without MLPs, and the last sixteenth of the context
    closed      Taylor-2 and random features, alone and with the last sixteenth of the context
    exact       parallel against recurrent form of a fitted `slots by head`, and the state at 32,768 tokens (RoPE only)

`python benchmarks/conversions_recurrent.py demo:gpt2 --rows tail 'slots by head'` measures only these. All rows of a
model share windows, fit tokens and steps; the result of a row does not depend on the other rows.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from _attention_matching import Matched
from _cache_peers import CachePeer
from _cache_settings import PEERS, Tuned, tuned
from torch import Tensor, nn

from stitch.conversions.donor import Donor, read_donor
from stitch.conversions.recurrence.allocation import (
    Sizes,
    allocate,
    by_block,
    candidate_sizes,
    distribute_keys,
    shuffled_sizes,
)
from stitch.conversions.recurrence.fit import donor_moments, fit, scores_of
from stitch.conversions.recurrence.forms import (
    RecurrentForm,
    cache_bytes,
    check_convertible,
    dimension_of,
    matching_bytes,
    memories,
    sibling,
    state_bytes,
    wrap,
)
from stitch.conversions.recurrence.head_moments import HeadMoments
from stitch.conversions.recurrence.recall import recall, recall_prompts
from stitch.conversions.report import difference
from stitch.evaluation.documents import counted
from stitch.evaluation.intervals import ratio_interval
from stitch.evaluation.scores import Scores
from stitch.layers.heads import measure_heads
from stitch.modeling.modeling_recurrent import LARGE_NEGATIVE, RecurrentForCausalLM, attentions, group_matmul, shape_of

SHARES = (0.1, 0.2, 0.4)
BY_HEAD = " by head"
AT_RANDOM = "slots at random"
BY_STRONGEST = "slots by strongest keys"
MATCHING_BY_HEAD = "matching by head"
AT_SHARES = (
    "tail", "window", "slots", "slots by head", "tail by head", "hybrid by head", "double by head", AT_RANDOM, BY_STRONGEST,
)  # fmt: skip
CHOSEN_ON = 40  # windows of the sweep split, for settings of cache policies
INSPECTED = 8_192  # tokens on which `stitch inspect --heads` measures
SMALL = 0.2  # largest share with `hybrid`; in larger states its few features make no difference


class Hindsight(nn.Module):
    """`net` with its slots filled by the keys that get the most attention after they leave the window. Pairwise, not
    recurrent.
    """

    def __init__(self, net: RecurrentForCausalLM):
        super().__init__()
        self.net, self.memories = net, net.memories

    def forward(self, input_ids: Tensor, use_cache: bool = False):
        return self.net.base(input_ids=input_ids, use_cache=False, recurrent=self)

    def attend(self, module: Any, q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
        memory: Any = self.net.memories[module.memory_index]
        window, slots = memory.windows[0], memory.slots[0]  # the same for all heads
        q = q.unflatten(1, (memory.shape.groups, memory.shape.shared))
        column = torch.arange(k.shape[2], device=k.device)
        ago = column[:, None] - column
        scores = (group_matmul(q, k.mT) * scaling).masked_fill(ago < 0, LARGE_NEGATIVE)
        old = (ago >= window) & (column >= memory.sinks)
        asked = (scores.softmax(-1) * old).sum((2, 3))
        there = asked[:, :, None].masked_fill(~old, -1.0)
        least = there.topk(min(slots, k.shape[2]), -1).values[..., -1:]
        kept = (there >= least)[:, :, None]
        _, log = memory.map.queries(q * scaling**0.5)
        logs = torch.where(old & ~kept, log.expand_as(scores), scores).masked_fill(ago < 0, LARGE_NEGATIVE)
        return group_matmul(logs.softmax(-1), v).flatten(1, 2)


def at_share(share: float, context: int, width: int, fitted: dict[str, Any]) -> dict[str, RecurrentForm]:
    """Forms that take about this share of the cache. Those without slots are later brought to the bytes of `slots`."""
    window = max(1, context // 32)
    keys = max(window + 2, round(share * context) - 1)
    # A slot holds a key, a value and a priority; a feature holds a row of values, a sum and a shift.
    slots = (keys - window) * 2 * width // (2 * width + 1)
    found = {
        "slots": RecurrentForm(features="mean", window=window, sinks=1, slots=slots, **fitted),
        "tail": RecurrentForm(features="mean", window=1, sinks=1, **fitted),
        "window": RecurrentForm(features="none", window=1, sinks=0),
    }
    few = max(1, width // 8)
    fewer = slots - -(-few * (width + 2) // (2 * width + 1))
    if fewer > 0 and share <= SMALL:
        found["hybrid"] = RecurrentForm(
            features="hedgehog", window=window, sinks=1, slots=fewer, dimension=few, **fitted
        )
    if 2 * width * (width + 2) < 2 * width * (keys - 1):
        found["double"] = RecurrentForm(features="hedgehog", window=1, sinks=1, dimension=2 * width, **fitted)
    return found


def of_own_size(context: int, width: int, fitted: dict[str, Any]) -> dict[str, list[RecurrentForm]]:
    window = context // 16

    def hedgehog(multiple: float, window: int, **changes) -> RecurrentForm:
        options = {**fitted, "features": "hedgehog", "dimension": round(multiple * width), "window": window, "sinks": 1}
        return RecurrentForm(**{**options, **changes})

    return {
        "pure": [hedgehog(multiple, 0) for multiple in (1, 2, 4)],
        "linear": [hedgehog(2, window, hidden=0)],
        "closed": [
            RecurrentForm(features=features, window=last, sinks=min(last, 1), dimension=dimension)
            for last in (0, window)
            for features, dimension in (("taylor2", None), ("random", 2 * width), ("random", 4 * width))
        ],
    }


def sizes_by_strongest(net: RecurrentForCausalLM, donor: Donor, form: RecurrentForm) -> Sizes:
    """Sizes by head from the costs of knowing only the n strongest keys, added over the query heads that share a key head."""
    sizes = candidate_sizes(donor.context, form.window + form.slots)
    windows = donor.windows["fit"].first(INSPECTED)
    heads = measure_heads(donor.model, windows, far=donor.context // 4, sizes=sizes, seed=form.seed)
    costs = [
        torch.tensor([head["cost"] for head in block], dtype=torch.float64)
        .unflatten(0, (memory.shape.groups, -1))
        .sum(1)
        for block, memory in zip(heads, memories(net), strict=True)
    ]
    widths = [memory.shape.width for memory in memories(net) for _ in range(memory.shape.groups)]
    return by_block(net, distribute_keys(torch.cat(costs), sizes, widths, alike=form.window + form.slots))


def figures(
    net: RecurrentForCausalLM, donor: Donor, form: RecurrentForm, kind: str, score: Scores, course: dict
) -> dict:
    kept = state_bytes(net, donor.context)
    assert score.kl is not None
    low, high = ratio_interval(score.kl, score.tokens)
    return {
        "kind": kind, "context": donor.context, "documents": counted(score), **score.row(form.features), "kl_low": low,
        "kl_high": high, "window": form.window, "sinks": form.sinks,
        "slots": form.slots, "keys": form.keys, "hidden": form.hidden, "multiple": dimension_of(net), "state_bytes": kept,
        "share": kept / cache_bytes(donor.model, donor.context), "fit": course,
    }  # fmt: skip


def tuned_peers(first: RecurrentForCausalLM, donor: Donor, size: int, names: Sequence[str]) -> dict[str, Tuned]:
    """Cache policies, each in its setting of least KL on the first windows of the sweep split."""
    windows = donor.windows["sweep"].first(CHOSEN_ON * donor.context)

    def loss(peer: CachePeer) -> float:
        score = scores_of({"peer": peer}, donor, windows)["peer"]
        assert score.kl is not None
        return float(score.kl.sum() / score.tokens.sum())

    return dict(tuned(first, size, donor.context, loss, names))


def of_peer(one: Tuned, donor: Donor, kind: str, score: Scores) -> dict:
    assert score.kl is not None
    low, high = ratio_interval(score.kl, score.tokens)
    kept = one.peer.state_bytes()
    return {
        "kind": kind, "context": donor.context, "documents": counted(score), **score.row(kind), "kl_low": low, "kl_high": high,
        "state_bytes": kept, "share": kept / cache_bytes(donor.model, donor.context), "setting": one.setting, "tried": one.tried,
        "recall": recall(one.peer, recall_prompts(donor.model.tokenizer, donor.context // 2)),
    }  # fmt: skip


def row(
    net: RecurrentForCausalLM,
    donor: Donor,
    form: RecurrentForm,
    sums: Sequence[HeadMoments],
    kind: str,
    rival: Scores | None,
) -> tuple[dict, Scores]:
    """Fits a net and scores it on the report split, beside the null of as many bytes."""
    began = time.perf_counter()
    course = fit(net, donor, form, sums)
    seconds = time.perf_counter() - began
    score = scores_of({"net": net}, donor, donor.windows["report"])["net"]
    line = figures(net, donor, form, kind, score, course)
    line |= {"recall": recall(net, recall_prompts(donor.model.tokenizer, donor.context // 2)), "seconds": seconds}
    if rival is not None:
        line["minus_tail"] = difference({kind: score, "tail": rival}, kind, "tail")
    return line, score


@torch.no_grad()
def exact(net: RecurrentForCausalLM, donor: Donor) -> dict:
    """max |Δlogit| between the two forms at lengths 1, w, w + 1, 4 w and the context, and the bytes of the state
    over a long text.
    """
    window, ids = net.config.window, donor.windows["report"].ids.long()
    worst = {}
    for length in (1, window, window + 1, 4 * window, donor.context):
        text, cache, found = ids[:4, :length].to(net.device), None, []
        for column in text.split(1, 1):
            out = net(column, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            found.append(out.logits)
        worst[length] = float((torch.cat(found, 1) - net(text).logits).abs().max())
    sizes = {}
    if donor.model.anatomy.positions is None:
        cache, text = None, ids.flatten().repeat(-(-(2**15) // ids.numel()))
        for tokens in range(1024, 2**15 + 1, 1024):
            piece = text[tokens - 1024 : tokens][None].to(net.device)
            cache = net(piece, past_key_values=cache, use_cache=True, logits_to_keep=1).past_key_values
            sizes[tokens] = cache.bytes()
    return {"kind": "exact", "worst": worst, "bytes_at": sizes}


def measure(given: argparse.Namespace):
    """Yields one line per row."""
    donor = read_donor(given.model, text="docs", tokens=given.tokens, held_out=given.held_out, context=given.context)
    check_convertible(donor.model, donor.context)
    width = shape_of(attentions(donor.model.net)[0].config).width
    fitted = {"steps": given.steps, "logit_steps": given.logit_steps, "hidden": 2 * width}
    first = wrap(donor.model, RecurrentForm(features="mean", window=1, sinks=1))
    sums = donor_moments(first, donor)
    for share in given.shares:
        recipes, rival = at_share(share, donor.context, width, fitted), None
        like = sibling(first, recipes["slots"])
        for kind, form in recipes.items():
            if not form.slots:
                recipes[kind] = matching_bytes(like, donor.model, form, donor.context)
        shared: dict[str, Sizes] = {}
        for kind in (kind for kind in AT_SHARES if kind in given.rows):
            base = "slots" if kind in (AT_RANDOM, BY_STRONGEST) else kind.removesuffix(BY_HEAD)
            if base not in recipes:
                continue
            form = recipes[base]
            if kind == BY_STRONGEST:
                form = replace(form, keys=sizes_by_strongest(first, donor, form))
            elif kind != base:
                if (of := "slots" if base == "tail" else base) not in shared:
                    shared[of] = allocate(first, donor, recipes[of], sums)
                keys = shared[of] if kind != AT_RANDOM else shuffled_sizes(first, shared[of], form.seed)
                form = replace(form, keys=keys)
            net = sibling(first, form)
            line, score = row(net, donor, form, sums, kind, rival)
            rival = score if kind == "tail" else rival
            yield {"at": share, **line}
            if kind == "slots" and "hindsight" in given.rows:
                score = scores_of({"net": Hindsight(net)}, donor, donor.windows["report"])["net"]
                yield {"at": share, **figures(net, donor, form, "hindsight", score, {})}
        others = tuned_peers(
            first, donor, state_bytes(like, donor.context), [one for one in PEERS if one in given.rows]
        )
        if MATCHING_BY_HEAD in given.rows and "matching" in others:
            if "slots" not in shared:
                shared["slots"] = allocate(first, donor, recipes["slots"], sums)
            setting = others["matching"].setting
            peer = Matched(first, [[1 + size for size in block] for block in shared["slots"]], **setting)
            others[MATCHING_BY_HEAD] = Tuned(peer, setting, [])
        nets = {kind: one.peer for kind, one in others.items()}
        for kind, score in scores_of(nets, donor, donor.windows["report"]).items() if nets else ():
            yield {"at": share, **of_peer(others[kind], donor, kind, score)}
    own = of_own_size(donor.context, width, fitted)
    for kind in (kind for kind in own if kind in given.rows):
        for form in own[kind]:
            yield row(sibling(first, form), donor, form, sums, kind, None)[0]
    if "exact" in given.rows:
        form = at_share(0.2, donor.context, width, fitted)["slots"]
        form = replace(form, keys=allocate(first, donor, form, sums))
        net = sibling(first, form)
        fit(net, donor, form, sums)
        yield exact(net, donor)


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("model", nargs="?")
    everything = [*AT_SHARES, "hindsight", *PEERS, MATCHING_BY_HEAD, "pure", "linear", "closed", "exact"]
    options.add_argument("--rows", nargs="*", default=everything, choices=everything)
    options.add_argument("--shares", nargs="*", type=float, default=SHARES)
    options.add_argument("--tokens", type=int, default=65_536)
    options.add_argument("--held-out", type=int, default=16_384)
    options.add_argument("--context", type=int)
    options.add_argument("--steps", type=int, default=100)
    options.add_argument("--logit-steps", type=int, default=0)
    given = options.parse_args()
    for line in measure(given):
        print(json.dumps({"benchmark": "conversions_recurrent", "model": given.model, **line}), flush=True)


if __name__ == "__main__":
    main()
