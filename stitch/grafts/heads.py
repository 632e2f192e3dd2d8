"""A donor's head as one that another architecture's attention can hold, and how far its attention will be from the donor's.

exact       positions work alike in both: queries and keys are copied
content     what a head looks for is kept, where is not: RoPE hosts hold it in the planes that turn least
offset      a head that looks a fixed number of tokens back is written from scratch
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Complex, Float, Int64
from torch import Tensor

from stitch.circuits.reads import ReadMap
from stitch.internals.positions import OffsetHead, Profile

LOOKED_AT = 0.5  # share of a head's attention at one offset that makes it an offset head
FARTHEST = 8  # tokens back that offset heads look


@dataclass(frozen=True)
class Head:
    """Maps of the donor's normalised stream; scores are the products of queries and keys, times the attention's scale.

    As attention adds up to 1, `v_bias` is written in any case. `q_codes` and `k_codes` are what is read from the codes of
    positions, in a host that gets some.
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
    """The head on x that is `head` on what `through` makes of x."""
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


def turned(
    vectors: Float[Tensor, "prompts length d_head"], frequencies: Float[Tensor, " planes"]
) -> Float[Tensor, "prompts length d_head"]:
    """By its position's angle in every plane (dimensions f and f + d_head / 2)."""
    angles = torch.arange(vectors.shape[1], dtype=vectors.dtype)[:, None] * frequencies
    first, second = vectors.chunk(2, -1)
    return torch.cat([first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], -1)


def scores(
    head: Head,
    x: Float[Tensor, "prompts length d"],
    frequencies: Float[Tensor, " planes"],
    scale: float,
    codes: Float[Tensor, "length columns"] | None = None,
) -> Float[Tensor, "prompts length length"]:
    """The head's scores when it reads `x`, and `codes` of positions; not yet causal."""
    q, k = x @ head.q + head.q_bias, x @ head.k + head.k_bias
    if codes is not None and head.q_codes is not None and head.k_codes is not None:
        q, k = q + codes @ head.q_codes, k + codes @ head.k_codes
    return scale * turned(q, frequencies) @ turned(k, frequencies).mT


def attended(scores: Float[Tensor, "prompts length length"]) -> Float[Tensor, "prompts length length"]:
    """Causal attention with these scores."""
    later = torch.ones_like(scores[0], dtype=torch.bool).triu(1)
    return scores.masked_fill(later, -torch.inf).softmax(-1)


def moved(a: Float[Tensor, "prompts length length"], b: Float[Tensor, "prompts length length"]) -> float:
    """Share of the attention that is elsewhere (total variation), on average over queries but the first."""
    return float((a - b).abs().sum(-1)[:, 1:].mean() / 2)


def by_offset(attention: Float[Tensor, "prompts length length"]) -> list[float]:
    """Mean attention 0, 1, … `FARTHEST` tokens back, of queries that have as many before them."""
    farthest = max(min(FARTHEST, attention.shape[1] - 2), 0)
    shares = [attention.diagonal(-offset, 1, 2)[:, farthest - offset :].mean() for offset in range(farthest + 1)]
    return [float(share) for share in shares]


def mean_turn(
    attention: Float[Tensor, "prompts length length"], frequencies: Float[Tensor, " planes"]
) -> Complex[Tensor, " planes"]:
    """The mean of every plane's turn e^(iθΔ) over the distances Δ that a head attends at."""
    place = torch.arange(attention.shape[1])
    distance = (place[:, None] - place).clamp_min(0)
    weights = torch.zeros(len(place), dtype=torch.float64)
    weights.index_add_(0, distance.flatten(), attention.double().sum(0).flatten())
    angles = torch.arange(len(place), dtype=torch.float64)[:, None] * frequencies
    return (weights[:, None] * torch.polar(torch.ones_like(angles), angles)).sum(0) / weights.sum()


