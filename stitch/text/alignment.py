"""Which bytes of a text each token stands for, and how the tokens of two tokenizers lie beside each other."""

from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from stitch.errors import UsageError
from stitch.text.vocabulary import Vocabulary

MOST_LOST = 1e-3  # share of the bytes of a text


@dataclass(frozen=True)
class Aligned:
    """The tokens of a text, without any that are added around it. Token i stands for bytes ends[i − 1] to ends[i] of its UTF-8.

    The last token ends where the text does. `lost` bytes are in no token's spelling: a normaliser changed them, or the token is
    unknown. They are counted to the token in whose place they stand.
    """

    ids: Int[Tensor, " tokens"]
    ends: Int[Tensor, " tokens"]
    bytes: int
    lost: int


def align(text: str, tokenizer: Any, vocabulary: Vocabulary) -> Aligned:
    """The tokens of `text` with the bytes that each stands for. `vocabulary` is that of the tokenizer.

    The tokens' own bytes are used, as offsets of tokenizers are in characters, and several tokens may share one. Where
    they do not add up to the text, offsets say which tokens belong to which part of it. A slow tokenizer has no offsets;
    the bytes of its unknown tokens then go to the token after them.
    Raises: UnicodeEncodeError for a text with lone surrogates.
    """
    fast = getattr(tokenizer, "is_fast", False)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=fast, verbose=False)
    ids, content = encoded["input_ids"], text.encode()
    pieces = [_spelt(token, vocabulary) for token in ids]
    lengths = np.array([len(piece) for piece in pieces], dtype=np.int64)
    whole = b"".join(pieces)
    if whole == content:
        ends, lost = lengths.cumsum(), 0
    elif whole == b" " + content:  # a space that the tokenizer puts in front of a text
        ends, lost = np.maximum(lengths.cumsum() - 1, 0), 0
    else:
        ends, lost = _matched(pieces, content, _parts(text, encoded["offset_mapping"]) if fast else None)
    return Aligned(torch.tensor(ids, dtype=torch.long), torch.from_numpy(ends), len(content), lost)


def _spelt(token: int, vocabulary: Vocabulary) -> bytes:
    """The bytes of a token that was made from text. A special one then stands for its spelling, the unknown one for none."""
    if token in vocabulary.special:
        return b"" if token == vocabulary.roles.get("unk") else vocabulary.special[token].encode()
    return vocabulary.pieces[token] or b""


def _parts(text: str, offsets: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Runs of tokens whose offsets do not overlap those of other runs: the number of tokens before each run's end, and the byte
    where it ends."""
    places = np.cumsum([0, *(len(character.encode()) for character in text)])
    parts, last = [], 0
    for index, (_, end) in enumerate(offsets):
        last = max(last, end)
        following = offsets[index + 1][0] if index + 1 < len(offsets) else last
        if following >= last:
            parts.append((index + 1, int(places[last])))
    return parts


def _matched(
    pieces: list[bytes], content: bytes, parts: list[tuple[int, int]] | None
) -> tuple[Int[np.ndarray, " tokens"], int]:
    """Where tokens end whose bytes are not exactly those of the text, and how many bytes of the text no token has.

    Within a part, bytes of tokens and of the text are matched in order; what is not matched goes to the token after it,
    or to the part's last one.
    """
    if not pieces:
        return np.zeros(0, dtype=np.int64), len(content)
    ends, lost, token, place = np.zeros(len(pieces), dtype=np.int64), 0, 0, 0
    for tokens, stop in [*(parts or [])[:-1], (len(pieces), len(content))]:
        mine = pieces[token:tokens]
        blocks = SequenceMatcher(None, b"".join(mine), content[place:stop], autojunk=False).get_matching_blocks()
        lost += stop - place - sum(block.size for block in blocks)
        length = 0
        for number, piece in enumerate(mine):
            length += len(piece)
            before = [
                block.b + min(block.size, length - block.a) for block in blocks if block.size and block.a < length
            ]
            ends[token + number] = place + (before[-1] if before else 0)
        ends[tokens - 1] = stop
        token, place = tokens, stop
    return ends, lost


@dataclass(frozen=True)
class Beside:
    """For every token of A, the token of B that ends at the same byte or last before it, −1 where none has ended; and whether
    it is the same byte."""

    index: Int[Tensor, " tokens"]
    coincides: Bool[Tensor, " tokens"]

    @property
    def share(self) -> float:
        """The share of A's tokens that end where one of B's does."""
        return float(self.coincides.double().mean()) if len(self.index) else 1.0


def beside(a: Aligned, b: Aligned) -> Beside:
    """The tokens of A beside those of B on the same text. Of several tokens of B that end at one byte the last is taken.

    Raises: ValueError for texts of different length.
    """
    if a.bytes != b.bytes:
        raise ValueError(f"both must be tokens of one text; got texts of {a.bytes} and {b.bytes} bytes.")
    index = torch.searchsorted(b.ends, a.ends, right=True) - 1
    if not len(b.ends):
        return Beside(index, torch.zeros(len(a.ids), dtype=torch.bool))
    return Beside(index, (index >= 0) & (b.ends[index.clamp_min(0)] == a.ends))


def require_lossless(found: list[Aligned], name: str, most: float = MOST_LOST) -> float:
    """The share of bytes lost over some texts by the tokenizer called `name`. Raises: UsageError where it is above `most`."""
    share = sum(one.lost for one in found) / max(1, sum(one.bytes for one in found))
    if share > most:
        raise UsageError(
            f"a tokenizer must keep all but {most:.1%} of the bytes of the text; that of {name} loses {share:.1%}, by "
            "normalising it or by unknown tokens: choose another tokenizer, or text that it was made for."
        )
    return share
