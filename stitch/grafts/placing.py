"""A donor's heads and neurons at their places in a host, with what each loses."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stitch.circuits.reads import ReadMap
from stitch.errors import UsageError
from stitch.grafts import heads, neurons
from stitch.grafts.allocation import FreeSpace
from stitch.grafts.heads import Head
from stitch.grafts.neurons import Neurons
from stitch.grafts.positions import PositionScheme
from stitch.internals import weights
from stitch.internals.positions import OffsetHead, fitted_profile, position_codes
from stitch.models.model import Model

ROWS_FITTED = 2048  # tokens that neurons are fitted on
SIMPLER = 0.05  # attention that may move for a head that looks back as far in any context, not only in the prompts


@dataclass(frozen=True)
class PlacedHead:
    """Head `number` of the donor's block as one of the host's. `back` is its attention 0, 1, … tokens back in the donor; `offset`
    is set where all it does in the host is look so far back.

    `moved` is the share of its attention that will be elsewhere, `lost` that of its output which narrower values do not hold.
    """

    block: int
    number: int
    host_block: int
    host_head: int
    host_group: int
    kind: str
    back: list[float]
    offset: OffsetHead | None
    moved: float
    lost: float
    maps: Head


@dataclass(frozen=True)
class PlacedNeurons:
    """`count` neurons of the donor's block as neurons of the host's from `first` on; `lost` is the share of what they write, in
    variance, that the host's will not."""

    block: int
    count: int
    host_block: int
    first: int
    kind: str
    lost: float
    maps: Neurons


def place_head(
    donor: Model,
    at: tuple[int, int],
    host: Model,
    host_block: int,
    space: FreeSpace,
    scheme: PositionScheme,
    x: Float[Tensor, "prompts length d"],
    without: Float[Tensor, "prompts length d"],
    through: ReadMap | None = None,
) -> PlacedHead:
    """The head `at` (block, number). It reads `x` in the donor, and `without` what positions add in the host, or what
    `through` makes of that."""
    block, number = at
    theirs, ours = weights.attention(donor, block), weights.attention(host, host_block)
    width = ours.q.shape[2]
    own = of_donor(theirs, weights.norm(donor, "attention", block), number)
    wanted = heads.scores(own, x, scheme.donor_frequencies, theirs.scale)
    attention = heads.attended(wanted)
    narrow, lost = heads.values_in(
        own if through is None else heads.reading(own, through), without.flatten(0, 1), width
    )
    narrow = heads.scaled(narrow, theirs.scale / ours.scale)
    codes = position_codes(scheme.code_frequencies, x.shape[1]) if scheme.coded else None

    def found_scores(head: Head) -> Tensor:
        return heads.scores(head, without, scheme.host_frequencies, ours.scale, codes)

    def moved(found: Tensor) -> float:
        return heads.moved(attention, heads.attended(found))

    back, offset = heads.by_offset(attention), None
    if scheme.alike:
        rank = min(own.q.shape[1], width)  # less only with learned positions: RoPE is alike where heads are as wide
        fits = rank == own.q.shape[1]
        kind = "exact" if fits else "narrowed"
        head = heads.spread(
            narrow if fits else heads.fitted_rank(narrow, without.flatten(0, 1), rank), torch.arange(rank), width
        )
        least = moved(found_scores(head))
    else:
        if scheme.donor_frequencies.any():
            still = heads.without_turning(narrow, heads.mean_turn(attention, scheme.donor_frequencies))
        else:
            still = narrow

        def tried() -> Iterator[tuple[float, Head]]:
            for content, usable in _shared_out(still, without.flatten(0, 1), scheme, width):
                found = found_scores(content)
                yield moved(found), content
                if usable.any():
                    rest = (wanted - found) / ours.scale
                    profile = fitted_profile(rest, attention, scheme.offset_frequencies, usable)
                    both = heads.with_profile(content, profile, coded=scheme.coded)
                    yield moved(found_scores(both)), both

        kind, (least, head) = "content, distance", min(tried(), key=lambda pair: pair[0])
        if max(back) >= heads.LOOKED_AT:
            found = scheme.offset_head(back.index(max(back)))
            alone = heads.looking_back(narrow, found, width, ours.scale, coded=scheme.coded, steady=scheme.by_bias)
            if (by_offset := moved(found_scores(alone))) <= least + SIMPLER:
                kind, head, least, offset = f"{found.offset} back", alone, by_offset, found
    group = space.take_group(host_block, ours.k.shape[1])
    return PlacedHead(block, number, host_block, group * ours.shared, group, kind, back, offset, least, lost, head)


