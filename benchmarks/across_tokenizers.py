"""Two pretrained models that read different tokens, joined at several seams: one JSON line per seam, with ten continuations.

    python benchmarks/across_tokenizers.py --direction smollm2-gemma3 --seams 8:5 15:9 22:13
    python benchmarks/across_tokenizers.py --direction gemma3-smollm2 --seams 5:8 9:15 13:22

A seam N:M is `--layer N --layer-b M`. Continuations are greedy, as they come. SAEs are small and trained briefly, as no row that
matters here reads them.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import stitch

PROMPTS = (
    "The capital of France is",
    "def add(a, b):\n    return",
    "Returns the number of",
    "Once upon a time there was",
    "The function raises a ValueError if",
    "Water boils at a temperature of",
    "import numpy as",
    "My favourite colour is",
    "In the year 1969,",
    "To install the package, run",
)
KEPT = (
    *("verdict", "alternatives", "models", "site", "tokens", "documents", "across", "results", "differences", "chosen"),
    *("seconds", "left_out"),
)


@torch.no_grad()
def continuations(result: Any, tokens: int = 24) -> list[str]:
    found = []
    for prompt in PROMPTS:
        inputs = result.tokenizer(prompt, return_tensors="pt")
        made = result.model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        found.append(result.tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return found


def line(a: str, b: str, layer: int, layer_b: int, given: argparse.Namespace) -> dict:
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = stitch.join(
            a, b, layer, layer_b=layer_b, tokens=given.tokens, held_out=given.held_out, context=given.context, brief=given.brief,
            features=given.features, sae_passes=1.0, memory=given.memory, out=Path(folder) / "composite", quiet=True,
        )  # fmt: skip
        seconds = round(time.perf_counter() - began, 1)
        said = continuations(result)
    report = {key: result.report[key] for key in KEPT if key in result.report}
    prompts = [{"prompt": prompt, "continuation": text} for prompt, text in zip(PROMPTS, said, strict=True)]
    return {"benchmark": "across_tokenizers", "direction": f"{a}-{b}", **report, "prompts": prompts, "total": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--direction", default="smollm2-gemma3", help="A-B")
    parser.add_argument("--seams", nargs="+", default=["15:9"], metavar="N:M")
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--held-out", type=int, default=16_384)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--features", type=int, default=1_280)
    parser.add_argument("--memory", default="4G")
    parser.add_argument("--brief", action=argparse.BooleanOptionalAction, default=True)
    given = parser.parse_args()
    a, _, b = given.direction.partition("-")
    for seam in given.seams:
        layer, _, layer_b = seam.partition(":")
        print(json.dumps(line(a, b, int(layer), int(layer_b), given)), flush=True)


if __name__ == "__main__":
    main()
