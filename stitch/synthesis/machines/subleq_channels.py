"""Channels of the SUBLEQ machine's residual stream, by name, and vectors written in them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from stitch.synthesis.blueprint import allot
from stitch.synthesis.machines.subleq_tokens import VALUES

PARTS = ("high", "low")  # the two digits of a byte; each has 16 channels and a seventeenth for "none"
NONE = 16
FLAGS = ("out", "hit_high", "hit_low", "c_there", "borrow")  # each has a channel for "no" and one for "yes"


@dataclass(frozen=True)
class Stream:
    """`at` gives the channels of a name; `unit` is the identity matrix, whose rows are the channels as vectors."""

    at: dict[str, Tensor]
    unit: Tensor

    @classmethod
    def of(cls, bits: int) -> "Stream":
        """`bits` is the number of bits of a frame's number."""
        at = _allotted(bits)
        return cls(at, torch.eye(sum(map(len, at.values())), dtype=torch.float64))

    @property
    def width(self) -> int:
        return len(self.unit)

    def rows(self, name: str, channels: int | slice | Tensor = slice(None)) -> Tensor:
        """The vectors of channels of a name: one vector for a number, otherwise a matrix with a row for each channel."""
        return self.unit[self.at[name][channels]]

    def digits(self, name: str) -> Tensor:
        """The vectors of the 16 digits of a name, without "none"."""
        return self.rows(name, slice(NONE))

    def any_of(self, name: str, first: int, last: int | None = None) -> Tensor:
        """The vector that is 1 for the digits `first` to `last`, inclusive; for `first` alone without `last`."""
        return self.rows(name, slice(first, (first if last is None else last) + 1)).sum(0)

    def byte(self, name: str, value: int | None) -> Tensor:
        """The vector of a byte's two digits; "none" for None and for values over 255."""
        high, low = (NONE, NONE) if value is None or value >= len(VALUES) else divmod(value, 16)
        return self.rows(f"{name}_high", high) + self.rows(f"{name}_low", low)

    def both_digits(self, *names: str) -> Tensor:
        """All channels of the bytes of these names."""
        return torch.cat([self.at[f"{name}_{part}"] for name in names for part in PARTS])

    def set_flag(self, flag: str) -> Tensor:
        """What is written [1, width] to change a flag from no to yes."""
        return (self.rows(flag, 1) - self.rows(flag, 0))[None]


def _allotted(bits: int) -> dict[str, Tensor]:
    def digits(*names: str) -> dict[str, int]:
        return {f"{name}_{part}": NONE + 1 for name in names for part in PARTS}

    return allot(
        **digits("own", "pc1", "pc2", "pc3"),  # of a token: a value or a counter, and the addresses after a counter
        first=1, later=1, slot=3, frame=2 * bits, before=2 * bits, **digits("address", "next"),  # of a position
        **digits("at_pc", "at_pc1", "at_pc2", "at_pc3", "old", "a", "b", "c", "at_a", "at_b"),  # fetched and looked up
        **dict.fromkeys(FLAGS, 2),  # no, yes
        low=NONE + 1, kept=NONE + 1, borrowed=NONE + 1,  # of the difference: high digits without and with a borrow
        say_high=16, say_low=16, say_counter=1, say_value=1, say_nothing=3, say_halt=2,
    )  # fmt: skip
