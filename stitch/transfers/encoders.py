"""Encoders for B's stream that fire where A's features do, fitted to A's codes of the same text.

Behind a fitted map features reach A's thresholds more rarely than A's do: a regression predicts less variance than there is, and
a rotation puts less of it where a feature reads. Here each feature fires as often as A's.
"""

import dataclasses
from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sae.types import Dictionary
from stitch.regression.moments import Moments, accumulate
from stitch.regression.ridge import ridge

Streams = Callable[[], Iterable[Float[Tensor, "_ d"]]]  # the same chunks at every call


def codes_and_streams(
    dictionary: Dictionary, read: Iterable[Float[Tensor, "_ d_a"]], beside: Iterable[Float[Tensor, "_ d_b"]]
) -> Moments:
    """The moments of "z", the codes of `dictionary` where it reads `read`, and "y", what is `beside`, token by token.

    For a regression of z on y: the squares of y, but not those of z.
    """
    pairs = zip(read, beside, strict=True)
    chunks = ({"z": dictionary.encode(x.to(dictionary.encoder.device)).cpu(), "y": y} for x, y in pairs)
    return accumulate(chunks, [("y", "y"), ("y", "z")], single=["y"])


def with_encoder(dictionary: Dictionary, fit: Moments, held_out: Moments) -> Dictionary:
    """The dictionary with the encoder that predicts "z" from "y" best: ridge with λ chosen on `held_out`, and thresholds of 0.

    Both are moments as `codes_and_streams` gives them.
    """
    found = ridge(fit, held_out, ("y",), "z")
    return dataclasses.replace(
        dictionary,
        encoder=found.weights["y"].to(dictionary.encoder),
        encoder_bias=found.bias.to(dictionary.encoder_bias),
        activation="jumprelu",
        threshold=torch.zeros_like(dictionary.encoder_bias),
    )


def firings(dictionary: Dictionary, streams: Iterable[Float[Tensor, "_ d"]]) -> Int64[Tensor, " features"]:
    """At how many tokens each feature fires."""
    found = torch.zeros(len(dictionary.encoder_bias), dtype=torch.long)
    for x in streams:
        found += (dictionary.encode(x.to(dictionary.encoder.device)) > 0).sum(0).cpu()
    return found


@torch.no_grad()
def firing_at(dictionary: Dictionary, counts: Int64[Tensor, " features"], streams: Streams, memory: int) -> Dictionary:
    """The dictionary as JumpReLU, with the thresholds at which each feature fires at `counts` tokens of `streams`: at fewer where
    its code is positive at fewer, or equal at several. A feature with the count 0 never fires there.

    Sorts the codes of as many features at a time as `memory` bytes have room for, and reads the streams for each part.
    """
    tokens = sum(len(y) for y in streams())
    at_once = max(
        1, memory // (tokens * 6 * 4)
    )  # codes in float32 before and after sorting, and places in int64, twice
    found = []
    for block in torch.arange(len(counts)).split(at_once):
        encoder, bias = dictionary.encoder[:, block].float(), dictionary.encoder_bias[block].float()
        codes = torch.cat([y.to(encoder) @ encoder + bias for y in streams()]).clamp_min_(0)
        codes = codes.sort(dim=0, descending=True).values
        place = counts[block].to(codes.device)
        last = codes.gather(0, (place - 1).clamp_min(0)[None])[0] * torch.where(place > 0, 1.0, 2.0)
        following = codes.gather(0, place.clamp_max(tokens - 1)[None])[0] * (place < tokens)
        found.append((last + following) / 2)  # apart from both, so that rounding does not matter
        del codes
    return dataclasses.replace(
        dictionary, activation="jumprelu", threshold=torch.cat(found).to(dictionary.encoder_bias)
    )
