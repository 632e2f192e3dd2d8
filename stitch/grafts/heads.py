"""A donor's attention head as maps that another architecture can hold, and how far its attention is then from the donor's.

Where positions work alike in both, queries and keys are copied. Otherwise a head keeps the content that it attends to but not the
distance (RoPE hosts hold content in their slowest planes), or is constructed anew if it attends a fixed number of tokens back.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Complex, Float, Int64
from torch import Tensor

from stitch.circuits.reads import ReadMap
from stitch.internals.attend import rotated, turned
from stitch.internals.positions import OffsetHead, Profile
from stitch.internals.weights import Attention, Norm

LOOKED_AT = 0.5  # the least share of a head's attention at one offset for it to be constructed as an offset head
FARTHEST = 8  # the largest offset of such heads, in tokens


@dataclass(frozen=True)
class Head:
    """A head's maps of the donor's normalised stream, float64. Scores are queries times keys times the attention's scale.

    Attention sums to 1, so `v_bias` is written for every token. `q_codes` and `k_codes` read position codes, in hosts that have
    them.
    """

    q: Float[Tensor, "d d_qk"]
    q_bias: Float[Tensor, " d_qk"]
    k: Float[Tensor, "d d_qk"]
    k_bias: Float[Tensor, " d_qk"]
    v: Float[Tensor, "d d_v"]
    v_bias: Float[Tensor, " d_v"]
    o: Float[Tensor, "d_v d"]
    q_codes: Float[Tensor, "columns d_qk"] | None = None
    k_codes: Float[Tensor, "columns d_qk"] | None = None


def reading(head: Head, through: ReadMap) -> Head:
    """The head that computes from x what `head` computes from `through` applied to x."""
    weight, shift = through.weight.double().cpu(), through.shift.double().cpu()
    return replace(
        head,
        q=weight @ head.q,
        q_bias=head.q_bias + shift @ head.q,
        k=weight @ head.k,
        k_bias=head.k_bias + shift @ head.k,
        v=weight @ head.v,
        v_bias=head.v_bias + shift @ head.v,
    )


def donor_head(attention: Attention, norm: Norm, number: int) -> Head:
    """A head of the donor with the gain and bias of the norm in front of it folded into its maps."""
    group, gain = number // attention.shared, norm.gain.double().cpu()[:, None]
    shift = torch.zeros_like(gain[:, 0]) if norm.bias is None else norm.bias.double().cpu()

    def read(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        weight = weight.double().cpu()
        total = shift @ weight
        return gain * weight, total if bias is None else total + bias.double().cpu()

    q, q_bias = read(attention.q[:, number], None if attention.q_bias is None else attention.q_bias[number])
    k, k_bias = read(attention.k[:, group], None if attention.k_bias is None else attention.k_bias[group])
    v, v_bias = read(attention.v[:, group], None if attention.v_bias is None else attention.v_bias[group])
    return Head(q, q_bias, k, k_bias, v, v_bias, attention.o[number].double().cpu())


def scores(
    head: Head,
    x: Float[Tensor, "prompts length d"],
    frequencies: Float[Tensor, " planes"],
    scale: float,
    codes: Float[Tensor, "length columns"] | None = None,
) -> Float[Tensor, "prompts length length"]:
    """The head's scores for all pairs of tokens when it reads `x` and the positions' `codes`; not yet causal."""
    q, k = x @ head.q + head.q_bias, x @ head.k + head.k_bias
    if codes is not None and head.q_codes is not None and head.k_codes is not None:
        q, k = q + codes @ head.q_codes, k + codes @ head.k_codes
    return scale * rotated(q, frequencies) @ rotated(k, frequencies).mT


def attended(scores: Float[Tensor, "prompts length length"]) -> Float[Tensor, "prompts length length"]:
    """Causal attention: the softmax of these scores over the keys up to each query."""
    later = torch.ones_like(scores[0], dtype=torch.bool).triu(1)
    return scores.masked_fill(later, -torch.inf).softmax(-1)


def moved(a: Float[Tensor, "prompts length length"], b: Float[Tensor, "prompts length length"]) -> float:
    """The total variation distance of two attentions, averaged over all queries but the first of each prompt."""
    return float((a - b).abs().sum(-1)[:, 1:].mean() / 2)


def by_offset(attention: Float[Tensor, "prompts length length"]) -> list[float]:
    """The mean attention 0, 1, … `FARTHEST` tokens back, over queries with at least `FARTHEST` tokens before them."""
    farthest = max(min(FARTHEST, attention.shape[1] - 2), 0)
    shares = [attention.diagonal(-offset, 1, 2)[:, farthest - offset :].mean() for offset in range(farthest + 1)]
    return [float(share) for share in shares]


def mean_turn(
    attention: Float[Tensor, "prompts length length"], frequencies: Float[Tensor, " planes"]
) -> Complex[Tensor, " planes"]:
    """The mean of every plane's rotation e^(iθΔ) over the distances Δ at which a head attends."""
    place = torch.arange(attention.shape[1])
    distance = (place[:, None] - place).clamp_min(0)
    weights = torch.zeros(len(place), dtype=torch.float64)
    weights.index_add_(0, distance.flatten(), attention.double().sum(0).flatten())
    angles = torch.arange(len(place), dtype=torch.float64)[:, None] * frequencies
    return (weights[:, None] * torch.polar(torch.ones_like(angles), angles)).sum(0) / weights.sum()


def without_turning(head: Head, mean: Complex[Tensor, " planes"]) -> Head:
    """The head of a RoPE donor with scores that do not depend on distance: every plane's rotation is replaced by its mean."""
    q, q_bias = (turned(queries, mean.real, mean.imag) for queries in (head.q, head.q_bias))  # Re(q k̄ m)
    return replace(head, q=q, q_bias=q_bias, k_bias=torch.zeros_like(head.k_bias))


