"""Depth surgery on SmolLM2-135M: 10, 20 and 33 % of its 30 blocks removed, each bridge beside plain removal and
ReplaceMe.

One JSON line per run. The cuts: for 3, 6 and 10 blocks the cut between the two most similar sites (mean cosine on the
sweep split, the rule of ReplaceMe), and also blocks 12 to 17 and 13 to 22. SmolLM2 makes its attention sinks in block
11, so a cut that includes block 11 removes them. A run takes about three minutes on an idle core.
"""

import argparse
import json
import tempfile
from pathlib import Path

from stitch.config import Settings
from stitch.jobs.join import stitch

CUTS = ((13, 16), (12, 18), (13, 19), (9, 19), (13, 23))
KEPT = ("models", "site", "native", "tokens", "ridge", "results", "differences", "chosen", "seconds")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument(
        "--cut",
        action="append",
        metavar="LAYER,LAYER_B",
        help="Measure this cut; may be repeated. Default: the cuts listed above.",
    )
    arguments = parser.parse_args()
    cuts = [tuple(int(layer) for layer in cut.split(",")) for cut in arguments.cut or ()] or CUTS
    for start, stop in cuts:
        settings = Settings(
            model_a=arguments.model, model_b=arguments.model, layer=start, layer_b=stop, native=True,
            tokens=arguments.tokens, context=arguments.context,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            report, _ = stitch(settings, Path(folder) / "short")
        print(json.dumps({"benchmark": "depth_surgery", **{name: report[name] for name in KEPT}}), flush=True)


if __name__ == "__main__":
    main()
