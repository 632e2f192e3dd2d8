"""Conjecture: layers of two models, joined without training, give a model that is worth its cost.

    python benchmarks/conjectures/own_tables.py

`stitch sweep` of the embedded pair: a composite at every pair of sites, in both directions, beside both models with n-gram
tables in place of their first blocks, fitted on the same text. FLOPs count heads. Only composites with blocks of both models
count: the sweep also has those of an embedding alone. One is above the front where some model without the other's blocks has a
lower cross-entropy at no more FLOPs, or at no more bytes.

Rule, set before the run: refuted where no composite is on the front of cross-entropy and FLOPs and none on that of bytes;
holds where one is on both; partly otherwise. The sweep split alone is scored, without intervals: the pages on single pairs
have them.
"""

import argparse
import tempfile
from pathlib import Path

import _shared

import stitch


def measure(name: str, given: argparse.Namespace) -> None:
    a, b = name.split(" + ")
    with tempfile.TemporaryDirectory() as folder:
        report = stitch.sweep(
            a, b, tokens=20_000 if given.small else 100_000, cache_size=0, out=Path(folder) / "sweep", quiet=True
        ).report
    on_front = {
        cost: [_place(one) for one in report["fronts"][cost] if one["model"] == "composite" and _joins(one, report)]
        for cost in ("flops", "bytes")
    }
    behind = sorted(
        (cell["translations"][cell["chosen"]]["ce"] - cell["rival"]["ce"], _place(cell), cell["rival"]["made"])
        for cell in report["cells"]
        if cell["rival"] is not None and _joins(cell, report)
    )
    assert behind, "no composite costs as much as any model without the other's blocks"
    wins = [bool(found) for found in on_front.values()]
    _shared.tell(
        "own_tables", name, "holds" if all(wins) else "partly" if any(wins) else "refuted",
        composites=sum(_joins(cell, report) for cell in report["cells"]),
        on_front=on_front, nearest={"ce": behind[0][0], "cell": behind[0][1], "rival": behind[0][2]},
        ahead=sum(one[0] < 0 for one in behind), compared=len(behind), middle=behind[len(behind) // 2][0],
        tokens=report["tokens"], context=report["context"],
    )  # fmt: skip


def _joins(found: dict, report: dict) -> bool:
    """Whether blocks of both models run."""
    return found["i"] > 0 and found["j"] < report["depth"][found["target"]]


def _place(found: dict) -> str:
    """ "a3 → b4": the sites of a composite."""
    return f"{found['source']}{found['i']} → {found['target']}{found['j']}"


if __name__ == "__main__":
    _shared.run(__doc__, ["demo:gpt2 + demo:llama"], measure)
