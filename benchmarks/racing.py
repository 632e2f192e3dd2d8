"""The choice of the translation by racing beside scoring every row on all its text. One JSON line per pair of layers.

Both run on the same fitted translations of `stitch join`, the slower one first in every second pair. The pairs are sites of
the two embedded models, in both directions.
"""

import argparse
import json
import time
from contextlib import suppress
from pathlib import Path

from stitch.config import Settings
from stitch.evaluation import scoring
from stitch.jobs import join

PAIRS = {
    ("demo:gpt2", "demo:llama"): ((3, 4), (1, 2), (2, 3), (5, 6)),
    ("demo:llama", "demo:gpt2"): ((4, 3), (2, 1), (5, 4), (7, 5)),
}
FIRST = {"racing": scoring.FIRST, "all": scoring.CHOICE}


class Chosen(Exception):
    """Ends a job after its choice."""


def compared(settings: Settings, work: Path, ways: list[str]) -> dict:
    line: dict = {"chosen": {}, "seconds": {}}

    def both(complete, fitted, *rest) -> str:
        for way in ways:
            scoring.FIRST, start = FIRST[way], time.perf_counter()
            line["chosen"][way] = scoring.choose(complete, fitted, *rest)
            line["seconds"][way] = time.perf_counter() - start
        line["rows"] = len(rest[0])  # candidates
        raise Chosen

    join.choose = both
    with suppress(Chosen):
        join.stitch(settings, work, overwrite=True)
    return line


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=30_000)
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks/racing"))
    given = parser.parse_args()
    ways = list(FIRST)
    for (a, b), sites in PAIRS.items():
        for layer, layer_b in sites:
            settings = Settings(
                model_a=a, model_b=b, layer=layer, layer_b=layer_b, tokens=given.tokens, features=1024, sae_passes=0.5
            )
            ways.reverse()
            found = compared(settings, given.work, ways)
            line = {"benchmark": "racing", "models": {"a": a, "b": b}, "site": {"a": layer, "b": layer_b}}
            print(json.dumps({**line, "tokens": scoring.CHOICE, **found}), flush=True)


if __name__ == "__main__":
    main()
