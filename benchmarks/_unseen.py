"""What is lost where only tokens that occur have rows, on the embedded pair: at tokens without a row, and over all."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from seam_bytes import LIFTS

from stitch.config import Settings
from stitch.evaluation.scores import Logits, Scores, evaluate
from stitch.evaluation.scoring import stage
from stitch.evaluation.stage import Stage
from stitch.evaluation.unseen import with_mean_rows
from stitch.jobs.pair.models import load_pair
from stitch.jobs.pair.settings import complete
from stitch.jobs.pair.streams import harvest_pair
from stitch.jobs.pair.text import read_windows
from stitch.text.windows import Windows
from stitch.translation.available import free_inputs
from stitch.translation.evidence import Evidence, Options
from stitch.translation.fit import translate
from stitch.translation.token_tables import SMALL, token_tables
from stitch.translation.types import Translation

SIZES = {"all ids": SMALL, "those that occur": 0}
WRITTEN = "translation:affine+free+tables"  # the row whose loss at tokens without a row is shown
Fits = dict[str, dict[str, Translation]]  # by size and row


def unseen(tokens: int) -> Iterator[dict]:
    """A line on tokens without rows, and one on all rows that read no SAE and have no routes."""
    asked = Settings(model_a="demo:gpt2", model_b="demo:llama", layer=3, tokens=tokens, routes=0, device="cpu")
    a, b, _ = load_pair(asked)
    settings = complete(asked, a, b)
    windows = read_windows(settings, a, b)
    with tempfile.TemporaryDirectory() as folder:
        paired = {split: harvest_pair(settings, a, b, found, Path(folder) / split) for split, found in windows.items()}
        fit, held_out = paired["fit"], paired["sweep"]
        tables = {
            name: token_tables(a, b, fit.a.windows, held_out.a.windows, fit.site_b, small=small)
            for name, small in SIZES.items()
        }
        options = Options(ngrams=settings.ngrams, routes=0, seed=0, chunk=2048, memory=settings.memory)
        fits: Fits = {}
        for name, found in tables.items():
            evidence = Evidence(
                fit=fit, held_out=held_out, inputs=free_inputs(a, b, fit, found),
                first=fit.b.read(0, fit.site_b)[0, 0].float(), vocabulary=b.vocabulary,
            )  # fmt: skip
            fitted = translate(evidence, options, is_wanted)
            fits[name] = {**fitted.translations, **fitted.nulls}
        on, known = stage(settings, a, b, paired["report"]), tables["those that occur"]
        assert known.keys is not None
        about = {"models": [a.name, b.name], "tokens": tokens, "seed": settings.seed}
        yield {
            "benchmark": "vocabulary_unseen",
            **about,
            "chosen": WRITTEN,
            **known.described(),
            **_at(on, fits, known.keys),
        }
        yield {"benchmark": "vocabulary_rows", **about, **_over_all(on, fits)}


def is_wanted(row: str) -> bool:
    return (row.startswith("translation:") or row == "null:no-source") and row not in LIFTS


def _at(on: Stage, fits: Fits, keys: torch.Tensor) -> dict:
    """Predictions made at tokens without a row and at all others, with intervals over documents."""
    written = fits["those that occur"][WRITTEN]
    rows: dict[str, Logits] = {
        "b": on.whole(on.b.net), "fallback": on.translated(written), "mean_row": on.translated(with_mean_rows(written)),
    }  # fmt: skip
    without = torch.zeros_like(on.windows.document)
    without[:, 1:] = ~torch.isin(on.windows.ids, keys.to(on.windows.ids.dtype))[:, :-1]  # made one token earlier
    apart = Windows(on.windows.ids, 2 * on.windows.document + without)
    scores = evaluate(rows, apart, vocabulary=on.vocabulary, memory=on.memory)
    found = {}
    for place, name in enumerate(("with_rows", "without_rows")):
        here = {row: Scores(each.nats[place::2], None, None, each.tokens[place::2]) for row, each in scores.items()}
        found[name] = {
            "tokens": int(here["b"].tokens.sum()), "documents": here["b"].documents,
            **{row: _with_interval(each) for row, each in here.items()},
            **{f"{row} − b": _with_interval(here[row], here["b"]) for row in ("fallback", "mean_row")},
        }  # fmt: skip
    return {"unseen": found}


def _over_all(on: Stage, fits: Fits) -> dict:
    """Every row with tables by token, fitted with either rows and scored on the same text; differences are paired."""
    everything, occurring = fits["all ids"], fits["those that occur"]
    rows = {f"{size}: {name}": on.translated(one) for size, fitted in fits.items() for name, one in fitted.items()
            if any(term.is_table for term in one.terms)}  # fmt: skip
    scores = evaluate(rows, on.windows, vocabulary=on.vocabulary, memory=on.memory)
    results = []
    for name in (name for name in occurring if f"all ids: {name}" in rows):
        one, other = (scores[f"{size}: {name}"] for size in SIZES)
        results.append({
            "name": name, "all_ids": one.ce, "occurring": other.ce, "difference": _with_interval(other, one),
            "parameters_all": everything[name].parameters, "parameters": occurring[name].parameters,
        })  # fmt: skip
    some = next(iter(scores.values()))
    return {"report_tokens": int(some.tokens.sum()), "documents": some.documents, "results": results}


def _with_interval(one: Scores, minus: Scores | None = None) -> dict:
    low, high = one.interval(minus=minus)
    return {"ce": one.ce - (0.0 if minus is None else minus.ce), "ce_low": low, "ce_high": high}
