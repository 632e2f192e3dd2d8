"""Attentions with a latent in place of keys and values, made of a trained attention without training.

These are the neighbours of `stitch convert heads`. A token caches numbers from which its keys and values are rebuilt by
linear maps. Written from the formulas of

    MHA2MLA     RoPE stays on the planes that contribute most; an SVD of the weights of all other keys and of the values.
                Ji et al. 2025, arXiv:2502.14837
    TransMLA    RoRoPE, FreqFold and balanced PCA of keys and values. Meng et al. 2025, arXiv:2502.07864
    CARE        SVD of √C W for keys and values apart, C the second moment of the inputs, and ranks over blocks by
                water-filling. Zhou et al. 2026, arXiv:2603.17946

All weights multiply row vectors. Biases are the last row of a weight, for an input with a 1 at its end.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stitch.internals.weights import Attention

SHRINKAGE = 0.01  # α of CARE: the share of the identity in √C


@dataclass(frozen=True)
class Heads:
    """What an attention computes from its inputs. In key head g, plane f turns by `frequencies[g, f]` per position; by 0
    where there is no RoPE.
    """

    q: Tensor  # inputs × heads × key width
    k: Tensor  # inputs × key heads × key width
    v: Tensor  # inputs × key heads × head width
    frequencies: Tensor  # key heads × planes


@dataclass(frozen=True)
class Latent:
    """Heads rebuilt from `cached` numbers per token. `parameters` are those of queries, keys and values, in factors;
    `products` the multiplications per cached token when a new one attends to it.
    """

    heads: Heads
    cached: int
    parameters: int
    products: int


def heads_of(attention: Attention, frequencies: Tensor) -> Heads:
    """The donor's own heads, in float64 on the CPU."""

    def joined(weight: Tensor, bias: Tensor | None) -> Tensor:
        weight = weight.detach().double().cpu()
        return torch.cat([weight, torch.zeros_like(weight[:1]) if bias is None else bias.detach().double().cpu()[None]])

    return Heads(
        joined(attention.q, attention.q_bias), joined(attention.k, attention.k_bias), joined(attention.v, attention.v_bias),
        frequencies.expand(attention.k.shape[1], -1),
    )  # fmt: skip


def mha2mla(own: Heads, inputs: Tensor, cached: int, planes: int) -> Latent:
    """Every key head keeps RoPE on the `planes` with the largest E‖q‖ E‖k‖, summed over the query heads that share it.

    These are cached as they are. All other keys and the values share a latent: a truncated SVD of their joint weights.
    """
    k, v, groups, half = own.k.clone(), own.v.clone(), own.k.shape[1], own.frequencies.shape[1]

    def lengths(weight: Tensor) -> Tensor:
        return (inputs @ weight.flatten(1)).unflatten(1, (-1, 2, half)).norm(dim=2).mean(0)

    contribution = lengths(own.q).unflatten(0, (groups, -1)).sum(1) * lengths(own.k)
    is_rotary = torch.zeros(groups, half, dtype=torch.bool)
    if own.frequencies.any():
        is_rotary.scatter_(1, contribution.topk(planes, 1).indices, True)
    free = ~torch.cat([is_rotary, is_rotary], 1)
    rank = cached - int((~free).sum())
    joint = torch.cat([k[:-1][:, free], v[:-1].flatten(1)], 1)
    low = truncated(joint, rank)
    k[:-1][:, free], v[:-1] = low[:, : -v[0].numel()], low[:, -v[0].numel() :].view_as(v[:-1])
    width, heads = len(joint), own.q.shape[1]
    parameters = own.q[:-1].numel() + width * cached + rank * joint.shape[1]
    products = heads * (2 * rank + 2 * planes * bool(is_rotary.any()))
    return Latent(Heads(own.q, k, v, own.frequencies * is_rotary), cached, parameters, products)


def truncated(weight: Tensor, rank: int) -> Tensor:
    """The nearest matrix of this rank."""
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    return u[:, :rank] * s[:rank] @ v[:rank]


