"""Head rows whose scores are nearest to what the model, reading in its own tokens, says of the next new token."""

from collections.abc import Sequence
from math import log

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.conversions.retokenization.passages import Passage
from stitch.conversions.retokenization.scoring import Head, logits, with_one
from stitch.conversions.retokenization.solve import Products, passes_of_ridge, ridge
from stitch.conversions.retokenization.streams import OnText
from stitch.conversions.retokenization.targets import NextToken
from stitch.progress import Progress, Steps, counted

SPREAD = 0.01  # share of every target that is as `start` has it: no probability is zero
HELD_OUT = 5  # one passage in so many chooses the strength


def fitted_head(
    streams: Sequence[Float[Tensor, "_ d"]],
    start: Head,
    on: OnText,
    passages: Sequence[Passage],
    said: NextToken,
    progress: Progress | None = None,
) -> Head:
    """Rows nearest to `start` whose scores on `streams` are the logarithms of what is `said`, up to a constant per position.

    `streams` are what the head reads in each passage, by position in its new tokens. One passage in HELD_OUT chooses the strength
    of the ridge.
    """
    return fitted_heads([streams], start, on, passages, said, progress)[0]


def fitted_heads(
    several: Sequence[Sequence[Float[Tensor, "_ d"]]],
    start: Head,
    on: OnText,
    passages: Sequence[Passage],
    said: NextToken,
    progress: Progress | None = None,
) -> list[Head]:
    """The same for several kinds of streams: what is said is worked out once."""
    products = [{held: _none_yet(start) for held in (False, True)} for _ in several]
    told = counted(said.on(on, passages), "scores of the head (passages)", progress, len(passages))
    for number, (places, wanted) in enumerate(told):
        for streams, sums in zip(several, products, strict=True):
            read, missing = _missing(streams[number][places.to(wanted.device)], start, wanted, said.cap)
            sums[number % HELD_OUT == 0].add(read, missing)
    heads, step = (
        [],
        Steps("rows of the head (parts)", sum(passes_of_ridge(sums[False]) for sums in products), progress),
    )
    while products:  # the products of one head are given up before those of the next are solved
        sums = products.pop(0)
        heads.append(start + ridge(sums[False], sums[True], step)[0].T.to(start))
    return heads


def _none_yet(start: Head) -> Products:
    return Products.empty(start.shape[1], len(start), start.device)


def _missing(
    stream: Float[Tensor, "positions d"], start: Head, wanted: Float[Tensor, "positions new"], cap: float | None
) -> tuple[Float[Tensor, "positions columns"], Float[Tensor, "positions new"]]:
    """What the head reads, and what is missing from its scores there, of mean 0."""
    read, scores = with_one(stream, start.shape[1]), logits(stream, start, cap)
    whole = scores.logsumexp(-1, keepdim=True)
    target = torch.logaddexp(((1 - SPREAD) * wanted).log() + whole, scores + log(SPREAD))
    if cap is not None:
        target = cap * torch.atanh((target / cap).clamp(-0.999, 0.999))
        scores = read @ start.T
    missing = target.sub_(scores)
    return read, missing.sub_(missing.mean(1, keepdim=True))
