"""The free space of a host: channels of its residual stream, attention heads and neurons, each given out once."""

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
    """What is taken so far of a `host` that is `width` channels wide; `centred` if its norms are LayerNorms.

    Heads are taken in whole groups, one key head with all query heads that share it.
    """

    width: int
    centred: bool
    host: str
    channels: int = 0  # the first ones that are taken
    groups: dict[int, int] = field(default_factory=dict)  # how many key heads are taken, by block
    neurons: dict[int, int] = field(default_factory=dict)  # how many are taken, by block

    @classmethod
    def of(cls, host: Model) -> "FreeSpace":
        """All of a host."""
        return cls(host.width, weights.norm(host, "final").centred, host.name)

    @property
    def free(self) -> int:
        """The number of channels that can be taken at once. LayerNorm removes the mean and with it one channel each time."""
        return max(self.width - self.channels - self.centred, 0)

    def take_channels(self, count: int) -> Float[Tensor, "count width"]:
        """Orthonormal vectors on channels of their own: unit vectors, or under LayerNorm vectors whose mean is 0.

        Raises: UsageError when fewer channels are free.
        """
        if count > self.free:
            raise UsageError(
                f"the graft needs {count} channels; {self.free} of the {self.width} of {self.host} are free: choose a wider host."
            )
        taken = torch.zeros(count, self.width, dtype=torch.float64)
        size = count + self.centred
        place = torch.arange(size, dtype=torch.float64)
        waves = torch.outer(place[1:], place + 0.5) * (math.pi / size)  # DCT-II without its constant vector
        taken[:, self.channels : self.channels + size] = (
            waves.cos() * (2 / size) ** 0.5 if self.centred else torch.eye(count)
        )
        self.channels += size
        return taken

    def groups_left(self, block: int, groups: int) -> int:
        """How many key heads are free in a block that has `groups` of them."""
        return groups - self.groups.get(block, 0)

    def take_group(self, block: int, groups: int) -> int:
        """The next key head of a block that has `groups` of them. Raises UsageError when all are taken."""
        group = self.groups.get(block, 0)
        if group >= groups:
            raise UsageError(
                f"the graft needs {group + 1} key heads in block {block} of {self.host}; it has {groups}: choose a host with "
                "more (num_key_value_heads)."
            )
        self.groups[block] = group + 1
        return group

    def take_neurons(self, block: int, count: int, neurons: int) -> int:
        """The first of the next `count` neurons of a block that has `neurons`. Raises UsageError when fewer are free."""
        first = self.neurons.get(block, 0)
        if first + count > neurons:
            raise UsageError(
                f"the graft needs {first + count:,} neurons in block {block} of {self.host}; it has {neurons:,}: choose a host "
                "with more (intermediate_size)."
            )
        self.neurons[block] = first + count
        return first
