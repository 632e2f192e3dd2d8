"""Heads of a host that attend to BOS and read it alone, by a channel that only BOS has."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stitch.circuits.behaviours.prompts import Prompts
from stitch.grafts.frame import Frame
from stitch.grafts.norm_inputs import normalised_inputs
from stitch.internals import weights
from stitch.internals.weights import Attention
from stitch.models.model import Model

SURE = 40.0  # a score beside those of 0 with which a head attends to BOS alone
RARELY = 0.05  # of all prompts, as of text that quotes the token; positions after it are written less exactly
LEFT = 1e-4  # at most this share of such a head's attention goes to other tokens, also where norms halve the score


def first_token(prompts: Prompts) -> int | None:
    """The token that all prompts begin with; None if there is none, or if more than a few have it again before the last token
    asked for."""
    first, until = prompts.clean[0, 0], prompts.asked.flip(1).cumsum(1).flip(1) > 0  # what follows may be padding
    for ids in (prompts.clean, prompts.corrupt):
        again = ((ids == first) & until)[:, 1:].any(1)
        if not (ids[:, 0] == first).all() or again.float().mean() > RARELY:
            return None
    return int(first)


def sees_first(host: Model) -> bool:
    """Whether a head can attend to BOS alone from every position of the host's context, by its slowest rotary plane."""
    turned = float(weights.frequencies(host).min()) * host.longest
    return turned < math.pi / 2 and SURE / 2 * math.cos(turned) > math.log(host.longest / LEFT)


@dataclass(frozen=True)
class FirstTokenHeads:
    """Heads in a block of a host. After its norm the channel of BOS times `first` is 1, the constant lane times `constant` 1 on
    average.

    Only BOS has a key that is not zero, and a value. Queries are the same for all tokens: a bias, or read from the constant lane.
    """

    ours: Attention
    frame: Frame
    first: Float[Tensor, " d_host"]
    constant: Float[Tensor, " d_host"] | None

    @classmethod
    def of(cls, host: Model, block: int, frame: Frame, ids: Int64[Tensor, "prompts length"]) -> "FirstTokenHeads":
        """Calibrated on prompts with all that is written into the host so far."""
        assert frame.bos is not None
        stream = normalised_inputs(host, [("attention", block)], ids)["attention", block]
        first, constant = frame.bos, frame.constant
        return cls(
            weights.attention(host, block),
            frame,
            first / (stream[:, 0] @ first).mean(),
            None if constant is None else constant / (stream @ constant).mean(),
        )

    def write_key_head(self, group: int) -> None:
        """Keys are 1 in the first dimension of every rotary plane: BOS, at position 0, is not turned. The first value is 1."""
        ours, planes = self.ours, self.ours.k.shape[2] // 2
        for part in (ours.k[:, group], ours.v[:, group]):
            part.zero_()
        ours.k[:, group, :planes] = self.first[:, None].expand(-1, planes).to(ours.k)
        ours.v[:, group, 0] = self.first.to(ours.v)
        for bias in (ours.k_bias, ours.v_bias):
            if bias is not None:
                bias[group] = 0

    def write_head(self, query: int, scores: Float[Tensor, " d_head"], vector: Float[Tensor, " d_donor"]) -> None:
        """A head with these queries for every token, not yet turned, that writes the vector as often as it attends to BOS."""
        ours = self.ours
        scores = scores / ours.scale
        if ours.q_bias is not None:
            ours.q[:, query] = 0
            ours.q_bias[query] = scores.to(ours.q_bias)
        else:
            assert self.constant is not None
            ours.q[:, query] = torch.outer(self.constant, scores).to(ours.q)
        ours.o[query] = 0
        ours.o[query, 0] = (vector @ self.frame.write).to(ours.o)

    def write_constant(self, group: int, vector: Float[Tensor, " d_donor"], frequencies: Tensor) -> None:
        """The first head of this group attends to BOS alone where `sees_first`: it writes the vector for all tokens."""
        scores = torch.zeros(self.ours.q.shape[2], dtype=torch.float64)
        scores[int(frequencies.argmin())] = SURE
        self.write_key_head(group)
        self.write_head(group * self.ours.shared, scores, vector)
