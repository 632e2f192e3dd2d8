"""What people read of a report: the result table and its footnotes, as a terminal shows them, and the model card."""

from stitch.evaluation.documents import phrase, warning
from stitch.files.markdown import loading_example
from stitch.report import across
from stitch.report import chain as seams
from stitch.report.notes import sae_notes, text_notes
from stitch.report.origin import origin_notes
from stitch.report.readme import ModelCard
from stitch.report.verdict import verdict_sentence

COLUMNS = [
    *("", "CE", "95 % interval", "bits/byte", "perplexity", "KL to B", "top-1"),
    *("MFLOP", "M param.", "MB", "MB read"),
]


def table(report: dict) -> tuple[list[str], list[list[str]], str]:
    """Header, rows and title of the result table. Columns without any value are left out."""
    of_chain = seams.rows(report["chain"]) if "chain" in report else []
    rows = [[_label(row["name"], report), *_cells(row)] for row in (*of_chain, *report["results"])]
    filled = [column for column in range(len(COLUMNS)) if column == 0 or any(row[column] for row in rows)]
    return [COLUMNS[column] for column in filled], [[row[column] for column in filled] for row in rows], title(report)


def title(report: dict) -> str:
    """One line: which blocks of which models, and on how much text they are scored."""
    kind = "tokens of the whole text" if report.get("whole_text") else "held-out tokens"
    scored = f"{report['tokens']['report']:,} {kind}{phrase(report)}"
    if "site" not in report:
        return f"{report['models']['a']} on {scored}"
    return f"{_blocks_run(report)}; {scored}, nats per token"


def _blocks_run(report: dict) -> str:
    models, site = report["models"], report["site"]
    if native := report.get("native"):
        return f"{models['a']} {native['change']}, {native['blocks']} blocks instead of {native['of']}"
    if chain := report.get("chain"):
        return seams.title(chain)
    return f"first {site['a']} blocks of {models['a']}, then {models['b']} from block {site['b']}"


def _label(name: str, report: dict) -> str:
    if name == "composite":
        return f"{name} ({report['chosen']})"
    return seams.label(name, report["chain"]) if "chain" in report else name


def _cells(row: dict) -> list[str]:
    def show(key: str, form: str) -> str:
        value = row.get(key)
        return "" if value is None else format(value, form)

    interval = "" if row.get("ce_low") is None else f"{row['ce_low']:.3f} – {row['ce_high']:.3f}"
    perplexity = "" if row.get("ppl") is None else f"{row['ppl']:,.1f}" if row["ppl"] < 1e5 else f"{row['ppl']:.1e}"
    costs = [_millions(row.get(key)) for key in ("flops", "parameters", "bytes", "bytes_read")]
    ce = ("~" if "tokens" in row else "") + show("ce", ".3f")
    return [ce, interval, show("bpb", ".3f"), perplexity, show("kl_to_b", ".3f"), show("top1", ".1%"), *costs]


def _millions(value: float | None) -> str:
    """Three significant digits, or all before the point."""
    if value is None:
        return ""
    found = value / 1e6
    return f"{found:,.0f}" if found >= 100 else f"{found:.3g}"


def footnotes(report: dict) -> list[str]:
    """The sentences below the table: what was chosen, how good the parts are, and paired differences with their intervals."""
    lines = seams.footnotes(report["chain"]) if "chain" in report else []
    lines += [*origin_notes(report), *text_notes(report)]
    if choice := report.get("layer_choice"):
        tried = ", ".join(f"{item['b']}: {item['ce']:.3f}" for item in choice["layers"] if item["ce"] is not None)
        lines.append(
            f"Layer of B: {choice['b']}, chosen on the sweep split" + (f" (CE by layer {tried})" if tried else "") + "."
        )
    for item in report.get("saes", []):
        lines.append(
            f"SAE at {item['site']}: {item['features']:,} features, {item['dead']:.1%} of them dead, "
            f"{item['l0']:.1f} active per token (L0), share of variance unexplained (FVU) {item['fvu']:.3f}. With its "
            f"reconstruction in place of the stream the model's cross-entropy is {item['spliced_ce']:.3f}."
        )
        if wanted := item.get("features_cut_from"):
            lines.append(
                f"The text is short for the SAE at {item['site']}: it has {item['features']:,} features, not {wanted:,}, as "
                "there may be at most one for every two tokens to fit on. More `tokens` give more."
            )
    lines += sae_notes(report)
    if found := report.get("matching"):
        lines.append(
            f"Matching: {found['pairs']:,} pairs of features, mean correlation {found['mean_score']:.3f}; control, the best of "
            f"some random partners: {found['null_mean_score']:.3f}. The sum of correlations is at most {found['gap']:.4%} "
            "below the maximum over all one-to-one matchings."
        )
    if found := report.get("left_out"):
        lines.append(f"Not fitted, because they need more than `memory`: {', '.join(found)}.")
    lines += _without_rows(report)
    lines += [f"{row} is left out: {why}." for row, why in report.get("not_made", {}).items()]
    if others := report.get("native", {}).get("other_ranges"):
        lines.append(
            f"null:random-range is the mean of {len(others)} other models, bridged as the composite is: {'; '.join(others)}."
        )
    lines += across.notes(report)
    lines += warning(report)
    if stopped := [row["tokens"] for row in report["results"] if "tokens" in row]:
        lines.append(
            f"~: scored on the first {min(stopped):,} tokens or more, until certain to be worse than the composite, and carried "
            "over to all text by regression on it."
        )
    return [*lines, *across.differences(report)]


