"""What `--dry-run` says beside what the same command then takes: time in all and by stage, peak memory, bytes of the output.

One JSON line per command. Nothing is taken from the cache. `--case` chooses among CASES; the rest of the arguments are added to
the commands, for example `--memory 2G`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from _processes import measured

CLI = [sys.executable, "-m", "cli"]
KEEPING = ("join", "chain", "sweep")  # commands with a cache
CASES = {
    "demo, brief, 100,000 tokens": "join demo:gpt2 demo:llama --layer 3 --layer-b 4 --brief --tokens 100000",
    "demo, whole report, 1,000,000 tokens": "join demo:gpt2 demo:llama --layer 3 --layer-b 4",
    "SmolLM2 to itself, brief, 20,000 tokens": "join smollm2 smollm2 --layer 14 --layer-b 18 --brief --tokens 20000 "
    "--context 128 --held-out 4096 --features 2304",
    "demo:llama without two blocks": "join demo:llama demo:llama --layer 4 --layer-b 6 --native",
    "chain of three parts": "chain {chain} --tokens 100000",
    "sweep of the demo pair": "sweep demo:gpt2 demo:llama --tokens 30000",
    "sweep of the demo pair, little text": "sweep demo:gpt2 demo:llama --tokens 8192 --context 32",
    "ranges of blocks": "sweep demo:llama --depth",
    "fewer heads": "convert heads demo:gpt2 --kv-heads 1",
    "n-gram tables": "convert ngram demo:llama --drop 2 --tokens 100000",
    "recurrent": "convert recurrent demo:gpt2 --tokens 32768",
    "recurrent, little text": "convert recurrent demo:llama --tokens 16384 --context 128 --held-out 8192 --steps 40 "
    "--logit-steps 20",
    "consolidate": "convert consolidate demo:gpt2 --context {document}",
}
CHAIN = """parts:
  - {model: demo:gpt2, to: 3}
  - {model: demo:llama, from: 4, to: 6}
  - {model: demo:gpt2, from: 5}
"""
DOCUMENT = (
    "The house by the lake has a red door. Its garden has two apple trees, and the well is behind the barn.\n" * 4
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", action="append", choices=CASES)
    options, more = parser.parse_known_args()
    for name in options.case or CASES:
        print(json.dumps({"case": name, **compare(CASES[name], more)}), flush=True)


def compare(command: str, more: list[str]) -> dict:
    """The estimate of a command, and what it takes."""
    with tempfile.TemporaryDirectory() as folder:
        chain, document, out = (Path(folder) / name for name in ("chain.yaml", "document.txt", "out"))
        chain.write_text(CHAIN)
        document.write_text(DOCUMENT)
        words = [word.format(chain=chain, document=document) for word in command.split()]
        words += [*more, "--out", str(out), "--quiet", *(["--cache-size", "0"] if words[0] in KEEPING else [])]
        said = subprocess.run(
            [*CLI, *words, "--dry-run", "--json"], check=True, stdout=subprocess.PIPE, text=True
        ).stdout
        estimate = json.loads(said)
        took = measured([*CLI, *words])
        report = json.loads((out / "report.json").read_text())
        stages = {stage["name"]: round(stage["seconds"], 1) for stage in estimate["stages"]}
        return {
            "estimated_seconds": round(estimate["seconds"], 1),
            "seconds": took["wall_seconds"],
            "cpu_seconds": took["cpu_seconds"],
            "ratio": round(estimate["seconds"] / took["wall_seconds"], 3),
            "estimated_peak_bytes": estimate["bytes"]["memory"],
            "peak_bytes": took["peak_bytes"],
            "estimated_output_bytes": estimate["bytes"]["output"],
            "output_bytes": sum(file.stat().st_size for file in out.rglob("*") if file.is_file()),
            "estimated_stages": stages,
            "stages": report.get("seconds", {}),
            "threads": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count())),
        }


if __name__ == "__main__":
    main()
