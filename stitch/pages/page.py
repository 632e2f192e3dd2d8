"""A page as HTML: one file with its style, its data, and the script that draws its charts."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from stitch.pages.chart import CONFIG, Chart
from stitch.pages.embedded import policy, script_json
from stitch.pages.javascript import vega
from stitch.pages.section import Section
from stitch.report.palette import BACKGROUND, ROLES, darkened

TEMPLATES = Path(__file__).parent / "templates"
NAME = "report.html"


@dataclass(frozen=True, kw_only=True)
class Page:
    """`status` is the verdict in a word or two, `lead` in a sentence; `facts` are a few lines below.

    `main` is the chart that stands for the page on a model card: the first one, unless another is named.
    """

    title: str
    lead: str = ""
    status: str = ""
    facts: Sequence[str] = ()
    sections: Sequence[Section] = field(default_factory=list)
    main: Chart | None = None

    @property
    def main_chart(self) -> Chart | None:
        """None on a page without charts."""
        return self.main or next((chart for section in self.sections for chart in section.charts), None)


def html(page: Page) -> bytes:
    """The page as one HTML file in UTF-8. The same page gives the same bytes."""
    scripts = [vega(), (TEMPLATES / "page.js").read_text()]
    scripts += [(TEMPLATES / one.data["script"]).read_text() for one in page.sections if "script" in one.data]
    made = _template("page.html.j2").render(
        page=page, roles=ROLES, background=BACKGROUND, darkened=darkened(), config=CONFIG, scripts=scripts,
        style=(TEMPLATES / "page.css").read_text(), policy=policy(scripts),
    )  # fmt: skip
    return made.encode(errors="replace")


@cache
def _environment():
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["script_json"] = script_json
    return made


def _template(name: str):
    return _environment().get_template(name)
