"""The embedded corpus: the docstrings of Python packages that every installation of stitch brings along.

One document is one module: its docstrings in source order. Files are parsed with `ast`; nothing is imported. A paragraph that
an earlier document already contained is dropped, because packages copy docstrings between modules freely and a copy in the
report split would flatter every number. Documents are named (`torch.nn.modules.linear`), and the split of a document is decided
by that name alone, so a later release of a package never moves a document from the fit split to the report split.
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

# Every name here is a dependency, direct or not, of the core install. "std" is the standard library.
PACKAGES = (
    *("std", "torch", "numpy", "scipy", "transformers", "sympy", "statsmodels", "pandas", "networkx", "nltk"),
    *("huggingface_hub", "transformer_lens", "sae_lens", "datasets"),
)
SKIPPED_FOLDERS = {"test", "tests", "site-packages", "idlelib", "lib2to3", "_vendor"}
SHORTEST_DOCUMENT = 200  # characters; below this a module has nothing to say

Document = tuple[str, str]  # name, text


def documents(packages: tuple[str, ...] = PACKAGES) -> list[Document]:
    """All documents of the given packages, duplicates removed, in a fixed order (package, then path).

    A package that is not installed is skipped: the corpus is then smaller, the rest of it unchanged but for paragraphs that
    the missing package had first.
    """
    files = [file for package in packages for file in _python_files(package)]
    # "spawn" would re-import the caller's main module; a fork before any thread pool starts is safe only on Linux.
    context = get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(mp_context=context) as pool:
        texts = pool.map(_docstrings, (path for _, path in files), chunksize=64)
        return list(_without_repeats(zip((name for name, _ in files), texts, strict=True)))


def _python_files(package: str) -> list[tuple[str, Path]]:
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
    source = path.read_bytes()
    if b'"""' not in source and b"'''" not in source:
        return ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other people's invalid escape sequences
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError):  # templates and deliberately broken fixtures
            return ""
    found = (ast.get_docstring(node, clean=False) for node in _documented(tree))
    return "\n\n".join(inspect.cleandoc(text) for text in found if text)


def _documented(node: ast.AST) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """Nodes that may carry a docstring, in source order (`ast.walk` is breadth-first and would tear classes apart)."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt):
            yield from _documented(child)


def _without_repeats(documents: Iterator[Document]) -> Iterator[Document]:
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
