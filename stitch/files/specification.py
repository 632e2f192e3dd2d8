"""What a user writes in JSON or YAML, read within limits: size, UTF-8, depth, no key twice, no tags, finite numbers.

What the values should be is for a schema to say (`stitch/files/schema.py`). Each failure is a UsageError that names the
file and the place in it.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stitch.errors import UsageError

MOST_BYTES = 1 << 20  # of a file that a person writes
MOST_YAML = 100_000  # bytes: the reader of YAML takes a second for them
MOST_REPORT = 64 << 20  # of what this package wrote, which a person may have edited
MOST_DATA = 256 << 20  # of a .jsonl file, or a matrix
DEEPEST = 32  # lists and objects inside each other; what is read back here has at most ten
MOST_VALUES = 100_000  # in YAML, where an alias counts as what it stands for
MOST_DIGITS = 18  # of a whole number, so that it fits 64 bits
MOST_FAULTS = 5  # in one message
SHOWN = 60  # characters of a wrong value in a message

SURROGATE = re.compile("[\ud800-\udfff]")  # half a character: JSON can say it, UTF-8 cannot
CORE = "tag:yaml.org,2002:"
PLAIN = {f"{CORE}{name}" for name in ("map", "seq", "str", "int", "float", "bool", "null")}


class _Fault(ValueError):
    pass


def read_text(path: Path, role: str, most: int = MOST_BYTES) -> str:
    """The text of a file in UTF-8; `role` names it in errors, as in "the program".

    Raises: UsageError when there is no such file, or when it cannot be read, is larger than `most` bytes or is not UTF-8.
    """
    if not path.is_file():
        raise UsageError(f"{role} must be a file; {f'{path} is a folder' if path.is_dir() else f'there is no {path}'}.")
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise UsageError(f"{role} must be a file that can be read; {path}: {error.strerror}.") from None
    if len(content) > most:
        raise UsageError(f"{role} may have {most:,} bytes; {path} has more: take another file.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{role} must be text in UTF-8; byte {error.start:,} of {path} is not: save it as UTF-8."
        ) from None


def read_json(path: Path, role: str, most: int = MOST_BYTES) -> Any:
    """The content of a JSON file. Raises: UsageError, as `read_text` and `json_of`."""
    return json_of(read_text(path, role, most), str(path))


def read_yaml(path: Path, role: str) -> Any:
    """The content of a YAML file. Raises: UsageError, as `read_text` and `yaml_of`."""
    return yaml_of(read_text(path, role, MOST_YAML), str(path))


def json_of(text: str, where: str) -> Any:
    """What JSON says. `where` it stands begins the error's message.

    Raises: UsageError for anything else, a key twice in an object, numbers that are not finite or have more than 64 bits, and
    what is nested too deeply.
    """
    with _told(where):
        try:
            found = json.loads(
                text, object_pairs_hook=once, parse_constant=_finite, parse_float=_finite, parse_int=_whole
            )
        except json.JSONDecodeError as error:
            raise _Fault(f"must be JSON; line {error.lineno}, column {error.colno}: {error.msg}") from None
        _check(found, most=len(text) + 1)
        return found


def yaml_of(text: str, where: str) -> Any:
    """What YAML says: text, numbers, true, false, null, lists and objects, whose keys are text.

    Raises: UsageError for anything else, as `json_of`; also for tags, merged keys, dates, and aliases that stand for too much.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_object(self, node: Any, deep: bool = False) -> Any:
            if node.tag not in PLAIN:
                raise _at(node, f"`{node.tag.removeprefix(CORE)}` is not read here; write text in quotation marks")
            try:
                return super().construct_object(node, deep)
            except _Fault:
                raise
            except ValueError:  # such as !!int a
                raise _at(node, f"must be a number of up to {MOST_DIGITS} digits; got {shown(node.value)}") from None

        def construct_mapping(self, node: Any, deep: bool = False) -> dict:
            names = set()
            for key, _ in node.value:
                if key.tag != f"{CORE}str":
                    raise _at(key, f"a key must be text; got {shown(key.value)}: put it in quotation marks")
                if key.value in names:
                    raise _at(key, f"has {shown(key.value)} twice; remove one")
                names.add(key.value)
            return super().construct_mapping(node, deep)

    with _told(where):
        try:
            found = Loader(text).get_single_data()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
            raise _Fault(f"must be YAML; {place}{error.problem or error.context}") from None
        except yaml.YAMLError as error:
            raise _Fault(f"must be YAML; {' '.join(str(error).split())}") from None
        _check(found, most=MOST_VALUES)
        return found


@contextmanager
def _told(where: str) -> Iterator[None]:
    """Raises: UsageError, which begins with `where`, for what is wrong inside."""
    try:
        yield
    except _Fault as fault:
        raise UsageError(f"{where} {fault}.") from None
    except RecursionError:
        raise UsageError(f"{where} {_too_deep()}.") from None


def shown(value: Any) -> str:
    """A value in a message: as Python writes it, cut to `SHOWN` characters."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


def faulty(where: str, faults: Sequence[str]) -> UsageError:
    """The error that lists faults, the first few of them."""
    more = f"; and {len(faults) - MOST_FAULTS:,} more" if len(faults) > MOST_FAULTS else ""
    return UsageError(f"{where} must be corrected: {'; '.join(faults[:MOST_FAULTS])}{more}.")


def _at(node: Any, fault: str) -> _Fault:
    mark = node.start_mark
    return _Fault(f"must be plain YAML; line {mark.line + 1}, column {mark.column + 1}: {fault}")


def once(pairs: list[tuple[str, Any]]) -> dict:
    """The object of these keys and values, for `json.loads`. Raises: ValueError for a key that is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise _Fault(f"may have each key once in an object; it has {shown(twice)} twice: remove one")
    return found


def _finite(text: str) -> float:
    if text.strip("-") in ("NaN", "Infinity") or not math.isfinite(value := float(text)):
        raise _Fault(f"must hold finite numbers; got {text[:SHOWN]}")
    return value


def _whole(text: str) -> int:
    if len(text.strip("-")) > MOST_DIGITS:
        raise _Fault(f"may hold whole numbers of {MOST_DIGITS} digits; got {text[:SHOWN]}")
    return int(text)


def _too_deep() -> str:
    return f"may be nested {DEEPEST} deep; it goes deeper"


def _check(found: Any, most: int) -> None:
    """Raises: _Fault for what is nested too deeply, is more than `most` values, or cannot be a number or text in UTF-8.

    Level by level, so that neither depth nor a list that contains itself takes it far.
    """
    level, count = [found], 0
    for _ in range(DEEPEST):
        count += len(level)
        if count > most:
            raise _Fault(f"may hold {most:,} values; its aliases stand for more")
        for one in level:
            if isinstance(one, int) and abs(one) >= 10**MOST_DIGITS:
                raise _Fault(f"may hold whole numbers of {MOST_DIGITS} digits; it has one with more")
            if isinstance(one, float) and not math.isfinite(one):
                raise _Fault(f"must hold finite numbers; got {one}")
            for text in one if isinstance(one, dict) else (one,) if isinstance(one, str) else ():
                if not text.isascii() and SURROGATE.search(text):
                    raise _Fault(f"must hold text that UTF-8 can encode; got {shown(text)}")
        level = [
            inside
            for one in level
            if isinstance(one, (list, dict))
            for inside in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return
    raise _Fault(_too_deep())
