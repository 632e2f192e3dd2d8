"""The docstring corpus, kept in the cache: reading it takes 20 s, loading it one."""

import gzip
import hashlib
import importlib.metadata
import json
import os
import sys

from stitch.files.cache import cache_folder
from stitch.text import docstrings


def cached_documents() -> list[docstrings.Document]:
    """`docstrings.documents()`, made anew whenever Python, an installed package or the extraction changes."""
    path = cache_folder() / f"docstrings-{_state()}.jsonl.gz"
    if path.exists():
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return [(name, text) for name, text in map(json.loads, file)]
    documents = docstrings.documents()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with gzip.open(temporary, "wt", encoding="utf-8", compresslevel=3) as file:
        file.writelines(json.dumps(document) + "\n" for document in documents)
    os.replace(temporary, path)
    return documents


def _state() -> str:
    """A hash of what the corpus is made from: the versions of its packages, and the code that reads them."""
    owners = importlib.metadata.packages_distributions()
    versions = [importlib.metadata.version(owners[package][0]) for package in docstrings.PACKAGES if package in owners]
    source = docstrings.__loader__.get_source(docstrings.__name__)
    return hashlib.sha256(repr((sys.version, versions, source)).encode()).hexdigest()[:16]
