"""Places a donor's heads and neurons in a host, and measures what each of them loses."""

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
SIMPLER = 0.05  # an offset head is preferred, as it works in any context, if it moves at most this much more attention


@dataclass(frozen=True)
class Transfer:
    """From which model to which one components go, what of the host is free, and how positions work in both."""

    donor: Model
    host: Model
    space: FreeSpace
    scheme: PositionScheme


@dataclass(frozen=True)
class PlacedHead:
    """Head `number` of the donor's `block` as a head of the host.

    `back` is its mean attention 0, 1, … tokens back in the donor. `offset` is set if it was constructed anew to attend a fixed
    number of tokens back. `moved` is the share of its attention that differs in the host, `lost` the share of its output that is
    lost because the host's values are narrower.
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
    """`count` neurons of the donor's `block` as neurons of the host from `first` on.

    `lost` is the share of the variance of what they write that the host's neurons do not give.
    """

    block: int
    count: int
    host_block: int
    first: int
    kind: str
    lost: float
    maps: Neurons


@dataclass(frozen=True)
class PlacedCircuit:
    """All components of a circuit in their places in the host."""

    heads: list[PlacedHead]
    neurons: list[PlacedNeurons]


def place_head(
    transfer: Transfer,
    at: tuple[int, int],
    host_block: int,
    x: Float[Tensor, "prompts length d"],
    host_x: Float[Tensor, "prompts length d"],
    read_map: ReadMap | None = None,
) -> PlacedHead:
    """Places the head `at` (block, number) of the donor, which reads the normalised stream `x` there.

    In the host it reads `host_x`, the donor's stream without what the host's positions do not give, or `read_map` applied to
    that.
    Raises: UsageError when no key head is free, or the host's positions cannot tell offsets apart.
    """
    block, number = at
    scheme = transfer.scheme
    theirs, ours = weights.attention(transfer.donor, block), weights.attention(transfer.host, host_block)
    width = ours.q.shape[2]
    own = heads.donor_head(theirs, weights.norm(transfer.donor, "attention", block), number)
    attention = _Attention(heads.scores(own, x, scheme.donor_frequencies, theirs.scale), host_x, ours.scale, scheme)
    moved_head = own if read_map is None else heads.reading(own, read_map)
    narrow, lost = heads.values_in(moved_head, host_x.flatten(0, 1), width)
    narrow = heads.scaled(narrow, theirs.scale / ours.scale)
    back, offset = heads.by_offset(attention.of_donor), None
    if scheme.alike:
        kind, head = _copied(narrow, own.q.shape[1], host_x, width)
        moved = attention.moved(head)
    else:
        kind, (moved, head) = "content, distance", _by_content_and_distance(narrow, attention, width)
        if max(back) >= heads.LOOKED_AT:
            found = scheme.offset_head(back.index(max(back)))
            anew = heads.looking_back(narrow, found, width, ours.scale, coded=scheme.coded, steady=scheme.by_bias)
            if (moved_anew := attention.moved(anew)) <= moved + SIMPLER:
                kind, head, moved, offset = f"{found.offset} back", anew, moved_anew, found
    group = transfer.space.take_group(host_block, ours.k.shape[1])
    return PlacedHead(block, number, host_block, group * ours.shared, group, kind, back, offset, moved, lost, head)


class _Attention:
    """The attention that a head should have, and the means to tell how far a head of the host is from it."""

    def __init__(self, scores: Tensor, host_x: Tensor, scale: float, scheme: PositionScheme) -> None:
        self.donor_scores, self.of_donor = scores, heads.attended(scores)
        self.host_x, self.scale, self.scheme = host_x, scale, scheme
        self.codes = position_codes(scheme.code_frequencies, host_x.shape[1]) if scheme.coded else None

    def scores(self, head: Head) -> Float[Tensor, "prompts length length"]:
        """The scores of a head in the host, which reads the stream and the position codes."""
        return heads.scores(head, self.host_x, self.scheme.host_frequencies, self.scale, self.codes)

    def moved(self, head: Head) -> float:
        """The share of the attention that is elsewhere in the host."""
        return heads.moved(self.of_donor, heads.attended(self.scores(head)))


def _copied(head: Head, own_width: int, host_x: Tensor, width: int) -> tuple[str, Head]:
    """The kind and the maps of a head where positions work alike: its own queries and keys, narrowed if the host's are
    narrower."""
    rank = min(own_width, width)  # smaller only with learned positions: where RoPE is alike, heads are equally wide
    fits = rank == own_width
    queries_and_keys = head if fits else heads.fitted_rank(head, host_x.flatten(0, 1), rank)
    return "exact" if fits else "narrowed", heads.spread(queries_and_keys, torch.arange(rank), width)


def _by_content_and_distance(head: Head, attention: _Attention, width: int) -> tuple[float, Head]:
    """The way to divide the host's dimensions between content and distance that moves least attention: (moved, head)."""
    scheme = attention.scheme
    if scheme.donor_frequencies.any():
        head = heads.without_turning(head, heads.mean_turn(attention.of_donor, scheme.donor_frequencies))

    def candidates() -> Iterator[tuple[float, Head]]:
        for content, usable in _divided(head, attention.host_x.flatten(0, 1), scheme, width):
            scores = attention.scores(content)
            yield heads.moved(attention.of_donor, heads.attended(scores)), content
            if usable.any():
                missing = (attention.donor_scores - scores) / attention.scale
                profile = fitted_profile(missing, attention.of_donor, scheme.offset_frequencies, usable)
                both = heads.with_profile(content, profile, coded=scheme.coded)
                yield attention.moved(both), both

    return min(candidates(), key=lambda pair: pair[0])


def _divided(
    head: Head, rows: Float[Tensor, "rows d"], scheme: PositionScheme, width: int
) -> Iterator[tuple[Head, Bool[Tensor, " planes"]]]:
    """Heads with more and more (or fewer and fewer) of `width` dimensions for content, and the planes left for distance.

    RoPE hosts hold content in their slowest planes. In hosts with position codes each plane for distance takes two dimensions.
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


def place_neurons(
    transfer: Transfer,
    block: int,
    mask: Bool[Tensor, " neurons"],
    host_block: int,
    x: Float[Tensor, "prompts length d"],
    read_map: ReadMap | None = None,
) -> PlacedNeurons:
    """Places the donor's neurons in the `mask`, which read `x`, or `read_map` applied to it.

    Raises: UsageError when too few neurons are free, or for an activation function that the host's cannot replace.
    """
    donor, host = transfer.donor, transfer.host
    theirs = neurons.donor_neurons(weights.mlp(donor, block), weights.norm(donor, "mlp", block), mask)
    theirs = theirs if read_map is None else neurons.reading(theirs, read_map)
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
        raise UsageError(
            f"{act} neurons of {donor.name} cannot be made of {host_act} neurons of {host.name}: choose another host."
        )
    first = transfer.space.take_neurons(host_block, len(maps), ours.up.shape[1])
    lost = neurons.unexplained(neurons.written(theirs, rows, act), neurons.written(maps, rows, host_act))
    return PlacedNeurons(block, int(mask.sum()), host_block, first, kind, lost, maps)
