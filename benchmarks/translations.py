"""Every translation and null on the embedded pair: both directions, several SAE seeds, several amounts of paired text.

One JSON line per run, all measured on the same held-out tokens of the report split. The SAEs of a seed are trained
once, on a million tokens, and used in all of its runs. Finished runs are kept in `--work`; a repeated call prints them
and continues. Runs with little text come first.
"""

import argparse
import json
from pathlib import Path

from _pair import DIRECTIONS, trained_saes

from stitch.config import Settings
from stitch.jobs.join import stitch

KEPT = ("models", "site", "tokens", "saes", "matching", "ridge", "results", "differences", "chosen", "seconds")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--direction", action="append", choices=DIRECTIONS)
    parser.add_argument("--tokens", action="append", type=int, help="Default: 10,000, 100,000 and 1,000,000.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--held-out", type=int, default=16_384)
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"))
    arguments = parser.parse_args()
    for tokens in arguments.tokens or (10_000, 100_000, 1_000_000):
        for seed in range(arguments.seeds):
            saes = trained_saes(seed, arguments.work)
            for name in arguments.direction or DIRECTIONS:
                a, b, layer = DIRECTIONS[name]
                settings = Settings(
                    model_a=a, model_b=b, layer=layer, tokens=tokens, held_out=arguments.held_out, seed=seed,
                    sae_a=str(saes[a]), sae_b=str(saes[b]), reference_steps=0,
                )  # fmt: skip
                report, _ = stitch(settings, arguments.work / f"translations-{name}-{seed}-{tokens}", resume=True)
                kept = {key: report[key] for key in KEPT}
                print(json.dumps({"benchmark": "translations", "seed": seed, **kept}), flush=True)


if __name__ == "__main__":
    main()
