"""Ids of one tokenizer rewritten for another: the same bytes, beside each other by where they end."""

import itertools
import random

import pytest
import torch

from stitch.text.reader import Reader
from stitch.text.rewrite import Rewriter
from test_text_alignment import strings
from tokenizers_made import LOSSLESS, byte_level, made

BYTES = ("byte-level", "byte fallback", "byte fallback, nothing in front")  # these can spell any bytes
pairs = pytest.mark.parametrize(("given", "own"), [*itertools.permutations(BYTES, 2)])


def rewriter(given: str, own: str) -> Rewriter:
    return Rewriter(Reader.of(given, made(given)), Reader.of(own, made(own)))


def spelt(reader: Reader, ids: list[int]) -> list[bytes]:
    return [reader.vocabulary.pieces[token] or b"" for token in ids]


def ends(reader: Reader, ids: list[int]) -> list[int]:
    return list(itertools.accumulate(map(len, spelt(reader, ids))))


def own_space(own: Reader, string: bytes) -> int | None:
    """Where a tokenizer puts a space of its own: in front of the first character that is whole."""
    start = next((place for place, byte in enumerate(string) if byte & 0xC0 != 0x80), len(string))
    text = string[start:].decode(errors="ignore")
    return start if own.adds_space and text and not text.startswith(" ") else None


@pairs
def test_the_same_bytes_are_read_and_tokens_lie_beside_those_that_end_last(given, own):
    rewrite, draw = rewriter(given, own), random.Random(0)
    special = rewrite.given.vocabulary.special
    for text in strings(60):
        ids = [t for t in made(given)(text, add_special_tokens=False)["input_ids"] if t not in special]
        cut = ids[draw.randrange(3) : len(ids) - draw.randrange(3)]  # also inside a character
        if not cut or any(word in text for word in rewrite.own.vocabulary.special.values()):
            continue
        found = rewrite(torch.tensor(cut))
        string, own_string = (
            b"".join(spelt(reader, ids)) for reader, ids in ((rewrite.given, cut), (rewrite.own, found.ids.tolist()))
        )
        space = own_space(rewrite.own, string)
        assert own_string == (string if space is None else string[:space] + b" " + string[space:])
        own_ends = [end - (space is not None and end > space) for end in ends(rewrite.own, found.ids.tolist())]
        for end, at, exact in zip(ends(rewrite.given, cut), found.at.tolist(), found.coincides.tolist(), strict=True):
            assert at == max((place for place, one in enumerate(own_ends) if one <= end), default=-1)
            assert exact == (end in own_ends)
        assert found.is_text.all()


def test_a_special_token_is_beside_that_of_its_role_and_starts_a_text_of_its_own():
    rewrite = rewriter("byte-level", "byte fallback")
    bos, word = made("byte-level").bos_token_id, made("byte-level").encode("stream", add_special_tokens=False)
    found = rewrite(torch.tensor([bos, *word, bos, *word]))
    own = made("byte fallback").encode("stream", add_special_tokens=False)
    start = made("byte fallback").bos_token_id
    assert found.ids.tolist() == [start, *own, start, *own]
    assert found.coincides[[0, len(word), len(word) + 1, -1]].all()
    assert found.at[[0, len(word) + 1]].tolist() == [0, len(own) + 1]
    assert found.is_text.tolist() == [False, *[True] * len(own)] * 2


def test_a_special_token_without_a_counterpart_is_passed_over():
    given = byte_level()
    given.add_special_tokens({"additional_special_tokens": ["<|tool|>"]})
    rewrite = Rewriter(Reader.of("given", given), Reader.of("own", made("byte fallback, nothing in front")))
    tool = given.convert_tokens_to_ids("<|tool|>")
    word = given.encode(" stream", add_special_tokens=False)
    found = rewrite(torch.tensor([tool, *word, tool]))
    assert not found.coincides[[0, -1]].any() and found.at[0] == -1 and found.at[-1] == len(found.ids) - 1
    assert found.coincides[-2]


def test_since_says_by_which_token_an_own_one_has_ended():
    rewrite = rewriter("byte-level", "byte fallback, nothing in front")
    ids = made("byte-level").encode("the stream of the model naïve 漢字", add_special_tokens=False)
    found = rewrite(torch.tensor(ids))
    given, own = ends(rewrite.given, ids), ends(rewrite.own, found.ids.tolist())
    assert found.since.tolist() == [next(t for t, end in enumerate(given) if end >= one) for one in own]


@pytest.mark.parametrize("kind", LOSSLESS)
def test_a_tokenizer_beside_itself_keeps_every_id(kind):
    rewrite = rewriter(kind, kind)
    ids = [made(kind).bos_token_id, *made(kind).encode("the stream of the model", add_special_tokens=False)]
    found = rewrite(torch.tensor(ids))
    assert found.ids.tolist() == ids and found.at.tolist() == list(range(len(ids))) and found.coincides.all()
