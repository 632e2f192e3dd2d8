"""Every row of a report, read from the registry that fits and scores them: the directive `report-rows` takes a row's prefix.

`translation` shows every `translation:…`; `models` shows the rows that have no prefix.
"""

from command_options import with_code
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from stitch.translation.rows import ROWS

log = logging.getLogger(__name__)
HEADER = ("Row", "What it is", "Reads", "Its null", "Cost", "In `--brief`")
WIDTHS = (20, 38, 16, 14, 10, 6)


def prefix(name: str) -> str:
    kind, colon, _ = name.partition(":")
    return kind if colon else "models"


class ReportRows(SphinxDirective):
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        wanted = self.arguments[0]
        rows = [row for row in ROWS if prefix(row.name) == wanted]
        if not rows:
            raise self.error(f"no row is of kind {wanted!r}; there are {', '.join(dict.fromkeys(map(kind_of, ROWS)))}.")
        shown(self.env).setdefault(wanted, self.env.docname)
        body = [
            [
                [nodes.literal(text=row.name)],
                with_code(row.help),
                _names(row.reads),
                _names([row.null] if row.null else []),
                with_code(row.cost or ""),
                [nodes.Text("yes" if row.brief else "")],
            ]
            for row in rows
        ]
        # Columns that are empty for all rows of a kind (models read nothing and have no null) are left out.
        kept = [column for column in range(len(HEADER)) if any(_text(line[column]) for line in body)]
        return [_table(body, kept)]


def kind_of(row) -> str:
    return prefix(row.name)


def _names(names) -> list[nodes.Node]:
    found: list[nodes.Node] = []
    for name in names:
        found += [nodes.Text(", ")] if found else []
        found.append(nodes.literal(text=name))
    return found


def _text(cell: list[nodes.Node]) -> str:
    return "".join(node.astext() for node in cell)


def _table(body: list[list[list[nodes.Node]]], kept: list[int]) -> nodes.table:
    group = nodes.tgroup(cols=len(kept))
    group += [nodes.colspec(colwidth=WIDTHS[column]) for column in kept]
    group += nodes.thead("", _row([with_code(HEADER[column]) for column in kept]))
    group += nodes.tbody("", *(_row([line[column] for column in kept]) for line in body))
    return nodes.table("", group, classes=["rows"])


def _row(cells: list[list[nodes.Node]]) -> nodes.row:
    return nodes.row("", *(nodes.entry("", nodes.paragraph("", "", *cell)) for cell in cells))


def shown(env: BuildEnvironment) -> dict[str, str]:
    """Which page shows each kind of row."""
    if not hasattr(env, "stitch_rows"):
        env.stitch_rows = {}  # pyright: ignore[reportAttributeAccessIssue]
    return env.stitch_rows  # pyright: ignore[reportAttributeAccessIssue]


def forget(_: Sphinx, env: BuildEnvironment, docname: str) -> None:
    for kind in [kind for kind, page in shown(env).items() if page == docname]:
        del shown(env)[kind]


def check(_: Sphinx, env: BuildEnvironment) -> None:
    for kind in dict.fromkeys(map(kind_of, ROWS)):
        if kind not in shown(env):
            log.warning("rows of kind %r are on no page: add {report-rows} %s.", kind, kind)


def setup(app: Sphinx) -> dict:
    app.add_directive("report-rows", ReportRows)
    app.connect("env-purge-doc", forget)
    app.connect("env-check-consistency", check)
    return {"version": "1", "parallel_read_safe": False}
