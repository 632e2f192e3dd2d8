"""Gives a model another tokenizer in every way that there is: one JSON line.

python benchmarks/retokenize.py --model smollm2 --tokenizer demo:gpt2 --donor-model demo:gpt2
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from stitch.conversions.retokenization.convert import retokenize
from stitch.conversions.retokenization.omp import pursued
from stitch.conversions.retokenization.rows import filled
from stitch.models.loading import load
from stitch.models.sources import resolve
from stitch.text.correspondence import correspond
from stitch.text.reader import Reader

KEPT = (
    *("model", "tokenizer", "chosen", "vocabulary", "tied", "was_tied", "clipped", "coinciding", "lost", "context"),
    *("tokens", "bytes", "documents", "results", "differences", "notes"),
)


def line(given: argparse.Namespace) -> dict:
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        report = retokenize(
            given.model, Path(folder) / "out", tokenizer=given.tokenizer, donor_model=given.donor_model, tokens=given.tokens,
            documents=given.documents, context=given.context, seed=given.seed,
        )  # fmt: skip
    seconds = round(time.perf_counter() - began, 1)
    return {"benchmark": "retokenize", "seed": given.seed, **{key: report[key] for key in KEPT}, "seconds": seconds}


def beside_tokensurgeon(given: argparse.Namespace, terms: int, folder: Path) -> dict:
    """How near the rows are that tokensurgeon makes of `terms` shared rows each, by the cosine of both."""
    model, donor = (load(resolve(name).folder) for name in (given.model, given.donor_model))
    found = correspond(Reader.of(given.model, model.tokenizer), Reader.of(given.donor_model, donor.tokenizer))
    rows = [one.weight.detach().float() for one in (model.embedding, donor.embedding)]
    ours = pursued(rows[0], rows[1], found, [terms])[terms][filled(found)]
    theirs = load(folder).embedding.weight.detach().float()[filled(found)]
    cosine = torch.nn.functional.cosine_similarity(ours, theirs)
    same = float((cosine > 0.99).float().mean())
    return {
        "benchmark": "retokenize_peer",
        "terms": terms,
        "rows": len(cosine),
        "same": same,
        "median": float(cosine.median()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tokenizer", default="demo:gpt2")
    parser.add_argument("--donor-model")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--context", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--surgeon", action="append", default=[], metavar="K=FOLDER")
    given = parser.parse_args()
    for one in given.surgeon:
        terms, _, folder = one.partition("=")
        print(json.dumps(beside_tokensurgeon(given, int(terms), Path(folder))), flush=True)
    if not given.surgeon:
        print(json.dumps(line(given)), flush=True)


if __name__ == "__main__":
    main()
