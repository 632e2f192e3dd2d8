"""A composite of two checkpoints of 1.5 billion parameters in bf16 against `cp` of as many bytes. One JSON line.

Sizes are those of Qwen2-1.5B, weights are noise: only headers are read. Each run is a process of its own, the two in turn; both
write to the same file system, which is told to finish (fsync) before the clock stops. Peak memory is the operating system's.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WIDTH, LAYERS, SITE = 1536, 28, 14


def config():
    from transformers import Qwen2Config

    return Qwen2Config(
        hidden_size=WIDTH, num_hidden_layers=LAYERS, intermediate_size=8960, num_attention_heads=12, num_key_value_heads=2,
        vocab_size=151_936, max_position_embeddings=32_768, tie_word_embeddings=True,
    )  # fmt: skip


def write_donor(folder: Path, seed: int) -> None:
    import torch
    from transformers import Qwen2ForCausalLM

    from stitch.shards import Held, write_shards

    torch.manual_seed(seed)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Qwen2ForCausalLM(config()).state_dict().items()}
    del shapes["lm_head.weight"]  # tied
    noise = torch.randn(2**22).bfloat16()
    folder.mkdir()
    tensors = {
        name: Held(noise.repeat(-(-shape.numel() // len(noise)))[: shape.numel()].view(shape))
        for name, shape in shapes.items()
    }
    write_shards(folder, tensors, 5_000_000_000)
    config().save_pretrained(folder)


def by_stitch(work: Path, target: Path) -> None:
    import torch

    from stitch.checkpoint import write_checkpoint
    from stitch.composite import stitch_config
    from stitch.translation.types import Residual, Term, Translation

    translation = Translation("affine", (Term(Residual(SITE), torch.randn(WIDTH, WIDTH)),), torch.zeros(WIDTH))
    start = time.perf_counter()
    wanted = stitch_config(config(), config(), SITE, SITE, translation, None)
    write_checkpoint(target, wanted, work / "a", work / "b", translation)
    synchronise(target)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps({"seconds": time.perf_counter() - start, "peak_bytes": peak}))


def by_cp(work: Path, target: Path) -> float:
    """Copies what stitch wrote."""
    start = time.perf_counter()
    subprocess.run(["cp", "-r", work / "stitch", target], check=True)
    synchronise(target)
    return time.perf_counter() - start


def synchronise(folder: Path) -> None:
    for place in folder.iterdir():
        with place.open("rb") as file:
            os.fsync(file.fileno())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--part", choices=("donors", "stitch"), help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part == "donors":
        for seed, name in enumerate("ab"):
            write_donor(given.work / name, seed)
        return
    if given.part == "stitch":
        by_stitch(given.work, given.work / "stitch")
        return
    with tempfile.TemporaryDirectory(dir=".") as folder:
        work = Path(folder)
        command = [sys.executable, __file__, "--work", str(work), "--part"]
        subprocess.run([*command, "donors"], check=True)  # a child's peak memory starts at its parent's: stay small
        rounds = []
        for _ in range(given.repeats):
            subprocess.run(["rm", "-rf", work / "stitch", work / "cp"], check=True)
            done = subprocess.run([*command, "stitch"], check=True, stdout=subprocess.PIPE, text=True)
            rounds.append({**json.loads(done.stdout.splitlines()[-1]), "cp": by_cp(work, work / "cp")})
        size = sum(place.stat().st_size for place in (work / "stitch").iterdir())
    median = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    ratios = [round(one["seconds"] / one["cp"], 3) for one in rounds]
    found = {"bytes": size, **{name: round(value, 2) for name, value in median.items()}}
    print(json.dumps({"benchmark": "checkpoint", **found, "ratio": statistics.median(ratios), "ratios": ratios}))


if __name__ == "__main__":
    main()
