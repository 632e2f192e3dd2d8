"""How far matched features agree when they are read at other blocks: a correlation for every pair of sites.

Each SAE was trained at one site. Its features are read at the others as well: the stream there is brought to the length that it
has at the SAE's own site, and encoded. Where a feature's direction is not in use yet, or not any more, its codes agree with
nothing. The map of correlations shows how far up and down both models the matched features reach. Pairs were chosen at the SAEs'
own sites, which favours these.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from matching.types import Pairs
from sae.types import Dictionary
from stitch.activations.harvest import windows_at_once
from stitch.activations.observe import residuals
from stitch.activations.paired import SINK_RATIO
from stitch.models.anatomy import blocks_before_last_part
from stitch.models.model import Model
from stitch.progress import Progress, Steps

PAIRS = 256  # the best by score
TOKENS = 4_096
LENGTHS = 2_048  # tokens of the first windows, which say how long streams are
PAIRS_AT_ONCE = 32  # whose codes are held in float64
HELD = 3  # copies of the pairs' codes of a batch, the float64 ones included
SITES = 33  # of a model, at most
CONSTANT = 1e-9  # variance of codes that are all equal, as a share of their mean square: rounding errors


@dataclass(frozen=True)
class Side:
    """A model, its SAE and the site where that was trained."""

    model: Model
    dictionary: Dictionary
    site: int

    @property
    def sites(self) -> list[int]:
        """The sites to read at. Of a composite those behind its last seam: before it streams have another basis."""
        return sites_around(self.site, blocks_before_last_part(self.model.config), self.model.last_site)


def by_block(
    a: Side,
    b: Side,
    ids: Int[Tensor, "windows context"],
    pairs: Pairs,
    *,
    seed: int,
    chunk: int,
    budget_bytes: int,
    progress: Progress | None = None,
) -> dict:
    """Mean correlations of the codes of the best pairs, as report.json has them: rows are sites of A, columns sites of B.

    They are taken on about TOKENS tokens of `ids`. `null` has the same with the partners exchanged among the pairs. A feature
    with equal codes on all tokens counts as 0. The pairs' codes of a batch take at most `budget_bytes`, or what those of a window
    take; beside them are the batch's streams and `chunk` tokens' codes of all features. Empty for fewer than two pairs.
    """
    best = torch.from_numpy(pairs.scores).argsort(descending=True, stable=True)[:PAIRS]
    if len(best) < 2:
        return {}
    features = [torch.from_numpy(side)[best] for side in (pairs.rows, pairs.cols)]
    ids = ids[: max(1, TOKENS // ids.shape[1])]
    window = HELD * 4 * ids.shape[1] * len(best) * (len(a.sites) + len(b.sites))
    size = min(max(1, budget_bytes // window), *(windows_at_once(side.model, ids.shape[1]) for side in (a, b)))
    sums = _Sums(_exchanged(len(best), seed))
    for codes in _batches((a, b), features, ids, size, chunk, progress):
        sums.add(*codes)
    return {
        "pairs": len(best),
        "tokens": sums.tokens,
        "sites": {"a": a.sites, "b": b.sites},
        **{
            name: [[round(one, 4) for one in row] for row in found.tolist()]
            for name, found in sums.correlations().items()
        },
    }


def sites_around(site: int, first: int, last: int) -> list[int]:
    """Every site from `first` to `last`, or every second, third, … one counted from `site`, so that there are at most SITES."""
    step = 1
    while (found := [one for one in range(first, last + 1) if (one - site) % step == 0])[SITES:]:
        step += 1
    return found


def _exchanged(count: int, seed: int) -> Int[Tensor, " pairs"]:
    """A partner for each of `count` pairs that is never its own."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    partners = torch.empty_like(order)
    partners[order] = order.roll(1)
    return partners


