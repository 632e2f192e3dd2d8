"""A notebook on a page: the directive `notebook` takes its path, as seen from the page.

Markdown cells become text, code cells Python, and the outputs that are stored in the file plain text. Nothing is run. The page
has the title, so the notebook's own is left out.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Notebook(SphinxDirective):
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        _, file = self.env.relfn2path(self.arguments[0])
        self.env.note_dependency(file)
        found: list[nodes.Node] = []
        for cell in json.loads(Path(file).read_text())["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "markdown":
                found += self.parse_text_to_nodes(without_title(source))
                continue
            found.append(nodes.literal_block(source, source, language="python"))
            found += (nodes.literal_block(text, text, language="text") for text in shown(cell["outputs"]))
        return found


def without_title(source: str) -> str:
    first, _, rest = source.partition("\n")
    return rest if first.startswith("# ") else source


def shown(outputs: list[dict]) -> Iterator[str]:
    """What a cell printed and the value of its last line, as text."""
    for output in outputs:
        yield "".join(output["text"] if output["output_type"] == "stream" else output["data"]["text/plain"]).rstrip()


def setup(app: Sphinx) -> dict:
    app.add_directive("notebook", Notebook)
    return {"version": "1", "parallel_read_safe": True}
