"""The page of a graft: where each head and neuron of the donor landed in the host, and what the host does with it."""

from collections.abc import Iterable, Sequence

from stitch.pages.landing import landing
from stitch.pages.page import Page
from stitch.pages.scores import answers
from stitch.pages.section import Section, Table, ungrouped


def graft_page(
    report: dict,
    plans: Iterable[Table],
    plan_notes: Sequence[str],
    results: Iterable[Table],
    result_notes: Sequence[str],
) -> Page:
    """The page of a graft, with the tables and sentences that the terminal shows for its plan and its results."""
    grafts = report["grafts"]
    landed = Section(
        name="plan",
        heading="Where each part landed",
        words=["On the left the donor, on the right the host. Darker lines lose less of the component's output."],
        charts=[chart for number, one in enumerate(grafts) if (chart := landing(number, one))],
        tables=[ungrouped(table) for table in plans],
        notes=list(plan_notes),
    )
    scores = Section(
        name="scores",
        heading="What the host does with it",
        charts=[
            answers(
                f"answers-{number}",
                f"{one['donor']}: {one['behaviour']}, right answers with 95 % intervals",
                one["results"],
            )
            for number, one in enumerate(grafts)
            if "results" in one
        ],
        tables=[ungrouped(table) for table in results],
        notes=list(result_notes),
    )
    return Page(title=graft_title(report), lead=_lead(grafts), sections=[scores, landed])


def graft_title(report: dict) -> str:
    """Which behaviours of which donors were written into what."""
    what = " and ".join(f"{one['behaviour']} of {one['donor']}" for one in report["grafts"])
    host = f"a {'trained' if report['trained'] else 'new'} {report['host'].get('model_type', 'model')}"
    return f"{what}, written into {host}"


def _lead(grafts: Sequence[dict]) -> str:
    parts = []
    for one in grafts:
        rows = {row["name"]: row for row in one.get("results", [])}
        if host := rows.get("host, grafted"):
            interval = f"{host['right_low']:.1%} to {host['right_high']:.1%}"
            parts.append(f"{one['behaviour']}: {host['right']:.1%} right answers ({interval}) in the host.")
    return " ".join(parts)
