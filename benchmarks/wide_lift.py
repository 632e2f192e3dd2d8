"""Ridge on 16,384 features: peak memory and time of one row, all values of λ included. One JSON line.

The features are those of single tokens (exemplars), 32 active at a time, which need no training; A's stream is an input
as well. Peak memory is the operating system's figure for the resident set, models and activations included.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from _pair import lifted, prepare, row
from _processes import peak_bytes

from stitch.translation import lifts


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--features", type=int, default=16_384)
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"))
    given = parser.parse_args()
    pair = prepare("gpt2-llama", seed=0, tokens=given.tokens, held_out=16_384, work=given.work)
    streams = []
    for x, _, _ in pair.paired["fit"].chunks():
        streams.append(x.float())
        if sum(map(len, streams)) >= given.features:
            break
    dictionary = lifts.exemplars(torch.cat(streams), given.features, 32, torch.Generator().manual_seed(0))
    start = time.perf_counter()
    translation = lifted(pair, "exemplars", dictionary).starting_with(pair.first())
    seconds = time.perf_counter() - start
    peak = peak_bytes()
    scores = pair.scores({"exemplars": translation})
    found = {"features": given.features, "peak_bytes": peak, "seconds": round(seconds, 1)}
    print(json.dumps({"benchmark": "wide_lift", **found, "results": [row(scores, name) for name in scores]}))


if __name__ == "__main__":
    main()
