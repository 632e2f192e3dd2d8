"""How long to wait for the Hugging Face Hub, and which of its failures to try again.

The client tries again by itself where it lists, downloads and uploads files. Where it creates a repository, asks for a revision,
checks a card or commits, it gives up at the first failure. It waits without end for an answer, and as long as the Hub says.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

Result = TypeVar("Result")
LOG = logging.getLogger(__name__)

ATTEMPTS = 5
PATIENCE = 120.0  # seconds after the first failure; then no new attempt begins
SILENCE = 60.0  # seconds without a byte from the Hub, after which a request has failed
LONGEST_WAIT = 300.0  # seconds that the Hub may ask to wait: the window of its rate limits
# Failures that pass: the server is busy or down (408, 429, 5xx), or somebody else changed the repository (409, 412).
PASSING = {408, 409, 412, 429, 500, 502, 503, 504}
BUSY = "another conflicting operation is in progress"  # the client would ask again at once, for ever


class TooLongAWait(Exception):
    """The Hub answered `status` and asks to wait more than `LONGEST_WAIT` seconds."""

    def __init__(self, status: int, seconds: float):
        super().__init__(f"{status}, wait {seconds:.0f} s")
        self.status, self.seconds = status, seconds


def patiently(attempt: Callable[[], Result]) -> Result:
    """The result of `attempt`, which is called again after a failure that passes. It must be safe to call twice.

    Waits 1, 2, 4 and 8 seconds, or as long as the Hub says. Raises: what the last attempt raised.
    """
    began = None
    for number in range(ATTEMPTS):
        try:
            with bounded():
                return attempt()
        except Exception as error:
            began = time.monotonic() if began is None else began
            spent = time.monotonic() - began
            if number == ATTEMPTS - 1 or spent > PATIENCE or not _passes(error):
                raise
            asked = _asked_to_wait(error)
            wait = 2.0**number if asked is None else asked
        LOG.warning("The Hub could not do it: trying again in %.0f s (%d of %d).", wait, number + 2, ATTEMPTS)
        time.sleep(wait)
    raise AssertionError


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The exception and those it was raised from, each once."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def answer(error: BaseException) -> Any:
    """The Hub's answer that the client raised `error` for; None where there was none."""
    from huggingface_hub.errors import HfHubHTTPError

    found = [cause.response for cause in causes(error) if isinstance(cause, HfHubHTTPError)]
    return next((response for response in found if response is not None), None)


def of_http(error: BaseException) -> bool:
    """Whether an exception was raised by the HTTP library itself: no answer came, or it broke off."""
    return type(error).__module__.split(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2")


def _passes(error: BaseException) -> bool:
    if (found := answer(error)) is not None:
        return found.status_code in PASSING
    reasons = list(causes(error))
    if any(type(reason).__name__ in ("ConnectError", "ProxyError") for reason in reasons):  # nothing is there
        return False
    # The client parses some answers before it looks at their status: a gateway's page of HTML is no JSON.
    return any(of_http(reason) or isinstance(reason, json.JSONDecodeError) for reason in reasons)


def _asked_to_wait(error: BaseException) -> float | None:
    """The seconds that the Hub asks to wait in the answer that `error` is about."""
    found = answer(error)
    return None if found is None else _seconds(found)


def _seconds(response: Any) -> float | None:
    from huggingface_hub.utils import parse_ratelimit_headers

    limits = parse_ratelimit_headers(response.headers)
    if response.status_code == 429 and limits is not None and limits.remaining == 0:
        return float(limits.reset_in_seconds)
    asked = response.headers.get("Retry-After", "").strip()
    return float(asked) if asked.isdigit() else None


@contextmanager
def bounded() -> Iterator[None]:
    """Inside, the client's requests end: after `SILENCE`, and at once where the Hub asks to wait longer than `LONGEST_WAIT`.

    Of what the client says about its waiting, the lines with addresses are left out: those of storage are signed.
    """
    from huggingface_hub.utils import get_session

    handlers = logging.getLogger("huggingface_hub").handlers
    for handler in handlers:
        handler.addFilter(_has_no_address)
    hooks = get_session().event_hooks
    added = {"request": _give_up_in_time, "response": _wait_no_longer}
    for kind, hook in added.items():
        hooks[kind].append(hook)
    try:
        yield
    finally:
        for kind, hook in added.items():
            hooks[kind].remove(hook)
        for handler in handlers:
            handler.removeFilter(_has_no_address)


def _has_no_address(record: logging.LogRecord) -> bool:
    return "://" not in record.getMessage()


def _give_up_in_time(request: Any) -> None:
    limits = request.extensions.get("timeout") or {}
    request.extensions["timeout"] = {
        kind: SILENCE if limits.get(kind) is None else limits[kind] for kind in ("connect", "read", "write", "pool")
    }


def _wait_no_longer(response: Any) -> None:
    if response.status_code in PASSING and (asked := _seconds(response)) is not None and asked > LONGEST_WAIT:
        raise TooLongAWait(response.status_code, asked)
    if response.status_code == 409:
        from huggingface_hub.utils import hf_raise_for_status

        response.read()
        if BUSY in response.text:
            hf_raise_for_status(response)
