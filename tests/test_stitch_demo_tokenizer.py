"""The tokenizers of the embedded models: ids, what is kept of a text, and which entries may be learnt."""

import pytest

from stitch.demo.recipe import TOKENS
from stitch.demo.tokenizer import load_tokenizer, train_tokenizer
from stitch.text.alignment import align
from stitch.text.docstrings import documents
from stitch.text.tokenizers import PROBE
from stitch.text.vocabulary import vocabulary_of

TEXTS = [
    "", " ", "  ", "\n", "word", " a space before", "two  after  ", "\n\n    def f(x):\n\treturn x\r\n", PROBE,
    "\x00\x01\x1b\x7f", "naïve ﬁ e\u0301 ½ 漢字 한글 🙂👩\u200d👧 𝔘 \u00a0\u2028\ufffd\U0010ffff", "<s>a</s> <pad><|endoftext",
    "<0xE2><0x96><0x81> <0x0A>", "3.14159 x2y10 2048",
]  # fmt: skip
any_kind = pytest.mark.parametrize("kind", TOKENS)


@pytest.fixture(scope="module")
def texts():
    return [text for _, text in documents(("huggingface_hub",))]


@pytest.fixture(scope="module")
def trained(texts, tmp_path_factory):
    """Both tokenizers, as they are read from disk."""
    folder = tmp_path_factory.mktemp("tokenizers")
    for kind in TOKENS:
        train_tokenizer(texts, kind).save_pretrained(folder / kind)
    return {kind: load_tokenizer(folder / kind) for kind in TOKENS}


@any_kind
def test_special_tokens_have_the_first_ids_and_a_text_starts_with_bos(kind, trained):
    tokenizer, tokens = trained[kind], TOKENS[kind]
    assert len(tokenizer) == tokens.size and tokenizer.padding_side == "left"
    assert tokenizer.convert_ids_to_tokens(range(len(tokens.special))) == tokens.special
    assert {name: getattr(tokenizer, name) for name in tokens.roles} == tokens.roles
    assert tokenizer("a", "b")["input_ids"].count(tokenizer.bos_token_id) == 2
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id == 0


@any_kind
def test_every_byte_of_a_text_is_kept(kind, trained, texts):
    tokenizer, vocabulary = trained[kind], vocabulary_of(trained[kind])
    before = {"byte-level": b"", "metaspace": b" "}[kind]
    for text in [*TEXTS, *texts[:40]]:
        ids = tokenizer.encode(text, add_special_tokens=False, verbose=False)
        pieces = b"".join(vocabulary.pieces[token] for token in ids)
        assert pieces == (before + text.encode() if text else b""), text
        assert tokenizer.decode(ids) == text
        assert align(text, tokenizer, vocabulary).lost == 0


def test_metaspace_reads_its_mark_as_a_space(trained):
    ids = trained["metaspace"].encode("a▁b", add_special_tokens=False)
    assert trained["metaspace"].decode(ids) == "a b"


def test_metaspace_has_bytes_for_other_characters_and_learns_no_numbers_and_no_two_words(trained):
    tokenizer = trained["metaspace"]
    assert tokenizer.tokenize("é 10\r") == ["▁", "<0xC3>", "<0xA9>", "▁", "1", "0", "<0x0D>"]
    pieces = vocabulary_of(tokenizer).pieces
    assert pieces[3 : 3 + 256] == [bytes([byte]) for byte in range(256)]
    learnt = [piece.decode() for piece in pieces[3 + 256 :]]
    assert len(set(learnt)) == 2048 - 3 - 256 and all(piece.isascii() for piece in learnt)
    assert sum(piece.startswith(" ") for piece in learnt) > 500
    for piece in learnt:
        assert len(piece) == 1 or not any(character.isdigit() for character in piece), piece
        assert " " not in piece[1:], piece


def test_training_again_gives_the_same_tokenizer(trained, texts):
    again = train_tokenizer(texts, "metaspace")
    assert again.backend_tokenizer.to_str() == trained["metaspace"].backend_tokenizer.to_str()
