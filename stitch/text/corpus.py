"""The docstring corpus, kept in the user cache: extracting it takes 20 s, loading it from the cache one."""

import gzip
import hashlib
import importlib.metadata
import json
import sys

from stitch.files.cache import cache_folder
from stitch.files.durable import replacing
from stitch.text import docstrings
from stitch.text.document import Document


def cached_documents() -> list[Document]:
    """`docstrings.documents()`, extracted again when Python, an installed package or the extraction code changes."""
    path = cache_folder() / f"docstrings-{_state()}.jsonl.gz"
    if path.exists():
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return [(name, text) for name, text in map(json.loads, file)]
    documents = docstrings.documents()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, gzip.open(temporary, "wt", encoding="utf-8", compresslevel=3) as file:
        file.writelines(json.dumps(document) + "\n" for document in documents)
    return documents


def _state() -> str:
    """A hash of everything the corpus depends on: the versions of Python and the packages, and the extraction code."""
    owners = importlib.metadata.packages_distributions()
    versions = [importlib.metadata.version(owners[package][0]) for package in docstrings.PACKAGES if package in owners]
    source = docstrings.__loader__.get_source(docstrings.__name__)
    return hashlib.sha256(repr((sys.version, versions, source)).encode()).hexdigest()[:16]
