"""Every translation and null on the embedded pair: both directions, several SAE seeds, several amounts of paired text.

One JSON line per run, all measured on the same held-out tokens of the report split. The SAEs of a seed are trained once, on the
largest amount and in the first direction, and serve all. Finished runs are kept in `--work`: the same call again prints them and
goes on where it stopped. On two idle cores the full grid takes one and a half to two hours, `--tokens 10000 --seeds 1` minutes.
"""

import argparse
import json
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
    parser.add_argument("--held-out", type=int, default=16_384)
    parser.add_argument("--work", type=Path, default=Path("build/translations"))
    arguments = parser.parse_args()
    sizes = sorted(arguments.tokens or (10_000, 100_000, 1_000_000), reverse=True)
    for seed in range(arguments.seeds):
        trained: dict[str, Path] = {}  # SAEs of this seed, by model
        for name in arguments.direction or DIRECTIONS:
            a, b, layer = DIRECTIONS[name]
            for tokens in sizes:
                given = {f"sae_{side}": str(trained[model]) for side, model in (("a", a), ("b", b)) if trained}
                settings = Settings(
                    model_a=a, model_b=b, layer=layer, tokens=tokens, held_out=arguments.held_out, seed=seed,
                    reference_steps=0, **given,
                )  # fmt: skip
                report, place = stitch(settings, arguments.work / f"{name}-{seed}-{tokens}", resume=True)
                trained = trained or {a: place / "sae-a", b: place / "sae-b"}
                kept = {key: report[key] for key in KEPT}
                print(json.dumps({"benchmark": "translations", "seed": seed, **kept}), flush=True)


if __name__ == "__main__":
    main()
