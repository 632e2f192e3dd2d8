"""Documents in JSON or YAML with one to three things wrong, and rules that a reader of them must follow."""

import copy
import json
import math
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

DEEP = 5_000


class Raw(str):
    """Text that stands in a file as it is, whatever it means."""


class Pairs(list):
    """An object as a list of keys and values, so that a key may be there twice."""


def written(value: Any) -> str:
    """As JSON, which is YAML as well."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        value = Pairs(value.items())
    if isinstance(value, Pairs):
        return "{" + ", ".join(f"{json.dumps(str(key))}: {written(one)}" for key, one in value) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(written, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


ESCAPES = "\x1b]0;owned\x07\x1b[31mred\x1b[0m\r\n\x00\x7f\u202e"
INTEGERS = (0, -1, 1, 2, 3, 7, 10**20, -(10**20), 2**31, 2**63, 10**9)
FLOATS = (0.5, 1.0, -0.0, 1e308, 1e-320, math.nan, math.inf, -math.inf)
STRINGS = (
    *("", " ", "0", "1", "-1", "nan", "null", "a" * 20_000, "ü", "\u0301", "\ud7ff", "😀" * 3, ESCAPES),
    *("..", "/", "../x", "/etc/passwd", "[bold]x[/]", "two\nlines"),
)
OTHERS = (None, True, False, [], {}, [[]], [None], [0] * 2_000, {"": None}, {"a": {"a": {}}}, ["a", 1, None])
RAW = (
    *("[" * DEEP + "]" * DEEP, '{"a":' * DEEP + "1" + "}" * DEEP),
    *("9" * 5_000, "-" + "9" * 400, "1e999", "-1E+999", "1."),
    *('"\\ud800"', '"\\u0000"', "nul", "'", "[1,]"),
)
LAUGHS = "[&a [1,1,1,1,1,1,1,1], {}, [*g,*g,*g,*g]]".format(
    ", ".join(f"&{new} [{','.join([f'*{old}'] * 8)}]" for old, new in zip("abcdef", "bcdefg", strict=True))
)
YAML = (
    *("!!python/object/apply:os.system ['true']", "!!python/name:os.system", "!mine 3"),
    *("!!binary aGk=", "!!set {a, b}", "!!float 3", "!!timestamp 2020-01-01"),
    *(
        "&a [*a]",
        "&a {b: *a}",
        "*nowhere",
        "&a 3",
        LAUGHS,
        "{<<: {model: b}, model: a}",
        "{? [a, b] : c}",
        "{1: 2, yes: no}",
    ),
    *"2020-01-01 0x1F 1_000 0o17 190:20:30 yes on ~ .nan .inf -.inf = << 12e03 01".split(),
    "|\n  text",
)


def values(*, yaml: bool, known: Sequence[Any] = ()) -> st.SearchStrategy[Any]:
    """Values that are wrong nearly everywhere. `known` are some that a format has."""
    return st.one_of(
        *([st.sampled_from(known)] if known else []),
        st.sampled_from((*INTEGERS, *FLOATS)),
        st.sampled_from((*STRINGS, *OTHERS)),
        st.sampled_from([Raw(text) for text in (*RAW, *(YAML if yaml else ()))]),
        st.integers(-3, 300),
        st.integers(),
        st.floats(),
        st.text(max_size=12),
        st.lists(st.integers(-2, 20), max_size=5),
    ).map(copy.deepcopy)  # they are put into documents, which are then changed


def places(document: Any, path: tuple = ()) -> list[tuple]:
    """The paths of everything inside a document."""
    found = []
    inside = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    if isinstance(document, Pairs):
        inside = ((number, value) for number, (_, value) in enumerate(document))
    for key, value in inside:
        found += [(*path, key), *places(value, (*path, key))]
    return found


def at(document: Any, path: tuple) -> Any:
    for key in path:
        document = document[key][1] if isinstance(document, Pairs) else document[key]
    return document


def put(document: Any, path: tuple, value: Any) -> None:
    holder = at(document, path[:-1])
    if isinstance(holder, Pairs):
        holder[path[-1]] = (holder[path[-1]][0], value)
    else:
        holder[path[-1]] = value


@st.composite
def changed(
    draw: Any, documents: Sequence[Any], *, yaml: bool = False, names: Sequence[str] = (), known: Sequence[Any] = ()
) -> Any:
    """A valid document with up to three changes. `names` are keys that are known somewhere in the format, `known` values."""
    document = copy.deepcopy(draw(st.sampled_from(list(documents))))
    wrong = values(yaml=yaml, known=known)
    for _ in range(draw(st.integers(0, 3))):
        document = _with_change(draw, document, wrong, names)
    return document


def _with_change(draw: Any, document: Any, wrong: st.SearchStrategy[Any], names: Sequence[str]) -> Any:
    found = places(document)
    if not found or draw(st.integers(0, 19)) == 0:
        return draw(wrong) if draw(st.booleans()) else [document]
    path = draw(st.sampled_from(found))
    holder, key = at(document, path[:-1]), path[-1]
    how = draw(st.sampled_from(("replace", "replace", "replace", "delete", "rename", "add", "repeat", "copy", "wrap")))
    if how == "delete":
        del holder[key]
    elif how in ("rename", "repeat", "add") and isinstance(holder, dict):
        near = st.sampled_from([str(key), f"{key}s", str(key)[:-1], *names, "", "x", ESCAPES])
        name = draw(st.one_of(near, st.text(max_size=8)))
        if how == "rename":
            holder[name] = holder.pop(key)
        elif how == "add":
            holder[name] = draw(wrong)
        else:
            twice = Pairs(holder.items())
            twice.insert(draw(st.integers(0, len(twice))), (key, draw(st.one_of(st.just(holder[key]), wrong))))
            if len(path) == 1:
                return twice
            put(document, path[:-1], twice)
    elif how == "copy":
        put(document, path, copy.deepcopy(at(document, draw(st.sampled_from(found)))))
    elif how == "wrap":
        put(document, path, draw(st.sampled_from([[at(document, path)], {"a": at(document, path)}])))
    else:
        put(document, path, draw(wrong))
    return document


@st.composite
def spoilt(draw: Any, texts: st.SearchStrategy[str]) -> bytes:
    """The bytes of a text, one time in five with something wrong that no document has."""
    content = draw(texts).encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 4)):
        return content
    place = draw(st.integers(0, min(len(content), 4_000)))
    how = draw(st.sampled_from("cut insert replace bom utf-16 empty random before after spaces".split()))
    few = draw(st.binary(max_size=6))
    return {
        "cut": content[:place],
        "insert": content[:place] + few + content[place:],
        "replace": content[:place] + few + content[place + len(few) :],
        "bom": b"\xef\xbb\xbf" + content,
        "utf-16": content.decode("utf-8", "replace").encode("utf-16", "replace"),
        "empty": b"",
        "random": few * 3,
        "before": few + content,
        "after": content + few,
        "spaces": content + b" \n" * 3_000,
    }[how]


def json_files(
    documents: Sequence[Any], names: Sequence[str] = (), known: Sequence[Any] = ()
) -> st.SearchStrategy[bytes]:
    return spoilt(changed(documents, names=names, known=known).map(written))


def yaml_files(documents: Sequence[Any], names: Sequence[str] = ()) -> st.SearchStrategy[bytes]:
    return spoilt(changed(documents, yaml=True, names=names).map(written))


# Rules, in their own words: a reader that accepts what these refuse accepts nonsense.


def strictly(content: bytes) -> Any:
    """JSON in UTF-8, without a key twice in an object and without numbers that are not finite. Raises ValueError."""

    def once(pairs: list[tuple[str, Any]]) -> dict:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a key is there twice")
        return dict(pairs)

    def refused(name: str) -> Any:
        raise ValueError(f"{name} is no number")

    found = json.loads(content.decode("utf-8-sig"), object_pairs_hook=once, parse_constant=refused)
    if not_finite(found):
        raise ValueError("a number is too large for a float")
    return found


def not_finite(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(not_finite, value.values()))
    if isinstance(value, list):
        return any(map(not_finite, value))
    return isinstance(value, float) and not math.isfinite(value)


def whole(value: Any, low: int, high: int | None = None) -> bool:
    """Whether a value is an integer in a range, and no boolean."""
    return type(value) is int and low <= value and (high is None or value <= high)
