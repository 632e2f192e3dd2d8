"""Conjecture: what was unlearned leaves a trace, which only adversarial training removes; an exact undo leaves none.

    `trace remains`               holds if `unlearned` is learned faster: its `after_start` above 0, the interval clear of 0
    `needs adversarial training`  is refuted if the interval of the `savings` of a `distilled …` arm includes 0, or is below it
    `adversarial training helps`  holds if for `against relearning` the interval of `after_start` includes 0, or is below it, both
                                  at the rate that it was trained against and at three times that rate
    `undo leaves none`            holds if the savings of `undone` are exactly 0

A document is the first 128 tokens of a document of the report split, as in `conversions_consolidate.py`; the next 127 tokens
are the queries, on which nothing is trained. A relearning curve is the cross-entropy on the document before and after each of 8
steps of AdamW on it, as in `stitch eval --trace`. All of the following is in nats · steps, over `never learned`, and less the
same on another document that no arm has seen, so that general damage and its repair do not count as a trace:

    savings      the area between the curve of `never learned` and that of the arm
    after_start  the same with each curve from its own start: how much faster it falls. For `unlearned` the starts are matched
    …_other     the same at three times the rate

The first, second and fourth rule were written before the run, after a first try with two documents. There NPO without a strong
KL on other text damaged that by 0.5 nats, and documents came back by distillation alone, before any relearning; so RETAIN was
chosen on two documents of the sweep split, and the distilled arms, whose start is free, are judged by `savings`. The third rule
and the settings of its arm were chosen later, on two documents of the sweep split, before it was run on any other. That rule
proved weak, since `learned` passes it too: what damages other documents makes them fall faster. The ledger goes by `savings`.
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
    against relearning          `unlearned`, then trained so that it relearns the document as slowly as `never learned`
    null:another document       `unlearned` on the other document, with nothing subtracted

Each document has seeds of its own for the noise and for the other text, so intervals hold what these bring, but for `never
learned, distilled`, which is one model. The other document is the next one, so neighbours share a document.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from _lines import read
from _unlearning import SETTINGS, Weights, Workbench, documents
from conversions_consolidate import CONTEXT, open_model

from stitch.evaluation.intervals import ratio_interval
from stitch.evaluation.relearning import STEPS, area


def measure(bench: Workbench, ids: Tensor, another: Tensor, plain: Weights, seed: int) -> tuple[dict[str, dict], int]:
    """What `measured` gives for every arm, and the steps of unlearning."""
    document = ids[:CONTEXT]
    written, undone = bench.consolidated(document, seed)
    bench.set(bench.never)
    target = bench.ce_on(document)
    never = bench.measured(bench.never, ids, another)
    learned = bench.learned(document)
    draws = torch.Generator().manual_seed(seed)
    unlearned, steps = bench.unlearned(learned, document, target, draws)
    arms = {
        "consolidated": written,
        "undone": undone,
        "learned": learned,
        "unlearned": unlearned,
        "distilled from never": bench.distilled(unlearned, bench.never, seed),
        "distilled from itself": bench.distilled(unlearned, unlearned, seed),
        "never learned, distilled": plain,
        "against relearning": bench.against_relearning(unlearned, learned, document, never["document"], draws),
    }
    measured = {name: bench.measured(weights, ids, another) for name, weights in arms.items()}
    return {"never learned": never, **measured}, steps


def mean_curve(arm: list[dict], of: str) -> list[float]:
    return torch.tensor([one[of] for one in arm], dtype=torch.float64).mean(0).tolist()


def interval(values: list[float]) -> list[float]:
    """Mean and its 95 % interval over documents."""
    found = torch.tensor(values, dtype=torch.float64)
    return [float(found.mean()), *ratio_interval(found, torch.ones_like(found))]


def under(curve: list[float]) -> float:
    return area(torch.tensor(curve, dtype=torch.float64))


def fall(curve: list[float]) -> float:
    return STEPS * curve[0] - under(curve)


def lines(found: list[dict[str, dict]]) -> Iterator[dict]:
    """A line per arm."""
    never = [one["never learned"] for one in found]

    def areas(arm: list[dict], of: str, base: list[dict]) -> list[float]:
        return [under(other[of]) - under(one[of]) for one, other in zip(arm, base, strict=True)]

    def falls(arm: list[dict], of: str, base: list[dict]) -> list[float]:
        return [fall(one[of]) - fall(other[of]) for one, other in zip(arm, base, strict=True)]

    def less_another(of: Callable, arm: list[dict], base: list[dict], rate: str = "") -> list[float]:
        both = zip(of(arm, "document" + rate, base), of(arm, "another" + rate, base), strict=True)
        return [own - another for own, another in both]

    def beyond(arm: list[dict], key: str) -> list[float]:
        return interval([one[key] - other[key] for one, other in zip(arm, never, strict=True)])

    for name in found[0]:
        arm = [one[name] for one in found]
        line = {
            "arm": name,
            "curve": mean_curve(arm, "document"),
            "curve_another": mean_curve(arm, "another"),
            "savings": interval(less_another(areas, arm, never)),
            "after_start": interval(less_another(falls, arm, never)),
            "savings_other": interval(less_another(areas, arm, never, ", other rate")),
            "after_start_other": interval(less_another(falls, arm, never, ", other rate")),
            "area_alone": interval(areas(arm, "document", never)),
            "fall_alone": interval(falls(arm, "document", never)),
            "fall_alone_other": interval(falls(arm, "document, other rate", never)),
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
        "curve": mean_curve(unlearned, "another"),
        "area_alone": interval(areas(unlearned, "another", never)),
        "fall_alone": interval(falls(unlearned, "another", never)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo:gpt2")
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="To measure the rest in another process.")
    parser.add_argument("--small", action="store_true", help="Four documents.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=20.0, help="of processor time, after which none is begun")
    parser.add_argument("--lines", type=Path, default=Path("build/benchmarks/traces.jsonl"), help="What is measured.")
    options = parser.parse_args()
    wanted = range(options.first, 4 if options.small else options.documents)
    options.lines.parent.mkdir(parents=True, exist_ok=True)
    options.lines.touch()

    def kept() -> dict[int, dict]:
        same = {"model": options.model, "seed": options.seed, "settings": SETTINGS}
        return {line["document"]: line for line in read(options.lines) if same.items() <= line.items()}

    before = kept()
    if missing := [number for number in wanted if number not in before]:
        bench = Workbench(open_model(options.model))
        chosen = list(pairwise(documents(bench.setup, wanted.stop + 1)))
        bench.net.requires_grad_(True)
        plain = bench.distilled(bench.never, bench.never, options.seed)
        for number in missing:
            if time.process_time() > 60 * options.minutes:
                break
            arms, steps = measure(bench, *chosen[number], plain, options.seed + number)
            run = {"model": options.model, "seed": options.seed, "settings": SETTINGS, "document": number}
            line = {**run, "steps": steps, "arms": arms}
            with options.lines.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(f"document {number}, {time.process_time():.0f} s", file=sys.stderr)
    found = [line for number, line in sorted(kept().items()) if number in wanted]
    if not found:
        raise SystemExit("no document was measured: raise --minutes or --documents")
    for line in lines([one["arms"] for one in found]):
        common = {"model": options.model, "seed": options.seed, "documents": len(found)}
        more = (
            {"unlearning_steps": sum(one["steps"] for one in found) / len(found)} if line["arm"] == "unlearned" else {}
        )
        print(json.dumps({"benchmark": "traces", **common, **line, **more}), flush=True)


if __name__ == "__main__":
    main()
