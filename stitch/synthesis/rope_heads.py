"""Attention heads of compiled Llamas: their size, their RoPE, and those that look a fixed number of tokens back."""

import functools

import torch

from stitch.internals.positions import OffsetHead, offset_head

HEAD = 64  # dimensions of a head
THETA = 1e8  # rope_theta: half of the 32 planes encode positions, half hardly rotate
STILL = 0.02  # largest rotation over the whole context, in radians, of a plane that holds contents


@functools.cache
def plane_head(offset: int, length: int) -> OffsetHead:
    """The head that looks `offset` tokens back in a context of `length` tokens."""
    frequencies = THETA ** -(torch.arange(0, HEAD, 2, dtype=torch.float64) / HEAD)
    return offset_head(frequencies, offset, length)
