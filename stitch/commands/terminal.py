"""What commands print: a page for people, or one JSON report."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import stitch
from stitch.api.result import Result
from stitch.errors import UsageError
from stitch.files.finite import finite


def or_estimate(function: Callable[..., Result], dry_run: bool) -> Callable[..., Result]:
    """The function, or for a dry run what estimates it."""
    return partial(stitch.estimate, function) if dry_run else function


def require_out(out: Path | None, dry_run: bool) -> None:
    """Raises: UsageError where a folder will be written, and none was given."""
    if out is None and not dry_run:
        raise UsageError("out must be a folder to write; only `dry_run` needs none.")


def print_json(report: Any) -> None:
    """JSON has no infinities: the ends of an interval over one document are null."""
    print(json.dumps(finite(report), indent=2))


def print_result(result: Result, as_json: bool) -> None:
    """The report as JSON or the page of a result."""
    if as_json:
        print_json(result.report)
    else:
        result.page.print()
