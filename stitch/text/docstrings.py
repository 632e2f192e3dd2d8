"""The default corpus: the docstrings of Python packages that are installed together with stitch.

One document holds the docstrings of one module in source order. Files are parsed with `ast`; nothing is imported. A paragraph
that an earlier document contains is dropped: packages often copy docstrings between modules, and copies of fit text in the
report split would make results too good. A document is named after its module (`torch.nn.modules.linear`). Its split depends
only on that name, so a later release of a package cannot move a document from the fit split to the report split.
"""

import ast
import importlib.util
import inspect
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from stitch.files.process import end_with_parent
from stitch.progress import Progress, counted
from stitch.text.document import Document

# Every package here is a direct or indirect dependency of the core install. "std" is the standard library.
PACKAGES = (
    *("std", "torch", "numpy", "scipy", "transformers", "sympy", "statsmodels", "pandas", "networkx", "nltk"),
    *("huggingface_hub", "transformer_lens", "sae_lens", "datasets"),
)
SKIPPED_FOLDERS = {"test", "tests", "site-packages", "idlelib", "lib2to3", "_vendor"}
SHORTEST_DOCUMENT = 200  # characters; shorter documents are left out


def documents(packages: tuple[str, ...] = PACKAGES, progress: Progress | None = None) -> list[Document]:
    """All documents of the given packages without repeated paragraphs, in a fixed order (package, then path).

    A package that is not installed is skipped. The other documents then stay the same, except that they keep paragraphs which
    the missing package would have contained first.
    """
    listed = counted(packages, "looking for docstrings (packages)", progress)
    files = [file for package in listed for file in python_files(package)]
    # "spawn" and "forkserver" import the caller's main module again, so "fork" is preferred where libraries bear it: on Linux.
    # The thread that prints progress may run meanwhile. Its lock is held for one line at a time, and the workers print nothing.
    context = get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(mp_context=context, initializer=end_with_parent) as pool:
        texts = pool.map(_docstrings, (path for _, path in files), chunksize=64)
        found = counted(texts, "reading docstrings (files)", progress, len(files))
        return list(without_repeats(zip((name for name, _ in files), found, strict=True)))


def python_files(package: str) -> list[tuple[str, Path]]:
    """Module name and path of every source file of `package`; none where it is not installed."""
    if package == "std":
        root, prefix = Path(sysconfig.get_paths()["stdlib"]), ()
    else:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            return []
        root, prefix = Path(next(iter(spec.submodule_search_locations))), (package,)
    found = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if not SKIPPED_FOLDERS.intersection(parts[:-1]):
            found.append((".".join(prefix + parts).removesuffix(".__init__"), path))
    return found


def _docstrings(path: Path) -> str:
    """The docstrings of one source file, separated by blank lines; empty where the file cannot be parsed."""
    source = path.read_bytes()
    if b'"""' not in source and b"'''" not in source:
        return ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other people's invalid escape sequences
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError):  # templates, and test fixtures that are broken on purpose
            return ""
    found = (ast.get_docstring(node, clean=False) for node in _documented(tree))
    return "\n\n".join(inspect.cleandoc(text) for text in found if text)


def _documented(node: ast.AST) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """Nodes that may have a docstring, in source order (`ast.walk` goes breadth-first and would separate a class's methods)."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt):
            yield from _documented(child)


def without_repeats(documents: Iterator[Document]) -> Iterator[Document]:
    """Documents without paragraphs that occurred before, leaving out those that become shorter than `SHORTEST_DOCUMENT`."""
    seen: set[str] = set()
    for name, text in documents:
        kept = []
        for paragraph in text.split("\n\n"):
            key = " ".join(paragraph.split())
            if key not in seen:
                seen.add(key)
                kept.append(paragraph.strip("\n"))
        unique = "\n\n".join(kept).strip()
        if len(unique) >= SHORTEST_DOCUMENT:
            yield name, unique
