"""Head rows whose scores are nearest to what the model, reading in its own tokens, says of the next new token."""

from collections.abc import Sequence
from math import log

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.conversions.retokenization.passages import Passage
from stitch.conversions.retokenization.scoring import Head, logits, with_one
from stitch.conversions.retokenization.solve import Products, ridge
from stitch.conversions.retokenization.streams import OnText
from stitch.conversions.retokenization.targets import NextToken

SPREAD = 0.01  # share of every target that is as `start` has it: no probability is zero
HELD_OUT = 5  # one passage in so many chooses the strength


def fitted_head(
    streams: Sequence[Float[Tensor, "_ d"]],
    start: Head,
    on: OnText,
    passages: Sequence[Passage],
    said: NextToken,
) -> Head:
    """Rows nearest to `start` whose scores on `streams` are the logarithms of what is `said`, up to a constant per position.

    `streams` are what the head reads in each passage, by position in its new tokens. One passage in HELD_OUT chooses the strength
    of the ridge.
    """
    products = {held: Products.empty(start.shape[1], len(start)) for held in (False, True)}
    for number, (stream, (places, wanted)) in enumerate(zip(streams, said.on(on, passages), strict=True)):
        read = with_one(stream[places.to(stream.device)], start.shape[1])
        scores = logits(stream[places.to(stream.device)], start, said.cap)
        spread = torch.logaddexp(((1 - SPREAD) * wanted).log(), log(SPREAD) + scores.log_softmax(-1))
        target = spread + scores.logsumexp(-1, keepdim=True)
        if said.cap is not None:
            target = said.cap * torch.atanh((target / said.cap).clamp(-0.999, 0.999))
            scores = read @ start.T
        missing = target - scores
        products[number % HELD_OUT == 0].add(read, missing - missing.mean(1, keepdim=True))
    change, _ = ridge(products[False], products[True])
    return start + change.T.to(start)
