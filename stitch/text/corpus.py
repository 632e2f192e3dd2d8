"""The docstring corpus, kept in the user cache: extracting it takes 20 s, loading it from the cache one.

The first line of a cached corpus has the versions that it was made from, every other line a document.
"""

import gzip
import hashlib
import importlib.metadata
import json
import platform
import sys
from functools import cache

from stitch.files.cache import cache_folder
from stitch.files.durable import replacing
from stitch.progress import Progress, Steps
from stitch.text import docstrings
from stitch.text.document import Document

VERSIONS = "versions"  # the key of a cached corpus's first line


def cached_documents(progress: Progress | None = None) -> list[Document]:
    """`docstrings.documents()`, extracted again when Python, an installed package or the extraction code changes."""
    path = cache_folder() / f"docstrings-{_state()}.jsonl.gz"
    if path.exists():
        step = Steps("reading docstrings from the cache (files)", 1, progress)
        with gzip.open(path, "rt", encoding="utf-8") as file:
            next(file)
            found = [(name, text) for name, text in map(json.loads, file)]
        step()
        return found
    documents = docstrings.documents(progress=progress)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, gzip.open(temporary, "wt", encoding="utf-8", compresslevel=3) as file:
        file.write(json.dumps({VERSIONS: versions()}) + "\n")
        file.writelines(json.dumps(document) + "\n" for document in documents)
    return documents


@cache
def versions() -> dict[str, str]:
    """The versions of Python and of the installed packages that the corpus is made from, without local tags such as +cpu."""
    owners = importlib.metadata.packages_distributions()
    found = {"python": platform.python_version()}
    for package in docstrings.PACKAGES:
        if package in owners:
            found[package] = importlib.metadata.version(owners[package][0]).partition("+")[0]
    return found


def _state() -> str:
    """A hash of everything the corpus and its file depend on: versions and builds, and the code that extracts and writes it."""
    owners = importlib.metadata.packages_distributions()
    builds = [importlib.metadata.version(owners[package][0]) for package in docstrings.PACKAGES if package in owners]
    source = docstrings.__loader__.get_source(docstrings.__name__)
    return hashlib.sha256(repr((sys.version, builds, source, VERSIONS)).encode()).hexdigest()[:16]
