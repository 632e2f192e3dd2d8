"""Links in folders that others give. What they lead to is copied and published under the name of the link."""

from pathlib import Path

from stitch.errors import UsageError


def require_inside(file: Path, folder: Path) -> None:
    """Raises: UsageError where `file`, which is in `folder`, is a link to a file elsewhere.

    In the Hub's cache every file is a link to `blobs`, beside the `snapshots` that the folder is in.
    """
    place, target = folder.resolve(), file.resolve()
    blobs = place.parent.parent / "blobs"
    if target.is_relative_to(place) or (place.parent.name == "snapshots" and target.parent == blobs):
        return
    raise UsageError(
        f"a file that is copied must lie in its folder; {file} is a link to {target}: put the file itself in its place."
    )
