"""Automata as data: reading regular expressions and files, and every refusal."""

import itertools
import json
import re
import time
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
    "no start": ({"transitions": {}}, "it needs 'start'"),
    "strange key": (changed(final=["even"]), "it has 'final'.*its keys are transitions, start"),
    "misspelt key": (changed(output={"even": "0"}), r"it has 'output' \(did you mean outputs\?\)"),
    "several faults": (
        changed(start=None, accept=[1.5]),
        r"start must be a name, got None; accept\[0\] must be a name",
    ),
    "accept and outputs": (changed(outputs={"even": "0"}), "may have accept or outputs; it has both"),
    "names that run together": (
        {"transitions": {"a": {"x": "a+"}, "a+": {"x": "a"}}, "start": "a", "accept": ["a"]},
        r"outputs of the automaton must tell its states apart; '<a\+>' is that of a\+ and of a: rename one",
    ),
    "names that cannot be printed": (
        {"transitions": {"\x1b[31m": {"x": "\x1b[31m"}}, "start": "\x1b[31m"},
        r"names of 1 to 200 characters that can be printed; got '\\x1b",
    ),
    "too many states": (
        {"transitions": {str(q): {"a": str(q + 1)} for q in range(1_025)}, "start": "0"},
        "may have 1,024 states and 16,384 transitions; it has 1,025 states",
    ),
    "no output": ({"transitions": STEPS, "start": "even", "outputs": {"even": "0"}}, "'odd' has none"),
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


def test_the_symbols_of_an_expression_are_those_that_it_names():
    """The library also takes the digits of counts, the hyphen of a class and the backslash of an escape for symbols."""
    assert from_regex("[a-c]{12}").symbols == ("a", "b", "c")
    assert from_regex(r"a\n(\\.)?").symbols == ("\n", "\\", "a")
    assert from_regex(".{2}b", "c").symbols == ("b", "c")
    assert len(from_regex(r"\d+").symbols) == 10


def test_expressions_that_match_nothing_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"must be one that automata-lib reads; .*[^.]\.$"):
        from_regex("(a")
    with pytest.raises(UsageError, match="must name a symbol"):
        from_regex("")
    with pytest.raises(UsageError, match=r"must repeat something; it has {0}"):  # the library would read {0,1}
        from_regex("a{0}b")
    with pytest.raises(UsageError, match="there is no"):
        read_automaton(str(tmp_path / "no.json"))


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("a{99999999}", "may take 2,048 states with its repetitions written out; it takes 199,999,9"),
        ("((a{20}){20}){20}", "may take 2,048 states"),
        ("(a|b)*a(a|b){22}", "must be determinised in 4,096 states"),
        ("[a-\U0010ffff]", "may have classes of 1,024 symbols; 'a-"),
        ("a" * 1_001, "may have 1,000 characters"),
        ("a{1100}", "may take 2,048 states"),
        ("(a|b){900}", "may take 2,048 states"),
    ],
)
def test_expressions_that_grow_without_bound_are_refused_at_once(expression, message):
    began = time.process_time()
    with pytest.raises(UsageError, match=message):
        from_regex(expression)
    assert time.process_time() - began < 10


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("automaton_*.json")), ids=lambda path: path.stem)
def test_examples_are_automata(path):
    automaton = read_automaton(str(path))
    assert len(automaton.states) > 1 and json.loads(path.read_text(encoding="utf-8"))["about"]
