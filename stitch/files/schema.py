"""Schemas of what users write, and all faults of a value in one line. Imports pydantic, so import this where it is used."""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints, TypeAdapter, ValidationError

from stitch.files.specification import MOST_DATA, faulty, json_of, read_text, shown


def _printed(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must be text that can be printed")
    return text


Text = Annotated[str, StringConstraints(min_length=1, max_length=1_000), AfterValidator(_printed)]

# What pydantic calls a fault, in the words of a message. The others have pydantic's own.
WORDS = {
    "missing": "is missing",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "greater_than_equal": "must be at least {ge:,}",
    "greater_than": "must be above {gt:,}",
    "less_than": "must be below {lt:,}",
    "less_than_equal": "must be at most {le:,}",
    "string_too_short": "must not be empty",
    "string_too_long": "may have {max_length:,} characters",
    "too_short": "must have at least {min_length:,}",
    "too_long": "may have {max_length:,}",
    "literal_error": "must be {expected}",
}
OBJECTS = ("dict_type", "model_type")


class Schema(BaseModel):
    """Values of exactly these types, and no others beside them."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


class Loose(BaseModel):
    """Part of a report: of these types, beside what else it has."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, hide_input_in_errors=True)


Checked = TypeVar("Checked")


def checked(schema: type[Checked], found: Any, where: str) -> Checked:
    """`found` as the schema has it. `where` it stands begins the error's message.

    Raises: UsageError that lists the faults.
    """
    try:
        return TypeAdapter(schema).validate_python(found)
    except ValidationError as error:
        raise faulty(where, faults_of(error, schema)) from None


def checked_lines(schema: type[Checked], path: Path, role: str) -> list[tuple[int, Checked]]:
    """The lines of a .jsonl file, each with its number; empty ones are left out. `role` names the file in errors.

    Raises: UsageError for a file that cannot be read, and for all lines that are not as the schema has it.
    """
    found, faults, adapter = [], [], TypeAdapter(schema)
    # str.splitlines would also split at characters that may be inside a string.
    for number, line in enumerate(read_text(path, role, MOST_DATA).split("\n"), 1):
        if line.strip():
            entry = json_of(line, f"line {number} of {path}")
            try:
                found.append((number, adapter.validate_python(entry)))
            except ValidationError as error:
                faults += faults_of(error, schema, f"line {number}")
    if faults:
        raise faulty(str(path), faults)
    return found


def faults_of(error: ValidationError, schema: Any, under: str = "") -> list[str]:
    """Each fault with its place; `under`, such as line 3, is where all of it stands."""
    return [_fault(one, schema, under) for one in error.errors(include_url=False)]


def _fault(one: Any, schema: Any, under: str) -> str:
    loc, kind, context = one["loc"], one["type"], one.get("ctx", {})
    if kind == "extra_forbidden":
        keys = _keys(schema, loc[:-1])
        close = get_close_matches(str(loc[-1]), keys, n=1)
        others = f"did you mean {close[0]}?" if close else f"its keys are {', '.join(keys)}"
        return f"{place(loc[:-1], under)} has {shown(loc[-1])} ({others})"
    if kind == "missing":
        return f"{place(loc[:-1], under)} needs {shown(loc[-1])}"
    if kind == "value_error":
        words = str(context["error"])
    elif kind in WORDS:
        words = WORDS[kind].format(**context)
    else:
        words = one["msg"].replace("Input should", "must").replace("String should", "must")
    if kind in OBJECTS and (keys := _keys(schema, loc)):
        words += f" with {', '.join(keys)}"
    return f"{place(loc, under)} {words}, got {shown(one['input'])}"


def place(loc: Sequence[str | int], under: str = "") -> str:
    """parts[1].to for ("parts", 1, "to"); "it" for the whole."""
    text = ""
    for one in loc:
        named = f"[{one}]" if isinstance(one, int) else one if one.isidentifier() else shown(one)
        text += named if isinstance(one, int) or not text else f".{named}"
    return ": ".join(filter(None, (under, text))) or "it"


def _keys(schema: Any, loc: Sequence[str | int]) -> list[str]:
    """The keys that the object at this place may have."""
    for one in loc:
        fields = [
            field for model in _models(schema) for name, field in model.model_fields.items() if one == _key(name, field)
        ]
        schema = fields[0].annotation if fields else schema
    return [_key(name, field) for model in _models(schema) for name, field in model.model_fields.items()]


def _key(name: str, field: Any) -> str:
    return field.alias or name


def _models(schema: Any) -> Iterator[type[BaseModel]]:
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        yield schema
    for inside in getattr(schema, "__args__", ()):
        yield from _models(inside)
