"""Runs a compiled automaton on a text."""

from typing import Any

from stitch.errors import UsageError
from stitch.synthesis.automata.automaton import Automaton
from stitch.synthesis.automata.stepwise import tokens_of
from stitch.synthesis.decode import decoded
from stitch.synthesis.tokenizer import tokenizer_of


def run_automaton(net: Any, description: dict, text: str) -> list[tuple[str, str]]:
    """Every symbol of `text`, and the model's output after it.

    Raises: UsageError for characters that are no symbols, or a text longer than the compiled length.
    """
    automaton = Automaton.from_json(description["automaton"])
    tokens = tokens_of(automaton)
    ids, found = [0], []
    for symbol in _symbols(automaton, tokens, text, description["length"]):
        ids.append(symbol)
        output = decoded(net, ids, 1)
        if description["mode"] != "parallel":
            ids += output
        found.append((tokens[symbol], tokens[output[0]]))
    return found


def _symbols(automaton: Automaton, tokens: tuple[str, ...], text: str, length: int) -> list[int]:
    try:
        symbols = tokenizer_of(tokens)(text, add_special_tokens=False)["input_ids"]
    except Exception:  # tokenizers has no exception class of its own
        symbols = [-1]
    if not set(symbols) <= set(range(1, 1 + len(automaton.symbols))):
        raise UsageError(f"the input must consist of the symbols {' '.join(automaton.symbols)}; got {text!r}.")
    if len(symbols) > length:
        raise UsageError(
            f"the input may have {length:,} symbols; got {len(symbols):,}. Compile with a larger `length`."
        )
    return symbols
