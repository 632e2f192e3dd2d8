"""The choice of the translation by racing beside scoring every row on all its text. One JSON line per pair of layers.

Both run in turn on the fitted translations of `stitch join`, `--repeats` times each; seconds are the medians. The pairs
are sites of the two embedded models, in both directions.
"""

import argparse
import json
import statistics
import time
from contextlib import suppress
from pathlib import Path

from stitch.config import Settings
from stitch.evaluation import scoring
from stitch.jobs import join

PAIRS = {
    ("demo:gpt2", "demo:llama"): ((1, 2), (2, 3), (3, 4), (5, 6)),
    ("demo:llama", "demo:gpt2"): ((2, 1), (4, 3), (5, 4), (7, 5)),
}


class Chosen(Exception):
    pass


def compared(settings: Settings, work: Path, repeats: int) -> dict:
    line = {}

    def both(complete, fitted, on, progress) -> str:
        ways = {"all": len(on.windows.ids) * on.windows.context, "racing": scoring.FIRST}
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        chosen = {}
        for _ in range(repeats):
            for way, first in ways.items():
                scoring.FIRST, start = first, time.perf_counter()
                chosen[way] = scoring.choose(complete, fitted, on, progress)
                seconds[way].append(time.perf_counter() - start)
        scoring.FIRST = ways["racing"]
        line.update(
            rows=len(fitted.translations), chosen=chosen,
            seconds={way: statistics.median(times) for way, times in seconds.items()},
        )  # fmt: skip
        raise Chosen

    join.choose = both
    with suppress(Chosen):
        join.stitch(settings, work, overwrite=True)
    return line


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks/racing"))
    given = parser.parse_args()
    for (a, b), sites in PAIRS.items():
        for layer, layer_b in sites:
            settings = Settings(
                model_a=a, model_b=b, layer=layer, layer_b=layer_b, tokens=given.tokens, features=1024, sae_passes=0.5
            )
            found = compared(settings, given.work, given.repeats)
            line = {"benchmark": "racing", "models": {"a": a, "b": b}, "site": {"a": layer, "b": layer_b}}
            print(json.dumps({**line, "tokens": scoring.CHOICE, **found}), flush=True)


if __name__ == "__main__":
    main()
