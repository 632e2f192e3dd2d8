"""Model folders made once from a model in another form, and kept in the user cache."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from stitch.errors import StitchError
from stitch.files.cache import cache_folder
from stitch.files.durable import flush_tree
from stitch.models.model_folder import check_model_folder


def made_once(kind: str, digest: str, name: str, make: Callable[[Path], object]) -> Path:
    """The folder of the model `digest` below `kind` in the cache. Unless it is there, `make` fills it.

    `name` is used in messages. Raises: what `make` raises; StitchError when the cache cannot be written.
    """
    from filelock import FileLock

    cache = cache_folder() / kind
    folder = cache / digest
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{digest}.lock"):
            if not _intact(folder):
                for stale in (folder, *cache.glob(f"{digest}.*.part")):  # left by a killed process: we hold the lock
                    shutil.rmtree(stale, ignore_errors=True)
                _make_into(folder, make)
    except OSError as error:
        raise StitchError(
            f"the dequantised {name} must be written to {cache}: {error.strerror or error}; set STITCH_CACHE."
        ) from None
    return folder


def _make_into(folder: Path, make: Callable[[Path], object]) -> None:
    """Fills a folder beside `folder` and renames it, so that `folder` is complete or absent."""
    part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        make(part)
        flush_tree(part)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _intact(folder: Path) -> bool:
    try:
        check_model_folder(folder, folder.name)
    except StitchError:
        return False
    return True
