"""Time of the stages of the main job, with the whole report and with `--brief`. One JSON line for each.

`share` is the time of the whole job divided by the time of harvesting both models (see `harvest.py`) and training the
SAEs, which every run must do. `share_of_passes` also counts the forward passes that choose and score the rows in the
divisor; the excess over 1 is reading text, matching, least squares and writing.
"""

import argparse
import json
import tempfile
from pathlib import Path

from stitch.config import Settings
from stitch.jobs.join import stitch


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs=2, default=["demo:gpt2", "demo:llama"])
    parser.add_argument("--layers", type=int, nargs=2, default=[3, 4])
    parser.add_argument("--tokens", type=int, default=250_000)
    parser.add_argument("--held-out", type=int)
    given = parser.parse_args()
    for brief in (True, False):
        settings = Settings(
            model_a=given.models[0], model_b=given.models[1], layer=given.layers[0], layer_b=given.layers[1],
            tokens=given.tokens, held_out=given.held_out, brief=brief,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            report, _ = stitch(settings, Path(folder) / "composite")
        seconds = report["seconds"]
        total, needed = sum(seconds.values()), seconds["activations"] + seconds["saes"]
        line = {
            "benchmark": "end_to_end", "brief": brief, "models": given.models, "tokens": report["tokens"],
            "rows": len(report["results"]), "seconds": seconds, "share": total / needed,
            "share_of_passes": total / (needed + seconds["choice"] + seconds["references"] + seconds["evaluation"]),
        }  # fmt: skip
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
