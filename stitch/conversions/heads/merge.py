"""Merged key heads as linear maps of the old ones, and the weights of the merged attention.

A group of G old key heads has stacked keys K = [k_1 … k_G] with G·d numbers per token. The new key is S K, a query q of the group
becomes T q, and scores are T q · R S K, where R is the rotation of RoPE. The new value is L [v_1 … v_G], and the attended values
are read by new output weights. The baselines are maps of the same form.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.internals.weights import Attention

Groups = tuple[tuple[int, ...], ...]  # for each new key head, its old ones


@dataclass(frozen=True)
class Keys:
    """Maps of one group: `shared` is S, `query[i]` is T of the i-th query head, in the order of the old key heads."""

    shared: Float[Tensor, "d stacked"]
    query: Float[Tensor, "heads d d"]


@dataclass(frozen=True)
class Values:
    """Maps of one group: `shared` is L, `output[i]` are the output weights of the i-th query head."""

    shared: Float[Tensor, "d stacked"]
    output: Float[Tensor, "heads d width"]


@dataclass(frozen=True)
class Merged:
    """Maps of an attention with one key head per group. Query heads are in the order of the groups."""

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
    """Weights and biases of the merged attention, in float64 on the CPU. The output bias is the old one."""
    order = [head for group in merged.groups for head in query_heads(group, old.shared)]
    query = torch.cat([one.query for one in merged.keys])

    def from_stacked(weight: Tensor | None, maps: list[Tensor]) -> Tensor | None:
        """`weight` [..., heads, d] with its heads stacked by group and multiplied by the maps [d, stacked]."""
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
