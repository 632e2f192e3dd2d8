"""Runs the notebooks in examples/ and stores in them what their cells show: `python docs/notebooks/run.py [NAME …]`.

Cells run in this Python, one after another in an empty folder. Of what a cell shows, its printed text and the value of its
last line are kept, the latter also as HTML if it has that form.
"""

import argparse
import ast
import contextlib
import io
import json
import os
import pprint
import tempfile
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=["tour", "parts"])
    for name in parser.parse_args().names:
        file = EXAMPLES / f"{name}.ipynb"
        notebook = json.loads(file.read_text())
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            run([cell for cell in notebook["cells"] if cell["cell_type"] == "code"])
        file.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


def run(cells: list[dict]) -> None:
    names: dict = {}
    for number, cell in enumerate(cells, 1):
        print(f"cell {number} of {len(cells)}", flush=True)
        printed, value = shown("".join(cell["source"]), names)
        cell["execution_count"], cell["outputs"] = number, []
        if printed:
            cell["outputs"].append({"name": "stdout", "output_type": "stream", "text": lines(printed)})
        if value is not None:
            result = {"data": forms(value), "execution_count": number, "metadata": {}, "output_type": "execute_result"}
            cell["outputs"].append(result)


def shown(source: str, names: dict) -> tuple[str, object]:
    """What a cell prints, and the value of its last line if that is an expression."""
    body = ast.parse(source).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(ast.Module(body, []), "cell", "exec"), names)
        value = eval(compile(ast.Expression(last.value), "cell", "eval"), names) if last else None
    return printed.getvalue(), value


def forms(value: object) -> dict[str, list[str]]:
    text = pprint.pformat(value) if isinstance(value, list) else repr(value)
    found = {"text/plain": lines(text)}
    if html := getattr(value, "_repr_html_", None):
        found = {"text/html": lines(html()), **found}
    return found


def lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


if __name__ == "__main__":
    main()
