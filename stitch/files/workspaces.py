"""All work folders of unfinished runs that can be found: those that were registered, and those in folders that are named."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from stitch.errors import StitchError, UsageError
from stitch.files.left import Left, left_in
from stitch.files.owner import Owner, discard, owned, owner_of
from stitch.files.registered import forget, registered
from stitch.files.unfinished import SUFFIX, is_work_folder, restore


@dataclass(frozen=True)
class Found:
    """A work folder, and the living process that works in it; None where it was interrupted."""

    left: Left
    owner: Owner | None


def workspaces(places: Sequence[Path] = ()) -> list[Found]:
    """Every work folder, the one that began last first. Those beside outputs in `places` are found without being registered."""
    folders = [*registered(), *(folder for place in places for folder in _below(place))]
    unique = dict.fromkeys(folder.parent.resolve() / folder.name for folder in folders)
    found = [Found(left, owner_of(folder)) for folder in unique if (left := left_in(folder)) is not None]
    return sorted(found, key=lambda one: -one.left.began)


def remove_workspace(folder: Path) -> None:
    """Removes an interrupted run's work folder. What the run had moved away to replace it is put back.

    Raises: UsageError for another folder, and while a process works in it; StitchError when the disk refuses.
    """
    if not folder.is_dir() or not is_work_folder(folder) or (left := left_in(folder)) is None:
        raise UsageError(f"a workspace is a folder such as .NAME{SUFFIX} that a run left; {folder} is none.")
    try:
        with owned(folder):
            restore(left.out)
            discard(folder)
    except OSError as error:
        raise StitchError(f"{folder} cannot be removed: {error.strerror or error}.") from error
    forget(folder)


def _below(place: Path) -> list[Path]:
    """Work folders in a folder, or the folder itself where it is one."""
    if is_work_folder(place) and left_in(place) is not None:
        return [place]
    with suppress(OSError):
        return sorted(folder for folder in place.glob(f".*{SUFFIX}") if folder.is_dir())
    return []
