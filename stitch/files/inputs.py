"""What a run reads, as hashes: a resumed run must read the same, or its result would be made of two things."""

from collections.abc import Mapping
from pathlib import Path

from stitch.errors import UsageError
from stitch.files.left import read_json, write_json
from stitch.files.stages import current

INPUTS = "inputs.json"


def require_unchanged(inputs: Mapping[str, str], folder: Path | None = None) -> None:
    """Notes the hashes of inputs by name, or compares them with those that the interrupted run noted.

    They are noted in `folder`, by default the workspace at hand; outside of a run nothing happens.
    Raises: UsageError where one is another.
    """
    if (folder := folder or current()) is None:
        return
    before = read_json(folder / INPUTS) or {}
    changed = [name for name, found in inputs.items() if before.get(name, found) != found]
    if changed:
        raise UsageError(
            f"`resume` needs what the interrupted run read; {' and '.join(changed)} changed since: set `restart` to begin again, "
            "or put back what was there."
        )
    write_json(folder / INPUTS, {**before, **inputs})
