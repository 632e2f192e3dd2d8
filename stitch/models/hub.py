"""The Hugging Face Hub: models in, composites out. The only module that imports `huggingface_hub`, and it does so late.

Every failure becomes one line that says what to do. The access token goes to the client and nowhere else: no message,
log or file of ours holds it, and exceptions of the client, whose texts we do not control, are not chained to ours.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stitch.errors import StitchError, UsageError
from stitch.progress import Progress

# What transformers reads of a model: no pickles, no code, nothing from subfolders (exports to other runtimes).
WANTED = ["model*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken"]
UNWANTED = ["*/*"]
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
REPO_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
OFFERS_XET = ("https://huggingface.co", "https://hub-ci.huggingface.co")


def download(
    repo: str, revision: str | None = None, *, endpoint: str | None = None, progress: Progress | None = None
) -> tuple[Path, str]:
    """Folder with the model files of `repo` at `revision` (None: its main branch), and the commit they belong to.

    The client's own cache is used: what is there is not fetched again, and without network its last snapshot serves.
    `progress` gets ("download REPO", bytes, bytes known so far). Raises StitchError when the Hub does not deliver.
    """
    from huggingface_hub import snapshot_download

    with _one_line(repo, _token(None), f"no network and no such local model: {repo}"):
        folder = snapshot_download(
            repo,
            revision=revision,
            endpoint=endpoint,
            allow_patterns=WANTED,
            ignore_patterns=UNWANTED,
            tqdm_class=_bar(f"download {repo}", progress),
        )
    return Path(folder), Path(folder).name


def push(
    folder: Path,
    repo: str,
    *,
    private: bool = False,
    token: str | None = None,
    endpoint: str | None = None,
    progress: Progress | None = None,
) -> str:
    """Creates `repo` (user/name) if need be, uploads the model in `folder` in one commit, and gives the address.

    Weights of an earlier push that are not overwritten are deleted in the same commit, or they could be loaded instead.
    Without `token` the client's is used: the environment's HF_TOKEN, then `hf auth login`. `progress` gets
    ("upload REPO", bytes, bytes of all files) after every file.

    Raises: UsageError when `folder` is no model or `repo` no name; StitchError when the token or the network fail.
    """
    if not REPO_NAME.fullmatch(repo):
        raise UsageError(f"a repository is named user/name; got {repo!r}.")
    files = _publishable(Path(folder))
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    token = _token(token)
    if not token:
        raise StitchError("pushing needs a Hub token and there is none: run `hf auth login`, or set HF_TOKEN.")
    sizes = {name: file.stat().st_size for name, file in files.items()}
    with _one_line(repo, token, "no network: the Hub cannot be reached"), _quiet_upload(endpoint):
        api = HfApi(endpoint=endpoint, token=token, library_name="stitch")
        url = api.create_repo(repo, private=private, exist_ok=True)
        additions = [CommitOperationAdd(name, str(file)) for name, file in files.items()]
        done = 0
        for addition in additions:
            api.preupload_lfs_files(repo, [addition], free_memory=False)
            done += sizes[addition.path_in_repo]
            if progress:
                progress(f"upload {repo}", done, sum(sizes.values()))
        stale = [name for name in api.list_repo_files(repo) if _is_weights(name) and name not in files]
        deletions = [CommitOperationDelete(name) for name in stale]
        api.create_commit(repo, [*deletions, *additions], commit_message="Upload with stitch")
    return str(url)


def _publishable(folder: Path) -> dict[str, Path]:
    """Files of a model folder by their name in the repository. Hidden ones and pickles stay at home."""
    files = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix not in PICKLES
    }
    files = {name: path for name, path in files.items() if not any(part.startswith(".") for part in name.split("/"))}
    if "config.json" not in files or not any(_is_weights(name) for name in files):
        raise UsageError(
            f"a folder to push must hold a model (config.json, model.safetensors); {folder} does not: check the path."
        )
    return files


def _is_weights(name: str) -> bool:
    return bool(re.fullmatch(r"model[^/]*\.safetensors(\.index\.json)?", name))


def _token(given: str | None) -> str | None:
    """`given`, else what the client finds in the environment and in its own files."""
    from huggingface_hub import get_token

    try:
        token = (get_token() if given is None else given) or None
    except Exception as error:
        raise StitchError(f"the Hub token cannot be read ({type(error).__name__}): run `hf auth login`.") from None
    if token and not re.fullmatch(r"[!-~]+", token):  # the HTTP client would quote it in its complaint
        raise StitchError("the Hub token holds spaces or other characters that no token has: copy it again.")
    return token


@contextmanager
def _quiet_upload(endpoint: str | None) -> Iterator[None]:
    """No bars of the client's own, and plain HTTP to endpoints not known to speak Xet: the client does not ask them."""
    from huggingface_hub import constants, utils

    xet_disabled, bars_disabled = constants.HF_HUB_DISABLE_XET, utils.are_progress_bars_disabled()
    if (endpoint or constants.ENDPOINT).rstrip("/") not in OFFERS_XET:
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
    """A progress bar for the client that draws nothing and tells `progress` how many bytes are on disk."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        def __init__(self, *args, **kwargs):
            self.counts_bytes = kwargs.get("name") == "huggingface_hub.snapshot_download"
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: int | float | None = 1) -> None:
            with self.get_lock():  # several files arrive at once
                self.n += n or 0
            if progress and self.counts_bytes:
                progress(stage, int(self.n), int(self.total or 0))

    return Bar


# Failures


@contextmanager
def _one_line(repo: str, token: str | None, unreachable: str) -> Iterator[None]:
    """Turns every exception of the client into a StitchError of one line without `token`.

    `unreachable` says what cannot be had without network.
    """
    try:
        yield
    except StitchError:
        raise
    except Exception as error:
        # `from None`: the client's text may repeat what a server said, and a server may repeat the token.
        raise _explain(error, repo, token or "", unreachable) from None


def _explain(error: Exception, repo: str, token: str, unreachable: str) -> StitchError:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    causes = list(_causes(error))
    answers = [cause.response for cause in causes if isinstance(cause, HfHubHTTPError) and cause.response is not None]
    if any(isinstance(cause, HFValidationError) for cause in causes):
        return UsageError(f"not a name that a Hub repository can have: {repo!r}.")
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in causes):
        return StitchError(f"{unreachable}; HF_HUB_OFFLINE is set: unset it.")
    if answers and answers[0].status_code != 400:
        return _refusal(answers[0].status_code, answers[0].headers, repo, token)
    # Whatever the HTTP library raises on its own account means that no answer came.
    silent = any(
        isinstance(cause, LocalEntryNotFoundError) or _package(cause) in ("httpx", "httpx2", "httpcore")
        for cause in causes
    )
    if silent and not answers:
        return StitchError(f"{unreachable}; check the connection.")
    return StitchError(
        f"the Hub or its client cannot do that with {repo} ({type(error).__name__}: {_plain(str(error), token)})."
    )


def _refusal(status: int, headers, repo: str, token: str) -> StitchError:
    code, said = headers.get("X-Error-Code"), _plain(headers.get("X-Error-Message") or "", token)
    if status == 401 and token:
        return StitchError(
            "the Hub refused the token: make a new one at huggingface.co/settings/tokens, then `hf auth login`."
        )
    if code == "GatedRepo":
        return StitchError(
            f"{repo} is gated: accept its terms on its page on the Hub, and log in with `hf auth login`."
        )
    if code == "RevisionNotFound":
        return StitchError(f"{repo} is on the Hub, but the revision asked for is not: check what follows the @.")
    if status in (401, 404):
        return StitchError(
            f"{repo} is neither a local folder nor on the Hub, or it is private: check the name, or `hf auth login`."
        )
    if status == 403:
        return StitchError(
            f"the token may not do that to {repo} ({said or 'forbidden'}): use one with write permission."
        )
    return StitchError(f"the Hub answered {status} for {repo} ({said or 'no reason given'}): try again later.")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _package(error: BaseException) -> str:
    return type(error).__module__.split(".")[0]


def _plain(text: str, token: str) -> str:
    """`text` in one short line, without the token."""
    text = text.replace(token, "…") if token else text
    return " ".join(text.split())[:200]