def fitted_rank(head: Head, x: Float[Tensor, "rows d"], rank: int) -> Head:
    """The head with queries and keys of width `rank` whose scores on `x` are nearest to this head's, up to a constant per query.

    Holds without rotation only. Dimensions come in the order of their singular values, the largest first.
    Source: Eckart & Young 1936.
    """
    keys = x @ head.k
    left, right = _triangle(x @ head.q + head.q_bias), _triangle(keys - keys.mean(0))
    u, s, vh = torch.linalg.svd(left @ right.T)
    to_q = torch.linalg.pinv(left) @ u[:, :rank] * s[:rank].sqrt()
    to_k = torch.linalg.pinv(right) @ vh[:rank].T * s[:rank].sqrt()
    return replace(head, q=head.q @ to_q, q_bias=head.q_bias @ to_q, k=head.k @ to_k, k_bias=torch.zeros_like(to_k[0]))


def first(head: Head, rank: int) -> Head:
    """The head with only the first `rank` dimensions of its queries and keys."""
    return replace(head, q=head.q[:, :rank], q_bias=head.q_bias[:rank], k=head.k[:, :rank], k_bias=head.k_bias[:rank])


def spread(head: Head, dimensions: Int64[Tensor, " rank"], width: int) -> Head:
    """The head with queries and keys of `width` dimensions: its own in the given `dimensions`, zeros in the others."""

    def place(t: Tensor) -> Tensor:
        wide = t.new_zeros(*t.shape[:-1], width)
        wide[..., dimensions] = t
        return wide

    return replace(head, q=place(head.q), q_bias=place(head.q_bias), k=place(head.k), k_bias=place(head.k_bias))


def values_in(head: Head, x: Float[Tensor, "rows d"], width: int) -> tuple[Head, float]:
    """The head with values of `width` dimensions, and the share of its output's mean square on `x` that this loses."""
    own = head.v.shape[1]
    if own <= width:
        v, v_bias = (torch.nn.functional.pad(read, (0, width - own)) for read in (head.v, head.v_bias))
        return replace(head, v=v, v_bias=v_bias, o=torch.nn.functional.pad(head.o, (0, 0, 0, width - own))), 0.0
    triangle = _triangle(x @ head.v)
    u, s, vh = torch.linalg.svd(triangle @ head.o, full_matrices=False)
    narrow = torch.linalg.pinv(triangle) @ u[:, :width]
    lost = float(s[width:].square().sum() / s.square().sum())
    return replace(head, v=head.v @ narrow, v_bias=head.v_bias @ narrow, o=s[:width, None] * vh[:width]), lost


def scaled(head: Head, factor: float) -> Head:
    """The head with its scores times `factor`."""
    return replace(
        head, q=factor * head.q, q_bias=factor * head.q_bias, q_codes=None if head.q_codes is None else factor * head.q_codes
    )  # fmt: skip


def looking_back(head: Head, offset_head: OffsetHead, width: int, scale: float, *, coded: bool, steady: bool) -> Head:
    """The head with its attention replaced: `offset_head.offset` tokens back whatever the tokens, by biases under RoPE or by
    codes.

    `steady` says that all keys have the same length. If they do not, scores are twice as large to allow for it.
    """
    no_map, no_bias = head.q.new_zeros(len(head.q), width), head.q.new_zeros(width)
    without_content = replace(head, q=no_map, k=no_map, q_bias=no_bias, k_bias=no_bias)
    profile = offset_head.profile((1 if steady else 2) * offset_head.mass / scale)
    return with_profile(without_content, profile, coded=coded)


def with_profile(head: Head, profile: Profile, *, coded: bool) -> Head:
    """The head with a profile added to its scores before they are scaled. Under RoPE it is in the biases; if `coded`, in the last
    dimensions, two for each plane of the codes that the profile uses."""
    length, planes = profile.amplitude.sqrt(), len(profile.amplitude)
    cos, sin = length * profile.phase.cos(), length * profile.phase.sin()
    if not coded:  # the key has angle 0, the query the negative phase
        q_bias = head.q_bias + torch.cat([cos, -sin])
        return replace(head, q_bias=q_bias, k_bias=head.k_bias + torch.cat([length, 0 * length]))
    # Column f of a code is cos θp / √F, column F + f is sin θp / √F. In the two dimensions of a plane the query becomes the
    # cosine and the sine of θp − phase, the key those of θp. Their product is cos(θ(i − j) − phase).
    used, width = profile.amplitude.nonzero()[:, 0], head.q.shape[1]
    rows, first = torch.cat([used, used + planes]), width - 2 * len(used) + torch.arange(len(used))
    second, size = first + len(used), planes**0.5
    q_codes, k_codes = (head.q.new_zeros(2 * planes, width) for _ in range(2))
    q_codes[used, first], q_codes[used + planes, first] = size * cos[used], size * sin[used]
    q_codes[used, second], q_codes[used + planes, second] = -size * sin[used], size * cos[used]
    k_codes[rows, torch.cat([first, second])] = size * length[used].repeat(2)
    return replace(head, q_codes=q_codes, k_codes=k_codes)


def _triangle(rows: Float[Tensor, "rows columns"]) -> Float[Tensor, "columns columns"]:
    """R with RᵀR = rowsᵀ rows."""
    r = torch.linalg.qr(rows, mode="r").R
    return torch.nn.functional.pad(r, (0, 0, 0, rows.shape[1] - len(r)))
