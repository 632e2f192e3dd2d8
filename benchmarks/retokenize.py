"""Gives a model another tokenizer in every way that there is: one JSON line. With tokensurgeon's models, scores them as well.

    python benchmarks/retokenize.py --model smollm2 --tokenizer demo:gpt2 --donor-model demo:gpt2

tokensurgeon is mergekit's, in an environment of its own. It takes folders. That of a model with a name of its own
is what `python -c "from stitch.models.sources import resolve; print(resolve('smollm2').folder)"` prints:

    mergekit-tokensurgeon MODEL DONOR OUT --approximation-method omp --k 64
    python benchmarks/retokenize.py … --surgeon 64=OUT

That adds a line on how near the rows of both are, and another with its loss on the same documents. A model that it made in
another way is scored by `--other NAME=OUT`.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from stitch.conversions.retokenization.convert import retokenize
from stitch.conversions.retokenization.omp import pursued
from stitch.conversions.retokenization.request import Asked, prepare
from stitch.conversions.retokenization.rows import filled
from stitch.conversions.retokenization.scoring import head_of, score
from stitch.evaluation.scores import Scores
from stitch.models.loading import load
from stitch.models.sources import resolve
from stitch.text.correspondence import correspond
from stitch.text.reader import Reader

KEPT = (
    *("model", "tokenizer", "chosen", "vocabulary", "tied", "was_tied", "clipped", "coinciding", "lost", "context"),
    *("tokens", "bytes", "documents", "results", "differences", "notes"),
)


def asked(given: argparse.Namespace) -> dict:
    return {
        name: getattr(given, name) for name in ("tokenizer", "donor_model", "tokens", "documents", "context", "seed")
    }


def lines(given: argparse.Namespace) -> Iterator[dict]:
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        report = retokenize(given.model, out, **asked(given))
        seconds = round(time.perf_counter() - began, 1)
        yield {"benchmark": "retokenize", "seed": given.seed, **{key: report[key] for key in KEPT}, "seconds": seconds}
        if given.surgeon or given.other:
            yield {"benchmark": "retokenize_surgeon", "model": given.model, "results": on_the_same(given, out)}


def on_the_same(given: argparse.Namespace, out: Path) -> list[dict]:
    """Bits per byte of every model of tokensurgeon on the documents of the report, and the converted model minus it."""
    found = prepare(
        Asked(given.model, text="docs", device="auto", dtype="fp32", trust_remote_code=False, **asked(given)), None
    )
    documents, bos = [(passage.new.ids, passage.bytes) for passage in found.held_out["report"]], found.shop.new.bos

    def of(folder: Path) -> Scores:
        model = load(folder)
        return score(model, model.embedding.weight.detach(), {"": head_of(model)}, documents, bos)[""]

    ours, results = of(out), []
    for name, folder in [*((f"omp-{terms}", folder) for terms, folder in given.surgeon), *given.other]:
        theirs = of(folder)
        (low, high), (less, more) = theirs.interval(), ours.interval(minus=theirs)
        results.append({
            "name": f"tokensurgeon, {name}", "bpb": theirs.ce, "bpb_low": low, "bpb_high": high,
            "minus": ours.ce - theirs.ce, "minus_low": less, "minus_high": more, "converted": ours.ce,
        })  # fmt: skip
    return results


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
        "benchmark": "retokenize_peer", "model": given.model, "terms": terms, "rows": len(cosine), "same": same,
        "median": float(cosine.median()),
    }  # fmt: skip


def named_folder(text: str) -> tuple[str, Path]:
    name, _, folder = text.rpartition("=")
    return name, Path(folder)


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
    parser.add_argument("--other", action="append", default=[], metavar="NAME=FOLDER")
    given = parser.parse_args()
    given.surgeon = [(int(terms), folder) for terms, folder in map(named_folder, given.surgeon)]
    given.other = [named_folder(one) for one in given.other]
    for line in lines(given):
        print(json.dumps(line), flush=True)
    for terms, folder in given.surgeon:
        print(json.dumps(beside_tokensurgeon(given, terms, folder)), flush=True)


if __name__ == "__main__":
    main()
