"""Passages of documents that fit into a window of either tokenizer, so that both read the same text."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from stitch.text.alignment import Aligned
from stitch.text.document import Document
from stitch.text.reader import Reader

CHARACTERS = 8  # per token, at most, in a first try
WHITE_SPACE = " \n\t\r"


@dataclass(frozen=True)
class Passage:
    """A text as the model's own tokenizer and as the new one read it."""

    own: Aligned
    new: Aligned

    @property
    def bytes(self) -> int:
        return self.own.bytes


def beginnings(documents: Iterable[Document], own: Reader, new: Reader, context: int, count: int) -> list[Passage]:
    """The first passage of each of `count` documents, or of as many as there are: one per document, for intervals."""
    found = (passage for _, text in documents for passage in islice(_cut(text, own, new, context), 1))
    return list(islice(found, count))


def whole(documents: Iterable[Document], own: Reader, new: Reader, context: int, tokens: int) -> list[Passage]:
    """Consecutive passages of documents, until they have `tokens` tokens of the model's own tokenizer."""
    found, count = [], 0
    for _, text in documents:
        for passage in _cut(text, own, new, context):
            if count >= tokens:
                return found
            found.append(passage)
            count += len(passage.own.ids)
    return found


def _cut(text: str, own: Reader, new: Reader, context: int) -> Iterator[Passage]:
    """The passages of a text, cut before white space where there is any. Each fits into `context` tokens with BOS."""
    while text:
        part = _before_white_space(text, CHARACTERS * context)
        while True:
            passage = Passage(own.read(part), new.read(part))
            limits = [int(read.ends[context - 2]) for read in (passage.own, passage.new) if len(read.ids) > context - 1]
            if not limits:
                break
            fitting = part.encode()[: min(limits)].decode(errors="ignore")
            part = _before_white_space(part, min(len(fitting), len(part) - 1))
        text = text[len(part) :]
        if len(passage.own.ids) and len(passage.new.ids):
            yield passage


def _before_white_space(text: str, length: int) -> str:
    """At most `length` characters of a text that end before white space, at least one; a word that long is cut."""
    if len(text) <= length:
        return text
    place = max(text.rfind(space, 1, length + 1) for space in WHITE_SPACE)
    return text[: place if place > 0 else max(1, length)]
