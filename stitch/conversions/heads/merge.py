"""What fewer key heads are: linear maps in the space of the old ones, for keys and values and for what meets them.

A group of G old key heads has stacked keys K = [k_1 … k_G] of G·d numbers per token. Its new key is S K; a query head q of
the group becomes T q; scores are T q · R S K, R the rotation of RoPE. Values likewise: the new value is L [v_1 … v_G], and
what the heads attend to is read by new output weights. All baselines are such maps, too.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.internals.weights import Attention

Groups = tuple[tuple[int, ...], ...]  # old key heads by new one


@dataclass(frozen=True)
class Keys:
    """Of one group: `shared` is S, `query[i]` the T of its i-th query head, in the order of its old key heads."""

    shared: Float[Tensor, "d stacked"]
    query: Float[Tensor, "heads d d"]


@dataclass(frozen=True)
class Values:
    """Of one group: `shared` is L, `output[i]` the output weights of its i-th query head."""

    shared: Float[Tensor, "d stacked"]
    output: Float[Tensor, "heads d width"]


@dataclass(frozen=True)
class Merged:
    """An attention with a key head per group; query heads are in the order of the groups."""

    groups: Groups
    keys: tuple[Keys, ...]
    values: tuple[Values, ...]

    @property
    def output(self) -> Float[Tensor, "heads d width"]:
        return torch.cat([one.output for one in self.values])


def query_heads(group: tuple[int, ...], shared: int) -> list[int]:
    """The query heads of a group's old key heads, each of which has `shared`."""
    return [head * shared + index for head in group for index in range(shared)]


def merged_weights(old: Attention, merged: Merged) -> Attention:
    """The attention's weights and biases after merging, in float64 on the CPU, where the maps are; the output's bias is the old
    one."""
    order = [head for group in merged.groups for head in query_heads(group, old.shared)]
    query = torch.cat([one.query for one in merged.keys])

    def from_stacked(weight: Tensor | None, maps: list[Tensor]) -> Tensor | None:
        """Rows of `weight` [..., groups, d] stacked by group, through the maps [d, stacked]."""
        if weight is None:
            return None
        wide = [weight.double().cpu()[..., list(group), :].flatten(-2) for group in merged.groups]
        return torch.stack([stacked @ one.T for stacked, one in zip(wide, maps, strict=True)], -2)

    def queries(weight: Tensor | None) -> Tensor | None:
        return None if weight is None else torch.einsum("...he,hde->...hd", weight.double().cpu()[..., order, :], query)

    of_keys, of_values = [one.shared for one in merged.keys], [one.shared for one in merged.values]
    q, k, v = queries(old.q), from_stacked(old.k, of_keys), from_stacked(old.v, of_values)
    assert q is not None and k is not None and v is not None
    return Attention(
        q, k, v, merged.output, queries(old.q_bias), from_stacked(old.k_bias, of_keys), from_stacked(old.v_bias, of_values),
        old.o_bias, old.scale,
    )  # fmt: skip
