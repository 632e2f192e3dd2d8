"""Tokens per second of greedy decoding by a composite, compared with its donors. One JSON line.

The expected time per token is A's time multiplied by the share of A's blocks in the composite, plus the same for B. All
three models continue the same prompts in turn, one token at a time, with a KV cache.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from stitch.models.sources import resolve


def seconds_per_token(model, ids: torch.Tensor, new: int) -> float:
    def generate(count: int) -> float:
        start = time.perf_counter()
        model.generate(ids, max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0)
        return time.perf_counter() - start

    return (generate(new) - generate(1)) / (new - 1)  # time without the prompt


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("composite", type=Path, nargs="?", default=Path("build/demo"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--new", type=int, default=129)
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    report = json.loads((given.composite / "report.json").read_text())
    names = report["models"]
    folders = {side: resolve(name).folder for side, name in names.items()} | {"composite": given.composite}
    models = {
        side: AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=side == "composite").eval()
        for side, folder in folders.items()
    }
    config = models["composite"].config
    shares = {
        "a": config.site_a / models["a"].config.num_hidden_layers,
        "b": 1 - config.site_b / models["b"].config.num_hidden_layers,
    }
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, 1000, (given.batch, given.prompt), generator=generator)
    times: dict[str, list[float]] = {side: [] for side in models}
    for _ in range(given.repeats):
        for side, model in models.items():
            times[side].append(seconds_per_token(model, ids, given.new))
    expected = [shares["a"] * a + shares["b"] * b for a, b in zip(times["a"], times["b"], strict=True)]
    ratios = [one / other for one, other in zip(expected, times["composite"], strict=True)]
    print(
        json.dumps(
            {
                "benchmark": "decode", "models": names, "batch": given.batch, "translation": report["chosen"],
                "tokens_per_second": {side: given.batch / statistics.median(found) for side, found in times.items()},
                "share_of_expected_speed": statistics.median(ratios), "range": [min(ratios), max(ratios)],
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
