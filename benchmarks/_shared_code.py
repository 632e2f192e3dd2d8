"""Translations between residual streams through one shared code, and batches of the same tokens from all streams.

Shared codes are trained, so these translations serve only as references; no composite is built from them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from _joint_sae import SharedCode
from jaxtyping import Bool, Float
from torch import Tensor

from stitch.activations.harvest import Activations
from stitch.activations.paired import Paired, without_sinks
from stitch.regression.moments import Moments
from stitch.translation import matched
from stitch.translation.types import Codes, Term, Translation


@dataclass(frozen=True)
class Streams:
    """Residual streams by name, each with its harvest and site. All harvests are of the same windows.

    `keep` leaves out BOS at position 0 and tokens that are a sink in any stream, so that all pairs have the same
    tokens.
    """

    harvests: dict[str, Activations]
    sites: dict[str, int]
    keep: Bool[Tensor, "windows context"]

    @classmethod
    def of(cls, streams: dict[str, tuple[Activations, int]]) -> "Streams":
        """Built from a harvest and one of its sites for every name."""
        keep = torch.stack([without_sinks(harvest, [site]) for harvest, site in streams.values()]).all(0)
        harvests = {name: harvest for name, (harvest, _) in streams.items()}
        return cls(harvests, {name: site for name, (_, site) in streams.items()}, keep)

    @property
    def widths(self) -> dict[str, int]:
        return {name: harvest.width(self.sites[name]) for name, harvest in self.harvests.items()}

    def only(self, *names: str) -> "Streams":
        """A subset of the streams, with the same kept tokens."""
        return Streams(
            {name: self.harvests[name] for name in names}, {name: self.sites[name] for name in names}, self.keep
        )

    def pair(self, source: str, target: str) -> Paired:
        sites = self.sites[source], self.sites[target]
        return Paired(self.harvests[source], self.harvests[target], *sites, self.keep)

    def batches(self, size: int, *, seed: int, group: int = 4, start: int = 0) -> Iterator[dict[str, Tensor]]:
        """Endless shuffled batches in which row i is the same token in every stream. Their order depends only on the
        seed.
        """
        feeds = [self.pair(name, name).batches(size, seed=seed, group=group, start=start) for name in self.sites]
        for rows in zip(*feeds, strict=True):
            yield {name: x for name, (x, _) in zip(self.sites, rows, strict=True)}

    def chunks(self, tokens: int = 2048) -> Iterator[dict[str, Tensor]]:
        """All kept rows in text order."""
        for rows in zip(*(self.pair(name, name).chunks(tokens) for name in self.sites), strict=True):
            yield {name: x for name, (x, _, _) in zip(self.sites, rows, strict=True)}


def re_paired(batches: Iterator[dict[str, Tensor]], seed: int) -> Iterator[dict[str, Tensor]]:
    """The null: rows of every stream are permuted independently, so that a row is no longer the same token in all
    streams.
    """
    generator = torch.Generator().manual_seed(seed)
    for batch in batches:
        yield {name: x[torch.randperm(len(x), generator=generator)] for name, x in batch.items()}


def through_code(name: str, code: SharedCode, source: str, target: str, site: int) -> Translation:
    """Encodes stream `source` (at `site` of its model) and decodes it as `target`, with trained parameters only."""
    term = Term(Codes(site, code.streams[source]), code.onto(source, target).float().cpu())
    return Translation(name, (term,), code.streams[target].decoder_bias.float().cpu())


@torch.no_grad()
def second_moments(code: SharedCode, streams: Streams) -> Float[Tensor, " features"]:
    """E[c²] over the kept tokens, where c is encoded from all streams together."""
    total, count = torch.zeros(len(code.joint.encoder_bias), dtype=torch.float64), 0
    for batch in streams.chunks():
        side_by_side = torch.cat([batch[name] for name in code.streams], 1).to(code.joint.encoder.device)
        total += code.joint.encode(side_by_side).double().square().sum(0).cpu()
        count += len(side_by_side)
    # joint decoder rows
    squared_norms = torch.stack([norms.double().cpu().square() for norms in code.norms.values()]).sum(0)
    return total / (count * squared_norms)


def directions(
    name: str,
    code: SharedCode,
    source: str,
    target: str,
    site: int,
    second: Float[Tensor, " features"],
    moments: Moments,
) -> Translation:
    """A linear map of x in which feature i of one decoder is paired with feature i of the other.

    `second` is the result of `second_moments`. Of `moments` (fitted, with "x" and "target") only the means are used.
    """
    norms = {side: code.norms[side].double().cpu() for side in (source, target)}
    features = torch.arange(len(second))
    edges = matched.Matched(
        rows=features,
        cols=features,
        mass=torch.ones_like(second),
        similarity=torch.ones_like(second),
        co_moment=second * norms[source] * norms[target],
        mean_a=torch.zeros_like(second),  # not needed, because the bias makes the means of the streams agree
        second_a=second * norms[source].square(),
    )
    return matched.directions(name, edges, code.streams[source], code.streams[target], site, moments)