def of_donor(attention: weights.Attention, norm: weights.Norm, number: int) -> Head:
    """A head in float64, its norm's gain and bias folded into what it reads."""
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


def place_neurons(
    donor: Model,
    block: int,
    mask: Bool[Tensor, " neurons"],
    host: Model,
    host_block: int,
    space: FreeSpace,
    x: Float[Tensor, "prompts length d"],
    through: ReadMap | None = None,
) -> PlacedNeurons:
    """Those of the `mask`, which read `x` or what `through` makes of it."""
    theirs = neurons.of_donor(weights.mlp(donor, block), weights.norm(donor, "mlp", block), mask)
    theirs = theirs if through is None else neurons.reading(theirs, through)
    ours, act, host_act = weights.mlp(host, host_block), weights.activation(donor, block), weights.activation(host)
    rows = x.flatten(0, 1)
    rows = rows[:: max(1, len(rows) // ROWS_FITTED)]
    is_gated, host_is_gated = theirs.gate is not None, ours.gate is not None
    if is_gated == host_is_gated and act == host_act:
        kind, maps = "copied", theirs
    elif act == "jumprelu" and (host_is_gated, host_act) in ((False, "gelu"), (True, "silu")):
        kind, maps = "features, by steps", neurons.stepped(theirs, rows, gated=host_is_gated)
    elif (is_gated, act, host_is_gated, host_act) == (False, "gelu", True, "silu"):
        kind, maps = "as gated SiLU", neurons.gated(theirs)
    elif (is_gated, act, host_is_gated, host_act) == (True, "silu", False, "gelu"):
        kind, maps = "as GELU, fitted", neurons.ungated(theirs, rows)
    else:
        raise UsageError(f"{act} neurons of {donor.name} have no counterpart among the host's {host_act} ones.")
    first = space.take_neurons(host_block, len(maps), ours.up.shape[1])
    lost = neurons.unexplained(neurons.written(theirs, rows, act), neurons.written(maps, rows, host_act))
    return PlacedNeurons(block, int(mask.sum()), host_block, first, kind, lost, maps)


def _shared_out(
    head: Head, rows: Float[Tensor, "rows d"], scheme: PositionScheme, width: int
) -> Iterator[tuple[Head, Bool[Tensor, " planes"]]]:
    """What a head looks for in more and more of `width` dimensions, and the planes that are left for how far away it looks.

    In RoPE hosts content goes to the planes that turn least; in coded ones planes take two dimensions each.
    """
    most, frequencies = min(width, head.q.shape[1]), scheme.offset_frequencies
    ordered = heads.fitted_rank(head, rows, most)
    if scheme.coded:
        for used in range(0, len(frequencies) + 1, 4):
            rank = min(most, width - 2 * used)
            usable = torch.zeros(len(frequencies), dtype=torch.bool)
            usable[torch.linspace(0, len(frequencies) - 1, used).round().long()] = True
            yield heads.spread(heads.first(ordered, rank), torch.arange(rank), width), usable
        return
    slowest = frequencies.argsort()
    dimensions = torch.stack([slowest, slowest + width // 2], 1).flatten()
    for rank in range(2, most + 1, 2):
        usable = torch.ones(len(frequencies), dtype=torch.bool)
        usable[slowest[: rank // 2]] = False
        yield heads.spread(heads.first(ordered, rank), dimensions[:rank], width), usable
