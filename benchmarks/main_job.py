"""The main job on the embedded pair in both directions: one JSON line with every row of both reports."""

import json
import tempfile
from pathlib import Path

from stitch.config import Settings
from stitch.jobs.join import stitch

PAIRS = (("demo:gpt2", "demo:llama", 3), ("demo:llama", "demo:gpt2", 4))


def main() -> None:
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for a, b, layer in PAIRS:
            report, _ = stitch(Settings(model_a=a, model_b=b, layer=layer), Path(folder) / a.replace(":", "-"))
            kept = ("models", "site", "tokens", "saes", "matching", "results", "differences", "chosen", "seconds")
            runs.append({name: report[name] for name in kept})
    print(json.dumps({"benchmark": "main_job", "runs": runs}))


if __name__ == "__main__":
    main()
