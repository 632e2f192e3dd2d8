"""Tokenizers of every kind, trained on the spot on a few sentences."""

import functools
import unicodedata
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

import jobs

SENTENCES = [
    "The stream of a model is read by the matching layer, and the layer writes into the stream.",
    "def feature(x):\n    return x ** 2  # naïve café 漢字 🙂\r\n",
    "Matching features, pairs and plans: 1234567 tokens don't match early blocks; late blocks do.",
] * 20
WORDS = [f"▁{word}" for word in ("the", *jobs.WORDS)]
ROLES = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>")
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]


def _wrapped(core: Tokenizer, **roles: Any) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=core, **(roles or ROLES))


def byte_level(size: int = 500, sentences=SENTENCES, bos: str = "<|endoftext|>") -> PreTrainedTokenizerFast:
    """As GPT-2's and Llama 3's; offsets leave out the space before a word."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[bos], initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(sentences, trainer)
    core.post_processor = processors.ByteLevel(trim_offsets=True)
    return _wrapped(core, bos_token=bos, eos_token=bos)


def composed() -> PreTrainedTokenizerFast:
    """Byte-level after NFC, as Qwen's."""
    found = byte_level()
    found.backend_tokenizer.normalizer = normalizers.NFC()
    return found


def with_byte_fallback(prepend: str = "first", bytes_first: bool = True) -> PreTrainedTokenizerFast:
    """As Llama 2's and Gemma's (prepend "never"): a unigram model whose unknown characters become bytes such as <0xE2>.

    These have lower ids than ordinary tokens, or higher ones.
    """
    special, every_byte = [*SPECIAL], [f"<0x{byte:02X}>" for byte in range(256)]
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False)
    core.train_from_iterator([s.encode("ascii", "ignore").decode() for s in SENTENCES], trainer)
    learnt = sorted(core.get_vocab().items(), key=lambda item: item[1])
    pieces = dict.fromkeys([*WORDS, *(piece for piece, _ in learnt if piece not in special)])
    parts = [[(piece, -8.0) for piece in every_byte], [(piece, -1.0 - 4 / len(piece)) for piece in pieces]]
    ordered = [entry for part in (parts if bytes_first else reversed(parts)) for entry in part]
    core.model = models.Unigram([(piece, 0.0) for piece in special] + ordered, 0, True)
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return _wrapped(core)


def with_prepended_space() -> PreTrainedTokenizerFast:
    """As Llama 2's: a space is put in front of every text, also of one that begins with a space."""
    found = with_byte_fallback()
    core = found.backend_tokenizer
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.pre_tokenizer = None  # pyright: ignore[reportAttributeAccessIssue]
    return found


def word_piece(lowercase: bool = False) -> PreTrainedTokenizerFast:
    """As BERT's. White space is not kept, and words with characters that it has not seen are unknown."""
    core = Tokenizer(models.WordPiece(unk_token="<unk>"))
    core.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=lowercase)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False)
    core.train_from_iterator(SENTENCES, trainer)
    return _wrapped(core)


def compatible() -> PreTrainedTokenizerFast:
    """Byte fallback after NFKC, as T5's and XLM-R's."""
    found = with_byte_fallback()
    found.backend_tokenizer.normalizer = normalizers.NFKC()
    return found


class Slow(PreTrainedTokenizer):
    """A tokenizer in Python, without offsets: a SentencePiece-like vocabulary read greedily, bytes for unknown characters."""

    def __init__(self, **roles: Any):
        words = ["▁the", "▁stream", "▁model", "th", "ing", "▁", *"abcdefghijklmnopqrstuvwxyzT,.\n"]
        names = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *words]
        self._ids = {name: index for index, name in enumerate(names)}
        super().__init__(**(roles or ROLES))

    @property
    def vocab_size(self) -> int:
        return len(self._ids)

    def get_vocab(self) -> dict[str, int]:
        return {**self._ids, **self.added_tokens_encoder}

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        text, found = unicodedata.normalize("NFC", text).replace(" ", "▁"), []
        while text:
            longest = next((text[:size] for size in (7, 6, 4, 3, 2, 1) if text[:size] in self._ids), None)
            found += [longest] if longest else [f"<0x{byte:02X}>" for byte in text[0].encode()]
            text = text[len(longest or text[0]) :]
        return found

    def _convert_token_to_id(self, token: str) -> int:
        return self._ids.get(token, 0)

    def _convert_id_to_token(self, index: int) -> str:
        return next(name for name, found in self._ids.items() if found == index)


KINDS = {
    "byte-level": byte_level,
    "byte-level, NFC": composed,
    "byte fallback": with_byte_fallback,
    "byte fallback, always in front": with_prepended_space,
    "byte fallback, nothing in front": functools.partial(with_byte_fallback, "never"),
    "byte fallback, NFKC": compatible,
    "word pieces": word_piece,
    "word pieces, lower case": functools.partial(word_piece, True),
    "slow": Slow,
}
LOSSLESS = ("byte-level", "byte fallback, nothing in front")
made = functools.cache(lambda kind: KINDS[kind]())
