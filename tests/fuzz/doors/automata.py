"""Automata in JSON and as regular expressions (`stitch compile automaton` and `compile tool`)."""

import itertools
import re
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from fuzz.documents import ESCAPES, json_files, strictly
from fuzz.door import Door

DOCUMENTS = (
    {
        "about": "An odd number of ones.",
        "start": "even",
        "accept": ["odd"],
        "transitions": {"even": {"0": "even", "1": "odd"}, "odd": {"0": "odd", "1": "even"}},
    },
    {
        "start": "a",
        "outputs": {"a": "x", "b": "y"},
        "symbols": ["0", "1"],
        "transitions": {"a": {"0": "a", "1": "b"}, "b": {"0": "b", "1": "a"}},
    },
    {"start": "a", "transitions": {"a": {"0": ["a", "x"], "1": ["b", "y"]}, "b": {"0": ["b", "x"], "1": ["a", "x"]}}},
    {"start": 0, "accept": [1], "transitions": {"0": {"a": [0, 1], "": 1}, "1": {"b": 1}}},
    {"start": "0", "accept": ["2"], "transitions": {"0": {"a": "1"}, "1": {"a": "2", "b": "0"}}},
)
NAMES = ("start", "accept", "outputs", "symbols", "about", "transitions")
MOST_STATES, MOST_TRANSITIONS = 1_024, 16_384  # as docs/compile.md says


def ready() -> None:

    import stitch.synthesis.automata.read  # noqa: F401


def read(normalise: bool) -> Any:
    def call(path: Path) -> Any:
        from stitch.synthesis.automata.read import read_automaton

        return read_automaton(str(path), normalise=normalise)

    return call


def whole_machine(found: Any) -> bool:
    """Every state has one transition to a state, and something to say, for each of different symbols."""
    states, symbols = len(found.states), len(found.symbols)
    return (
        states > 0
        and symbols > 0
        and states <= MOST_STATES
        and states * symbols <= MOST_TRANSITIONS
        and len(set(found.states)) == states
        and len(set(found.symbols)) == symbols
        and all(isinstance(name, str) and name and visible(name) for name in (*found.states, *found.symbols))
        and 0 <= found.start < states
        and len(found.steps) == len(found.says) == states
        and all(len(row) == symbols and all(0 <= to < states for to in row) for row in found.steps)
        and all(len(row) == symbols and all(visible(word) for word in row) for row in found.says)
    )


def visible(name: str) -> bool:
    return name.replace("\n", "").replace("\t", "").isprintable()


def targets(row: dict, symbol: str) -> list[str]:
    to = row.get(symbol, [])
    return [str(one) for one in (to if isinstance(to, list) else [to])]


def accepts(document: dict, string: tuple[str, ...]) -> bool:
    """Whether a nondeterministic automaton accepts a string, by the set of its states."""
    rows = document["transitions"]

    def without_symbol(states: set[str]) -> set[str]:
        while more := {to for q in states for to in targets(rows.get(q, {}), "")} - states:
            states = states | more
        return states

    now = without_symbol({str(document["start"])})
    for symbol in string:
        now = without_symbol({to for q in now for to in targets(rows.get(q, {}), symbol)})
    return bool(now & {str(q) for q in document["accept"]})


def ends_accepting(found: Any, string: tuple[str, ...]) -> bool:
    state, said = found.start, ""
    for symbol in string:
        at = found.symbols.index(symbol)
        state, said = found.steps[state][at], found.says[state][at]
    return said.endswith("+>")


def same_language(document: dict, found: Any) -> bool:
    strings = [
        string for size in (1, 2, 3) for string in itertools.islice(itertools.product(found.symbols, repeat=size), 60)
    ]
    return all(accepts(document, string) == ends_accepting(found, string) for string in strings)


def as_written(content: bytes, found: Any) -> bool:
    """The machine's tables are those of the file."""
    document = strictly(content)
    if not (set(document) <= set(NAMES) and whole_machine(found)):
        return False
    rows = {str(q): row for q, row in document["transitions"].items()}
    if list(found.states) != list(rows) or found.states[found.start] != str(document["start"]):
        return False
    if list(map(str, document.get("symbols", []))) not in ([], list(found.symbols)):
        return False
    outputs = {str(q): str(word) for q, word in document.get("outputs", {}).items()}
    if document.get("accept") or not (
        outputs or any(isinstance(to, list) for row in rows.values() for to in row.values())
    ):
        return same_language({**document, "accept": document.get("accept", [])}, found)
    for q, row in enumerate(found.states):
        for a, symbol in enumerate(found.symbols):
            to = rows[row][symbol]
            state, word = map(str, to) if isinstance(to, list) else (str(to), outputs[str(to)])
            if found.states[found.steps[q][a]] != state or found.says[q][a] != f"<{state}:{word}>":
                return False
    return True


def normalised(content: bytes, found: Any) -> bool:
    """The machine accepts what the file's does, on short strings."""
    document = strictly(content)
    return set(document) <= set(NAMES) and whole_machine(found) and same_language({"accept": [], **document}, found)


