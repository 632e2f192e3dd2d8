"""Loss after an n-gram memory replaces the first blocks: by number of blocks, by tokens in the tables, by table size.

    python benchmarks/conversions_ngram.py --model demo:llama --drop 1,2,3,4,5,6,7 --tokens 300000
    python benchmarks/conversions_ngram.py --model demo:llama --drop 2 --tokens 30000,100000,1000000 --sizes 3,10,30,300

One JSON line per model, number of blocks, number of tokens and number of rows, with every row of the conversion's table
(KL, held-out R², bytes), what it costs (`cost`, nats above the donor), the cost of the tables packed into other `sizes`, and
the leakage audit. `above` and `packing` are paired differences to the donor and to the tables before packing. No checkpoint is
written.
"""

import argparse
import dataclasses
import itertools
import json
import time

from stitch.conversions.donor import Donor, read_donor
from stitch.conversions.ngrams import size
from stitch.conversions.ngrams.convert import check_drop
from stitch.conversions.ngrams.fit import UNPACKED, measure, tables_for
from stitch.conversions.ngrams.knowledge import audited_leakage, loss_by_leakage
from stitch.conversions.ngrams.late import LateBlocks
from stitch.conversions.ngrams.memory import NgramShape, read_fit_data
from stitch.conversions.report import difference
from stitch.errors import UsageError
from stitch.evaluation.scores import Scores, evaluate
from stitch.files.job import Clock
from stitch.translation.types import Translation

MEMORY = 8 * 2**30


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def lines(given: argparse.Namespace):
    """One dict per combination of tokens, rows and blocks."""
    for tokens in given.tokens:
        donor = read_donor(
            given.model,
            text=given.text,
            tokens=tokens,
            held_out=given.held_out,
            context=given.context,
            dtype=given.dtype,
        )
        for rows, drop in itertools.product(given.rows, given.drop):
            clock = Clock()
            began = time.perf_counter()
            shape = NgramShape(order=given.order, rows=rows, skips=given.skips)
            check_drop(donor.model, drop)
            audit = audited_leakage(donor, shape)
            with clock.stage("reading"):
                fit_data = read_fit_data(
                    donor.model,
                    donor.windows,
                    drop,
                    shape,
                    tables_for(donor.model, donor.windows, shape, MEMORY),
                )
            with clock.stage("fits and scores"):
                fitted, scores, r2 = measure(donor, fit_data, given.table_bytes, given.seed, MEMORY, None)
            known = loss_by_leakage(donor, drop, fitted["converted"].translation, audit, MEMORY)
            yield {
                "benchmark": "conversions_ngram",
                "model": given.model,
                "drop": drop,
                "blocks": donor.model.depth,
                "shape": dataclasses.asdict(shape),
                "table_bytes": given.table_bytes,
                "bytes_replaced": size.bytes_replaced(donor.model, drop),
                "documents": scores["donor"].documents,
                "dtype": given.dtype,
                "tokens": {split: found.tokens for split, found in donor.windows.items()},
                "context": donor.context,
                "results": [found.row(name) | {"r2": r2.get(name)} for name, found in scores.items()],
                "bytes": {
                    _short(name): size.bytes_of(found.translation, donor.model) for name, found in fitted.items()
                },
                "cost": {_short(name): found.ce - scores["donor"].ce for name, found in scores.items()},
                "above": difference(scores, "converted", "donor"),
                "packing": difference(scores, "converted", UNPACKED) if UNPACKED in scores else None,
                "sizes": {
                    str(percent): one
                    for percent in given.sizes
                    if (
                        one := packed_into(
                            donor,
                            drop,
                            fitted.get(UNPACKED, fitted["converted"]).translation,
                            percent,
                            scores["donor"],
                        )
                    )
                },
                "ce": scores["donor"].ce,
                "kl": scores["converted"].row("")["kl_to_b"],
                "r2": r2["converted"],
                "passes": [
                    error / found for found in fitted["converted"].errors[:1] for error in fitted["converted"].errors
                ],
                "shrinkages": fitted["converted"].shrinkages,
                "overlap": {"copied": audit.share_copied, "seen": audit.seen},
                "knowledge": {name: dataclasses.asdict(found) for name, found in known.items()},
                "seconds": {**clock.seconds, "all": time.perf_counter() - began},
            }


def packed_into(donor: Donor, drop: int, tables: Translation, percent: float, whole: Scores) -> dict | None:
    """What the tables cost in `percent` of the bytes of the blocks. None where there is no room for any."""
    try:
        small = size.packed(donor.model, donor.windows["fit"], drop, tables, percent, MEMORY)
    except UsageError:
        return None
    row = {"converted": LateBlocks(donor.model, drop).reading(small)}
    scores = evaluate(row, donor.windows["report"], vocabulary=donor.model.vocabulary, memory=MEMORY)
    stored = size.bytes_of(small, donor.model)
    return {"bytes": stored, **difference({**scores, "donor": whole}, "converted", "donor")}


def _short(name: str) -> str:
    return (name.partition(":")[2] or name).replace("-", "_")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="demo:llama")
    parser.add_argument("--drop", type=numbers, default=[1, 2, 3, 4, 5, 6, 7])
    parser.add_argument("--tokens", type=numbers, default=[300_000])
    parser.add_argument("--rows", type=numbers, default=[65_536])
    parser.add_argument(
        "--table-bytes", type=float, default=size.TABLE_BYTES, help="In percent of those of the blocks."
    )
    parser.add_argument(
        "--sizes", type=numbers, default=[], help="Further percentages that the tables are packed into."
    )
    parser.add_argument("--order", type=int, default=3)
    parser.add_argument("--skips", type=int, default=4)
    parser.add_argument("--held-out", type=int, default=32_768)
    parser.add_argument("--context", type=int, default=None)
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--text", default="docs")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for line in lines(given):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
