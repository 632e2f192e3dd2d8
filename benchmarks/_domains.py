"""Text of two domains from the installed Python packages: code without docstrings and comments, and prose.

Prose is the docstring corpus without paragraphs of code. Both domains hold one document per module, under the module's
name, so the code and the prose of a module are in the same split. Sources are read as text and never imported.
"""

import ast
import json
import random
import warnings
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from stitch.text import docstrings
from stitch.text.corpus import cached_documents
from stitch.text.document import Document
from stitch.text.documents import SPLITS, Split, select, split_of

DOMAINS = ("code", "prose")
LONGEST_SOURCE = 200_000  # bytes; longer sources are mostly data
PASSAGE = 3000  # characters of a passage at most, so that many documents fit into a text of given size
SHORTEST_PASSAGE = 500  # characters


def corpus(domain: str, work: Path) -> list[Document]:
    """All documents of a domain, kept in `work`, since reading the sources takes minutes."""
    kept = work / f"{domain}.json"
    if not kept.exists():
        work.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps({"code": code, "prose": prose}[domain]()))
    return [(name, text) for name, text in json.loads(kept.read_text())]


def code(split: Split | None = None) -> list[Document]:
    """The sources of all packages of the docstring corpus, without docstrings, comments and repeated paragraphs.

    Only the modules of one `split` of it are read where it is given, which takes a fraction of the time.
    """
    files = [file for package in docstrings.PACKAGES for file in docstrings.python_files(package)]
    if split:
        files = [(name, path) for name, path in files if split_of(name) == split]
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        texts = pool.map(_bare, (path for _, path in files), chunksize=64)
        return list(docstrings.without_repeats(zip((name for name, _ in files), texts, strict=True)))


def prose() -> list[Document]:
    """The docstring corpus without paragraphs that hold code, as far as marks of code show it."""
    kept = (
        (name, "\n\n".join(p for p in text.split("\n\n") if not _looks_like_code(p)))
        for name, text in cached_documents()
    )
    return [(name, text) for name, text in kept if len(text) >= docstrings.SHORTEST_DOCUMENT]


def _bare(path: Path) -> str:
    source = path.read_bytes()
    if len(source) > LONGEST_SOURCE:
        return ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other people's invalid escape sequences
        try:
            tree = ast.parse(source)
            return ast.unparse(_Undocumented().visit(tree))
        except (SyntaxError, ValueError, RecursionError):
            return ""


class _Undocumented(ast.NodeTransformer):
    """Removes every statement that is a string alone: docstrings, and strings used as comments."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        alone = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if alone else node

    def generic_visit(self, node: ast.AST) -> ast.AST:
        node = super().generic_visit(node)
        if isinstance(getattr(node, "body", None), list) and not node.body and not isinstance(node, ast.Module):  # pyright: ignore[reportAttributeAccessIssue]
            node.body = [ast.Pass()]  # pyright: ignore[reportAttributeAccessIssue]
        return node


def _looks_like_code(paragraph: str) -> bool:
    lines = paragraph.splitlines()
    marked = any(line.lstrip().startswith((">>>", "...", "```", "import ", "from ", "def ")) for line in lines)
    return marked or paragraph.count("=") + paragraph.count("(") > 3 * len(lines)


def texts(work: Path) -> dict[str, Path]:
    """Files of passages to stitch and report on, by name: code, prose, and the mixture of as much of one as of the other.

    Each module gives one passage of a domain, so the mixture's documents are as many as their modules.
    """
    files = {name: work / f"{name}.jsonl" for name in (*DOMAINS, "mixture")}
    if not all(file.exists() for file in files.values()):
        by_domain = {domain: passages(corpus(domain, work)) for domain in DOMAINS}
        for name, documents in {**by_domain, "mixture": mixed(by_domain)}.items():
            write_lines(files[name], documents)
    return files


def passages(documents: Iterable[Document]) -> list[Document]:
    """One stretch of each document, of whole paragraphs and at most `PASSAGE` characters, from a random paragraph on."""
    found = []
    for name, text in documents:
        paragraphs = text.split("\n\n")
        start = random.Random(name).randrange(len(paragraphs))
        passage = "\n\n".join(paragraphs[start:])[:PASSAGE]
        if len(passage) >= SHORTEST_PASSAGE:
            found.append((name, passage))
    return found


def mixed(domains: dict[str, list[Document]]) -> list[Document]:
    """Documents of all domains: in each split and in each prefix of it about as many characters of one as of the others."""
    found = []
    for split in SPLITS:
        queues = {domain: iter(select(documents, split)) for domain, documents in domains.items()}
        sizes = dict.fromkeys(queues, 0)
        while document := next(queues[domain := min(sizes, key=sizes.__getitem__)], None):
            found.append(document)
            sizes[domain] += len(document[1])
    return found


def write_lines(path: Path, documents: list[Document]) -> None:
    """Writes a .jsonl file in whose reading (`stitch.text.documents.read`) every document keeps the split of its module.

    A line's number decides its split, so a line is filled with the next document of that split, until one split has no more.
    """
    queues = {split: iter(select(documents, split)) for split in SPLITS}
    with path.with_suffix(".tmp").open("w") as file:
        number = 0
        while document := next(queues[split_of(f"{path.name}#{number}")], None):
            file.write(json.dumps({"text": document[1], "module": document[0]}) + "\n")
            number += 1
    path.with_suffix(".tmp").rename(path)
