"""Reads specifications from JSON files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stitch.errors import StitchError, UsageError


def read_json(path: Path, role: str, object_pairs_hook: Callable[[list], Any] | None = None) -> Any:
    """The content of a file; `role` names it in errors, as in "the program".

    Raises: UsageError when there is no such file, StitchError when it is not JSON.
    """
    if not path.is_file():
        raise UsageError(f"{role} must be a JSON file; there is no {path}.")
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=object_pairs_hook)
    except ValueError as error:
        raise StitchError(f"{path} must be JSON; {error}.") from error
