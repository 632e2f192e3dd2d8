"""Merges key heads and compares with every baseline, all with the same refits: one JSON line per model and number of
heads.

    python benchmarks/conversions_heads.py --model demo:gpt2 --kv-heads 1 --steps 100
    python benchmarks/conversions_heads.py --train build/eight-heads          trains a Llama with eight key heads
    python benchmarks/conversions_heads.py --train build/qwen3 --family qwen3 trains a Qwen3 (normalised queries and keys)
    python benchmarks/conversions_heads.py --model build/eight-heads --kv-heads 4,2,1
    python benchmarks/conversions_heads.py --model smollm2 --kv-heads 1 --tokens 16384

Windows of the report split are four times as long as those used for fitting, if the model has enough positions.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from stitch.conversions.heads.convert import convert_heads
from stitch.demo.recipe import CONTEXT, Recipe
from stitch.demo.ship import ship
from stitch.demo.train import train


def trained(folder: Path, family: str, steps: int) -> None:
    """Trains a model of four blocks, width 128, with eight heads of 16 and as many key heads, like the embedded
    Llama but for fewer steps.
    """
    shape = dict(
        num_hidden_layers=4, hidden_size=128, num_attention_heads=8, num_key_value_heads=8, head_dim=16, intermediate_size=384,
        max_position_embeddings=CONTEXT, tie_word_embeddings=True,
    )  # fmt: skip
    wanted = Recipe(family=family, shape=shape, steps=steps, rates=((steps // 2, 1.0), (steps, 0.0)))
    work = folder.with_name(f"{folder.name}-work")
    net, curve = train(wanted, work)
    ship(folder.name, wanted, net, curve, work / "tokenizer", folder)


def line(given: argparse.Namespace, kv_heads: int) -> dict:
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        report = convert_heads(
            given.model, Path(folder) / "out", kv_heads=kv_heads, tokens=given.tokens, held_out=given.held_out,
            context=given.context, steps=given.steps, seed=given.seed,
        )  # fmt: skip
    kept = ("model", "tokens", "context", "fitted_context", "results", "differences", "groups", "by_block", "notes")
    return {
        "benchmark": "conversions_heads",
        "kv_heads": kv_heads,
        "seed": given.seed,
        "steps": given.steps,
        **{key: report[key] for key in kept},
        "seconds": round(time.perf_counter() - began, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo:llama")
    parser.add_argument("--kv-heads", default="1", help="Numbers of key heads, separated by commas.")
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--held-out", type=int, default=32_768)
    parser.add_argument("--context", type=int)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=Path, metavar="FOLDER")
    parser.add_argument("--family", default="llama", help="With --train: llama or qwen3.")
    parser.add_argument("--train-steps", type=int, default=600)
    given = parser.parse_args()
    if given.train:
        trained(given.train, given.family, given.train_steps)
    else:
        for kv_heads in map(int, given.kv_heads.split(",")):
            print(json.dumps(line(given, kv_heads)), flush=True)


if __name__ == "__main__":
    main()
