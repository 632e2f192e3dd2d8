"""On how many documents a report's numbers are measured, for its JSON, its title and its footnotes."""

from stitch.evaluation.scores import Scores

FEW = 30  # effective documents; with fewer, 95 % intervals contain the truth less often (docs/findings/intervals.md)


def counted(scores: Scores) -> dict:
    """`documents` in report.json: their number on the report split, and the effective number."""
    return {"number": scores.documents, "effective": round(scores.effective_documents, 1)}


def phrase(report: dict) -> str:
    """For the title: " of 176 documents (effective number 90)"; empty for a report that does not count them."""
    if not (found := report.get("documents")):
        return ""
    return f" of {found['number']:,} documents (effective number {found['effective']:.0f})"


def warning(report: dict) -> list[str]:
    """A footnote where the documents are too few or too unequal; otherwise none."""
    found = report.get("documents")
    if not found or found["effective"] >= FEW:
        return []
    return [
        f"Few documents: the effective number is {found['effective']:.0f}, below {FEW}, so the intervals are too narrow. "
        "Raise `held_out` (`tokens` in `eval`) or give more text."
    ]
