"""What of a host is still free: channels of its stream, heads, neurons. Given out in order and never twice."""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.errors import UsageError
from stitch.internals import weights
from stitch.models.model import Model


@dataclass
class FreeSpace:
    """Heads are given out as whole groups, a key head with the query heads that share it: no others may change places."""

    width: int
    centred: bool
    host: str
    channels: int = 0  # used, and so on
    groups: dict[int, int] = field(default_factory=dict)
    neurons: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, host: Model) -> "FreeSpace":
        return cls(host.width, weights.norm(host, "final").centred, host.name)

    @property
    def free(self) -> int:
        """Channels that can be taken at once."""
        return max(self.width - self.channels - self.centred, 0)

    def take_channels(self, count: int) -> Float[Tensor, "count width"]:
        """Orthonormal vectors: single channels, or under LayerNorm vectors without mean, on one channel more."""
        if count > self.free:
            raise UsageError(
                f"the graft needs {count} channels; {self.free} of the {self.width} of {self.host} are free: choose a wider host."
            )
        taken = torch.zeros(count, self.width, dtype=torch.float64)
        size = count + self.centred
        place = torch.arange(size, dtype=torch.float64)
        waves = torch.outer(place[1:], place + 0.5) * (math.pi / size)  # DCT-II without its constant
        taken[:, self.channels : self.channels + size] = (
            waves.cos() * (2 / size) ** 0.5 if self.centred else torch.eye(count)
        )
        self.channels += size
        return taken

    def take_group(self, block: int, groups: int) -> int:
        """A key head of a block that has so many."""
        group = self.groups.get(block, 0)
        if group >= groups:
            raise UsageError(
                f"the graft needs {group + 1} key heads in block {block} of {self.host}; it has {groups}: choose a host with "
                "more (num_key_value_heads)."
            )
        self.groups[block] = group + 1
        return group

    def take_neurons(self, block: int, count: int, neurons: int) -> int:
        """The first of `count` neurons of a block that has so many."""
        first = self.neurons.get(block, 0)
        if first + count > neurons:
            raise UsageError(
                f"the graft needs {first + count:,} neurons in block {block} of {self.host}; it has {neurons:,}: choose a host "
                "with more (intermediate_size)."
            )
        self.neurons[block] = first + count
        return first
