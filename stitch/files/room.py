"""Whether the disk has room for what a run writes, asked before anything is computed."""

import shutil
from pathlib import Path

from stitch.errors import UsageError
from stitch.files.sizes import size_in_words, size_of

CERTAIN = 0.9  # of an estimate is needed in any case


def require_room(workspace: Path, scratch: int, output: int) -> None:
    """`workspace` will hold about `scratch` bytes of intermediate files, and then `output` bytes of results.

    What an interrupted run left there counts as room. Raises: UsageError where the disk has less.
    """
    room = shutil.disk_usage(workspace).free + size_of(workspace)
    if room < CERTAIN * (scratch + output):
        raise UsageError(
            f"the disk of `out` needs room for about {size_in_words(scratch + output)}, {size_in_words(scratch)} of them until "
            f"the run ends; {workspace.parent} has {size_in_words(room)}: free space, choose another `out`, or use less text."
        )
