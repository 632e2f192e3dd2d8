"""JSON files that others give: a whole object or an error, and what a declared schema says against one."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae.errors import SAEError
from sae.messages import printable

if TYPE_CHECKING:
    from pydantic import BaseModel

LARGEST = 2**24  # bytes; no configuration is as long
SHOWN = 40  # characters of a value in a message


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in `file`. Raises: FileNotFoundError; ValueError, which says in a few words why it cannot be read."""
    try:
        with file.open("rb") as stream:
            text = stream.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise ValueError(f"it has more than {LARGEST >> 20} MB")
        found = json.loads(text)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(error.strerror or type(error).__name__) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno}, column {error.colno}: {error.msg}") from None
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    if not isinstance(found, dict):
        raise ValueError(f"got {shown(found)}")
    return found


def read_config(file: Path) -> dict[str, Any]:
    """The JSON object in a file that describes an SAE. Raises: SAEError where it cannot be read."""
    try:
        return read_object(file)
    except ValueError as error:
        raise SAEError(f"{file} must be a JSON object; {error}. Save or download the SAE again.") from None


def faults(schema: "type[BaseModel]", values: Mapping[str, Any]) -> list[str]:
    """Everything that `schema` says against `values`, by the path of each key; nothing for values that fit."""
    from pydantic import ValidationError

    try:
        schema.model_validate(values)
    except ValidationError as error:
        return [_fault(one) for one in error.errors(include_url=False)]
    return []


def _fault(error: Any) -> str:
    says = printable(" ".join(error["msg"].removeprefix("Value error, ").split()))[:160]
    got = "" if error["type"] == "missing" else f", got {shown(error['input'])}"
    return f"{path_of(error['loc'])}: {says[:1].lower()}{says[1:]}{got}"


def path_of(keys: Sequence[str | int]) -> str:
    """The path to a value, as a.b.0.c."""
    return ".".join(key if isinstance(key, str) and key.isidentifier() else shown(key) for key in keys)


def shown(value: Any) -> str:
    """A value in a message: short, on one line, and without characters that a terminal obeys."""
    text = (
        ascii(value)
        if not isinstance(value, (dict, list))
        else f"{'an object' if isinstance(value, dict) else 'a list'}"
    )
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"
