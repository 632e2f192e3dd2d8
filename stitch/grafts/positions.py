"""How positions reach attention in a donor and in a host, and what that means for heads that move from one to the other."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.internals import weights
from stitch.internals.positions import OffsetHead, code_frequencies, offset_head
from stitch.models.model import Model

CODE_PLANES = 12  # of the codes that hosts with learned positions get, at most


@dataclass(frozen=True)
class PositionScheme:
    """Frequencies are 0 with learned positions.

    `alike`: in the same way, so that heads are copied. `coded`: the host has learned positions and the donor has not, so each
    position gets a code, of `code_frequencies`. `loses_positions`: the other way round, the donor's have no place in the host.
    """

    alike: bool
    coded: bool
    loses_positions: bool
    donor_frequencies: Float[Tensor, " donor_planes"]
    host_frequencies: Float[Tensor, " host_planes"]
    code_frequencies: Float[Tensor, " code_planes"]
    context: int  # of the host
    biased: bool  # queries and keys of the host have biases

    @classmethod
    def of(cls, donor: Model, host: Model) -> "PositionScheme":
        theirs, ours = weights.frequencies(donor), weights.frequencies(host)
        turning = weights.is_rotary(donor), weights.is_rotary(host)
        same = theirs.shape == ours.shape and torch.allclose(theirs, ours, rtol=1e-6)
        alike = not any(turning) or (all(turning) and same)
        attention = weights.attention(host, 0)
        codes = code_frequencies(min(CODE_PLANES, attention.q.shape[2] // 2), host.longest)
        return cls(
            alike=alike,
            coded=turning == (True, False),
            loses_positions=turning == (False, True),
            donor_frequencies=theirs,
            host_frequencies=ours,
            code_frequencies=codes,
            context=host.longest,
            biased=attention.q_bias is not None,
        )

    @property
    def offset_frequencies(self) -> Float[Tensor, " planes"]:
        """Of the planes that heads looking a fixed number of tokens back are made of."""
        return self.code_frequencies if self.coded else self.host_frequencies

    @property
    def by_bias(self) -> bool:
        """Such heads' queries and keys are biases; otherwise they are read from the stream, as long as its norm leaves them."""
        return self.biased and not self.coded

    def offset_head(self, offset: int) -> OffsetHead:
        return offset_head(self.offset_frequencies, offset, self.context)
