"""A text by the name that was asked for: read from where it is, or written by the model that is being worked on."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, runtime_checkable

from stitch.errors import StitchError
from stitch.files.store import Store
from stitch.progress import Progress
from stitch.text.document import Document
from stitch.text.documents import SELF, SPLITS, Split, read, split_of

KIND = "texts"  # of what the store keeps
FEW = 8  # texts are written together even where fewer may be enough: one takes as long
TRIED, NEW = 64, 1 / 4  # after so many texts, this share of them must be new


@runtime_checkable
class Writes(Protocol):
    """A model that writes (`stitch.models.writer`). Text number n is the same whenever it is written."""

    @property
    def name(self) -> str: ...

    @property
    def seed(self) -> int: ...

    @property
    def identity(self) -> str: ...

    @property
    def longest(self) -> int: ...

    def described(self) -> dict: ...

    def at_once(self, longest: int) -> int: ...

    def write(self, numbers: Sequence[int], longest: int) -> list[list[int]]: ...

    def text(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True)
class Corpus:
    """What was read of the text `name`. `written` says how a model wrote it, where one did."""

    name: str
    documents: list[Document]
    written: dict | None = None


@dataclass(frozen=True)
class Wanted:
    """How much a model writes: until each split has so many tokens of `tokenizer`. `longest` bounds a document, in the
    model's own tokens, as the model's context does."""

    limits: Mapping[Split, int]
    tokenizer: Any
    longest: int


def corpus_of(
    name: str,
    characters: int | None,
    wanted: Wanted,
    writer: Writes | None = None,
    store: Store | None = None,
    progress: Progress | None = None,
) -> Corpus:
    """The text `name`: so many characters of what `read` finds, or as much as is `wanted` by `writer` where it is SELF.

    What was written is kept in `store`. Raises: as `read`; StitchError where a model writes the same again and again.
    """
    if name != SELF or writer is None:
        return Corpus(name, list(read(name, characters, progress)))
    key = _key(writer, wanted)
    if store is None:
        return _described(_write(writer, wanted, progress), writer)
    with TemporaryDirectory(prefix="stitch-") as folder:
        place = Path(folder) / "text.jsonl"
        if store.take(KIND, key, place):
            return _described(_load(place), writer)
        found = _write(writer, wanted, progress)
        _save(found, place)
        tokens = sum(wanted.limits.values())
        store.put(KIND, key, place, f"{tokens:,} tokens by {writer.name}, seed {writer.seed}")
    return _described(found, writer)


def _described(found: Corpus, writer: Writes) -> Corpus:
    """What is kept has no name of the model in it, as the same model may have another one."""
    return replace(found, written={**writer.described(), **(found.written or {})})


def _key(writer: Writes, wanted: Wanted) -> str:
    """A hash of all that decides the text."""
    sizes = [{split: wanted.limits.get(split, 0) for split in SPLITS}, wanted.longest]
    vocabulary = sorted(wanted.tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps([writer.identity, writer.seed, sizes, vocabulary]).encode()).hexdigest()


def _write(writer: Writes, wanted: Wanted, progress: Progress | None) -> Corpus:
    """Documents self#0, self#1, … A number whose split, which follows from this name, has enough tokens is left out.

    So is a text that was written before, or is one token over and over: in two splits it would be fitted on and reported on.
    """
    documents: dict[str, str] = {}  # by text
    tokens = dict.fromkeys(SPLITS, 0)
    numbers, tried, drawn = count(), 0, 0
    goal, longest = sum(wanted.limits.values()), min(wanted.longest, writer.longest)
    while missing := {split: left for split, least in wanted.limits.items() if (left := least - tokens[split]) > 0}:
        few = max(FEW, -(-sum(missing.values()) // longest))
        open_ = (number for number in numbers if split_of(_name(number)) in missing)
        batch = list(islice(open_, min(few, writer.at_once(longest))))
        for number, ids in zip(batch, writer.write(batch, longest), strict=True):
            drawn += len(ids)
            text = writer.text(ids)
            if len(set(ids)) < 2 or not text.strip() or text in documents:
                continue
            documents[text] = _name(number)
            length = len(wanted.tokenizer.encode(text, add_special_tokens=False, verbose=False))
            tokens[split_of(_name(number))] += 1 + length
        tried += len(batch)
        if tried >= TRIED and len(documents) < NEW * tried:
            raise StitchError(
                f"{writer.name} must write texts that differ to be its own corpus; of {tried} only {len(documents)} were new "
                "and more than one token repeated: give another `text`."
            )
        if progress:
            progress("writing", sum(min(tokens[split], least) for split, least in wanted.limits.items()), goal)
    found = [(name, text) for text, name in documents.items()]
    return Corpus(SELF, found, {"tokens": drawn, "longest": longest})


def _name(number: int) -> str:
    return f"{SELF}#{number}"


def _save(corpus: Corpus, place: Path) -> None:
    """How it was written in the first line, a document in every other."""
    lines = [json.dumps(corpus.written), *(json.dumps(document) for document in corpus.documents)]
    place.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _load(place: Path) -> Corpus:
    first, *lines = place.read_text(encoding="utf-8").splitlines()
    return Corpus(SELF, [(name, text) for name, text in map(json.loads, lines)], json.loads(first))
