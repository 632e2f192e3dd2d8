"""Time, memory and certified gap of matching trained features, thousands in each model. One JSON line per size.

SAEs of both demo models at the sites of the main job are trained together (BatchTopK, k 32), and their codes of a
million tokens are kept on disk as the main job keeps them. They are then matched as in `matching_at_scale.py`, whose
`planted` codes are easier because every feature has one true partner. Wide SAEs of such small models, trained for only
`--passes`, are poor; their quality is printed in the line.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from _processes import last_line
from matching_at_scale import measured


def write_codes(work: Path, features: int, tokens: int, passes: float) -> dict:
    """Writes both models' codes of the fit split to work/codes, a file per shard. Returns the quality of the SAEs."""
    from stitch.config import Settings
    from stitch.features.codes import code_stream
    from stitch.jobs.pair.features import chunk_tokens, train_pair
    from stitch.jobs.pair.models import load_pair
    from stitch.jobs.pair.settings import complete
    from stitch.jobs.pair.streams import harvest_pair
    from stitch.jobs.pair.text import read_windows

    settings = Settings(
        model_a="demo:gpt2", model_b="demo:llama", layer=3, features=features, tokens=tokens, held_out=16_384, sae_passes=passes
    )  # fmt: skip
    a, b, sources = load_pair(settings)
    settings = complete(settings, a, b)
    windows = read_windows(settings, a, b)
    paired = {split: harvest_pair(settings, a, b, windows[split], work / split) for split in ("fit", "sweep")}
    saes = train_pair(settings, a, b, paired, work, sources)
    chunk = chunk_tokens(settings, saes.a, saes.b)
    for _ in code_stream(paired["fit"], saes.a, saes.b, chunk=chunk, folder=work / "codes")():
        pass
    qualities = {"a": saes.quality_a, "b": saes.quality_b}
    return {
        "steps": saes.config_a.steps,
        "fvu": {side: found.fvu for side, found in qualities.items()},
        "l0": {side: found.l0 for side, found in qualities.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--features", action="append", type=int, help="Default: 16,384.")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--passes", type=float, default=0.4)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="Threads of the matching.")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        print(json.dumps(write_codes(given.work, given.features[0], given.tokens, given.passes)))
        return
    for features in given.features or (16_384,):
        with tempfile.TemporaryDirectory() as work:
            asked = {"--work": work, "--features": features, "--tokens": given.tokens, "--passes": given.passes}
            command = [sys.executable, __file__, *(word for option in asked.items() for word in option)]
            # In a process of its own, because a child's peak memory starts at its parent's.
            saes = last_line(command)
            found = {
                "saes": saes,
                **measured(Path(work) / "codes", features, given.threads),
            }
        line = {"benchmark": "matching_real", "features": features, "tokens": given.tokens, **found}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