def transmla(own: Heads, inputs: Tensor, cached: int, fold: int = 1, collapse: int = 1) -> Latent:
    """All key heads become one. Per `fold` neighbouring planes the principal components of the planes of all heads, taken as
    complex numbers with real mixing weights, come first: that turn commutes with RoPE (RoRoPE) if the fold is one plane,
    nearly if its frequencies are close (FreqFold). fold / collapse of them keep RoPE, every `collapse`-th frequency.

    The rest lose it and share a latent with the values: their joint PCA, once keys are as long as values on average.
    """
    groups, half = own.frequencies.shape
    folds, shared = half // fold, own.q.shape[1] // groups

    def planes(weight: Tensor) -> Tensor:  # inputs × real or imaginary × folds × (heads and planes of a fold)
        return weight.unflatten(2, (2, folds, fold)).permute(0, 2, 3, 1, 4).flatten(3)

    keys = planes(own.k)
    of_tokens = (inputs @ keys.flatten(1)).unflatten(1, keys.shape[1:])
    moment = torch.einsum("txfi,txfj->fij", of_tokens, of_tokens)
    turn = torch.linalg.eigh(moment).eigenvectors.flip(-1)  # folds × old × new, the largest first
    keys = torch.einsum("dxfi,fij->dxfj", keys, turn)
    query_turn = turn.unflatten(1, (groups, fold)).repeat_interleave(shared, 1)
    queries = own.q.unflatten(2, (2, folds, fold))
    queries = torch.einsum("dhxfm,fhmj->dhxfj", queries, query_turn)

    kept = fold // collapse if own.frequencies.any() else 0
    theta = torch.zeros(folds, groups * fold, dtype=torch.float64)
    theta[:, :kept] = own.frequencies[0].view(folds, fold)[:, ::collapse][:, :kept]
    is_free = torch.arange(groups * fold).expand(2, folds, -1) >= kept
    rank = cached - int((~is_free).sum())
    free = keys[:, is_free]
    ratio = (inputs @ free).norm(dim=1).mean() / (inputs @ own.v.flatten(1)).norm(dim=1).mean()
    both = torch.cat([free / ratio, own.v.flatten(1)], 1)
    low = both @ principal(inputs @ both, rank)
    keys, v = keys.clone(), low[:, free.shape[1] :].view_as(own.v)
    keys[:, is_free] = low[:, : free.shape[1]] * ratio
    heads = Heads(queries.flatten(2), keys.flatten(1)[:, None], v, theta.flatten()[None])
    width, count = len(own.q) - 1, own.q.shape[1]
    rotary_queries = width * count * (cached - rank)
    parameters = own.q[:-1].numel() + rotary_queries + width * cached + rank * both.shape[1]
    return Latent(heads, cached, parameters, count * (rank + cached))


def principal(rows: Tensor, rank: int) -> Tensor:
    """The projection on the `rank` principal components of the rows, about zero."""
    components = torch.linalg.eigh(rows.T @ rows).eigenvectors[:, max(0, rows.shape[1] - rank) :]
    return components @ components.T


def care(own: Heads, inputs: Tensor, ranks: tuple[int, int]) -> Latent:
    """Keys and values with latents of their own, of these ranks. RoPE turns the rebuilt keys, as in the paper's results
    without training (its section 4.1).
    """
    k, v = own.k.clone(), own.v.clone()
    root = square_root(inputs)
    for weight, rank in ((k, ranks[0]), (v, ranks[1])):
        low = torch.linalg.solve(root, truncated(root @ weight[:-1].flatten(1), rank))
        weight[:-1] = low.view_as(weight[:-1])
    heads = Heads(own.q, k, v, own.frequencies)
    parameters = own.q[:-1].numel() + sum(ranks) * (len(k) - 1 + k[0].numel())
    return Latent(heads, sum(ranks), parameters, rebuilt(own, *ranks))


def rebuilt(own: Heads, key_rank: int, value_rank: int) -> int:
    """Multiplications per cached token. With RoPE all keys are rebuilt at every step, as their rotation stands between
    queries and latent; without it queries are mapped to the latent once.
    """
    count, stacked, d = own.q.shape[1], own.k[0].numel(), own.k.shape[2]
    keys = key_rank * stacked + count * d if own.frequencies.any() else count * key_rank
    return keys + count * value_rank


def square_root(inputs: Tensor) -> Tensor:
    """√C of the inputs without their last, constant one, shrunk towards the identity so that it has an inverse."""
    x = inputs[:, :-1]
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    return (1 - SHRINKAGE) * root + SHRINKAGE * root.diagonal().mean() * torch.eye(len(root), dtype=root.dtype)


def spectra(own: Heads, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The squared singular values of √C W, of keys and of values."""
    root = square_root(inputs)
    k, v = (torch.linalg.svdvals(root @ weight[:-1].flatten(1)).square() for weight in (own.k, own.v))
    return k, v


def water_filled(energies: Sequence[Tensor], total: int, start: int) -> list[int]:
    """Ranks with this sum: `start` everywhere, then one at a time where the next takes the largest share of what is left."""
    ranks = [start] * len(energies)
    left = [energy.flip(0).cumsum(0).flip(0) for energy in energies]  # from each rank on
    for _ in range(total - sum(ranks)):
        gains = [
            float(energy[rank] / tail[rank].clamp_min(1e-300)) if rank < len(energy) else -1.0
            for energy, tail, rank in zip(energies, left, ranks, strict=True)
        ]
        ranks[gains.index(max(gains))] += 1
    return ranks


def random_latent(own: Heads, cached: int, generator: torch.Generator) -> Latent:
    """The null: keys and values projected together on a random subspace. RoPE turns the rebuilt keys."""
    both = torch.cat([own.k[:-1].flatten(1), own.v[:-1].flatten(1)], 1)
    basis = torch.linalg.qr(torch.randn(both.shape[1], cached, generator=generator, dtype=torch.float64)).Q
    low = both @ basis @ basis.T
    k, v = own.k.clone(), own.v.clone()
    k[:-1], v[:-1] = (part.reshape(k[:-1].shape) for part in low.chunk(2, 1))
    parameters = own.q[:-1].numel() + cached * sum(both.shape)
    return Latent(Heads(own.q, k, v, own.frequencies), cached, parameters, rebuilt(own, cached, cached))
