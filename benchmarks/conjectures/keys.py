"""Conjecture: what attention scores say about all but the strongest keys is noise.

    python benchmarks/conjectures/keys.py

Each head keeps the m keys of each query with the highest probability. The others share theirs evenly (`equalised`), exchange
it at random (`permuted`), or lose it (`dropped`). Baseline: dropped. Null: m keys drawn at random, the others equalised.

Rule, set before the run: refuted for a model where equalising at m = 16 costs more than 0.01 nats per token with the whole
interval above 0.01; holds where the whole interval is below 0.01 and permuting costs no more than 0.01 beyond it; open
otherwise.
"""

import argparse

import _shared

from stitch.evaluation.scores import Scores, mean_of
from stitch.layers.curve import WAYS, name_of, score_keys

SIZES = (4, 16)
CONTEXT = {"smollm2": 128}  # tokens, of others 256: a pass over SmolLM2 takes long
MOST = 0.01  # nats per token


def measure(name: str, given: argparse.Namespace) -> None:
    found = _shared.subject(name, context=CONTEXT.get(name, 256), windows=28 if given.small else 112)
    drawn = [score_keys(found.model, found.windows, SIZES, seed=seed) for seed in _shared.SEEDS]
    whole = drawn[0]["model"]

    def row(size: int, way: str) -> Scores:
        scores = [one[name_of(size, way)] for one in drawn]
        return scores[0] if way in ("equalised", "dropped") else mean_of(scores)

    rows = [{"keys": size, "others": way, **row(size, way).difference(whole)} for size in SIZES for way in WAYS]
    equal = row(16, "equalised").difference(whole)
    beyond = row(16, "permuted").difference(row(16, "equalised"))
    holds = equal["ce_high"] < MOST and beyond["ce_high"] < MOST
    verdict = "refuted" if equal["ce_low"] > MOST else "holds" if holds else "open"
    _shared.tell("keys", name, verdict, **equal, rows=rows, context=found.windows.context, **_shared.documents(whole))


if __name__ == "__main__":
    _shared.run(__doc__, ["demo:gpt2", "demo:llama", "smollm2"], measure)