def without_turning(head: Head, mean: Complex[Tensor, " planes"]) -> Head:
    """A head of a RoPE donor whose scores do not depend on distance: every plane turned by its mean turn instead."""

    def turn(q: Tensor) -> Tensor:
        # Re(q k̄ m): the query takes the mean turn
        first, second = q.chunk(2, -1)
        return torch.cat([first * mean.real - second * mean.imag, second * mean.real + first * mean.imag], -1)

    return replace(head, q=turn(head.q), q_bias=turn(head.q_bias), k_bias=torch.zeros_like(head.k_bias))


def fitted_rank(head: Head, x: Float[Tensor, "rows d"], rank: int) -> Head:
    """The head whose scores on `x` are nearest to this one's, each row up to a constant, with queries and keys `rank` wide.

    Without turning alone. Singular directions come largest first. Source: Eckart & Young 1936.
    """
    keys = x @ head.k
    left, right = _triangle(x @ head.q + head.q_bias), _triangle(keys - keys.mean(0))
    u, s, vh = torch.linalg.svd(left @ right.T)
    to_q = torch.linalg.pinv(left) @ u[:, :rank] * s[:rank].sqrt()
    to_k = torch.linalg.pinv(right) @ vh[:rank].T * s[:rank].sqrt()
    return replace(head, q=head.q @ to_q, q_bias=head.q_bias @ to_q, k=head.k @ to_k, k_bias=torch.zeros_like(to_k[0]))


def first(head: Head, rank: int) -> Head:
    """With the first dimensions of queries and keys alone."""
    return replace(head, q=head.q[:, :rank], q_bias=head.q_bias[:rank], k=head.k[:, :rank], k_bias=head.k_bias[:rank])


def spread(head: Head, dimensions: Int64[Tensor, " rank"], width: int) -> Head:
    """Queries and keys moved to these of `width` dimensions, zeros elsewhere."""

    def place(t: Tensor) -> Tensor:
        wide = t.new_zeros(*t.shape[:-1], width)
        wide[..., dimensions] = t
        return wide

    return replace(head, q=place(head.q), q_bias=place(head.q_bias), k=place(head.k), k_bias=place(head.k_bias))


def values_in(head: Head, x: Float[Tensor, "rows d"], width: int) -> tuple[Head, float]:
    """The head with values `width` wide, and the share of its output's mean square on `x` that they do not hold."""
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
    """Scores times `factor`."""
    return replace(
        head, q=factor * head.q, q_bias=factor * head.q_bias, q_codes=None if head.q_codes is None else factor * head.q_codes
    )  # fmt: skip


def looking_back(head: Head, found: OffsetHead, width: int, scale: float, *, coded: bool, steady: bool) -> Head:
    """The head with attention `found.offset` tokens back, whatever the tokens, from biases that RoPE turns or from codes.

    Unless all keys are equally long (`steady`), it gets twice the mass that is enough then.
    """
    nothing, still = head.q.new_zeros(len(head.q), width), head.q.new_zeros(width)
    blind = replace(head, q=nothing, k=nothing, q_bias=still, k_bias=still)
    profile = found.profile((1 if steady else 2) * found.mass / scale)
    return with_profile(blind, profile, coded=coded)


def with_profile(head: Head, profile: Profile, *, coded: bool) -> Head:
    """The head with a profile added to its scores before they are scaled: in the planes of RoPE, or in its last dimensions, two
    for each plane of the codes that the profile uses."""
    length, planes = profile.amplitude.sqrt(), len(profile.amplitude)
    cos, sin = length * profile.phase.cos(), length * profile.phase.sin()
    if not coded:  # the key at angle 0, the query as far behind as the phase says
        q_bias = head.q_bias + torch.cat([cos, -sin])
        return replace(head, q_bias=q_bias, k_bias=head.k_bias + torch.cat([length, 0 * length]))
    # Of a code, column f is cos θp / √F and F + f is sin θp / √F. A plane's first dimension of the query becomes cos(θp − phase),
    # its second the sine; those of the key the same of θp: their products add up to cos(θ(i − j) − phase).
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
