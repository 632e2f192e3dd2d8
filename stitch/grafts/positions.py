"""How attention gets positions in a donor and in a host, and what follows for heads that move from one to the other."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.internals import weights
from stitch.internals.positions import OffsetHead, code_frequencies, offset_head
from stitch.models.model import Model

CODE_PLANES = 12  # at most, of the position codes that hosts with learned positions get


@dataclass(frozen=True)
class PositionScheme:
    """RoPE or learned positions in the donor and in the host. Frequencies are radians per position, 0 with learned positions.

    `alike`: both work in the same way, so heads are copied.
    `coded`: the host has learned positions and the donor has RoPE, so each position gets a code of `code_frequencies`.
    `loses_positions`: the donor has learned positions and the host has RoPE, so the host has no table for them.
    """

    alike: bool
    coded: bool
    loses_positions: bool
    donor_frequencies: Float[Tensor, " donor_planes"]
    host_frequencies: Float[Tensor, " host_planes"]
    code_frequencies: Float[Tensor, " code_planes"]
    context: int  # of the host, in tokens
    biased: bool  # queries and keys of the host have biases

    @classmethod
    def of(cls, donor: Model, host: Model) -> "PositionScheme":
        donor_frequencies, host_frequencies = weights.frequencies(donor), weights.frequencies(host)
        donor_is_rotary, host_is_rotary = weights.is_rotary(donor), weights.is_rotary(host)
        same = donor_frequencies.shape == host_frequencies.shape and torch.allclose(
            donor_frequencies, host_frequencies, rtol=1e-6
        )
        attention = weights.attention(host, 0)
        return cls(
            alike=same if donor_is_rotary and host_is_rotary else donor_is_rotary == host_is_rotary,
            coded=donor_is_rotary and not host_is_rotary,
            loses_positions=host_is_rotary and not donor_is_rotary,
            donor_frequencies=donor_frequencies,
            host_frequencies=host_frequencies,
            code_frequencies=code_frequencies(min(CODE_PLANES, attention.q.shape[2] // 2), host.longest),
            context=host.longest,
            biased=attention.q_bias is not None,
        )

    @property
    def offset_frequencies(self) -> Float[Tensor, " planes"]:
        """The planes that a head which attends a fixed number of tokens back is made of."""
        return self.code_frequencies if self.coded else self.host_frequencies

    @property
    def by_bias(self) -> bool:
        """Whether the queries and keys of such heads are biases. Otherwise they are read from the stream, whose length varies."""
        return self.biased and not self.coded

    def offset_head(self, offset: int) -> OffsetHead:
        """A head of the host that attends `offset` tokens back. Raises UsageError as `stitch.internals.positions.offset_head`."""
        return offset_head(self.offset_frequencies, offset, self.context)
