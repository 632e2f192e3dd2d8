"""`stitch.push`: a folder uploaded to the Hugging Face Hub."""

from pathlib import Path

from stitch.api.given import PathLike
from stitch.api.progress import progress


def require_pushable(repo: str | None) -> None:
    """Raises what `push` would before it asks the Hub; nothing where `repo` is None. For what pushes at the end of long work."""
    from stitch.models import hub

    if repo is not None:
        hub.require_pushable(repo)


def push(folder: PathLike, repo: str, *, private: bool = False, quiet: bool = False) -> str:
    """Uploads the model in `folder` to `repo` (user/name), which is created if it does not exist, and returns its address.

    The access token comes from HF_TOKEN or `hf auth login`.
    Raises: UsageError when `folder` holds no model or `repo` is not a valid name; StitchError when the token or the network
    fail.
    """
    from stitch.models import hub

    with progress(quiet) as update:
        return hub.push(Path(folder), repo, private=private, progress=update)
