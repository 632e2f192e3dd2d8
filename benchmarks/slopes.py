"""Growth of the main job's time with tokens, features, blocks and width: one is varied at a time. One JSON
line.

Both donors are Llamas with random weights and the demo pair's tokenizer, run on docstrings. Each run is a process of
its own with one thread. Seconds are CPU time, so other work on the machine matters little. A slope is the exponent p of
time ∝ valueᵖ, by least squares in logarithms over the largest three values: 0 means that time does not grow, 1 that it
grows proportionally.
"""

import argparse
import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path

from _processes import last_line

BASE = {"tokens": 32_000, "features": 1_024, "blocks": 8, "width": 128}
AXES = {
    "tokens": (16_000, 32_000, 64_000, 128_000),
    "features": (512, 1_024, 2_048, 4_096),
    "blocks": (4, 8, 16),
    "width": (64, 128, 256),
}
STAGES = (
    "activations",
    "saes",
    "matching",
    "states",
    "translations",
    "evaluation",
)  # the other stages are short or do not grow


def one_run(tokens: int, features: int, blocks: int, width: int) -> dict[str, float]:
    """CPU seconds of every stage."""
    time.perf_counter = time.process_time  # the clock that `stitch.jobs.timing` reads
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    from stitch.config import Settings
    from stitch.jobs.join import stitch
    from stitch.models.sources import resolve

    tokenizer = AutoTokenizer.from_pretrained(resolve("demo:llama").folder)
    config = LlamaConfig(
        hidden_size=width, num_hidden_layers=blocks, intermediate_size=3 * width, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=len(tokenizer), max_position_embeddings=512, tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for seed, name in enumerate("ab"):
            torch.manual_seed(seed)
            AutoModelForCausalLM.from_config(config).save_pretrained(work / name)
            tokenizer.save_pretrained(work / name)
        settings = Settings(
            model_a=str(work / "a"), model_b=str(work / "b"), layer=blocks // 2, tokens=tokens, held_out=8_192,
            context=256, features=features, reference_steps=0,
        )  # fmt: skip
        report, _ = stitch(settings, work / "out")
    return report["seconds"]


def slope(values: list[int], seconds: list[float]) -> float:
    """The exponent over the largest three values."""
    largest = list(zip(values, seconds, strict=True))[-3:]
    points = [(math.log(value), math.log(max(second, 1e-9))) for value, second in largest]
    x, y = (sum(point[side] for point in points) / len(points) for side in (0, 1))
    return sum((u - x) * (v - y) for u, v in points) / sum((u - x) ** 2 for u, _ in points)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--axis", action="append", choices=AXES)
    parser.add_argument("--run", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        print(json.dumps(one_run(**given.run)))
        return
    found, known = {}, {}
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    for axis in given.axis or AXES:
        runs = []
        for value in AXES[axis]:
            wanted = json.dumps({**BASE, axis: value})
            if wanted not in known:
                known[wanted] = last_line([sys.executable, __file__, "--run", wanted], env=one_thread)
            runs.append({**known[wanted], "total": sum(known[wanted].values())})
        seconds = {stage: [round(run[stage], 2) for run in runs] for stage in (*STAGES, "total")}
        slopes = {stage: round(slope(AXES[axis], taken), 2) for stage, taken in seconds.items()}
        found[axis] = {"values": AXES[axis], "seconds": seconds, "slopes": slopes}
    print(json.dumps({"benchmark": "slopes", "base": BASE, "axes": found}))


if __name__ == "__main__":
    main()
