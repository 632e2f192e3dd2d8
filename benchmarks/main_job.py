"""The main job on the embedded pair in both directions: a JSON line per row and per paired difference, with what the
reports of both directions say of it, and one line per report.

    python benchmarks/main_job.py > build/main_job.jsonl
    python benchmarks/main_job.py --tokens 100000 --seed 1
"""

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from stitch.config import Settings
from stitch.jobs.join import stitch

DIRECTIONS = {"gpt2-llama": ("demo:gpt2", "demo:llama", 3), "llama-gpt2": ("demo:llama", "demo:gpt2", 4)}
KEPT = ("verdict", "models", "site", "tokens", "documents", "saes", "matching", "chosen", "seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, help="Tokens to fit on. Default: as for `stitch join`.")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    reports = {}
    with tempfile.TemporaryDirectory() as folder:
        for direction, (a, b, layer) in DIRECTIONS.items():
            settings = Settings(model_a=a, model_b=b, layer=layer, tokens=given.tokens, seed=given.seed)
            reports[direction], _ = stitch(settings, Path(folder) / direction)
    for line in lines(reports):
        print(json.dumps({"benchmark": "main_job", "seed": given.seed, **line}))


def lines(reports: dict[str, dict]) -> Iterator[dict]:
    for direction, report in reports.items():
        yield {"kind": "report", "direction": direction, **{name: report[name] for name in KEPT}}
    for kind, of_report in (("row", "results"), ("difference", "differences")):
        both: dict[tuple[str, str | None], dict] = defaultdict(dict)
        for direction, report in reports.items():
            for found in report[of_report]:
                both[found["name"], found.get("minus")][direction] = found
        for (name, minus), found in both.items():
            yield {"kind": kind, "name": name, "minus": minus, **found}


if __name__ == "__main__":
    main()
