"""What the entries of a tokenizer's vocabulary stand for: bytes of UTF-8 text, or a role such as the start of a text.

Spellings differ between tokenizers (`Ġthe`, `▁the`), the bytes do not (b" the").
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

# Attributes of a tokenizer that name a special token, those that decide first at the front: one token may have several roles.
ROLES = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")
METASPACE = "▁"


@dataclass(frozen=True)
class Vocabulary:
    """`pieces[id]` are the bytes that a token stands for: none for a special token, None for an id without a token.

    `special` are the spellings of special tokens by id. `roles` are the ids of those with a role, by role. `spare` are tokens for
    single bytes of characters that have no token, such as <0xE2>.
    """

    pieces: list[bytes | None]
    special: dict[int, str]
    roles: dict[str, int]
    spare: frozenset[int] = frozenset()

    def __len__(self) -> int:
        """One more than the highest id."""
        return len(self.pieces)

    def role_of(self, token: int) -> str | None:
        """The first of ROLES that the token has."""
        return next((role for role in ROLES if self.roles.get(role) == token), None)


def vocabulary_of(tokenizer: Any) -> Vocabulary:
    """The vocabulary of a tokenizer of transformers, fast or slow.

    A token that starts a word of a SentencePiece or WordPiece vocabulary stands for a space and the word. The kind is read from
    the decoder of a fast tokenizer, from the spellings of a slow one.
    """
    spellings = {index: spelling for spelling, index in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    special = {index: token.content for index, token in added.items() if token.special}
    special |= {index: spellings[index] for index in tokenizer.all_special_ids if index in spellings}
    to_bytes = _reader(tokenizer, spellings)
    pieces: list[bytes | None] = [None] * (max([*spellings, *added]) + 1)
    for index, spelling in spellings.items():
        pieces[index] = spelling.encode() if index in added else to_bytes(spelling)
    for index in special:
        pieces[index] = b""
    roles = {role: getattr(tokenizer, f"{role}_token_id", None) for role in ROLES}
    named = {role: index for role, index in roles.items() if index is not None}
    spare = {index for index, spelling in spellings.items() if to_bytes is _sentence_piece and _is_spare(spelling)}
    return Vocabulary(pieces, special, named, frozenset(spare))


def _reader(tokenizer: Any, spellings: dict[int, str]) -> Callable[[str], bytes]:
    """The function from an ordinary token's spelling to its bytes."""
    if getattr(tokenizer, "is_fast", False):
        decoder = tokenizer.backend_tokenizer.decoder
        parts = _flat(json.loads(decoder.__getstate__())) if decoder is not None else []
        kinds = {part["type"]: part for part in parts}
        if "ByteLevel" in kinds:
            return _byte_level
        if "WordPiece" in kinds:
            return lambda spelling: _word_piece(spelling, kinds["WordPiece"]["prefix"])
        if "Metaspace" in kinds or any(part.get("pattern") == {"String": METASPACE} for part in parts):
            return _sentence_piece
        return _plain
    starts = {spelling[:2] for spelling in spellings.values()}
    if any(start.startswith("Ġ") for start in starts):
        return _byte_level
    if any(start.startswith(METASPACE) for start in starts):
        return _sentence_piece
    return _word_piece if "##" in starts else _plain


def _flat(decoder: dict) -> list[dict]:
    """The steps of a decoder, those of sequences one by one."""
    if decoder["type"] == "Sequence":
        return [step for part in decoder["decoders"] for step in _flat(part)]
    return [decoder]


def _byte_level(spelling: str) -> bytes:
    alphabet = _byte_alphabet()
    return b"".join(alphabet.get(character, character.encode()) for character in spelling)


@cache
def _byte_alphabet() -> dict[str, bytes]:
    """The byte that each character of a byte-level spelling stands for. Source: Radford et al. 2019, the code of GPT-2.

    Printable bytes stand for themselves; the others, in order, are the characters from 256 on.
    """
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): bytes([byte]) for byte in shown} | {
        chr(256 + place): bytes([byte]) for place, byte in enumerate(others)
    }


def _is_spare(spelling: str) -> bool:
    return len(spelling) == 6 and spelling.startswith("<0x") and spelling.endswith(">")


def _sentence_piece(spelling: str) -> bytes:
    if _is_spare(spelling):
        return bytes([int(spelling[3:5], 16)])
    return spelling.replace(METASPACE, " ").encode()


def _word_piece(spelling: str, prefix: str = "##") -> bytes:
    return spelling.removeprefix(prefix).encode() if spelling.startswith(prefix) else f" {spelling}".encode()


def _plain(spelling: str) -> bytes:
    return spelling.encode()
