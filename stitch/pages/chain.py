"""The page of a chain: its parts and seams, how much every seam costs, and the last seam as a join."""

from stitch.pages.intervals import intervals
from stitch.pages.join import join_sections
from stitch.pages.page import Page
from stitch.pages.rows import CE, rows_chart
from stitch.pages.section import Section
from stitch.report import chain as seams
from stitch.report.card import table
from stitch.report.verdict import verdict_sentence


def chain_page(report: dict, features: dict | None = None) -> Page:
    """The page of a chain. `features` is the content of the last seam's features.json."""
    return Page(
        title=seams.title(report["chain"]),
        lead=verdict_sentence(report) if "verdict" in report else "",
        facts=[table(report)[2]],
        sections=[_parts(report["chain"]), _seams(report["chain"]), *join_sections(report, features)],
        main=rows_chart(report),
    )


def _parts(chain: dict) -> Section:
    """Parts and seams in the order they run."""
    steps: list[dict] = []
    for number, (part, what) in enumerate(zip(chain["parts"], seams.ran(chain), strict=True)):
        is_last = number == len(chain["seams"])
        steps.append({"kind": "part", "name": part["model"], "text": what, "last": is_last})
        if not is_last:
            seam = chain["seams"][number]
            text = f"{seam['chosen']}; afterwards {seam['composite']['ce']:.3f} nats"
            steps.append({"kind": "seam", "name": f"seam {number + 1}", "text": text, "last": False})
    return Section(name="parts", heading="Parts and seams", template="parts.html.j2", data={"steps": steps})


def _seams(chain: dict) -> Section:
    """The cross-entropy of whole models and of the composite after every seam."""
    rows = [("alternative", f"model {row['name']}", row) for row in chain["models"]]
    rows += [("composite", f"after seam {number}", seam["composite"]) for number, seam in enumerate(chain["seams"], 1)]
    points = [
        {"label": label, "role": role, "value": row["ce"], "low": row["ce_low"], "high": row["ce_high"]}
        for role, label, row in rows
    ]
    title = "Whole models, and the composite after every seam"
    chart = intervals("seams", title, points, CE, names={"alternative": "whole model"})
    words = ["A composite after an earlier seam ends with all later blocks of that seam's second model."]
    return Section(name="seams", heading="What every seam costs", words=words, charts=[chart])
