"""Automata from regular expressions. How many states an expression takes is counted before it is expanded."""

import re
from typing import Any

from stitch.errors import UsageError
from stitch.files.specification import shown
from stitch.synthesis.automata.automaton import Automaton
from stitch.synthesis.automata.minimal import automata_lib, from_library
from stitch.synthesis.automata.tables import MOST_STATES

LONGEST = 1_000  # characters of an expression
MOST_SYMBOLS = 1_024  # of a class such as [a-z], or of an alphabet
MOST_EXPANDED = 2 * MOST_STATES  # states of the nondeterministic automaton, with each repetition written out
RANGE = re.compile(r"(.)-\\?(.)", re.DOTALL)


def from_regex(expression: str, alphabet: str | None = None) -> Automaton:
    """The minimal complete automaton. The syntax is automata-lib's: | * + ? {m,n} [a-z] . ( ) and escapes.

    Raises: UsageError when the expression cannot be read, names no symbol, or takes too many states.
    """
    where = f"the regular expression {shown(expression)}"
    nfa_class = automata_lib().fa.nfa.NFA
    if len(expression) > LONGEST or len(alphabet or "") > MOST_SYMBOLS:
        raise UsageError(
            f"{where} may have {LONGEST:,} characters, and its `alphabet` {MOST_SYMBOLS:,}; they have {len(expression):,} and "
            f"{len(alphabet or ''):,}: shorten them."
        )
    if wide := [found[0] for found in RANGE.finditer(expression) if ord(found[2]) - ord(found[1]) >= MOST_SYMBOLS]:
        raise UsageError(
            f"{where} may have classes of {MOST_SYMBOLS:,} symbols; {shown(wide[0])} has more: name fewer."
        )
    try:
        symbols = _symbols(expression, where) | set(alphabet or "")
        nfa = nfa_class.from_regex(expression, input_symbols=symbols)
    except UsageError:
        raise
    except Exception as error:  # its exceptions have no common class
        raise UsageError(f"{where} must be one that automata-lib reads; {str(error).removesuffix('.')}.") from error
    if not symbols:
        raise UsageError(f"{where} must name a symbol; give an `alphabet`.")
    return from_library(nfa, where)


def _symbols(expression: str, where: str) -> set[str]:
    """The symbols that an expression names; the library would also take the digits of {12}, and the - of [a-z], for symbols.

    Raises: UsageError for an expression that takes too many states, and for {0}, which the library reads as {0,1}.
    """
    from itertools import count

    from automata.regex import parser, postfix

    tokens: list[Any] = parser.get_regex_lexer(set(), count()).lex(expression)
    postfix.validate_tokens(tokens)
    named: set[str] = set()
    sizes: list[int] = []
    for token in postfix.tokens_to_postfix(parser.add_concat_and_empty_string_tokens(tokens, count())):
        if isinstance(token, parser.QuantifierToken):
            if token.upper_bound == 0:
                raise UsageError(f"{where} must repeat something; it has {token.text}: leave that part out.")
            sizes.append(sizes.pop() * max(token.lower_bound, token.upper_bound or 1) + 1)
        elif isinstance(token, (parser.IntersectionToken, parser.ShuffleToken)):
            sizes.append(sizes.pop() * sizes.pop())
        elif isinstance(token, postfix.InfixOperator):
            sizes.append(sizes.pop() + sizes.pop() + 1)
        elif isinstance(token, postfix.PostfixOperator):
            sizes.append(sizes.pop() + 1)
        else:
            sizes.append(2)
            named |= _named_by(token, parser)
        if sizes[-1] > MOST_EXPANDED:
            raise UsageError(
                f"{where} may take {MOST_EXPANDED:,} states with its repetitions written out; it takes {sizes[-1]:,} or more: "
                "lower its counts."
            )
    return named


def _named_by(token: Any, parser: Any) -> set[str]:
    if isinstance(token, parser.CharacterClassToken):
        return set(token.class_chars)
    if isinstance(
        token, parser.WildcardToken
    ):  # . and \d, \D …: a negated class of them is that of what can be printed
        negated = {"\\S": "NON_WHITESPACE_CHARS", "\\D": "NON_DIGIT_CHARS", "\\W": "NON_WORD_CHARS"}
        return set(getattr(parser, negated[token.text]) if token.text in negated else token.input_symbols)
    return set(token.text)
