"""Brackets in running text: which one a closing bracket closes, where both are tokens of their own."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

KINDS = ("()", "[]", "{}")


@dataclass(frozen=True)
class Closed:
    """The places of an opening and of its closing bracket among the tokens, and which of KINDS they are."""

    opening: int
    closing: int
    kind: int


def closed_brackets(tokens: Sequence[str]) -> Iterator[Closed]:
    """The pairs of brackets in a text given as the texts of its tokens, in the order in which they close.

    Brackets inside longer tokens are counted, so that no bracket is taken for the partner of another one, but not returned;
    blanks beside a bracket do not make a longer token. What closes nothing, or another kind than is open, leaves nothing open.
    """
    opens = {pair[0]: kind for kind, pair in enumerate(KINDS)}
    closes = {pair[1]: kind for kind, pair in enumerate(KINDS)}
    held: list[
        tuple[int, int, bool]
    ] = []  # of all that are open: kind, place, and whether the token is the bracket alone
    for place, text in enumerate(tokens):
        alone = len(text.strip()) == 1
        for letter in text:
            if (kind := opens.get(letter)) is not None:
                held.append((kind, place, alone))
            elif (kind := closes.get(letter)) is not None:
                if not held or held[-1][0] != kind:
                    held.clear()
                    continue
                _, opening, opened_alone = held.pop()
                if alone and opened_alone:
                    yield Closed(opening, place, kind)


@dataclass(frozen=True)
class BracketTokens:
    """Tokens of a vocabulary. `exchanged` has, by the id of an opening bracket, perhaps with a blank before it, the ids of all
    KINDS with the same blank; `closings` are the ids of the closing brackets without blanks."""

    texts: dict[int, str]
    exchanged: dict[int, list[int]]
    closings: list[int]


def bracket_tokens(tokenizer: Any) -> BracketTokens | None:
    """The tokens that are brackets; None where a closing bracket is missing, or an opening one both with and without a blank."""
    vocabulary = tokenizer.get_vocab()
    blank = max("Ġ▁", key=lambda mark: sum(token.startswith(mark) for token in vocabulary))
    texts = {id: token.replace(blank, " ") for token, id in vocabulary.items()}
    ids = {text: id for id, text in texts.items()}

    def all_of(spelt: list[str]) -> list[int]:
        return [ids[text] for text in spelt] if all(text in ids for text in spelt) else []

    alike = [all_of([before + pair[0] for pair in KINDS]) for before in ("", " ")]
    exchanged = {id: among for among in alike for id in among}
    closings = all_of([pair[1] for pair in KINDS])
    return BracketTokens(texts, exchanged, closings) if exchanged and closings else None
