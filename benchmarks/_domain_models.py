"""Small models of one domain each, with the architectures, optimisers and tokenizer of the embedded pair.

    python benchmarks/_domain_models.py FAMILY DOMAIN --work FOLDER

It can be interrupted; the same command continues from the last snapshot. The checkpoint is WORK/FAMILY-DOMAIN.
"""

import argparse
import dataclasses
from pathlib import Path

import torch
from _domains import DOMAINS, corpus

from stitch.demo.recipe import RECIPES, Recipe
from stitch.demo.tokenizer import load_tokenizer
from stitch.demo.train import train

STEPS = 600  # a third of the embedded pair's; the losses stand in the results


def recipe(family: str, steps: int = STEPS) -> Recipe:
    """The embedded model's recipe with fewer steps: two thirds at the full rate, then linearly to zero."""
    return dataclasses.replace(RECIPES[family], steps=steps, rates=((steps * 2 // 3, 1.0), (steps, 0.0)))


def make(family: str, domain: str, work: Path) -> Path:
    """Trains and writes a model of `domain` unless it is there. Returns its folder."""
    out, scratch = work / f"{family}-{domain}", work / f"training-{family}-{domain}"
    if (out / "config.json").exists():
        return out
    net, _ = train(recipe(family), scratch, lambda line: print(line, flush=True), corpus(domain, work))
    net.config.use_cache = net.generation_config.use_cache = True  # pyright: ignore[reportOptionalMemberAccess]
    load_tokenizer(scratch / "tokenizer").save_pretrained(out)
    net.to(torch.bfloat16).save_pretrained(out)  # pyright: ignore[reportArgumentType, reportCallIssue]
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=("gpt2", "llama"))
    parser.add_argument("domain", choices=DOMAINS)
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks/domain_pair"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(make(given.family, given.domain, given.work))
