"""Every row of a report, read from the registry that fits and scores them: the directive `report-rows` takes a kind of row.

A kind that no page shows is a warning, and so an error of the strict build.
"""

from collections.abc import Sequence

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from command_options import with_code
from stitch.translation.rows import FREE, LOOK_UPS, ROWS, nulls_of

log = logging.getLogger(__name__)
KINDS = list(dict.fromkeys(row.kind for row in ROWS))
# Long lists of inputs that many rows share, and what they are called for short.
TOGETHER = {"free": FREE, "look-ups": LOOK_UPS}


class ReportRows(SphinxDirective):
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        kind = self.arguments[0]
        if kind not in KINDS:
            raise self.error(f"no row is of kind {kind!r}; there are {', '.join(KINDS)}.")
        shown(self.env).setdefault(kind, self.env.docname)
        rows = [row for row in ROWS if row.kind == kind]
        columns = {
            "Row": ([f"`{row.name}`" for row in rows], 22),
            "What it is": ([row.help for row in rows], 38),
            "Reads": ([_names(_shortened(row.reads)) for row in rows], 16),
            "Null": ([_names(nulls_of(row.name)) for row in rows], 16),
            "Compared with": ([f"`{row.compared_with}`" if row.compared_with else "" for row in rows], 16),
            "Cost": ([row.cost for row in rows], 18),
            "In `--brief`": (["yes" if row.brief else "" for row in rows], 6),
        }
        # What is the same for all rows of a kind says nothing.
        told = {name: found for name, found in columns.items() if name == "Row" or len(set(found[0])) > 1}
        told |= {"What it is": columns["What it is"]}
        return [_table({name: told[name] for name in columns if name in told})]


def _shortened(reads: Sequence[str]) -> list[str]:
    names = list(reads)
    for short, several in TOGETHER.items():
        if set(several) <= set(names):
            names = [*(name for name in names if name not in several), short]
    return names


def _names(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _table(columns: dict[str, tuple[list[str], int]]) -> nodes.table:
    group = nodes.tgroup(cols=len(columns))
    group += [nodes.colspec(colwidth=width) for _, width in columns.values()]
    group += nodes.thead("", _row(list(columns)))
    lines = zip(*(cells for cells, _ in columns.values()), strict=True)
    group += nodes.tbody("", *(_row(line) for line in lines))
    return nodes.table("", group, classes=["rows"])


def _row(cells: Sequence[str]) -> nodes.row:
    return nodes.row("", *(nodes.entry("", nodes.paragraph("", "", *with_code(cell))) for cell in cells))


def shown(env: BuildEnvironment) -> dict[str, str]:
    """Which page shows each kind of row."""
    if not hasattr(env, "stitch_rows"):
        env.stitch_rows = {}  # pyright: ignore[reportAttributeAccessIssue]
    return env.stitch_rows  # pyright: ignore[reportAttributeAccessIssue]


def forget(_: Sphinx, env: BuildEnvironment, docname: str) -> None:
    for kind in [kind for kind, page in shown(env).items() if page == docname]:
        del shown(env)[kind]


def check(_: Sphinx, env: BuildEnvironment) -> None:
    for kind in KINDS:
        if kind not in shown(env):
            log.warning("rows of kind %r are on no page: add {report-rows} %s.", kind, kind)


def setup(app: Sphinx) -> dict:
    app.add_directive("report-rows", ReportRows)
    app.connect("env-purge-doc", forget)
    app.connect("env-check-consistency", check)
    return {"version": "1", "parallel_read_safe": False}
