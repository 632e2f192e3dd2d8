"""Two models that read different tokens, joined so that the composite ends in A's own head: one JSON line.

    python benchmarks/own_head.py demo:gpt2 demo:neox --layer 3 --layer-b 3

The composite is a chain: A's blocks before `--layer`, B's from `--layer-b` on, and A's final norm and head.
The report of the second seam has its rows in nats per token of A; here they are in bits per byte as well.
"""

import argparse
import json
import tempfile
import time
from math import log
from pathlib import Path

from stitch.composite.parts import Part
from stitch.jobs.chain import chain
from stitch.models.describe import describe

# Rows of the second seam. There model A is the composite that ends in B, with a head made for A's tokens, and model B is A whole.
NAMES = {
    "a": "with a head for A's tokens",
    "b": "A whole",
    "composite": "composite",
    "reference:own-tables": "A with tables for its first blocks",
    "reference:b-skip": "A without B: its first blocks, the same translation, its head",
    "null:no-source": "look-ups alone",
}
KEPT = ("ce", "ce_low", "ce_high", "flops", "bytes")


def line(given: argparse.Namespace) -> dict:
    began = time.perf_counter()
    depth = {name: describe(name)["blocks"] for name in (given.a, given.b)}
    parts = [Part(given.a, 0, given.layer), Part(given.b, given.layer_b, depth[given.b]), Part(given.a, depth[given.a])]
    with tempfile.TemporaryDirectory() as folder:
        report, out = chain(
            parts, Path(folder) / "chain", tokens=given.tokens, held_out=given.held_out, context=given.context,
            features=given.features, sae_passes=1.0, memory=given.memory, brief=given.brief,
        )  # fmt: skip
        first = json.loads((out / "seam-1" / "report.json").read_text())
    per_byte = 1 / (log(2) * first["across"]["bytes_per_token"])

    def in_bits(row: dict) -> dict:
        return {"bpb" + key.removeprefix("ce"): row[key] * per_byte for key in KEPT[:3]}

    rows = {row["name"]: row for row in report["results"]}
    differences = {row["minus"]: row for row in report["differences"] if row["name"] == "composite"}
    return {
        "benchmark": "own_head", "a": given.a, "b": given.b, "site": {"a": given.layer, "b": given.layer_b},
        "tokens": report["tokens"], "documents": report["documents"], "chosen": report["chosen"],
        "results": [
            {"row": made, **{key: rows[name][key] for key in KEPT}, **in_bits(rows[name])}
            for name, made in NAMES.items() if name in rows
        ],
        "differences": [
            {"minus": made, **in_bits(differences[name])} for name, made in NAMES.items() if name in differences
        ],
        "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a")
    parser.add_argument("b")
    parser.add_argument("--layer", type=int, required=True)
    parser.add_argument("--layer-b", type=int, required=True)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--held-out", type=int, default=16_384)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--features", type=int, default=640)
    parser.add_argument("--memory", type=int, default=2**32)
    parser.add_argument("--brief", action=argparse.BooleanOptionalAction, default=False)
    print(json.dumps(line(parser.parse_args())), flush=True)


if __name__ == "__main__":
    main()
