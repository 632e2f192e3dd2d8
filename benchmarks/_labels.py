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
SENTIMENT = {
    1: "accurate advantage advantages best better clean clear clearly convenient correct correctly easier easily easy effective "
    "efficient efficiently elegant excellent fast faster fine flexible friendly good great happy helpful helps ideal improve "
    "improved improvement improves nice nicely perfect perfectly pleasant popular powerful precise recommended reliable robust "
    "safe safely simple simpler smart smooth stable succeed succeeds success successful successfully useful valid well welcome",
    2: "abnormal abort aborted annoying bad badly broken bug bugs complain confusing corrupt corrupted costly crash crashes "
    "danger dangerous defect difficult disadvantage error errors expensive fail failed failing fails failure failures "
    "fault faulty hard harmful illegal impossible inaccurate inconsistent incorrect incorrectly inefficient invalid lost "
    "malformed mistake mistakes naive obsolete pathological poor poorly problem problems risk slow slower suffer suffers "
    "trouble ugly unable undesirable unexpected unfortunately unreliable unsafe unstable useless violates warning warnings weak "
    "worse worst wrong wrongly",
}
SENTIMENT_OF = {word: number for number, words in SENTIMENT.items() for word in words.split()}
PROMPTS = (">>>", "...")  # of a doctest
FENCE = "```"
PROSE, LEAST_WORDS = re.compile(r"[A-Za-z]['A-Za-z-]*[.,;:)]?"), 5  # a word of prose, and how many a line of it has
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


def code_or_prose(text: str) -> Spans:
    """1 for lines of code: at the prompt of a doctest, in an indented block after a line that ends with two colons, and between
    fences. 0 for lines of prose: at least LEAST_WORDS words, and little else. Other lines are not labelled, nor is a text without
    both kinds."""
    found, place = [], 0
    fenced, block = False, None  # the indentation of the line that announced a block
    for line in text.splitlines(keepends=True):
        bare, words = line.strip(), line.split()
        indent = len(line) - len(line.lstrip())
        if block is not None and bare and indent <= block:
            block = None
        is_fence = bare.startswith(FENCE)
        if bare and not is_fence:
            if fenced or block is not None or bare.startswith(PROMPTS):
                found.append((place, place + len(line), 1))
            elif len(words) >= LEAST_WORDS and sum(bool(PROSE.fullmatch(word)) for word in words) >= 0.8 * len(words):
                found.append((place, place + len(line), 0))
        fenced ^= is_fence
        if bare.endswith("::") and not fenced and block is None:
            block = indent
        place += len(line)
    return found if len({which for _, _, which in found}) == 2 else []


def sentiment(text: str) -> Spans:
    """1 for a word that a small lexicon has as positive, 2 for one that it has as negative; 0 for other words."""
    return [(one.start(), one.end(), SENTIMENT_OF.get(one[0].lower(), 0)) for one in WORD.finditer(text)]


SETS: dict[str, Callable[[str], Spans]] = {
    "in brackets": in_brackets, "in quotes": in_quotes, "section": section, "part of speech": part_of_speech,
    "code or prose": code_or_prose, "sentiment": sentiment,
}  # fmt: skip


def with_sentiment(text: str) -> str:
    """The paragraphs in which a word of SENTIMENT stands: in others there is nothing to tell, and such words are rare."""
    return "\n\n".join(one for one in text.split("\n\n") if any(which for _, _, which in sentiment(one)))


SHORTENED: dict[str, Callable[[str], str]] = {"sentiment": with_sentiment}


def write_labels(documents: Iterable[Document], name: str, count: int, file: Path) -> None:
    """The first `count` documents that have labels of the set called `name`, one per line."""
    label, shortened = SETS[name], SHORTENED.get(name, str)
    lines = []
    for text in (shortened(text) for _, text in documents):
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
