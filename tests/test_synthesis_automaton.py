"""Automata as data: reading regular expressions and files, and every refusal."""

import itertools
import json
import re
from pathlib import Path

import pytest

from stitch.errors import UsageError
from stitch.synthesis import interpreters
from stitch.synthesis.automata.automaton import Automaton
from stitch.synthesis.automata.read import from_description, from_regex, read_automaton

EXAMPLES = Path(__file__).parent.parent / "examples"
EVEN = {
    "transitions": {"even": {"a": "odd", "b": "even"}, "odd": {"a": "even", "b": "odd"}},
    "start": "even",
    "accept": ["even"],
}


def words(automaton: Automaton, text: str) -> list[str]:
    return interpreters.words(automaton.as_json(), [automaton.symbols.index(symbol) for symbol in text])


def changed(**changes) -> dict:
    return {**EVEN, **changes}


@pytest.mark.parametrize("expression", ["(ab|ba)*c?", "a+b*|c", "(a|b)*abb", "a{2,3}(bc)*", "[ab]c?[ab]"])
def test_a_regular_expression_accepts_what_pythons_re_accepts(expression):
    automaton = from_regex(expression)
    for size in range(1, 7):
        for letters in itertools.product(automaton.symbols, repeat=size):
            text = "".join(letters)
            assert words(automaton, text)[-1].endswith("+>") == bool(re.fullmatch(expression, text)), text


def test_an_alphabet_may_be_larger_than_the_symbols_of_an_expression():
    automaton = from_regex("(ab)*", alphabet="abz")
    assert automaton.symbols == ("a", "b", "z") and words(automaton, "abz")[-1][-2] != "+"


def test_an_acceptor_outputs_its_states_with_a_plus_where_it_accepts():
    assert words(from_description(EVEN), "aab") == ["<odd>", "<even+>", "<even+>"]


def test_machines_with_output_show_the_state_and_the_output():
    moore = from_description(
        {"transitions": EVEN["transitions"], "start": "even", "outputs": {"even": "0", "odd": "1"}}
    )
    assert words(moore, "ab") == ["<odd:1>", "<odd:1>"]
    mealy = from_description(
        {
            "transitions": {"q": {"a": ["q", "x"], "b": ["r", "y"]}, "r": {"a": ["q", "y"], "b": ["r", "x"]}},
            "start": "q",
        }
    )
    assert words(mealy, "abab") == ["<q:x>", "<r:y>", "<q:y>", "<r:y>"]


def test_a_written_automaton_reads_back_the_same():
    automaton = from_regex("(ab|ba)*c?")
    assert Automaton.from_json(json.loads(json.dumps(automaton.as_json()))) == automaton


STEPS = EVEN["transitions"]
NO_B = {"even": {"a": "odd", "b": "even"}, "odd": {"a": "even"}}
FAR = {**STEPS, "far": {"a": "even", "b": "far"}}
REFUSED = {
    "several states": (
        changed(transitions={"even": {"a": ["even", "odd"]}, "odd": {"a": "odd"}}),
        "deterministic.*`normalise=True`",
    ),
    "without a symbol": (
        changed(transitions={"even": {"": "odd"}, "odd": {"a": "odd"}}),
        "without a symbol.*`normalise=True`",
    ),
    "missing steps": (changed(transitions=NO_B), r"missing.*\(odd, b\).*`normalise=True`"),
    "unreachable": (changed(transitions=FAR), "unreachable states far.*`normalise=True`"),
    "duplicates": (
        {"transitions": {"p": {"a": "q"}, "q": {"a": "p"}}, "start": "p", "accept": ["p", "q"]},
        "duplicate states .p, q.*`normalise=True`",
    ),
    "unknown state": (changed(transitions={"even": {"a": "no"}, "odd": {"a": "even"}}), "no transitions of no"),
    "unknown symbol": (changed(symbols=["a"]), "unknown symbols b"),
    "no start": ({"transitions": {}}, "needs transitions and start"),
    "strange key": (changed(final=["even"]), "needs transitions and start"),
    "no output": ({"transitions": STEPS, "start": "even", "outputs": {"even": "0"}}, "odd has none"),
    "half a step": ({"transitions": {"q": {"a": ["q"]}}, "start": "q", "outputs": {"q": "0"}}, r"\[state, output\]"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unsupported_automata_are_refused_with_a_remedy(case):
    description, message = REFUSED[case]
    with pytest.raises(UsageError, match=message):
        from_description(description)


def test_normalising_determinises_completes_and_minimises():
    ends_in_ab = {
        "transitions": {"p": {"a": ["p", "q"], "b": "p"}, "q": {"b": "r"}, "r": {}},
        "start": "p",
        "accept": ["r"],
    }
    automaton = from_description(ends_in_ab, normalise=True)
    assert len(automaton.states) == 3
    for size in range(1, 6):
        for letters in itertools.product("ab", repeat=size):
            text = "".join(letters)
            assert words(automaton, text)[-1].endswith("+>") == text.endswith("ab")


def test_expressions_that_match_nothing_are_refused(tmp_path):
    with pytest.raises(UsageError, match="must be one that automata-lib reads"):
        from_regex("(a")
    with pytest.raises(UsageError, match="must name a symbol"):
        from_regex("")
    with pytest.raises(UsageError, match="there is no"):
        read_automaton(str(tmp_path / "no.json"))


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("automaton_*.json")), ids=lambda path: path.stem)
def test_examples_are_automata(path):
    automaton = read_automaton(str(path))
    assert len(automaton.states) > 1 and json.loads(path.read_text(encoding="utf-8"))["about"]
