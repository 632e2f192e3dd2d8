"""Labelled texts made by rules: what a token of a docstring is in, as files for `stitch transfer probe`."""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from stitch.text.document import Document

Spans = list[tuple[int, int, int]]

SECTIONS = {"Parameters": 1, "Returns": 2, "Examples": 3, "Notes": 4}
HEADING = re.compile(r"^(\w[\w ]*)\n-{3,}$", re.MULTILINE)
WORD = re.compile(r"[A-Za-z]+")
CLOSED_CLASSES = {
    1: "a an the this that these those each every any some all no both either",
    2: "of in to for with on at by from as into over under between through during without within after before",
    3: "and or but if when while because although unless than whether nor",
    4: "is are was were be been being has have had do does did can could may might must shall should will would",
    5: "it its they them their you your we our he she his her which who what",
}
CLASS_OF = {word: number for number, words in CLOSED_CLASSES.items() for word in words.split()}


def in_brackets(text: str) -> Spans:
    """1 between a bracket and the one that closes it, else 0."""
    found, depth = [], 0
    for place, sign in enumerate(text):
        depth += sign in "([{"
        found.append((place, place + 1, int(depth > 0)))
        depth = max(0, depth - (sign in ")]}"))
    return found


def in_quotes(text: str) -> Spans:
    """1 between double quotes or backticks of one line, else 0."""
    inside = [span for one in re.finditer(r'"[^"\n]+"|`[^`\n]+`', text) for span in range(*one.span())]
    marked = set(inside)
    return [(place, place + 1, int(place in marked)) for place in range(len(text))]


def section(text: str) -> Spans:
    """The section of a numpydoc docstring: 0 before the first, then that of its heading; others are not labelled."""
    headings = list(HEADING.finditer(text))
    if not headings:
        return []
    starts = [(0, 0), *((one.end(), SECTIONS.get(one[1], -1)) for one in headings)]
    ends = [*(one.start() for one in headings), len(text)]
    return [(start, end, which) for (start, which), end in zip(starts, ends, strict=True) if which >= 0 and start < end]


def part_of_speech(text: str) -> Spans:
    """The closed class of a word by a lexicon: determiner, preposition, conjunction, auxiliary, pronoun; 0 for other words."""
    return [(one.start(), one.end(), CLASS_OF.get(one[0].lower(), 0)) for one in WORD.finditer(text)]


SETS: dict[str, Callable[[str], Spans]] = {
    "in brackets": in_brackets, "in quotes": in_quotes, "section": section, "part of speech": part_of_speech,
}  # fmt: skip


def write_labels(documents: Iterable[Document], label: Callable[[str], Spans], count: int, file: Path) -> None:
    """The first `count` documents that have labels, one per line."""
    lines = []
    for _, text in documents:
        if spans := label(text):
            lines.append(json.dumps({"text": text, "labels": merged(spans)}))
        if len(lines) == count:
            break
    file.write_text("\n".join(lines))


def merged(spans: Spans) -> Spans:
    """Neighbouring spans of one class as one."""
    found: Spans = []
    for start, end, which in spans:
        if found and found[-1][1] == start and found[-1][2] == which:
            found[-1] = (found[-1][0], end, which)
        else:
            found.append((start, end, which))
    return found
