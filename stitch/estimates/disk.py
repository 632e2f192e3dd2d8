"""What a command writes, in bytes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from stitch.files.room import require_room
from stitch.models.model import Model
from stitch.text.documents import Split


@dataclass(frozen=True)
class Disk:
    """`scratch` is removed in the end, `output` stays."""

    scratch: int
    output: int

    def require(self, workspace: Path) -> None:
        """Raises: UsageError where the disk has no room for it."""
        require_room(workspace, self.scratch, self.output)


def streams(sites: Iterable[tuple[Model, Iterable[int]]], tokens: Mapping[Split, int]) -> int:
    """Bytes of the streams of models at sites, at so many tokens of each split."""
    each = sum(model.dtype.itemsize * model.width_at(site) for model, places in sites for site in places)
    return each * sum(tokens.values())
