"""Converts attentions block by block, with every method at once."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from stitch.conversions.heads.merge import Groups, Keys, Merged, Values, merged_weights
from stitch.conversions.heads.moments import (
    AttentionMoments,
    HeadGroup,
    attention_rows,
    block_moments,
    group_of,
    normed,
)
from stitch.conversions.heads.normalised import merged_normalised
from stitch.conversions.heads.streams import ConvertedStreams, _embedded, after_mlp, attention_output, written
from stitch.internals import weights
from stitch.internals.weights import Attention
from stitch.models.model import Model
from stitch.progress import Progress


@dataclass(frozen=True)
class Method:
    """How the heads of a group are merged. `refit`: whether output weights are then refitted, block after block."""

    keys: Callable[[HeadGroup], Keys]
    values: Callable[[HeadGroup], Values]
    refit: bool


@torch.no_grad()
def convert(
    donor: Model,
    groups: Callable[[Model, int, AttentionMoments, int], Groups],
    methods: dict[str, Method],
    ids: dict[str, Tensor],
    *,
    sample: int,
    seed: int = 0,
    observe: Callable[[Model, int, list[HeadGroup], dict[str, Merged], Tensor], None] | None = None,
    progress: Progress | None = None,
) -> dict[str, list[Attention]]:
    """The attentions of every method, block by block.

    `ids` holds windows to fit on ("fit") and to choose λ on ("sweep"). Keys are refined on the attention of the first `sample`
    windows of the former. `groups` and `observe` get every block as a part of a composite and the block's number there. `observe`
    also gets the block's groups, the merged heads of each method and the held-out stream.
    """
    start = {split: _embedded(donor, windows) for split, windows in ids.items()}

    def new_streams(has_streams: bool) -> ConvertedStreams:
        return ConvertedStreams(dict(start) if has_streams else {}, {split: {} for split in ids})

    own, converted = new_streams(True), {name: new_streams(method.refit) for name, method in methods.items()}
    for number in range(donor.depth):
        model, block = donor.in_part(number)
        for one in (own, *converted.values()):
            one.enter(donor, number, ids)
        old, streams = weights.attention(model, block), own.streams
        moments = block_moments(model, block, streams["fit"])
        grouping = groups(model, block, moments, streams["fit"].shape[1])
        found = [
            group_of(
                model, block, members, moments,
                partial(attention_rows, model, block, members, streams["fit"][:sample], seed), streams["fit"].shape[1],
            )
            for members in grouping
        ]  # fmt: skip
        outputs = {split: attention_output(model, block, old, stream) for split, stream in streams.items()}
        read = {split: normed(model, block, stream) for split, stream in streams.items()}
        after = {split: stream + written(old, outputs[split]) for split, stream in streams.items()}
        made = merge_by_method(methods, grouping, found)
        if observe:
            observe(model, block, found, made, streams["sweep"])
        for name, method in methods.items():
            new = merged_attention(old, made[name], read)
            if method.refit:
                new = converted[name].refit(model, block, new, after)
            converted[name].attentions.append(new.to(donor.dtype))  # less memory than float64, in which it was solved
        own.streams = {split: after_mlp(model, block, stream) for split, stream in after.items()}
        if progress:
            progress("blocks", number + 1, donor.depth)
    return {name: one.attentions for name, one in converted.items()}


def merge_by_method(methods: dict[str, Method], grouping: Groups, groups: list[HeadGroup]) -> dict[str, Merged]:
    """The merged heads of every method. What several methods share is computed once."""
    keys = {make: tuple(map(make, groups)) for make in dict.fromkeys(one.keys for one in methods.values())}
    values = {make: tuple(map(make, groups)) for make in dict.fromkeys(one.values for one in methods.values())}
    return {name: Merged(grouping, keys[one.keys], values[one.values]) for name, one in methods.items()}


def merged_attention(old: Attention, merged: Merged, read: dict[str, Tensor]) -> Attention:
    """The attention with merged heads; `old` itself if every head stays alone. `read` is its input, by split."""
    if merged.groups == tuple((head,) for head in range(old.k.shape[1])):
        return old
    return merged_weights(old, merged) if old.q_gain is None else merged_normalised(old, merged, read)
