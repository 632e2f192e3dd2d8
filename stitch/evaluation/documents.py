"""On how many documents a report's numbers are measured, for its JSON, its title and its footnotes."""

from stitch.evaluation.scores import Scores

FEW = 30  # effective documents; with fewer, a few unusual ones make 95 % intervals too narrow (docs/findings/intervals.md)


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
        f"Few documents: their effective number is {found['effective']:.0f}, below {FEW}, and intervals may be too narrow where "
        "some documents differ much from the others. Report on more tokens (`held_out`; `tokens` in `eval`, `documents` in "
        "`retokenize`) or give more text."
    ]
