"""SmolLM2 and Gemma 3, each stitched to itself at three pairs of layers with default settings. One JSON line per pair.

A line holds report.json without its provenance: verdict, rows with all that they cost, and seconds by stage. Beside it
stand wall and CPU seconds and the peak resident set of the `stitch` command, which runs as a process of its own; the
bytes of the checkpoint's weights; and `decode`, tokens per second of greedy decoding, 64 tokens after 64, the median of
five. The donor stands there twice, as `a` and as `b`: by as much as these differ, the rates are uncertain.

Pairs that are in --lines with as many tokens and the same --options are not repeated.
"""

import argparse
import json
import shlex
import sys
import tempfile
from pathlib import Path

from _lines import read
from _processes import last_line, measured

HERE = Path(__file__).resolve().parent
PAIRS = (
    "smollm2:8:12", "smollm2:14:18", "smollm2:20:24",
    "gemma3:5:8", "gemma3:9:12", "gemma3:12:15",
)  # fmt: skip
DECODE = ("--prompt", 64, "--new", 64, "--repeats", 5)


def measure(pair: str, tokens: int, options: str) -> dict:
    """Stitches MODEL:LAYER:LAYER_B in a process, and decodes with the composite in another."""
    model, layer, layer_b = pair.rsplit(":", 2)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "composite"
        command = ("join", model, model, "--layer", layer, "--layer-b", layer_b, "--tokens", tokens, "--out", out)
        command = (*command, *shlex.split(options))
        process = measured([sys.executable, HERE.parent / "cli.py", *command])
        report = json.loads((out / "report.json").read_text())
        decode = last_line([sys.executable, HERE / "decode.py", out, *DECODE])
        weights = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    del report["provenance"]
    return {
        **report, "benchmark": "real_models", "joined": pair, "asked_tokens": tokens, "options": options, "process": process,
        "weights_bytes": weights, "decode": decode,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only",
        action="append",
        metavar="MODEL:LAYER:LAYER_B",
        help=f"Measure this pair; may be repeated. Default: {', '.join(PAIRS)}.",
    )
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument(
        "--options", default="", help="Further options of the command, as in --options='--brief --context 128'."
    )
    parser.add_argument("--lines", type=Path, default=Path("build/benchmarks/real_models.jsonl"))
    given = parser.parse_args()
    given.lines.parent.mkdir(parents=True, exist_ok=True)
    finished = read(given.lines) if given.lines.exists() else []
    for pair in given.only or PAIRS:
        asked = pair, given.tokens, given.options
        if any((line["joined"], line["asked_tokens"], line["options"]) == asked for line in finished):
            continue
        line = json.dumps(measure(*asked))
        with given.lines.open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)


if __name__ == "__main__":
    main()
