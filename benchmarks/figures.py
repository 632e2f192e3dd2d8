"""The figures in docs/findings, drawn from the JSON lines in benchmarks/results.

    python benchmarks/figures.py                            draws all of FIGURES into benchmarks/figures
    python benchmarks/figures.py healing                    draws one
    python benchmarks/figures.py healing --lines NEW.jsonl --out NEW.png

`sweep.png` and `depth….png` are not drawn here: `stitch sweep` writes them. Colours are those of `stitch/report/palette.py`.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

from _lines import read
from drawings import (
    consolidate,
    graft_training,
    heads,
    healing,
    inspected,
    main_job,
    ngram,
    readable,
    recurrent,
    recurrent_long,
    seam_bytes,
    slopes,
    synthesis,
)
from matplotlib.figure import Figure

from stitch.report.figure import save, style

HERE = Path(__file__).resolve().parent
FIGURES: dict[str, tuple[Callable[[list[dict]], Figure], tuple[str, ...]]] = {  # what draws it, and from which results
    "conversions-consolidate": (consolidate.draw, ("conversions_consolidate", "consolidate_capacity")),
    "conversions-heads": (heads.draw, ("conversions_heads",)),
    "conversions-ngram": (ngram.draw, ("conversions_ngram",)),
    "conversions-recurrent": (recurrent.draw, ("conversions_recurrent",)),
    "graft-training": (graft_training.draw, ("graft_training",)),
    "head-maps": (inspected.draw_heads, ("conjectures",)),
    "head-maps-smollm2": (partial(inspected.draw_heads, model="smollm2"), ("inspect_heads",)),
    "healing": (healing.draw, ("healing",)),
    "main_job": (main_job.draw, ("main_job",)),
    "readable": (readable.draw, ("readable",)),
    "seam-bytes": (seam_bytes.draw, ("seam_bytes",)),
    "recurrent-long": (recurrent_long.draw, ("recurrent_long",)),
    "sites": (inspected.draw_sites, ("conjectures",)),
    "slopes": (slopes.draw, ("scale",)),
    "synthesis": (synthesis.draw, ("synthesis",)),
}


def results(name: str) -> list[Path]:
    """The files that a figure is drawn from."""
    return [HERE / "results" / f"{file}.jsonl" for file in FIGURES[name][1]]


def drawn(name: str, files: list[Path]) -> Figure:
    """A figure from lines as those in benchmarks/results are."""
    return FIGURES[name][0]([line for file in files for line in read(file)])


@style()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=FIGURES, help="Default: all.")
    parser.add_argument("--lines", type=Path, nargs="+", help="Draw these in place of benchmarks/results.")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if not given.name and (given.lines or given.out):
        parser.error("--lines and --out need the NAME of a figure")
    for name in [given.name] if given.name else FIGURES:
        save(drawn(name, given.lines or results(name)), given.out or HERE / "figures" / f"{name}.png")


if __name__ == "__main__":
    main()
