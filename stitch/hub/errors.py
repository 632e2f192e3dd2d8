"""Failures of the Hugging Face Hub and its client, each turned into one line that says what to do.

The access token must not leak: the client's exceptions, whose texts may repeat what a server said, are neither chained to ours
nor quoted without removing the token.
"""

import re
from collections.abc import Callable
from typing import Any, TypeVar

from stitch.errors import StitchError, UsageError
from stitch.hub.access import access_token
from stitch.hub.patience import TooLongAWait, answer, causes, of_http, patiently

Result = TypeVar("Result")

FULL = re.compile(r"quota|storage|too large|limit (?:reached|exceeded)|exceeds? .*limit", re.IGNORECASE)


def asked(attempt: Callable[[], Result], repo: str, unreachable: str, token: str | None = None) -> Result:
    """The result of `attempt`, a call of the client, tried again after failures that pass.

    `unreachable` is the message for a missing network: what needs the Hub. Without `token` it is the client's own.
    Raises: StitchError of one line without the token, for every exception.
    """
    token = access_token(token)
    try:
        return patiently(attempt)
    except StitchError:
        raise
    except Exception as error:
        told = explanation(error, repo, unreachable, token)
        if told is None:
            told = StitchError(
                f"the Hub or its client failed on {repo} ({type(error).__name__}: {_plain(str(error), token)}): "
                "try again later."
            )
        raise told from None


def explanation(error: Exception, repo: str, unreachable: str, token: str | None) -> StitchError | None:
    """The StitchError for an exception, judged by the whole chain of its causes; None where the Hub is not the reason."""
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    reasons = list(causes(error))
    if any(isinstance(reason, HFValidationError) for reason in reasons):
        return UsageError(f"a Hub repository is named user/name; got {repo!r}.")
    if any(isinstance(reason, OfflineModeIsEnabled) for reason in reasons):
        return StitchError(f"{unreachable}; HF_HUB_OFFLINE is set: unset it.")
    if (long := next((reason for reason in reasons if isinstance(reason, TooLongAWait)), None)) is not None:
        return StitchError(
            f"the Hub answered {long.status} for {repo} and asks to wait {long.seconds:,.0f} seconds: run this again after that."
        )
    if (found := answer(error)) is not None:
        return _refusal(found.status_code, found.headers, repo, token) if found.status_code != 400 else None
    if any(type(reason).__name__.endswith("Timeout") and of_http(reason) for reason in reasons):
        return StitchError(f"the Hub did not answer in time for {repo}: check the connection, or try again later.")
    if any(
        type(reason).__name__ == "ConnectError" or isinstance(reason, LocalEntryNotFoundError) for reason in reasons
    ):
        return StitchError(f"{unreachable}; check the connection.")
    if any(of_http(reason) for reason in reasons):
        return StitchError(f"the connection to the Hub broke off at {repo}: check the connection, or try again later.")
    return None


def _refusal(status: int, headers: Any, repo: str, token: str | None) -> StitchError:
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
    if code == "EntryNotFound":
        return StitchError(
            f"{repo} is on the Hub, but a file asked for is not in it: check the name, or another revision."
        )
    if status in (401, 404):
        return StitchError(
            f"{repo} is neither a local folder nor on the Hub, or it is private: check the name, or `hf auth login`."
        )
    if status in (402, 413, 507) or (status == 403 and FULL.search(reason)):
        return StitchError(
            f"the Hub has no room for {repo} ({reason or status}): delete what is not needed, or ask for more storage."
        )
    if status == 403:
        return StitchError(
            f"the token has no permission for that on {repo} ({reason or 'forbidden'}): use one that may read it, and "
            "write it to push."
        )
    if status == 429:
        return StitchError(
            f"the Hub still answers 429 for {repo} ({reason or 'too many requests'}): try again in five minutes, or log in "
            "with `hf auth login`, which allows more."
        )
    if status in (409, 412):
        return StitchError(
            f"somebody else is changing {repo} ({status}: {reason or 'no reason given'}): look at its last commit, and try again."
        )
    return StitchError(f"the Hub answered {status} for {repo} ({reason or 'no reason given'}): try again later.")


def _plain(text: str, token: str | None) -> str:
    """`text` on one line of at most 200 characters, without the token."""
    text = text.replace(token, "…") if token else text
    return " ".join(text.split())[:200]
