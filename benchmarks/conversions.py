"""Measures all four conversions: `python benchmarks/conversions.py [FOLDER]`. Takes hours.

Each part runs in a process of its own, and its lines are kept in FOLDER (default: build/benchmarks/conversions); a part
whose file exists is not repeated. The rows are explained at the top of each script.
"""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
EIGHT_HEADS = Path("build/eight-heads")

PARTS: dict[str, dict[str, str]] = {
    "heads": {
        "eight-heads": f"--model {EIGHT_HEADS} --kv-heads 4,2,1",
        "short-windows": f"--model {EIGHT_HEADS} --kv-heads 4,2,1 --context 64 --tokens 16384",
        "gpt2": "--model demo:gpt2",
        "llama": "--model demo:llama",
    },
    "ngram": {
        "gpt2": "--model demo:gpt2 --drop 1,2,3,4,5 --tokens 100000 --held-out 16384",
        "llama": "--model demo:llama --drop 1,2,3,4,5,6,7 --tokens 100000 --held-out 16384",
        "llama-tokens": "--model demo:llama --drop 2 --tokens 30000,300000,1000000 --held-out 16384",
    },
    "recurrent": {"gpt2": "demo:gpt2", "llama": "demo:llama"},
    "consolidate": {"gpt2": "--model demo:gpt2", "llama": "--model demo:llama"},
}


def run(conversion: str, *arguments: str, **options) -> None:
    script = HERE / f"conversions_{conversion}.py"
    subprocess.run([sys.executable, str(script), *arguments], check=True, **options)


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "build/benchmarks/conversions")
    folder.mkdir(parents=True, exist_ok=True)
    if not EIGHT_HEADS.exists():
        run("heads", "--train", str(EIGHT_HEADS), "--train-steps", "500")
    for conversion, parts in PARTS.items():
        everything = ""
        for part, arguments in parts.items():
            lines = folder / f"{conversion}-{part}.jsonl"
            if not lines.exists():
                print(f"{conversion}: {part}", file=sys.stderr)
                unfinished = lines.with_suffix(".part")
                with unfinished.open("w") as out:
                    run(conversion, *arguments.split(), stdout=out)
                unfinished.rename(lines)
            everything += lines.read_text()
        (folder / f"{conversion}.jsonl").write_text(everything)


if __name__ == "__main__":
    main()
