"""Every translation and null on the embedded pair: both directions, several SAE seeds, several amounts of paired text.

One JSON line per run, all measured on the same 32,768 held-out tokens of the report split. The SAEs of a seed are trained
once, on the largest amount, and serve all. On two idle cores the full grid takes about three hours; `--tokens 10000 --seeds 1`
a quarter of one.
"""

import argparse
import json
import tempfile
from pathlib import Path

from stitch.config import Settings
from stitch.pipeline import stitch

DIRECTIONS = {"gpt2-llama": ("demo:gpt2", "demo:llama", 3), "llama-gpt2": ("demo:llama", "demo:gpt2", 4)}
KEPT = ("models", "site", "tokens", "saes", "matching", "ridge", "results", "differences", "chosen", "seconds")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--direction", action="append", choices=DIRECTIONS)
    parser.add_argument("--tokens", action="append", type=int, help="Default: 10,000, 100,000 and 1,000,000.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--held-out", type=int, default=32_768)
    arguments = parser.parse_args()
    sizes = sorted(arguments.tokens or (10_000, 100_000, 1_000_000), reverse=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.direction or DIRECTIONS:
            a, b, layer = DIRECTIONS[name]
            for seed in range(arguments.seeds):
                trained: dict[str, str] = {}
                for tokens in sizes:
                    settings = Settings(
                        model_a=a, model_b=b, layer=layer, tokens=tokens, held_out=arguments.held_out, seed=seed, **trained
                    )  # fmt: skip
                    report, place = stitch(settings, Path(folder) / f"{name}-{seed}-{tokens}")
                    if not trained:
                        trained = {f"sae_{side}": str(place / f"sae-{side}") for side in "ab"}
                    kept = {key: report[key] for key in KEPT}
                    print(json.dumps({"benchmark": "translations", "seed": seed, **kept}), flush=True)


if __name__ == "__main__":
    main()
