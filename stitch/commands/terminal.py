"""What commands print: a page for people, or one JSON report."""

import json
from typing import Any

from stitch.api.result import Result


def print_json(report: Any) -> None:
    print(json.dumps(report, indent=2))


def print_result(result: Result, as_json: bool) -> None:
    """The report as JSON or the page of a result."""
    if as_json:
        print_json(result.report)
    else:
        result.page.print()
