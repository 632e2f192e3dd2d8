"""Conjecture: what was unlearned leaves a trace, which only adversarial training removes; an exact undo leaves none.

    `trace remains`               holds if `unlearned` is learned faster: its `after_start` above 0, the interval clear of 0
    `needs adversarial training`  is refuted if the interval of the `savings` of a `distilled …` arm includes 0, or is below it
    `undo leaves none`            holds if the savings of `undone` are exactly 0

A document is the first 128 tokens of a document of the report split, as in `conversions_consolidate.py`; the next 127 tokens
are the queries, on which nothing is trained. A relearning curve is the cross-entropy on the document before and after each of 8
steps of AdamW on it, as in `stitch eval --trace`. All of the following is in nats · steps, over `never learned`, and less the
same on another document that no arm has seen, so that general damage and its repair do not count as a trace:

    savings      the area between the curve of `never learned` and that of the arm
    after_start  the same with each curve from its own start: how much faster it falls. For `unlearned` the starts are matched

The rules were written before the run, after a first try with two documents. There NPO without a strong KL on other text damaged
that by 0.5 nats, and documents came back by distillation alone, before any relearning; so RETAIN was chosen on two documents of
the sweep split, and the distilled arms, whose start is free, are judged by `savings`.
One JSON line per arm, with intervals over documents:

    never learned               the donor: the baseline
    consolidated                a document written in by natural gradient, not undone: a trace for certain
    undone                      the same, taken out by putting the replaced weights back
    learned                     8 steps of AdamW on the document: a trace for certain
    unlearned                   `learned`, then NPO (arXiv 2404.05868) on the document and KL to `learned` on other text, until
                                the cross-entropy on the document is that of `never learned`, to 0.001 nats
    distilled from never        `unlearned`, then noise and distillation from `never learned` on other text (arXiv 2506.06278)
    distilled from itself       the same from `unlearned`, as one must who has no model that never saw the document
    never learned, distilled    noise and the same distillation of `never learned`: what they alone do to relearning
    null:another document       `unlearned` on the other document, with nothing subtracted

Each document has seeds of its own for the noise and for the other text, so intervals hold what these bring.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from conversions_consolidate import CONTEXT, LENGTH, QUERIES, open_model

from stitch.conversions.consolidation.arms import ModelAndText, fit, queries_about
from stitch.conversions.consolidation.slow_weights import apply_edit
from stitch.evaluation.intervals import ratio_interval
from stitch.evaluation.relearning import STEPS, area, in_pieces, learn, restored
from stitch.evaluation.scores import evaluate, whole_model
from stitch.text.documents import read, select
from stitch.text.tokenizers import bos_of

LEARN, LEARN_RATE = 8, 3e-4
RELEARN_RATE = 1e-4
UNLEARN_RATE, BETA, MOST = 1e-4, 0.1, 100  # of NPO: rate, temperature, steps at most
RETAIN, RETAINED = 10.0, 1  # weight of the KL on other text, and its windows per step
NOISE = 0.1  # standard deviation of the noise, in units of each tensor's own
DISTIL, DISTIL_RATE, WINDOWS = 40, 3e-4, 2  # steps, and windows of 256 tokens per step
COST_TOKENS = 2_048
Weights = list[Tensor]


def documents(setup: ModelAndText, count: int) -> list[Int[Tensor, " tokens"]]:
    """Long enough documents of the report split of which nothing is in the text that costs are measured on."""
    used, found = set(setup.windows["report"].document.unique().tolist()), []
    for place, (_, text) in enumerate(select(read("docs"), "report")):
        ids = setup.model.tokenizer.encode(text, add_special_tokens=False, verbose=False)
        if place not in used and len(ids) >= CONTEXT + QUERIES * LENGTH:
            found.append(torch.tensor(ids[: CONTEXT + QUERIES * LENGTH]))
        if len(found) == count:
            break
    return found


class Workbench:
    """One model whose weights are set, trained and measured; other text for retaining and for costs."""

    def __init__(self, setup: ModelAndText) -> None:
        self.setup, self.net = setup, setup.model.net
        self.other = setup.windows["fit"].ids.long()
        self.cost_text = setup.windows["report"].first(COST_TOKENS)
        self.never = self.weights()
        self.before = self.ce(self.cost_text)

    def weights(self) -> Weights:
        return [one.detach().clone() for one in self.net.parameters()]

    @torch.no_grad()
    def set(self, weights: Weights) -> None:
        for one, value in zip(self.net.parameters(), weights, strict=True):
            one.copy_(value)

    def pieces(self, ids: Int[Tensor, " tokens"]) -> list[Tensor]:
        return in_pieces(ids, bos_of(self.setup.model.tokenizer), self.setup.model.longest)

    def log_probabilities(self, ids: Int[Tensor, "windows length"]) -> Float[Tensor, "windows length vocabulary"]:
        return self.net(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)

    @torch.no_grad()
    def ce_on(self, ids: Int[Tensor, " tokens"]) -> float:
        (piece,) = self.pieces(ids)
        found = self.log_probabilities(piece)[0, :-1]
        return float(-found.gather(1, piece[0, 1:, None]).mean())

    def ce(self, windows) -> float:
        row = {"model": whole_model(self.net)}
        return evaluate(row, windows, vocabulary=self.setup.model.vocabulary)["model"].ce

    @torch.no_grad()
    def ce_of_queries(self, ids: Int[Tensor, " tokens"]) -> float:
        """On the tokens behind the document, as many as fit into the context with it; nothing was trained on them."""
        (whole,) = self.pieces(ids[: self.setup.model.longest - 1])
        found = self.log_probabilities(whole)[0, :-1]
        return float(-found.gather(1, whole[0, 1:, None])[CONTEXT:].mean())

    def measured(self, weights: Weights, ids: Tensor, another: Tensor) -> dict:
        """Relearning curves on the document and on another one, and the cost of the weights on other text."""
        found = {}
        for name, document in (("document", ids), ("another", another)):
            self.set(weights)
            with restored(self.net):
                found[name] = learn(self.net, self.pieces(document[:CONTEXT]), RELEARN_RATE)
                if name == "document":
                    found["queries_after"] = self.ce_of_queries(ids)
        self.set(weights)
        found["queries"] = self.ce_of_queries(ids)
        found["cost"] = self.ce(self.cost_text) - self.before
        return found

    def learned(self, ids: Tensor) -> Weights:
        self.set(self.never)
        for one in self.net.parameters():
            one.requires_grad_(True)
        learn(self.net, self.pieces(ids), LEARN_RATE, LEARN)
        return self.weights()

    def unlearned(
        self, learned: Weights, ids: Tensor, target: float, generator: torch.Generator
    ) -> tuple[Weights, int]:
        """NPO until the cross-entropy on `ids` is `target`, the last step shortened; and the number of steps."""
        self.set(learned)
        (piece,) = self.pieces(ids)
        optimiser = torch.optim.AdamW(self.net.parameters(), lr=UNLEARN_RATE, weight_decay=0)
        reference = -self.ce_on(ids) * len(ids)  # log-probability of the document under the learned model
        for step in range(1, MOST + 1):
            last = self.weights()
            some = self.other[torch.randint(len(self.other), (RETAINED,), generator=generator)]
            self.set(learned)
            with torch.no_grad():
                wanted = self.log_probabilities(some)
            self.set(last)
            optimiser.zero_grad()
            own = self.log_probabilities(piece)[0, :-1].gather(1, piece[0, 1:, None]).sum()
            forget = -2 / BETA * nn.functional.logsigmoid(-BETA * (own - reference) / len(ids))
            retain = (wanted.exp() * (wanted - self.log_probabilities(some))).sum(-1).mean()
            (forget + RETAIN * retain).backward()
            optimiser.step()
            if self.ce_on(ids) >= target:
                return self.between(last, self.weights(), ids, target), step
        raise SystemExit(f"not unlearned in {MOST} steps: {self.ce_on(ids):.3f} of {target:.3f} nats")

    def between(self, low: Weights, high: Weights, ids: Tensor, target: float) -> Weights:
        """The weights on the line from `low` to `high` with that cross-entropy, by bisection."""
        start, stop, found = 0.0, 1.0, high
        for _ in range(20):
            share = (start + stop) / 2
            found = [torch.lerp(a, b, share) for a, b in zip(low, high, strict=True)]
            self.set(found)
            off = self.ce_on(ids) - target
            if abs(off) < 1e-3:
                break
            start, stop = (start, share) if off > 0 else (share, stop)
        return found

    def distilled(self, weights: Weights, teacher: Weights, seed: int) -> Weights:
        """The weights with noise, then trained to predict other text as the teacher does."""
        generator = torch.Generator().manual_seed(seed)
        self.set(teacher)
        batches = [self.other[torch.randint(len(self.other), (WINDOWS,), generator=generator)] for _ in range(DISTIL)]
        with torch.no_grad():
            wanted = [self.log_probabilities(some) for some in batches]
        spread = [NOISE * one.std() if one.numel() > 1 else torch.zeros(()) for one in weights]
        noise = [torch.randn(one.shape, generator=generator) for one in weights]
        self.set([one + size * drawn for one, size, drawn in zip(weights, spread, noise, strict=True)])
        optimiser = torch.optim.AdamW(self.net.parameters(), lr=DISTIL_RATE, weight_decay=0)
        for number, (some, goal) in enumerate(zip(batches, wanted, strict=True)):
            for group in optimiser.param_groups:
                group["lr"] = DISTIL_RATE * (1 - number / DISTIL)
            optimiser.zero_grad()
            (goal.exp() * (goal - self.log_probabilities(some))).sum(-1).mean().backward()
            optimiser.step()
        return self.weights()

    def consolidated(self, ids: Tensor, seed: int) -> tuple[Weights, Weights]:
        """A document written in, and taken out again."""
        self.set(self.never)
        self.net.requires_grad_(False)
        edit = fit(self.setup, queries_about(self.setup.model, ids, seed), 0.02, seed)
        replaced = apply_edit(self.setup.model, edit)
        written = self.weights()
        own = dict(self.net.named_parameters())
        with torch.no_grad():
            for name, value in replaced.items():
                own[name].copy_(value)
        self.net.requires_grad_(True)
        return written, self.weights()


def measure(bench: Workbench, ids: Tensor, another: Tensor, plain: Weights, seed: int) -> tuple[dict[str, dict], int]:
    """What `measured` gives for every arm, and the steps of unlearning."""
    document = ids[:CONTEXT]
    written, undone = bench.consolidated(document, seed)
    bench.set(bench.never)
    target = bench.ce_on(document)
    learned = bench.learned(document)
    unlearned, steps = bench.unlearned(learned, document, target, torch.Generator().manual_seed(seed))
    arms = {
        "never learned": bench.never,
        "consolidated": written,
        "undone": undone,
        "learned": learned,
        "unlearned": unlearned,
        "distilled from never": bench.distilled(unlearned, bench.never, seed),
        "distilled from itself": bench.distilled(unlearned, unlearned, seed),
        "never learned, distilled": plain,
    }
    return {name: bench.measured(weights, ids, another) for name, weights in arms.items()}, steps


def interval(values: list[float]) -> list[float]:
    """Mean and its 95 % interval over documents."""
    found = torch.tensor(values, dtype=torch.float64)
    return [float(found.mean()), *ratio_interval(found, torch.ones_like(found))]


def fall(curve: Tensor) -> float:
    return STEPS * float(curve[0]) - area(curve)


def lines(found: list[dict[str, dict]]) -> Iterator[dict]:
    """A line per arm."""
    never = [one["never learned"] for one in found]

    def areas(arm: list[dict], of: str, base: list[dict]) -> list[float]:
        return [area(other[of] - one[of]) for one, other in zip(arm, base, strict=True)]

    def falls(arm: list[dict], of: str, base: list[dict]) -> list[float]:
        return [fall(one[of]) - fall(other[of]) for one, other in zip(arm, base, strict=True)]

    def less_another(of: Callable, arm: list[dict], base: list[dict]) -> list[float]:
        both = zip(of(arm, "document", base), of(arm, "another", base), strict=True)
        return [own - another for own, another in both]

    def beyond(arm: list[dict], key: str) -> list[float]:
        return interval([one[key] - other[key] for one, other in zip(arm, never, strict=True)])

    for name in found[0]:
        arm = [one[name] for one in found]
        line = {
            "arm": name,
            "curve": torch.stack([one["document"] for one in arm]).mean(0).tolist(),
            "curve_another": torch.stack([one["another"] for one in arm]).mean(0).tolist(),
            "savings": interval(less_another(areas, arm, never)),
            "after_start": interval(less_another(falls, arm, never)),
            "area_alone": interval(areas(arm, "document", never)),
            "fall_alone": interval(falls(arm, "document", never)),
            "queries": beyond(arm, "queries"),
            "queries_after": beyond(arm, "queries_after"),
            "cost": interval([one["cost"] for one in arm]),
            "savings_by_document": [round(one, 4) for one in less_another(areas, arm, never)],
            "after_start_by_document": [round(one, 4) for one in less_another(falls, arm, never)],
        }
        if name.startswith("distilled"):
            plain = [one["never learned, distilled"] for one in found]
            line["savings_over_distilled"] = interval(less_another(areas, arm, plain))
        yield line
    unlearned = [one["unlearned"] for one in found]
    yield {
        "arm": "null:another document",
        "curve": torch.stack([one["another"] for one in unlearned]).mean(0).tolist(),
        "area_alone": interval(areas(unlearned, "another", never)),
        "fall_alone": interval(falls(unlearned, "another", never)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo:gpt2")
    parser.add_argument("--documents", type=int, default=12)
    parser.add_argument("--small", action="store_true", help="A third of the documents.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--minutes", type=float, default=20.0, help="of processor time, after which no document is begun"
    )
    options = parser.parse_args()
    bench = Workbench(open_model(options.model))
    count = options.documents // 3 if options.small else options.documents
    chosen = documents(bench.setup, count + 1)
    bench.net.requires_grad_(True)
    plain = bench.distilled(bench.never, bench.never, options.seed)
    found, steps = [], []
    for ids, another in pairwise(chosen):
        rows, taken = measure(bench, ids, another, plain, options.seed + len(found))
        found.append(rows)
        steps.append(taken)
        print(f"{len(found)} documents, {time.process_time():.0f} s", file=sys.stderr)
        if time.process_time() > 60 * options.minutes:
            break
    for line in lines(found):
        common = {"model": options.model, "seed": options.seed, "documents": len(found)}
        more = {"unlearning_steps": sum(steps) / len(steps)} if line["arm"] == "unlearned" else {}
        print(json.dumps({"benchmark": "traces", **common, **line, **more}), flush=True)


if __name__ == "__main__":
    main()
