"""The cuts of a job, tried on small copies of its models before their weights are downloaded or read.

The models themselves are tried as well when they are loaded. Models in GGUF files, in packages or in memory are tried only then.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from stitch.composite.cuts import Cut, require_exact_small
from stitch.config import AnySettings, same_relative_depth
from stitch.models.pico import depth_of
from stitch.models.sources import Check


def tried_small(seams: Sequence[AnySettings], *, whole: bool = False) -> Check:
    """Tries the layers of A and B of all `seams`. With `whole` the blocks of A after its layer run alone as well."""

    def check(described: Mapping[str, Path]) -> None:
        cuts: dict[str, list[Cut]] = defaultdict(list)
        for seam in seams:
            cuts[seam.model_a].append(Cut(seam.layer, first=not (seam.native or whole)))
            if (layer_b := _layer_b(seam, described)) is not None:
                cuts[seam.model_b].append(Cut(layer_b))
        for name, folder in described.items():
            require_exact_small(folder, name, cuts[name], seams[0].trust_remote_code)

    return check


def tried_small_everywhere(trust_remote_code: bool) -> Check:
    """Tries every layer of every model."""

    def check(described: Mapping[str, Path]) -> None:
        for name, folder in described.items():
            require_exact_small(folder, name, [Cut(None)], trust_remote_code)

    return check


def _layer_b(seam: AnySettings, described: Mapping[str, Path]) -> int | None:
    """B's layer; None where it will be chosen, or is that at A's relative depth and the depths are not known yet."""
    if isinstance(seam.layer_b, int):
        return seam.layer_b
    a, b = (depth_of(described[name]) if name in described else None for name in (seam.model_a, seam.model_b))
    if seam.layer_b is not None or not a or not b or not 0 <= seam.layer <= a:
        return None
    return same_relative_depth(seam.layer, a, b)
