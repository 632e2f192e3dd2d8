"""report.json of a consolidation."""

from collections.abc import Sequence

from stitch.conversions.consolidation.documents import Document, names_of
from stitch.conversions.consolidation.queries import concatenated, gain_kept
from stitch.conversions.consolidation.rows import ArmScores
from stitch.conversions.donor import Donor
from stitch.conversions.report import difference


def assemble_report(donor: Donor, documents: Sequence[Document], rows: dict[str, ArmScores], settings: dict) -> dict:
    """report.json, see `stitch.conversions.report`. `by_document` has what is kept of each one."""
    ends = rows["donor"], rows["reference:with context"]
    without, title = ends[0].all_behind_text, names_of(documents)
    results = []
    for name, row in rows.items():
        cost = dict(zip(("retain_cost", "retain_cost_low", "retain_cost_high"), row.cost, strict=True))
        results.append({**row.all_behind_text.row(name), **_kept(row, ends), **cost})
    ours = next(row for row in results if row["name"] == "converted")
    scores = {name: row.all_behind_text for name, row in rows.items()}
    by_document = []
    for number, one in enumerate(documents):
        kept = _kept(rows["converted"], ends, number)
        by_document.append({"document": one.name, "tokens": len(one.ids), "queries": len(one.bare.prefixes), **kept})
    tokens = sum(len(one.ids) for one in documents)
    asked = len(without.tokens)
    file = "the file of queries" if len(documents) == 1 else "the files of queries"
    source = "continuations that the donor generated for the report" if settings["queries"] is None else file
    read = f"the {tokens} tokens of {title}" if len(documents) == 1 else "the tokens of its document"
    notes = [
        f"With context: [BOS, {read}, query]. Without: [BOS, unrelated text, query], with different "
        f"text for each query, none of it used in the fit. No prefix: [BOS, query]. {asked} queries: {source}.",
        f"Gain kept: {ours['kept']:.0%} ({ours['kept_low']:.0%} to {ours['kept_high']:.0%}) after unrelated text, "
        f"{ours['kept_bare']:.0%} ({ours['kept_bare_low']:.0%} to {ours['kept_bare_high']:.0%}) with no prefix.",
        *_by_document(by_document),
        "sgd and adamw train the same matrices on passages of the documents; 'adamw, queries' trains them on the queries and "
        "targets of the converted model for as many steps. 'one step' is a single step of the natural gradient; 'closed form' "
        "fits residual streams instead of predictions.",
        f"Every edit is scaled to cost {settings['cost']} nats per token on the sweep split. 'other text' is the cost on the "
        f"report split: {ours['retain_cost']:+.4f} ({ours['retain_cost_low']:+.4f} to {ours['retain_cost_high']:+.4f}).",
    ]
    others = [name for name in rows if name.startswith(("baseline", "null"))]
    return {
        "conversion": "consolidate",
        "model": donor.model.name,
        "title": f"{donor.model.name} with {title} in its weights",
        "made": f"The content of {title} ({tokens} tokens) is written into the down projections of the MLPs. Architecture and "
        "all other weights are the donor's.",
        "tokens": {"fit": donor.windows["fit"].tokens, "document": tokens, "report": int(without.tokens.sum())},
        "context": int(without.tokens[0]),
        "results": results,
        "by_document": by_document,
        "differences": [difference(scores, "converted", minus) for minus in ("donor", *others)],
        "notes": notes,
        **donor.origin("convert consolidate", settings, without=("context",)),
    }  # fmt: skip


def _kept(row: ArmScores, ends: tuple[ArmScores, ArmScores], number: int | None = None) -> dict:
    """The gain kept behind other text and with no prefix, with intervals, of all documents or of one of them."""
    found = {}
    for key in ("kept", "kept_bare"):
        scores = [one.behind_text if key == "kept" else one.bare for one in (row, *ends)]
        chosen = [concatenated(parts) if number is None else parts[number] for parts in scores]
        found |= dict(zip((key, f"{key}_low", f"{key}_high"), gain_kept(*chosen), strict=True))
    return found


def _by_document(found: Sequence[dict]) -> list[str]:
    """A sentence with the gain kept of each of several documents, behind other text."""
    if len(found) == 1:
        return []
    parts = (f"{one['document']} {one['kept']:.0%} ({one['kept_low']:.0%} to {one['kept_high']:.0%})" for one in found)
    return [f"Gain kept by document: {', '.join(parts)}."]
