"""Download from and upload to the Hugging Face Hub. Its client is imported inside functions, since that takes time.

The access token is given to the client only: no message, log or file of this package contains it.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stitch.errors import StitchError, UsageError
from stitch.files.front_matter import CARD
from stitch.files.headers import INDEX, PICKLE_SUFFIXES, weight_map
from stitch.files.links import require_inside
from stitch.files.markdown import PLACE
from stitch.files.tokenizer import TEMPLATES
from stitch.hub.access import access_token
from stitch.hub.errors import asked
from stitch.progress import Progress

# The files that transformers reads, and the card, which has the licence: no pickles, no code but where it may run, nothing from
# subfolders, which hold exports to other runtimes.
MODEL_FILES = ["README.md", "model*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken"]
CODE_FILES = ["*.py"]
SUBFOLDERS = ["*/*"]
LOOKED_AT = ["config.json", INDEX, f"{TEMPLATES}/*.jinja"]  # before the others
REPO_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
XET_ENDPOINTS = ("https://huggingface.co", "https://hub-ci.huggingface.co")


def download(
    repo: str,
    revision: str | None = None,
    *,
    code: bool = False,
    endpoint: str | None = None,
    progress: Progress | None = None,
) -> tuple[Path, str]:
    """The folder with the model files of `repo` at `revision` (None: its main branch), and their commit. With `code` also those
    of the model's own code.

    Files already in the client's cache are not downloaded again, and without network its last snapshot is used. `progress`
    gets ("download REPO", bytes on disk, bytes known so far) of the files that were not in the cache.
    Raises: StitchError when the download fails.
    """
    shards = set(weight_map(config(repo, revision, endpoint=endpoint)).values())
    files = [
        *MODEL_FILES,
        *(CODE_FILES if code else []),
        *sorted(shard for shard in shards if shard.endswith(".safetensors")),
    ]
    bar = _bar(f"download {repo}", progress)
    folder = _snapshot(repo, revision, endpoint, allow_patterns=files, ignore_patterns=SUBFOLDERS, tqdm_class=bar)
    return folder, folder.name


def config(repo: str, revision: str | None = None, *, endpoint: str | None = None) -> Path:
    """The folder with config.json of `repo`, the index of its weights, and chat templates of a folder, where it has them.

    Nothing large is downloaded. Raises: StitchError when the download fails, also where the model is gated.
    """
    return _snapshot(repo, revision, endpoint, allow_patterns=LOOKED_AT, tqdm_class=_bar(f"look up {repo}", None))


def _snapshot(repo: str, revision: str | None, endpoint: str | None, **which: Any) -> Path:
    from huggingface_hub import snapshot_download

    def attempt() -> Path:
        return Path(snapshot_download(repo, revision=revision, endpoint=endpoint, **which))

    return asked(attempt, repo, f"no network and no such local model: {repo}")


def card(repo: str) -> tuple[Path, str] | None:
    """The folder with the card of `repo` on its main branch, and the commit; None where there is no card or none can be had."""
    from huggingface_hub import hf_hub_download

    try:
        folder = Path(hf_hub_download(repo, CARD)).parent
    except Exception:  # of the network, the Hub, or its client; what a card would say is then unknown
        return None
    return folder, folder.name


def require_pushable(repo: str, token: str | None = None) -> str:
    """The token to push to `repo` with. Asks nobody.

    Raises: UsageError when `repo` is not a valid name; StitchError when there is no token.
    """
    if not REPO_NAME.fullmatch(repo):
        raise UsageError(f"a repository is named user/name; got {repo!r}.")
    found = access_token(token)
    if not found:
        raise StitchError("pushing needs a Hub token and there is none: run `hf auth login`, or set HF_TOKEN.")
    return found


def push(
    folder: Path,
    repo: str,
    *,
    private: bool = False,
    token: str | None = None,
    endpoint: str | None = None,
    progress: Progress | None = None,
) -> str:
    """Creates `repo` (user/name) if it does not exist, uploads the model in `folder` in one commit, and returns the address.

    Weights of an earlier push that are not overwritten are deleted in the same commit; otherwise they could be loaded
    instead. Without `token`, the client's is used: HF_TOKEN from the environment, then that of `hf auth login`. `progress`
    gets ("upload REPO", bytes, bytes of all files) after every file.

    Raises: UsageError when `folder` holds no model or `repo` is not a valid name; StitchError when the token or the network
    fail.
    """
    token = require_pushable(repo, token)
    files = _publishable(Path(folder))
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    sizes = {name: file.stat().st_size for name, file in files.items()}

    def attempt() -> str:
        """One commit on top of the one that is there, or none where that one has these files already.

        Not `upload_folder`: it makes several commits of a large folder, and whoever loads in between gets half of it.
        """
        api = HfApi(endpoint=endpoint, token=token, library_name="stitch")
        url = api.create_repo(repo, private=private, exist_ok=True)
        before = api.model_info(repo)
        additions = [CommitOperationAdd(name, _content(file, repo)) for name, file in files.items()]
        done = 0
        for addition in additions:
            api.preupload_lfs_files(repo, [addition], free_memory=False)
            done += sizes[addition.path_in_repo]
            if progress:
                progress(f"upload {repo}", done, sum(sizes.values()))
        there = [file.rfilename for file in before.siblings or []]
        deletions = [CommitOperationDelete(name) for name in there if _is_weights(name) and name not in files]
        changes = [*deletions, *additions]
        api.create_commit(repo, changes, commit_message="Upload with stitch", parent_commit=before.sha)
        return str(url)

    with _quiet_upload(endpoint):
        return asked(attempt, repo, "no network: the Hub cannot be reached", token)


def _content(file: Path, repo: str) -> str | bytes:
    """The path of a file to upload; of a model card its text, in which examples name the repository."""
    return file.read_bytes().replace(PLACE.encode(), repo.encode()) if file.name == "README.md" else str(file)


def _publishable(folder: Path) -> dict[str, Path]:
    """Files of a model folder by their name in the repository, without hidden files and pickles."""
    files = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix not in PICKLE_SUFFIXES
    }
    files = {name: path for name, path in files.items() if not any(part.startswith(".") for part in name.split("/"))}
    if "config.json" not in files or not any(_is_weights(name) for name in files):
        raise UsageError(
            f"a folder to push must hold a model (config.json, model.safetensors); {folder} does not: check the path."
        )
    for file in files.values():
        require_inside(file, folder)
    return files


def _is_weights(name: str) -> bool:
    return bool(re.fullmatch(r"model[^/]*\.safetensors(\.index\.json)?", name))


@contextmanager
def _quiet_upload(endpoint: str | None) -> Iterator[None]:
    """Turns off the client's progress bars, and its Xet protocol for endpoints other than `XET_ENDPOINTS`.

    The client does not ask an endpoint whether it supports Xet.
    """
    from huggingface_hub import constants, utils

    xet_disabled, bars_disabled = constants.HF_HUB_DISABLE_XET, utils.are_progress_bars_disabled()
    if (endpoint or constants.ENDPOINT).rstrip("/") not in XET_ENDPOINTS:
        constants.HF_HUB_DISABLE_XET = True
    if not bars_disabled:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = xet_disabled
        if not bars_disabled:
            utils.enable_progress_bars()


def _bar(stage: str, progress: Progress | None) -> type:
    """A progress bar class for the client that draws nothing and calls `progress` with the number of bytes on disk."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        def __init__(self, *args, **kwargs):
            self.counts_bytes = kwargs.get("name") == "huggingface_hub.snapshot_download"
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: int | float | None = 1) -> None:
            with self.get_lock():  # several files are downloaded at once
                self.n += n or 0
            if progress and self.counts_bytes:
                progress(stage, int(self.n), int(self.total or 0))

    return Bar
