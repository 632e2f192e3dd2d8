"""Tokens per second of harvesting four sites, against the bare model cut off after the last of them. One JSON line.

Both run the same windows in turn, in one process; the bare passes keep nothing. The harvest includes everything from
token ids to shards on disk: the checks for NaN, the digest of the content, the files.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from stitch.activations.harvest import TOKENS_AT_ONCE, harvest
from stitch.config import Settings
from stitch.jobs.pair.models import load_pair
from stitch.jobs.pair.text import read_windows
from stitch.models.model import Model
from stitch.text.windows import Windows


def bare(model: Model, ids: torch.Tensor, batch: int) -> float:
    start = time.perf_counter()
    with torch.no_grad():
        for part in ids.split(batch):
            model.net.base_model(input_ids=part.to(model.device).long(), use_cache=False)
    return time.perf_counter() - start


def harvested(model: Model, windows: Windows, sites: list[int]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        harvest(model, windows, sites, Path(folder))
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--sites", type=int, nargs="+", default=[3, 6, 9, 12])
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    settings = Settings(
        model_a=given.model, model_b=given.model, layer=1, tokens=given.tokens, held_out=1024, context=given.context
    )
    model, _, _ = load_pair(settings)
    windows = read_windows(settings, model, model)["fit"]
    net, last = model.net.base_model, max(given.sites)
    batch = max(1, TOKENS_AT_ONCE[model.device.type] // given.context)
    found: dict[str, list[float]] = {"bare": [], "harvest": []}
    whole = model.blocks
    for _ in range(given.repeats):
        found["harvest"].append(harvested(model, windows, given.sites))
        name = next(name for name, module in net.named_children() if module is whole)
        setattr(net, name, whole[:last])
        found["bare"].append(bare(model, windows.ids, batch))
        setattr(net, name, whole)
    ratios = [one / other for one, other in zip(found["bare"], found["harvest"], strict=True)]
    print(
        json.dumps(
            {
                "benchmark": "harvest", "model": given.model, "sites": given.sites, "tokens": windows.tokens,
                "device": str(model.device), "threads": torch.get_num_threads(),
                **{f"{name}_tokens_per_second": windows.tokens / statistics.median(times) for name, times in found.items()},
                "share_of_bare_speed": statistics.median(ratios), "range": [min(ratios), max(ratios)],
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
