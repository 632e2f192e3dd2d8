"""What was read of a text, for reports: enough to tell whether two runs had the same text."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from stitch.text.document import Document
from stitch.text.documents import SPLITS, select


@dataclass(frozen=True)
class TextRead:
    """The name of a text as it was asked for, and what was read of it. `note` says where it is not what it should be, and
    `written` how a model wrote it."""

    name: str
    documents: int
    characters: int
    sha256: str
    note: str | None = None
    written: dict | None = None

    def to_dict(self) -> dict:
        """The part of a report's provenance."""
        found = {
            "name": self.name,
            "documents": self.documents,
            "characters": self.characters,
            "sha256": self.sha256,
        }
        told = {"note": self.note, "written": self.written}
        return {**found, **{key: value for key, value in told.items() if value is not None}}


def text_read(name: str, documents: Sequence[Document], written: dict | None = None) -> TextRead:
    """The fingerprint of `documents`, all that was read of the text `name`; `written` is as in `Corpus`."""
    digest = sha256_of(documents)
    note = None
    if name == "docs":
        from stitch.text.recorded import difference

        note = difference(digest)
    if written is not None:
        note = (
            f"{written['model']} wrote the text itself, so nothing predicts it better on average. A difference from its "
            "cross-entropy says how closely a row imitates it, not how well it predicts what people write: `stitch eval --text` "
            "scores on that."
        )
    return TextRead(name, len(documents), sum(len(text) for _, text in documents), digest, note, written)


def sha256_of(documents: Sequence[Document]) -> str:
    """SHA-256 over the texts of all documents, split by split, in the order in which they are read.

    Names do not count as such, only through splits and order. Every text is preceded by its length, every split by its name.
    """
    found = hashlib.sha256()
    for split in SPLITS:
        found.update(split.encode())
        for _, text in select(documents, split):
            content = text.encode("utf-8", "surrogatepass")
            found.update(len(content).to_bytes(8, "big"))
            found.update(content)
    return found.hexdigest()
