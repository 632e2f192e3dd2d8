"""Failures of the Hugging Face Hub and its client, each turned into one line that says what to do.

The access token must not leak: the client's exceptions, whose texts may repeat what a server said, are neither chained to ours
nor quoted without removing the token.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from stitch.errors import StitchError, UsageError


@contextmanager
def explained(repo: str, token: str | None, unreachable: str) -> Iterator[None]:
    """Turns every exception of the client into a StitchError of one line without `token`.

    `unreachable` is the message for a missing network: what needs the Hub.
    """
    try:
        yield
    except StitchError:
        raise
    except Exception as error:
        raise _explain(error, repo, token or "", unreachable) from None


def _explain(error: Exception, repo: str, token: str, unreachable: str) -> StitchError:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    """The StitchError for an exception of the client, judged by the whole chain of its causes."""
    causes = list(_causes(error))
    answers = [cause.response for cause in causes if isinstance(cause, HfHubHTTPError) and cause.response is not None]
    if any(isinstance(cause, HFValidationError) for cause in causes):
        return UsageError(f"a Hub repository is named user/name; got {repo!r}.")
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in causes):
        return StitchError(f"{unreachable}; HF_HUB_OFFLINE is set: unset it.")
    if answers and answers[0].status_code != 400:
        return _refusal(answers[0].status_code, answers[0].headers, repo, token)
    # An exception raised by the HTTP library itself means that no answer came.
    no_answer = any(
        isinstance(cause, LocalEntryNotFoundError) or _package(cause) in ("httpx", "httpx2", "httpcore")
        for cause in causes
    )
    if no_answer and not answers:
        return StitchError(f"{unreachable}; check the connection.")
    return StitchError(
        f"the Hub or its client failed on {repo} ({type(error).__name__}: {_plain(str(error), token)}): try again later."
    )


def _refusal(status: int, headers, repo: str, token: str) -> StitchError:
    """The StitchError for an HTTP answer other than success."""
    code, reason = headers.get("X-Error-Code"), _plain(headers.get("X-Error-Message") or "", token)
    if code == "GatedRepo":
        lacking = "the account of this token has no access" if token else "no token was sent"
        return StitchError(
            f"{repo} is gated, and {lacking}: accept its terms on its page on the Hub, and log in with `hf auth login`."
        )
    if status == 401 and token:
        return StitchError(
            "the Hub refused the token: make a new one at huggingface.co/settings/tokens, then `hf auth login`."
        )
    if code == "RevisionNotFound":
        return StitchError(f"{repo} is on the Hub, but the revision asked for is not: check what follows the @.")
    if status in (401, 404):
        return StitchError(
            f"{repo} is neither a local folder nor on the Hub, or it is private: check the name, or `hf auth login`."
        )
    if status == 403:
        return StitchError(
            f"the token has no permission for that on {repo} ({reason or 'forbidden'}): use one that may read it, and "
            "write it to push."
        )
    return StitchError(f"the Hub answered {status} for {repo} ({reason or 'no reason given'}): try again later.")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The exception and those it was raised from, each once."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _package(error: BaseException) -> str:
    """The package that defines the exception's class."""
    return type(error).__module__.split(".")[0]


def _plain(text: str, token: str) -> str:
    """`text` on one line of at most 200 characters, without the token."""
    text = text.replace(token, "…") if token else text
    return " ".join(text.split())[:200]
