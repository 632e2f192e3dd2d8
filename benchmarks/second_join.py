"""What a second join with another `layer_b` takes from the cache, and what that saves.

SmolLM2 is joined to itself at one site of A and two of B, one after the other with one cache; then at the second again without a
cache. One JSON line per join: seconds by stage, what was found, peak memory, and the files that have other bytes than those of
the same join without a cache. Arguments that are not listed are added to the commands.
"""

import argparse
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

from _processes import measured

CLI = Path(__file__).resolve().parent.parent / "cli.py"
MODEL, LAYER, LAYERS_B = "smollm2", 14, (18, 22)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL)
    options, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        first, second = LAYERS_B
        lines = [
            join(options.model, first, more, place / "first", place / "cache"),
            join(options.model, second, more, place / "second", place / "cache"),
            join(options.model, second, [*more, "--cache-size", "0"], place / "alone", place / "cache"),
        ]
        different = [
            name for name, digest in digests(place / "second").items() if digests(place / "alone").get(name) != digest
        ]
        lines[1]["other_bytes_than_alone"] = different
        for line in lines:
            print(json.dumps(line))


def join(model: str, layer_b: int, more: list[str], out: Path, cache: Path) -> dict:
    """Joins in a process and returns its line."""
    os.environ["STITCH_CACHE"] = str(cache)
    command = ["join", model, model, "--layer", str(LAYER), "--layer-b", str(layer_b), "--out", str(out), *more]
    process = measured([sys.executable, str(CLI), *command])
    report = json.loads((out / "report.json").read_text())
    print(f"{layer_b}: {process}, {report['seconds']}, {report['cache']}", file=sys.stderr, flush=True)
    return {
        "benchmark": "second_join", "model": model, "layer": LAYER, "layer_b": layer_b, "options": " ".join(more),
        "seconds": report["seconds"], "cache": report["cache"], "process": process, "results": report["results"],
    }  # fmt: skip


def digests(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


if __name__ == "__main__":
    main()
