"""How far matched features agree when they are read at other blocks: a correlation for every pair of sites.

Each SAE was trained at one site. Its features are read at the others as well: the stream there is brought to the length that it
has at the SAE's own site, and encoded. Where a feature's direction is not in use yet, or not any more, its codes agree with
nothing. The map of correlations shows how far up and down both models the matched features reach, and whether other blocks than
the chosen ones would have agreed better.
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
from stitch.progress import Progress

PAIRS = 256  # the best by score
TOKENS = 4_096
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
        return sites_around(self.site, blocks_before_last_part(self.model.config), self.model.depth)


def by_block(
    a: Side,
    b: Side,
    ids: Int[Tensor, "windows context"],
    pairs: Pairs,
    *,
    seed: int,
    chunk: int,
    progress: Progress | None = None,
) -> dict:
    """Mean correlations of the codes of the best pairs, as report.json has them: rows are sites of A, columns sites of B.

    They are taken on about TOKENS tokens of `ids`. `null` has the same with the partners exchanged among the pairs. A feature
    with equal codes on all tokens counts as 0. The memory it takes is that of one batch of streams and of `chunk` tokens' codes.
    Empty for fewer than two pairs.
    """
    best = torch.from_numpy(pairs.scores).argsort(descending=True, stable=True)[:PAIRS]
    if len(best) < 2:
        return {}
    features = [torch.from_numpy(side)[best] for side in (pairs.rows, pairs.cols)]
    exchanged = _exchanged(len(best), seed)
    sums = {"correlation": _Sums(), "null": _Sums()}
    tokens = 0
    ids = ids[: max(1, TOKENS // ids.shape[1])]
    for codes_a, codes_b in _batches((a, b), features, ids, chunk, progress):
        sums["correlation"].add(codes_a, codes_b)
        sums["null"].add(codes_a, codes_b[..., exchanged])
        tokens += codes_a.shape[1]
    return {
        "pairs": len(best),
        "tokens": tokens,
        "sites": {"a": a.sites, "b": b.sites},
        **{
            name: [[round(one, 4) for one in row] for row in found.correlations().tolist()]
            for name, found in sums.items()
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
    chunk: int,
    progress: Progress | None,
) -> Iterator[list[Float[Tensor, "sites tokens pairs"]]]:
    """Codes of both sides' `features` at all sites, without BOS, without sinks, and without tokens that end inside one of a
    model's own."""
    readers = [_reader(side, those, chunk) for side, those in zip(sides, features, strict=True)]
    size = min(windows_at_once(side.model, ids.shape[1]) for side in sides)
    done = 0
    for batch in ids.split(size):
        codes, usable = zip(*(read(batch) for read in readers), strict=True)
        keep = usable[0] & usable[1]
        yield [of_side[:, keep] for of_side in codes]
        done += batch.numel()
        if progress:
            progress("features at other blocks (tokens)", done, ids.numel())


def _reader(
    side: Side, features: Int[Tensor, " pairs"], chunk: int
) -> Callable[[Tensor], tuple[Float[Tensor, "sites tokens pairs"], Bool[Tensor, " tokens"]]]:
    """Reads a batch of windows: the codes, and which tokens are to be kept.

    What counts as a sink, and the length of streams, are those of the first batch.
    """
    median: dict[int, Tensor] = {}
    device = side.dictionary.encoder.device

    def codes(stream: Float[Tensor, "tokens width"], site: int) -> Float[Tensor, "tokens pairs"]:
        scale = median[side.site] / median[site].clamp_min(1e-30)
        parts = (side.dictionary.encode(part.to(device).float() * scale) for part in stream.split(chunk))
        return torch.cat([part[:, features.to(device)].cpu() for part in parts])

    def read(ids: Tensor) -> tuple[Tensor, Tensor]:
        original = side.model.original
        keep = torch.ones(ids.shape, dtype=torch.bool) if original is None else original.coincides(ids)
        keep[:, 0] = False
        found = residuals(side.model, ids.to(side.model.device).long(), side.sites)
        for site, stream in found.items():
            norms = stream.norm(dim=-1, dtype=torch.float32).cpu()
            median.setdefault(site, norms[:, 1:].median())
            keep &= norms <= SINK_RATIO * median[site]
        streams = {site: found.pop(site).flatten(0, 1) for site in side.sites}
        return torch.stack([codes(stream, site) for site, stream in streams.items()]), keep.flatten()

    return read


class _Sums:
    """Sums of two sides' codes, from which the correlations of every pair at every two sites follow. In float64."""

    def __init__(self) -> None:
        self._tokens = 0
        self._sums: list[Tensor] = []

    def add(self, a: Float[Tensor, "sites_a tokens pairs"], b: Float[Tensor, "sites_b tokens pairs"]) -> None:
        x, y = a.double(), b.double()
        products = torch.einsum("itp,jtp->ijp", x, y)
        new = [x.sum(1), x.square().sum(1), y.sum(1), y.square().sum(1), products]
        self._sums = [old + more for old, more in zip(self._sums, new, strict=True)] if self._sums else new
        self._tokens += a.shape[1]

    def correlations(self) -> Float64[Tensor, "sites_a sites_b"]:
        """Means over the pairs."""
        x, xx, y, yy, xy = (one / self._tokens for one in self._sums)
        covariance = xy - x[:, None] * y[None]
        spread = _variance(x, xx)[:, None] * _variance(y, yy)[None]
        return torch.where(spread > 0, covariance / spread.sqrt(), 0.0).mean(-1)


def _variance(mean: Tensor, second: Tensor) -> Tensor:
    """From E[z] and E[z²]; 0 where it is no more than rounding errors."""
    found = second - mean.square()
    return torch.where(found > CONSTANT * second, found, 0.0)
