"""What each token of the new tokenizer is in the model's own: the same bytes or role, several pieces, or nothing."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from stitch.text.reader import Reader

# A role that the model's tokenizer has no token for is taken by another, as in families whose texts start with EOS.
INSTEAD = {"bos": ("eos",), "eos": ("bos",), "pad": ("eos", "bos")}


@dataclass(frozen=True)
class Correspondence:
    """`new[i]` has the row of the model's `own[i]`: the first `shared` of them stand for the same bytes, the others are special.

    `pieces` are the model's tokens for the bytes of other new tokens. Of those in neither, special ones and such as the model can
    not spell, nothing is known. `size` is one more than the highest new id.
    """

    size: int
    own: Int[Tensor, " copied"]
    new: Int[Tensor, " copied"]
    shared: int
    pieces: dict[int, tuple[int, ...]]

    @property
    def unknown(self) -> int:
        """The number of tokens that nothing is known of."""
        return self.size - len(self.new) - len(self.pieces)


def correspond(own: Reader, new: Reader) -> Correspondence:
    """Compares two vocabularies as bytes and roles, not as spellings."""
    copied, spelt = {}, []
    for token, piece in enumerate(new.vocabulary.pieces):
        if piece in own.by_bytes:
            copied[token] = own.by_bytes[piece]
        elif piece:
            spelt.append((token, piece))
    shared = len(copied)
    copied |= by_role(own, new)
    pieces = own.spell([piece for _, piece in spelt])
    return Correspondence(
        len(new.vocabulary),
        torch.tensor(list(copied.values()), dtype=torch.long),
        torch.tensor(list(copied), dtype=torch.long),
        shared,
        {token: found for (token, _), found in zip(spelt, pieces, strict=True) if found},
    )


def alike(one: Reader, other: Reader) -> tuple[Int[Tensor, " shared"], Int[Tensor, " shared"]]:
    """The ids of one and of the other for all strings of bytes that have a token in both."""
    pairs = [(token, other.by_bytes[piece]) for piece, token in one.by_bytes.items() if piece in other.by_bytes]
    return tuple(torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T)  # pyright: ignore[reportReturnType]


def by_role(own: Reader, new: Reader) -> dict[int, int]:
    """New special tokens and the model's for the same role, or else with the same spelling."""
    spellings = {spelling: index for index, spelling in own.vocabulary.special.items()}
    found = {new.bos: own.bos}
    for token, spelling in new.vocabulary.special.items():
        role = new.vocabulary.role_of(token)
        named = [own.vocabulary.roles.get(one) for one in (role, *INSTEAD.get(role or "", ()))] if role else []
        others = [one for one in (*named, spellings.get(spelling)) if one is not None and one < own.rows]
        if token != new.bos and others:
            found[token] = others[0]
    return found
