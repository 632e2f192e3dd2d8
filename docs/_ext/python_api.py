"""The Python API: a page per package, found by walking `stitch`, `sae` and `matching`, so that modules may move.

Pages are written into docs/api before Sphinx looks for sources, and are not kept in the repository. Docstrings of this project
are plain text with `code`, no markup language; what reStructuredText would take for markup is escaped. Examples (`>>>`) stay.
"""

import importlib
import inspect
import itertools
import pkgutil
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from sphinx.application import Sphinx

PACKAGES = ("stitch", "sae", "matching")


def write_pages(app: Sphinx) -> None:
    folder = Path(app.srcdir) / "api"
    pages = {name: page(name) for package in PACKAGES for name in packages(package)}
    pages["index"] = index(list(pages))
    folder.mkdir(exist_ok=True)
    for file in folder.iterdir():
        if file.stem not in pages:
            file.unlink() if file.is_file() else shutil.rmtree(file)
    for name, text in pages.items():
        file = folder / f"{name}.rst"
        if not file.exists() or file.read_text() != text:  # what has not changed is not built again
            file.write_text(text)


def packages(root: str) -> list[str]:
    """The package and those inside it that hold documented modules."""
    found = [root]
    for info in pkgutil.walk_packages(importlib.import_module(root).__path__, f"{root}."):
        if info.ispkg and public(info.name):
            found.append(info.name)
    return [name for name in found if modules(name)]


def modules(package: str) -> list[str]:
    """The package's own modules that say something: itself where it defines anything, and its files."""
    inside = pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}.")
    names = [package, *(info.name for info in inside if not info.ispkg and public(info.name))]
    return [name for name in names if members(name)]


def members(module: str) -> list[str]:
    """Public names with a docstring that the module defines itself."""
    found = vars(importlib.import_module(module))
    return [
        name
        for name, thing in found.items()
        if not name.startswith("_")
        and getattr(thing, "__module__", None) == module
        and (inspect.isclass(thing) or inspect.isfunction(thing))
        and inspect.getdoc(thing)
    ]


def public(name: str) -> bool:
    return not any(part.startswith("_") for part in name.split("."))


def page(package: str) -> str:
    parts = [title(package, "="), summary(package)]
    for module in modules(package):
        parts += [title(module, "-"), f".. automodule:: {module}\n   :members: {', '.join(members(module))}\n"]
    return "\n".join(parts)


def summary(package: str) -> str:
    """The package's own docstring is shown here, unless the package has a section of its own below."""
    said = "" if members(package) else inspect.getdoc(importlib.import_module(package)) or ""
    return "\n".join(as_rst(said.splitlines())) + "\n"


def index(names: list[str]) -> str:
    listed = "\n".join(f"   {name}" for name in names)
    return f"{title('Modules', '=')}\n.. toctree::\n   :maxdepth: 2\n\n{listed}\n"


def title(text: str, line: str) -> str:
    return f"{text}\n{line * len(text)}\n"


def as_rst(lines: list[str]) -> list[str]:
    """Plain text with `code` as reStructuredText: paragraphs escaped, lists and examples kept, indented lines literal."""
    found: list[str] = []
    for kind, block in itertools.groupby(lines, key=_kind_after()):
        text = "\n".join(block)
        if kind == "example":  # reStructuredText knows `>>>` as well
            found += ["", *text.splitlines(), ""]
        else:
            found += ["", "::", "", *text.splitlines(), ""] if kind == "literal" else escaped(text).splitlines()
    return [*found, ""]


def _kind_after() -> Callable[[str], str]:
    """What a line is part of: an indented block ("literal"), an example from `>>>` to the next blank line, or text.

    Blank lines go with what they follow, except after an example, and a list's items may be indented.
    """
    inside = {"kind": "text", "item": False}

    def kind(line: str) -> str:
        if not line.strip():
            inside["kind"] = "text" if inside["kind"] == "example" else inside["kind"]
        elif line.startswith(">>>") or inside["kind"] == "example":
            inside.update(kind="example", item=False)
        else:
            item = line.lstrip().startswith("- ")
            inside["kind"] = "literal" if line.startswith(" ") and not item and not inside["item"] else "text"
            inside["item"] = item or (inside["item"] and line.startswith(" "))
        return inside["kind"]

    return kind


def escaped(text: str) -> str:
    """`code` becomes ``code``; outside of it stars, bars and underscores at the end of a word are no markup."""
    pieces = re.split(r"(`[^`]+`)", text)
    found = []
    for number, piece in enumerate(pieces):
        if number % 2 == 0:
            found.append(_plain(piece))
            continue
        # Where code touches a word or a bracket, an escaped space (which is not shown) tells where it ends.
        before = "\\ " if re.search(r"[^\s(\[{\"'/:-]$", pieces[number - 1]) else ""
        after = "\\ " if re.match(r"[^\s)\]}\"'/:.,;!?-]", pieces[number + 1]) else ""
        found.append(f"{before}`{piece}`{after}")
    return "".join(found)


def _plain(text: str) -> str:
    return re.sub(r"([\\*|`]|(?<=\w)_(?=\W|$))", r"\\\1", text)


def process(app: Sphinx, what: str, name: str, thing, options, lines: list[str]) -> None:
    lines[:] = as_rst(lines)


def setup(app: Sphinx) -> dict:
    app.connect("builder-inited", write_pages)
    app.connect("autodoc-process-docstring", process)
    return {"version": "1", "parallel_read_safe": True}
