"""Brackets in running text: which one a closing bracket closes, where both are tokens of their own."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

KINDS = ("()", "[]", "{}")


@dataclass(frozen=True)
class Closed:
    """The places of an opening and of the closing bracket among the tokens, and which of KINDS they are."""

    opening: int
    closing: int
    kind: int


def closed_brackets(tokens: Sequence[str]) -> Iterator[Closed]:
    """The pairs of brackets in a text given as the texts of its tokens, in the order in which they close.

    Brackets inside longer tokens are counted, so that a bracket is not taken for the partner of another one, but not returned;
    blanks before a bracket are not a longer token. What closes nothing that is open, or another kind, leaves nothing open.
    """
    opens = {pair[0]: kind for kind, pair in enumerate(KINDS)}
    closes = {pair[1]: kind for kind, pair in enumerate(KINDS)}
    held: list[tuple[int, int, bool]] = []  # kind, place and whether the token is the bracket alone, of all that are open
    for place, text in enumerate(tokens):
        alone = len(text.strip()) == 1
        for letter in text:
            if (kind := opens.get(letter)) is not None:
                held.append((kind, place, alone))
            elif (kind := closes.get(letter)) is not None:
                if not held or held[-1][0] != kind:
                    held.clear()
                    continue
                _, opening, alone_too = held.pop()
                if alone and alone_too:
                    yield Closed(opening, place, kind)


def exchanged(vocabulary: Mapping[str, int], texts: Mapping[str, str]) -> dict[int, dict[int, int]]:
    """By token that is an opening bracket, perhaps with blanks: the tokens of the other kinds with the same blanks, by kind.

    `vocabulary` has the ids of tokens, `texts` what each stands for. Tokens for which a kind is missing are left out.
    """
    ids = {texts[token]: id for token, id in vocabulary.items()}
    found: dict[int, dict[int, int]] = {}
    for text, id in ids.items():
        bracket = text.strip()
        if bracket not in [pair[0] for pair in KINDS]:
            continue
        like = [text.replace(bracket, pair[0]) for pair in KINDS]
        if all(one in ids for one in like):
            found[id] = {kind: ids[one] for kind, one in enumerate(like)}
    return found
