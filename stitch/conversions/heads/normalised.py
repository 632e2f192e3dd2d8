"""Merged heads for models that normalise queries and keys (Qwen3), in the same stock class.

The maps S and T apply to normalised queries and keys, and their results need not have the length that the norm enforces. A query
T q̂ has the direction of a linear map of the stream. A key S [k̂_1 … k̂_G] does not, as each old head is normalised separately; it
is fitted by ridge regression, up to a factor per token. Dimensions are rescaled before the norm, and back by its gain, so that
lengths vary least between tokens and heads.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from stitch.conversions.heads.merge import Merged, merged_weights, query_heads
from stitch.internals.attend import heads_of
from stitch.internals.weights import Attention
from stitch.regression.moments import accumulate
from stitch.regression.prior import ridge_towards

SAMPLE = 4096  # tokens on which lengths are compared
LEAST = 0.1  # smallest weight of a dimension in the length, relative to an equal share

Streams = dict[str, Float[Tensor, "windows t width"]]


@torch.no_grad()
def merged_normalised(old: Attention, merged: Merged, streams: Streams) -> Attention:
    """The merged attention. `streams` are its inputs on windows to fit on ("fit") and to choose λ on ("sweep")."""
    assert old.q_gain is not None and old.k_gain is not None
    some = streams["fit"].flatten(0, 1)[:SAMPLE].double()
    raw, long = _raw_keys(old, some)
    lengths = long.mean(0)[:, 0].to(old.k)
    plain = replace(
        old,
        q=old.q * old.q_gain,
        k=old.k * old.k_gain / lengths[:, None],
        q_bias=None if old.q_bias is None else old.q_bias * old.q_gain,
        k_bias=None if old.k_bias is None else old.k_bias * old.k_gain / lengths[:, None],
        q_gain=None,
        k_gain=None,
    )
    linear = _nearest_keys(old, merged_weights(plain, merged), merged, streams)
    wanted_q = _queries(merged, heads_of(old, some[None]).q[0], old.shared)
    wanted_k = _keys(merged, raw / long * old.k_gain.to(raw)).transpose(0, 1)
    found = heads_of(linear, some[None])
    q_scale, q_gain = (one.cpu() for one in _scaled(wanted_q, found.q[0], old.eps))
    k_scale, k_gain = (one.cpu() for one in _scaled(wanted_k, found.k[0], old.eps))
    return replace(
        linear,
        q=linear.q * q_scale,
        k=linear.k * k_scale,
        q_bias=None if linear.q_bias is None else linear.q_bias * q_scale,
        k_bias=None if linear.k_bias is None else linear.k_bias * k_scale,
        q_gain=q_gain,
        k_gain=k_gain,
    )


def _raw_keys(old: Attention, x: Float[Tensor, "tokens width"]) -> tuple[Tensor, Tensor]:
    """Keys [tokens, groups, d] before their norm, and their root mean squares [tokens, groups, 1]."""
    x = x.double()
    keys = torch.einsum("ti,ihd->thd", x, old.k.to(x))
    keys = keys if old.k_bias is None else keys + old.k_bias.to(x)
    return keys, (keys.square().mean(-1, keepdim=True) + old.eps).sqrt()


def _queries(merged: Merged, unit: Float[Tensor, "heads tokens d"], shared: int) -> Float[Tensor, "heads tokens d"]:
    """T q̂."""
    order = [head for group in merged.groups for head in query_heads(group, shared)]
    maps = torch.cat([one.query for one in merged.keys]).to(unit)
    return torch.einsum("htd,hed->hte", unit[order], maps)


def _keys(merged: Merged, unit: Float[Tensor, "tokens old d"]) -> Float[Tensor, "tokens groups d"]:
    """S [k̂_1 … k̂_G]."""
    found = []
    for group, one in zip(merged.groups, merged.keys, strict=True):
        stacked = unit[:, list(group)].flatten(1)
        found.append(stacked @ one.shared.to(stacked).T)
    return torch.stack(found, 1)


def _nearest_keys(old: Attention, linear: Attention, merged: Merged, streams: Streams) -> Attention:
    """`linear` with key weights by ridge regression towards their current values.

    The target is the merged key times the geometric mean of the old heads' lengths.
    """
    gain = old.k_gain
    assert gain is not None

    def variables(split: str) -> Iterator[dict[str, Tensor]]:
        for part in streams[split].split(16):
            x = part.flatten(0, 1).double()
            raw, long = _raw_keys(old, x)
            target = _keys(merged, raw / long * gain.to(raw))
            for number, group in enumerate(merged.groups):
                target[:, number] *= long[:, list(group)].log().mean(1).exp()
            if linear.k_bias is not None:
                x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
            yield {"x": x, "target": target.flatten(1)}

    products = [("x", "x"), ("x", "target")]
    fit, held = (accumulate(variables(split), products, single={"x", "target"}) for split in ("fit", "sweep"))
    # The prior is for unit keys and is rescaled to the length of the targets.
    gram, cross = fit.product("x", "x"), fit.product("x", "target")
    prior = linear.k.flatten(1).double().to(gram)
    if linear.k_bias is not None:
        prior = torch.cat([prior, linear.k_bias.flatten()[None].to(prior)])
    own = (prior * (gram @ prior)).sum(0).view(len(merged.groups), -1).sum(1)
    shared = (prior * cross).sum(0).view(len(merged.groups), -1).sum(1)
    prior = prior * (shared / own).repeat_interleave(linear.k.shape[2])
    weight = ridge_towards(fit, held, prior, inputs="x", target="target").weight.cpu()
    shape = linear.k.shape[1:]
    bias = None if linear.k_bias is None else weight[-1].view(shape)
    return replace(linear, k=weight[: len(linear.k)].view(linear.k.shape), k_bias=bias)


def _scaled(
    wanted: Float[Tensor, "heads t d"], found: Float[Tensor, "heads t d"], eps: float
) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
    """Factors of the dimensions before the norm, with which `wanted` has nearly constant length, and the gain after the norm."""
    from scipy.optimize import lsq_linear

    rows = wanted.flatten(0, 1)
    squares = rows.square().cpu().numpy()
    mean = np.maximum(squares.mean(0), 1e-9 * squares.mean())  # avoids dividing by zero for unused dimensions
    solved = lsq_linear(squares / mean, np.full(len(squares), rows.shape[1]), bounds=(LEAST, np.inf))
    scale = torch.from_numpy(np.sqrt(solved.x / mean)).to(wanted)
    unit = found * scale
    unit = (unit * (unit.square().mean(-1, keepdim=True) + eps).rsqrt()).flatten(0, 1)
    return scale, (rows * unit).sum(0) / unit.square().sum(0).clamp_min(1e-300)
