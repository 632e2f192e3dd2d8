"""The lines of docs/findings/sweep.md, from the report of a sweep.

    stitch sweep demo:gpt2 demo:llama --out sweep
    python benchmarks/sweep.py sweep/report.json > benchmarks/results/sweep.jsonl

A line per composite, alternative and point of a front, as `report.json` has them, and one that counts. Costs are in millions.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from stitch.report.sweep import SAME, better, described

COSTS = ("flops", "bytes", "bytes_read", "parameters")
ENDS = ("ce", "ce_low", "ce_high")


def lines(report: dict) -> Iterator[dict]:
    cells = report["cells"]
    yield {
        "part": "counts",
        "cells": len(cells),
        "ahead": better(cells, "rival"),
        "ahead_within_bytes": better(cells, "rival_within_bytes"),
        "beat_null": sum(cell["null"]["ce"] - cell["translations"][cell["chosen"]]["ce"] > SAME for cell in cells),
        "documents": report["documents"],
        "tokens": report["tokens"],
    }
    for cell in cells:
        blocks = report["depth"][cell["target"]] - cell["j"]  # of the target
        row = cell["translations"][cell["chosen"]]
        yield {
            "part": "cell", "both": cell["i"] > 0 and blocks > 0,
            **{key: cell[key] for key in ("source", "target", "i", "j", "chosen")},
            "name": f"{report['models'][cell['source']]}.{cell['i']} → {report['models'][cell['target']]}.{cell['j']}",
            **shortened(row), "null": round(cell["null"]["ce"], 4),
            **{key: rival(cell[key]) for key in ("rival", "rival_within_bytes", "rival_without_tables")},
        }  # fmt: skip
    for one in report["alternatives"]:
        yield {"part": "alternative", "model": one["model"], "kind": one["kind"], "made": one["made"], **shortened(one)}
    for cost, points in report["fronts"].items():
        for point in points:
            yield {"part": "front", "cost": cost, "name": described(point, report), **shortened(point)}


def shortened(one: dict) -> dict:
    return {key: round(one[key], 4) for key in ENDS} | {cost: round(one[cost] / 1e6, 4) for cost in COSTS}


def rival(one: dict | None) -> dict | None:
    if one is None:
        return None
    numbers = {key: round(one[key], 4) for key in ("ce", "above", "above_low", "above_high")}
    return {"made": one["made"], **numbers, **{cost: round(one[cost] / 1e6, 4) for cost in ("flops", "bytes")}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="report.json of a sweep")
    for line in lines(json.loads(parser.parse_args().report.read_text())):
        print(json.dumps(line, ensure_ascii=False))


if __name__ == "__main__":
    main()
