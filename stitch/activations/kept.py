"""What a store has of a harvest that is still to be done."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stitch.activations.harvest import KIND, Activations, Late, digest, nearest
from stitch.files.store import Store
from stitch.models.identity import identity_of
from stitch.models.model import Model
from stitch.text.windows import Windows


@dataclass(frozen=True)
class Kept:
    """How many files a harvest has, how many of them the store has, and the share of the harvest's work that is left to do."""

    files: int
    there: int
    left: float


def kept(
    model: Model, windows: Sequence[Windows], sites: Sequence[int], store: Store, late: Late | None = None
) -> Kept:
    """What `store` has of a `harvest` of `model` at `sites` over each of `windows`, with `late` as there."""
    identity = identity_of(model)
    starts_late = late is not None and late(model, model.depth) is not None  # a composite does not
    files, there, left = 0, 0, 0.0
    for text in windows:
        wanted = Activations(store.folder, tuple(sites), text, len(text.ids), identity)
        for file in range(wanted.files):
            ids = text.ids[wanted.in_file(file)]
            missing = [site for site in sites if not store.has(KIND, digest(model, site, ids, identity))]
            files, there = files + len(sites), there + len(sites) - len(missing)
            if missing:
                start = nearest(model, ids, min(missing), store, identity) if starts_late else None
                left += ids.numel() * (max(missing) - (start or 0)) / max(1, *sites)
    return Kept(files, there, left / sum(text.tokens for text in windows))


def unmade(windows: Sequence[Windows], sites: int) -> Kept:
    """The same of so many sites of a model that is still to be made: nothing can be there."""
    per_site = sum(Activations(Path(), (), text, len(text.ids)).files for text in windows)
    return Kept(sites * per_site, 0, 1.0)


def counted(found: Sequence[Kept]) -> dict[str, tuple[int, int]]:
    """The numbers of files, and of those that are there, as a `Plan` says it; nothing where nothing was looked up."""
    return {"files of activations": (sum(one.files for one in found), sum(one.there for one in found))} if found else {}
