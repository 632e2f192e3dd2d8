"""What `convert consolidate` keeps beside a model, from which `convert undo` makes the donor again."""

import json
from pathlib import Path
from typing import Any

from fuzz.folders import folder_door, json_file

CHECKSUMS = "undo/undo.json"


def consolidated(folder: Path) -> Path:
    import tiny
    from stitch.conversions.consolidation.kept import keep

    place = tiny.save(folder / "consolidated-7f3", "gpt2")
    name, value = next(iter(tiny.net("gpt2").named_parameters()))
    keep(place, {name: value + 1}, "note.txt", folder)
    return place


def read_undo(folder: Path) -> Any:
    from stitch.conversions.consolidation.kept import undo_of

    return undo_of(folder, folder.name)


def is_sound(folder: Path, found: Any) -> bool:
    """Only tensors of the folder itself are written, and each is the one that it says was there before."""
    from stitch.conversions.consolidation.kept import sha256_of

    was = json.loads((folder / CHECKSUMS).read_bytes())["was"]
    return found.document.isprintable() and was == {name: sha256_of(one) for name, one in found.restored.items()}


DOORS = [folder_door("undo.json", consolidated, json_file(CHECKSUMS), read_undo, is_sound)]