# Regular expressions

ATOMS = ("a", "b", "c", "ab", "[a-c]", "[^a]", ".", "()", "\\(", "\\n", "ü", "😀", "&", "^", " ", "x")
TAILS = ("", "*", "+", "?", "{2}", "{0,3}", "{3,}", "{,2}", "{1,2}{1,2}")
WILD = (
    *(
        "a{99999999}",
        "(a|b)*a(a|b){22}",
        "[a-\U0010ffff]",
        "a{100000000000000000000}",
        "(a{99}){99}",
        "((a{20}){20}){20}",
    ),
    *(
        "(" * 3_000 + "a" + ")" * 3_000,
        "a" * 30_000,
        "a?" * 300 + "a" * 300,
        "(a|b|ab)*" * 60,
        "a{5,2}",
        "a{-1}",
        "{",
        "}",
        "a{",
    ),
    *(
        "[",
        "]",
        "[]",
        "[^]",
        "[z-a]",
        "*",
        "+",
        "?",
        "|",
        "(",
        ")",
        "()",
        "(|)",
        "a**",
        "a||b",
        "\\",
        "",
        " ",
        "^",
        "&",
        "a&b",
        "a^b",
    ),
    *(
        ESCAPES,
        "\ud800",
        "(a*)*" * 40,
        "(.*a.*){9}",
        "((a|b|c){4}){4}",
        "(a&b)*" * 30,
        "[\x00-\x1f]",
        "(ab|ba)*c?" * 50,
    ),
)


@st.composite
def expressions(draw: Any) -> str:
    if draw(st.integers(0, 3)) == 0:
        return draw(
            st.one_of(
                st.sampled_from(WILD), st.text(alphabet="ab|*+?(){}[]^.&\\-,0129", max_size=14), st.text(max_size=8)
            )
        )
    text = "".join(draw(st.sampled_from(ATOMS)) + draw(st.sampled_from(TAILS)) for _ in range(draw(st.integers(1, 5))))
    while draw(st.integers(0, 2)) == 0:
        text = f"({text}){draw(st.sampled_from(TAILS))}" + draw(st.sampled_from(("", "|a", "|b*", "a", "&a*")))
    place = draw(st.integers(0, len(text)))
    return text[:place] + draw(st.sampled_from(("", "", "", "{30}", "|", "(", "*", "\\", "-"))) + text[place:]


def read_expression(case: tuple[str, str | None]) -> Any:
    from stitch.synthesis.automata.read import read_automaton

    return read_automaton(case[0], alphabet=case[1])


# What means the same to Python's re, but that it takes one repetition of a part.
PLAIN = re.compile(r"(?:[abcx]|\((?!\))|\)|\||(?<=[a-z)])(?:[*+?]|\{\d(?:,\d?)?\})(?![*+?{]))+")


def matches(case: tuple[str, str | None], found: Any) -> bool:
    """The machine accepts what Python's `re` matches, where both read the expression in the same way."""
    if not whole_machine(found) or (case[1] and not set(case[1]) <= set(found.symbols)):
        return False
    if not PLAIN.fullmatch(case[0]) or "||" in case[0] or len(case[0]) > 40:
        return True
    theirs = re.compile(case[0])
    strings = [
        string for size in (1, 2, 3) for string in itertools.islice(itertools.product(found.symbols, repeat=size), 60)
    ]
    return all(bool(theirs.fullmatch("".join(string))) == ends_accepting(found, string) for string in strings)


DOORS = [
    Door(
        name="automaton.json",
        file="automaton.json",
        cases=json_files(DOCUMENTS, names=NAMES),
        call=read(normalise=False),
        sound=as_written,
        ready=ready,
        kept=(
            b'{"start": "a", "accept": ["b"], "transitions": {"a": {"0": "b"}, "b": {"0": "a"}}}',
            b'{"start": "a", "accept": ["a"], "transitions": {"a": {"0": "a+"}, "a+": {"0": "a"}}}',
            b'{"start": "0", "accept": [1e308], "transitions": -1E+999}',
            b'{"start": "a", "transitions": {"a": {"0": "a"}, "b": 3, "b": {"0": "b"}}}',
        ),
    ),
    Door(
        name="automaton.json, normalised",
        file="automaton.json",
        cases=json_files(DOCUMENTS, names=NAMES),
        call=read(normalise=True),
        sound=normalised,
        ready=ready,
        kept=(b'{"start": "a", "accept": ["b"], "transitions": {"a": {"0": ["a", "b"]}, "b": {}}}',),
    ),
    Door(
        name="regular expression",
        cases=st.tuples(expressions(), st.one_of(st.none(), st.sampled_from(("ab", "abc", "", "\x1b", "a" * 5_000)))),
        call=read_expression,
        sound=matches,
        ready=ready,
        kept=(("(ab|ba)*c?", None), ("a{0}b", None), (".{3}", None), *((text, None) for text in WILD)),
    ),
]