def _without_rows(report: dict) -> list[str]:
    """What is lost at tokens that did not occur in the text of the tables, beside all others."""
    if not (found := report.get("look_ups", {}).get("unseen")):
        return []
    there, elsewhere = found["ce_without_rows"], found["ce_with_rows"]
    share = f"{found['tokens_without_rows']:,} of {found['tokens']:,} predictions"
    beside = f", {report['models']['b']} {there['b']:.3f} ({elsewhere['b']:.3f})" if "b" in there else ""
    return [
        f"{share} are made at tokens without a row in the tables: neither the text to fit on nor the sweep split has them."
        f" There the composite has {there['fallback']:.3f} nats (elsewhere {elsewhere['fallback']:.3f}){beside}; with mean rows "
        f"in place of its fall-back it would have {there['mean_row']:.3f}."
    ]


def model_card(report: dict, *, remote_code: bool = True) -> ModelCard:
    """The card of what was joined, with a model-index that the Hub reads. `remote_code`: whether its folder has code."""
    name, made = _subject(report)
    return ModelCard(
        name=name,
        made=[*([verdict_sentence(report)] if "verdict" in report else []), made],
        tags=["model-stitching", "merge"],
        models=[*report["provenance"]["models"].values()],
        saes=report["provenance"].get("saes", []),
        relation="merge",
        example=loading_example(remote_code=remote_code),
        tables=[table(report)],
        notes=footnotes(report),
        report="report.json",
        recipe=report["recipe"],
        more={"model-index": [{"name": name, "results": [_measured(report)]}]},
    )


def _subject(report: dict) -> tuple[str, str]:
    """The name of the model that a card is about, and how it was made in one or two sentences."""
    a, b = (report["models"][side] for side in "ab")
    site, chosen = report["site"], report["chosen"]
    if native := report.get("native"):
        bridge = (
            "nothing else was changed"
            if chosen == "passthrough"
            else f"the seam is bridged by weights refitted in closed form ({chosen})"
        )
        return (
            f"{a} with {native['blocks']} blocks instead of {native['of']}",
            f"{a} {native['change']}; {bridge}. It is a standard {native['family']} checkpoint. "
            "No weight was fine-tuned.",
        )
    if chain := report.get("chain"):
        return " × ".join(part["model"] for part in chain["parts"]), seams.made(chain)
    return (
        f"{a} × {b}",
        f"The first {site['a']} blocks of {a}, a translation ({chosen}) fitted in closed form, and the blocks of {b} from "
        f"{site['b']} on. No weight was fine-tuned.",
    )


def _measured(report: dict) -> dict:
    """The composite's scores in the form of a model-index."""
    composite = next(row for row in report["results"] if row["name"] == "composite")
    dataset = report["provenance"]["settings"]["text"]
    metrics = {"perplexity": ("ppl", "Perplexity"), "cross-entropy": ("ce", "Cross-entropy, nats per token")}
    return {
        "task": {"type": "text-generation", "name": "Language modelling"},
        "dataset": {"type": dataset, "name": f"{dataset}, report split"},
        "metrics": [
            {"type": kind, "value": round(composite[key], 4), "name": shown} for kind, (key, shown) in metrics.items()
        ],
    }
