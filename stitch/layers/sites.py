"""What the residual stream is like at each site: outlier channels, sinks, effective rank, what the head can read of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.activations.observe import residuals
from stitch.errors import UsageError
from stitch.layers.moments import Moments, rotation
from stitch.models.model import Model
from stitch.progress import Progress
from stitch.text.windows import Windows

READ = 0.9  # of the head's squared weights are in the directions that it is said to read
LONG = 10.0  # times the median length: longer streams are sinks


@dataclass(frozen=True)
class Reader:
    """The directions that the head reads most, [width, directions], orthonormal."""

    directions: Float[Tensor, "width directions"]

    def share(self, covariance: Float[Tensor, "width width"]) -> float:
        """The share of the stream's variance in these directions."""
        within = torch.einsum("ik,ij,jk->", self.directions, covariance, self.directions)
        return float(within / covariance.trace())

    @property
    def by_chance(self) -> float:
        """The share that a stream turned at random would have there."""
        return self.directions.shape[1] / len(self.directions)


@torch.no_grad()
def measure_sites(
    model: Model, windows: Windows, sites: Sequence[int], *, seed: int = 0, progress: Progress | None = None
) -> list[dict]:
    """For each site, a dict of statistics over `windows`. A window's first token is measured by its length alone.

    Turns are drawn from `seed`. Raises: StitchError for streams that are not finite.
    """
    turns = {width: rotation(width, seed) for width in {model.width_at(site) for site in sites}}
    found = {site: Moments(turns[model.width_at(site)]) for site in sites}
    first: dict[int, list[Tensor]] = {site: [] for site in sites}
    for row in range(len(windows.ids)):
        streams = residuals(model, windows.ids[row : row + 1].long().to(model.device), sites)
        for site, stream in streams.items():
            stream = stream[0].float().cpu()
            found[site].add(stream[1:])
            first[site].append(stream[0].norm())
        if progress:
            progress("sites (windows)", row + 1, len(windows.ids))
    reader = reader_of(model) if has_final_norm(model) else None
    return [_described(site, found[site], torch.stack(first[site]), reader) for site in sites]


def has_final_norm(model: Model) -> bool:
    """Whether there is a norm before the head, which is where the last site is read."""
    try:
        return model.final_norm is not model.head
    except (AttributeError, UsageError):
        return False


@torch.no_grad()
def reader_of(model: Model) -> Reader:
    """What the head reads, with the gain of the final norm, which is measured: norm(e) − norm(0) at each unit vector e.

    Only READ of the squared weights count. A norm's own scale is the same for all directions, and its centring is left out.
    """
    head: Any = model.head
    weight: Tensor = head.weight.detach().double().cpu()
    unit = torch.eye(weight.shape[1], device=model.device, dtype=model.dtype)
    gain = (model.final_norm(unit) - model.final_norm(torch.zeros_like(unit))).diagonal().double().cpu()
    values, directions = torch.linalg.eigh((weight.T @ weight) * gain[:, None] * gain)
    values, directions = values.flip(0), directions.flip(1)
    count = 1 + int((values.cumsum(0) < READ * values.sum()).sum())
    return Reader(directions[:, :count])


def _described(site: int, moments: Moments, first: Float[Tensor, " windows"], reader: Reader | None) -> dict:
    covariance = moments.covariance
    lengths = torch.cat(moments.lengths)
    middle = float(lengths.median())
    spectrum = torch.linalg.eigvalsh(covariance).clamp_min(0)
    variances = covariance.diagonal()
    top = int(variances.argmax())
    reads = reader if reader and len(reader.directions) == len(covariance) else None
    return {
        "site": site,
        "top_channel": top,
        "top_share": float(variances[top] / variances.sum()),
        "kurtosis": moments.kurtosis,
        "kurtosis_turned": moments.kurtosis_turned,
        "first_token": float(first.median()) / middle,
        "sinks": float((lengths > LONG * middle).double().mean()),
        "effective_rank": float(spectrum.sum() ** 2 / spectrum.square().sum()),
        "width": len(covariance),
        "read": reads and reads.share(covariance),
        "read_by_chance": reads and reads.by_chance,
    }
