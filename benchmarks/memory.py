"""Peak memory of the main job by amount of text: `--tokens 4000000` beside `--tokens 1000000`. One JSON line.

Each run is a process of its own; peak memory is the operating system's figure for the resident set. SAEs train for the
same number of steps in both runs so that the comparison takes minutes: memory does not depend on the number of steps.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from _processes import last_line, peak_bytes

SIZES = (1_000_000, 4_000_000)


def one_run(tokens: int) -> int:
    from stitch.config import Settings
    from stitch.jobs.join import stitch

    settings = Settings(model_a="demo:gpt2", model_b="demo:llama", layer=3, tokens=tokens, sae_passes=200_000 / tokens)
    with tempfile.TemporaryDirectory() as folder:
        stitch(settings, Path(folder) / "composite")
    return peak_bytes()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.tokens:
        print(json.dumps({"peak_bytes": one_run(given.tokens)}))
        return
    peaks = {tokens: last_line([sys.executable, __file__, "--tokens", tokens])["peak_bytes"] for tokens in SIZES}
    ratio = peaks[SIZES[1]] / peaks[SIZES[0]]
    print(json.dumps({"benchmark": "memory", "peak_bytes": peaks, "ratio": round(ratio, 3)}))


if __name__ == "__main__":
    main()