def _batches(
    sides: Sequence[Side],
    features: Sequence[Int[Tensor, " pairs"]],
    ids: Int[Tensor, "windows context"],
    size: int,
    chunk: int,
    progress: Progress | None,
) -> Iterator[list[Float[Tensor, "sites tokens pairs"]]]:
    """Codes of both sides' `features` at all sites, without BOS, without sinks, and without tokens that end inside one of a
    model's own."""
    first = ids[: max(1, LENGTHS // ids.shape[1])]
    passes = len(first.split(size)) * len(sides) + len(ids.split(size))
    step = Steps("features at other blocks (batches)", passes, progress)
    readers = [
        _reader(side, one, _lengths(side, first, size, step), chunk) for side, one in zip(sides, features, strict=True)
    ]
    for batch in ids.split(size):
        codes, usable = zip(*(read(batch) for read in readers), strict=True)
        keep = usable[0] & usable[1]
        yield [of_side[:, keep] for of_side in codes]
        step()


def _lengths(side: Side, ids: Int[Tensor, "windows context"], size: int, tick: Callable[[], None]) -> dict[int, Tensor]:
    """The median length of the stream at every site, without BOS."""
    norms: dict[int, list[Tensor]] = {site: [] for site in side.sites}
    for batch in ids.split(size):
        for site, stream in _streams(side, batch).items():
            norms[site].append(_norms(stream)[:, 1:].flatten())
        tick()
    return {site: torch.cat(parts).median() for site, parts in norms.items()}


def _reader(
    side: Side, features: Int[Tensor, " pairs"], median: dict[int, Tensor], chunk: int
) -> Callable[[Tensor], tuple[Float[Tensor, "sites tokens pairs"], Bool[Tensor, " tokens"]]]:
    """Reads a batch of windows: the codes, and which tokens are to be kept. `median` are the lengths of streams."""
    device = side.dictionary.encoder.device

    def codes(stream: Float[Tensor, "tokens width"], site: int) -> Float[Tensor, "tokens pairs"]:
        scale = median[side.site] / median[site].clamp_min(1e-30)
        parts = (side.dictionary.encode(part.to(device).float() * scale) for part in stream.split(chunk))
        return torch.cat([part[:, features.to(device)].cpu() for part in parts])

    def read(ids: Tensor) -> tuple[Tensor, Tensor]:
        original = side.model.original
        keep = torch.ones(ids.shape, dtype=torch.bool) if original is None else original.coincides(ids)
        keep[:, 0] = False
        found = _streams(side, ids)
        for site, stream in found.items():
            keep &= _norms(stream) <= SINK_RATIO * median[site]
        streams = {site: found.pop(site).flatten(0, 1) for site in side.sites}
        return torch.stack([codes(stream, site) for site, stream in streams.items()]), keep.flatten()

    return read


def _streams(side: Side, ids: Int[Tensor, "windows context"]) -> dict[int, Tensor]:
    return residuals(side.model, ids.to(side.model.device).long(), side.sites)


def _norms(stream: Float[Tensor, "windows context width"]) -> Float[Tensor, "windows context"]:
    return stream.norm(dim=-1, dtype=torch.float32).cpu()


class _Sums:
    """Sums of two sides' codes, from which the correlations of every pair at every two sites follow. In float64.

    `exchanged` are the partners of the control. Its products are its own; all other sums of B's codes are those of the pairs.
    """

    def __init__(self, exchanged: Int[Tensor, " pairs"]) -> None:
        self.tokens = 0
        self._exchanged = exchanged
        self._sums: list[Tensor] = []

    def add(self, a: Float[Tensor, "sites_a tokens pairs"], b: Float[Tensor, "sites_b tokens pairs"]) -> None:
        if not self._sums:
            shapes = [(len(a),), (len(a),), (len(b),), (len(b),), (len(a), len(b)), (len(a), len(b))]
            self._sums = [torch.zeros(*shape, a.shape[-1], dtype=torch.float64) for shape in shapes]
        pairs = torch.arange(len(self._exchanged)).split(PAIRS_AT_ONCE)
        for some, others in zip(pairs, self._exchanged.split(PAIRS_AT_ONCE), strict=True):
            # Into what is there: small tensors that stay between large ones keep the allocator from using these again.
            for total, new in zip(self._sums, _sums(a[..., some], b[..., some], b[..., others]), strict=True):
                total[..., some] += new
        self.tokens += a.shape[1]

    def correlations(self) -> dict[str, Float64[Tensor, "sites_a sites_b"]]:
        """Means over the pairs, and over those of the control."""
        x, xx, y, yy, xy, xz = (one / self.tokens for one in self._sums)
        z, zz = y[:, self._exchanged], yy[:, self._exchanged]
        return {"correlation": _correlation(x, xx, y, yy, xy), "null": _correlation(x, xx, z, zz, xz)}


def _sums(a: Tensor, b: Tensor, other: Tensor) -> list[Tensor]:
    """Over tokens: of A's codes and of B's with their squares, and of A's times B's and times those of `other`."""
    x, y, z = a.double(), b.double(), other.double()
    products = [torch.einsum("itp,jtp->ijp", x, one) for one in (y, z)]
    return [x.sum(1), x.square().sum(1), y.sum(1), y.square().sum(1), *products]


def _correlation(x: Tensor, xx: Tensor, y: Tensor, yy: Tensor, xy: Tensor) -> Float64[Tensor, "sites_a sites_b"]:
    covariance = xy - x[:, None] * y[None]
    spread = _variance(x, xx)[:, None] * _variance(y, yy)[None]
    return torch.where(spread > 0, covariance / spread.sqrt(), 0.0).mean(-1)


def _variance(mean: Tensor, second: Tensor) -> Tensor:
    """From E[z] and E[z²]; 0 where it is no more than rounding errors."""
    found = second - mean.square()
    return torch.where(found > CONSTANT * second, found, 0.0)
