"""Models and texts as a resumed run compares them with those that the interrupted run read."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from stitch.files.inputs import require_unchanged
from stitch.models.identity import weights_hash
from stitch.models.model import Model
from stitch.progress import Progress
from stitch.text.documents import Split
from stitch.text.windows import Windows


def check_inputs(
    models: Mapping[str, Model],
    windows: Mapping[Split, Windows],
    folders: Mapping[str, str | None],
    progress: Progress | None = None,
) -> None:
    """Compares models, the text's windows by split, and SAEs in folders, by their names in messages or as parameters.

    Raises: UsageError where one has changed since the run was interrupted.
    """
    found = {name: weights_hash(model.folder, progress) for name, model in models.items()}
    found |= {name: weights_hash(Path(one), progress) for name, one in folders.items() if one and Path(one).is_dir()}
    found["text"] = hash_of(windows)
    require_unchanged({f"`{name}`" if name.isidentifier() else name: value for name, value in found.items()})


def hash_of(windows: Mapping[Split, Windows]) -> str:
    """SHA-256 over the token ids of every split."""
    digest = hashlib.sha256()
    for split, one in windows.items():
        digest.update(f"{split} {tuple(one.ids.shape)} ".encode() + one.ids.long().numpy().tobytes())
    return digest.hexdigest()
