"""The report of a conversion: its dict, its table and footnotes, and the model card.

    {"conversion": "heads", "model": "demo:gpt2", "title": …, "made": …, "tokens": {…}, "context": 256,
     "results": [rows of `Scores.row`, some with the figures of FIGURES], "differences": [`difference`, …], "notes": [sentences],
     "provenance": {…}, "recipe": {…}}

The rows are called `donor`, `converted`, `baseline:…`, `null:…`, `reference:…`.
"""

from stitch.evaluation.documents import phrase, warning
from stitch.evaluation.intervals import ratio_interval
from stitch.evaluation.scores import Scores
from stitch.files.markdown import loading_example
from stitch.files.sizes import size_in_words
from stitch.report.notes import text_notes
from stitch.report.origin import origin_notes
from stitch.report.readme import ModelCard

COLUMNS = ["", "CE", "95 % interval", "perplexity", "KL to donor", "top-1"]


# Figures that only some conversions have, by key in the row: column header and format.
FIGURES = {
    "cache_bytes": ("cache/token", size_in_words),
    "r2": ("R²", lambda value: f"{value:.3f}"),
    "table_bytes": ("tables", size_in_words),
    "state_bytes": ("state", size_in_words),
    "cache_share": ("of cache", lambda value: f"{value:.0%}"),
    "multiple": ("D / d", lambda value: f"{value:.3g}"),
    "recall": ("recall", lambda value: f"{value:.1%}"),
    "kept": ("gain kept", lambda value: f"{value:.0%}"),
    "kept_bare": ("no prefix", lambda value: f"{value:.0%}"),
    "retain_cost": ("other text", lambda value: f"{value:+.4f}"),
}


def difference(scores: dict[str, Scores], name: str, minus: str) -> dict:
    """Paired differences of two rows' cross-entropies and, if both have one, of their KL to the donor, with 95 % intervals.

    This is an entry of `differences` in report.json.
    """
    one, other = scores[name], scores[minus]
    found = {"name": name, "minus": minus, **one.difference(other)}
    if one.kl is not None and other.kl is not None:
        low, high = ratio_interval(one.kl - other.kl, one.tokens)
        found |= {"kl": float((one.kl - other.kl).sum() / one.tokens.sum()), "kl_low": low, "kl_high": high}
    return found


def table(report: dict) -> tuple[list[str], list[list[str]], str]:
    """Header, rows and title of the result table."""
    figures = {key: found for key, found in FIGURES.items() if any(key in row for row in report["results"])}
    header = [*COLUMNS, *(name for name, _ in figures.values())]
    rows = [
        [*_cells(row), *(show(row[key]) if key in row else "" for key, (_, show) in figures.items())]
        for row in report["results"]
    ]
    scored = f"{report['tokens']['report']:,} held-out tokens{phrase(report)} in windows of {report['context']}"
    title = f"{report['title']}; {scored}, nats per token"
    return header, rows, title


def _cells(row: dict) -> list[str]:
    perplexity = f"{row['ppl']:,.2f}" if row["ppl"] < 1e5 else f"{row['ppl']:.1e}"
    kl = "" if row["kl_to_b"] is None else f"{row['kl_to_b']:.4f}"
    top = "" if row["top1"] is None else f"{row['top1']:.1%}"
    return [row["name"], f"{row['ce']:.4f}", f"{row['ce_low']:.3f} – {row['ce_high']:.3f}", perplexity, kl, top]


def footnotes(report: dict) -> list[str]:
    """The sentences below the table."""
    return [
        *report["notes"],
        *origin_notes(report),
        *text_notes(report),
        *warning(report),
        *map(_sentence, report["differences"]),
    ]


def _sentence(one: dict) -> str:
    text = (
        f"{one['name']} − {one['minus']}: {one['ce']:+.4f} nats ({one['ce_low']:+.4f} to {one['ce_high']:+.4f}, paired)"
    )
    if one["minus"] == "donor" or "kl" not in one:
        return text + "."
    return text + f", KL {one['kl']:+.4f} ({one['kl_low']:+.4f} to {one['kl_high']:+.4f})."


def model_card(report: dict, *, remote_code: bool) -> ModelCard:
    """The card of the converted model."""
    return ModelCard(
        name=report["title"],
        made=[report["made"]],
        tags=[f"convert-{report['conversion']}"],
        models=[*report["provenance"]["models"].values()],
        relation="finetune",
        example=loading_example(remote_code=remote_code),
        tables=[table(report)],
        notes=footnotes(report),
        report="report.json",
        recipe=report["recipe"],
    )
