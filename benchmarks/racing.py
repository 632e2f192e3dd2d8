"""Racing beside scoring every row on all its text: the choice of the translation, and the rows of a report.

One JSON line per pair of layers. Both ways run on the same fitted translations of `stitch join`; which is first alternates. The
pairs are sites of the two embedded models, in both directions. `choice` has what either way chooses, `report` the seconds of
either way, and of the rows that racing drops how far their numbers are from those on all text. Alternatives, which are never
dropped, are left out.
"""

import argparse
import json
import time
from contextlib import suppress
from pathlib import Path

from stitch.config import Settings
from stitch.evaluation import scoring
from stitch.evaluation.scores import Scores
from stitch.jobs import join

PAIRS = {
    ("demo:gpt2", "demo:llama"): ((3, 4), (1, 2), (2, 3), (5, 6)),
    ("demo:llama", "demo:gpt2"): ((4, 3), (2, 1), (5, 4), (7, 5)),
}
HELD_OUT = 8192  # tokens to choose on, and as many to report on: 128 windows
WAYS = ["racing", "all"]
FIRST = scoring.FIRST  # tokens before a row may be dropped


class Measured(Exception):
    """Ends a job after its evaluation."""


def compared(settings: Settings, work: Path, ways: list[str]) -> dict:
    choose, evaluate_all, line = scoring.choose, scoring.evaluate_all, {"choice": {}, "report": {}}

    def both(call, name: str) -> dict:
        """What `call` returns by way, with the seconds in `line`."""
        found, seconds = {}, {}
        for way in ways:
            scoring.FIRST = FIRST if way == "racing" else 10**9  # tokens, more than any split has
            start = time.perf_counter()
            found[way] = call()
            seconds[way] = time.perf_counter() - start
        line[name] = {"seconds": seconds}
        return found

    def choice(*given) -> str:
        found = both(lambda: choose(*given), "choice")
        line["choice"] |= {"chosen": found, "rows": len(given[2])}
        return found["racing"]

    def evaluation(*given, **more) -> dict[str, Scores]:
        found = both(lambda: evaluate_all(*given, **more), "report")
        line["report"] |= agreement(found["racing"], found["all"])
        raise Measured

    join.choose, join.evaluate_all, join.alternatives = choice, evaluation, lambda *given, **more: {}
    with suppress(Measured):
        join.stitch(settings, work, overwrite=True, restart=True)  # the last one was left by `Measured`
    return line


def agreement(raced: dict[str, Scores], whole: dict[str, Scores]) -> dict:
    """Of the rows that were dropped: how many, and how their distance to the composite differs from that on all text."""
    dropped = {name: scores for name, scores in raced.items() if scores.sample is not None}
    errors, inside = [], 0
    for name, scores in dropped.items():
        low, high = scores.interval(minus=raced["composite"])
        distance = whole[name].ce - whole["composite"].ce
        errors.append(abs(scores.ce - raced["composite"].ce - distance))
        inside += low <= distance <= high
    by_loss = {
        way: sorted(found, key=lambda name: found[name].ce) for way, found in (("raced", raced), ("whole", whole))
    }
    return {
        "rows": len(raced), "dropped": len(dropped), "largest_error": max(errors, default=0.0), "inside": inside,
        "tokens": int(whole["b"].tokens.sum()), "documents": whole["b"].documents,
        "same_best": by_loss["raced"][:5] == by_loss["whole"][:5],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=30_000)
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks/racing"))
    given = parser.parse_args()
    for (a, b), sites in PAIRS.items():
        for layer, layer_b in sites:
            settings = Settings(
                model_a=a, model_b=b, layer=layer, layer_b=layer_b, tokens=given.tokens, features=1024, sae_passes=0.5,
                reference_steps=0,
                context=64, held_out=HELD_OUT,
            )  # fmt: skip
            WAYS.reverse()
            found = compared(settings, given.work, WAYS)
            line = {"benchmark": "racing", "models": {"a": a, "b": b}, "site": {"a": layer, "b": layer_b}}
            print(json.dumps({**line, **found}), flush=True)


if __name__ == "__main__":
    main()
