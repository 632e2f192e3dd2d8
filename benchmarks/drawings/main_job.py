"""The main job: every row of the reports of both directions, with its interval."""

from matplotlib.figure import Figure

from drawings.models import wide
from stitch.pages.rows import role
from stitch.report.figure import interval, legend, marks, panels, rule
from stitch.report.palette import ROLES

DIRECTIONS = {"gpt2-llama": "demo:gpt2 →\ndemo:llama", "llama-gpt2": "demo:llama →\ndemo:gpt2"}
KINDS = ("translation", "reference", "ceiling", "null")  # models first; floors are far to the right


def draw(lines: list[dict]) -> Figure:
    """Rows are in the order of the first direction in both panels: models, then by kind, best first."""
    first, *_ = DIRECTIONS
    lines = [line for line in lines if line["kind"] == "row"]
    rows = [line for line in lines if line[first]["ce_low"] is not None and _kind(line) in ("", *KINDS)]
    rows.sort(key=lambda line: (("", *KINDS).index(_kind(line)), line[first]["ce"] if _kind(line) else 0))
    bound = next(line for line in lines if line["name"] == "line")
    figure, axes = panels(1, len(DIRECTIONS), 6.2, sharey=True)
    for axis, (direction, title) in zip(axes, DIRECTIONS.items(), strict=True):
        for number, line in enumerate(rows):
            of = role(line["name"])
            if direction in line:
                interval(axis, -number, line[direction], marks(of), ROLES[of].name)
        rule(axis, bound[direction]["ce"], upright=True, role="bound", label="line between A and B")
        axis.set(title=title, xlabel="cross-entropy, nats", ylim=(0.7 - len(rows), 0.7))
    axes[0].set_yticks(range(0, -len(rows), -1), [line["name"].removeprefix("translation:") for line in rows])
    figure.suptitle(f"{wide('demo:gpt2')} and {wide('demo:llama')}")
    legend(figure)
    return figure


def _kind(line: dict) -> str:
    return line["name"].partition(":")[0] if ":" in line["name"] else ""
