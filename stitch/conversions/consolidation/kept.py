"""What a consolidation replaced, kept in `undo/` beside the model: the donor's tensors, and checksums of all, before and after.

A sum of floats cannot be undone by a difference, as both are rounded. So the tensors themselves are kept, in the dtype that the
conversion ran in. A donor that was consolidated before has an `undo/` of its own, which is kept inside.
"""

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from stitch.conversions.consolidation.slow_weights import down_projection
from stitch.errors import StitchError, UsageError
from stitch.files.folders import to_json
from stitch.files.links import require_inside
from stitch.files.schema import Schema, Text, checked
from stitch.files.shards import Held, Stored, as_bytes, stored_tensors, write_shards
from stitch.files.specification import MOST_REPORT, read_json
from stitch.models.model import Model

FOLDER, CHECKSUMS = "undo", "undo.json"
READ = 2**24  # bytes at a time
SHARD = 5_000_000_000  # bytes of a file of tensors, at most


class Checksums(Schema):
    """SHA-256 of the bytes of every tensor by name: `was` in the donor, `now` in the model with the document."""

    document: Text
    was: dict[str, str]
    now: dict[str, str]


@dataclass(frozen=True)
class Undo:
    """How a model becomes its donor again: `restored` are the tensors to write, all of them, by name."""

    document: str
    restored: dict[str, Stored]
    replaced: int  # how many of them differ from the model's own


def keep(folder: Path, replaced: Mapping[str, Tensor], document: str, donor: Path) -> None:
    """Writes `undo/` into the `folder` of an edited model. `replaced` are the donor's tensors where the edit changed them.

    Nothing is kept of a family that stores its weights under other names than its modules have.

    `donor` is the donor's folder. Raises: UsageError where a file of its own `undo/` is a link out of it.
    """
    now = {name: sha256_of(tensor) for name, tensor in stored_tensors(folder).items()}
    if not replaced.keys() <= now.keys():
        return  # a family that stores its weights under other names than it has them (Fuyu)
    place = folder / FOLDER
    place.mkdir()
    write_shards(place, {name: Held(tensor) for name, tensor in replaced.items()}, SHARD)
    was = now | {name: hashlib.sha256(as_bytes(tensor)).hexdigest() for name, tensor in replaced.items()}
    (place / CHECKSUMS).write_bytes(to_json(Checksums(document=document, was=was, now=now).model_dump()))
    copy_kept(donor, place)


def size_kept(model: Model) -> int:
    """Bytes that `keep` will write for an edit of every block, with what the donor holds of earlier documents."""
    weights = (down_projection(model, block) for block in range(model.depth))
    earlier = (file.stat().st_size for file in (model.folder / FOLDER).rglob("*") if file.is_file())
    return sum(weight.numel() * weight.itemsize for weight in weights) + sum(earlier)


def copy_kept(source: Path, target: Path) -> None:
    """Copies `undo/` from one folder to another, where there is one."""
    for file in sorted((source / FOLDER).rglob("*")):
        require_inside(file, source)
        if file.is_file():
            place = target / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)


def undo_of(folder: Path, name: str) -> Undo:
    """The undo of the consolidated model in `folder`; `name` is used in messages.

    Raises: UsageError where nothing was kept, or the model is not as it was written; StitchError where what was kept is damaged.
    """
    place = folder / FOLDER
    if not (place / CHECKSUMS).is_file():
        raise UsageError(
            f"model must be a folder that `stitch convert consolidate` wrote; {name} has no {FOLDER}/{CHECKSUMS}, which does not "
            "go to the Hub: give the folder as it was written, or use the donor."
        )
    known = checked(Checksums, read_json(place / CHECKSUMS, "checksums", MOST_REPORT), str(place / CHECKSUMS))
    own, kept = stored_tensors(folder), stored_tensors(place)
    if changed := _differing(own, known.now):
        raise UsageError(
            f"model must be as `stitch convert consolidate` wrote it; {len(changed)} of the {len(known.now):,} tensors of {name} "
            f"have changed since, {changed[0]} first: undo the folder as it was before, or use the donor."
        )
    restored = own | kept
    if damaged := _differing(restored, known.was):
        raise StitchError(
            f"{place} must hold the donor's tensors; {damaged[0]} is not the one that was replaced: use the donor."
        )
    return Undo(known.document, restored, len(kept))


def _differing(tensors: Mapping[str, Stored], checksums: Mapping[str, str]) -> list[str]:
    """The names of tensors that are in only one of the two, or have another checksum."""
    names = sorted(tensors.keys() | checksums.keys())
    return [name for name in names if name not in tensors or sha256_of(tensors[name]) != checksums.get(name)]


def sha256_of(tensor: Stored) -> str:
    """SHA-256 of a stored tensor's bytes."""
    digest = hashlib.sha256()
    with tensor.path.open("rb") as file:
        file.seek(tensor.start)
        left = tensor.stop - tensor.start
        while left and (part := file.read(min(READ, left))):
            digest.update(part)
            left -= len(part)
    return digest.hexdigest()
