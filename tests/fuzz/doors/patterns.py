"""Attention patterns by name and in files (`stitch compile pattern`)."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from fuzz.documents import json_files, strictly
from fuzz.door import Door

LENGTH = 4
DOCUMENTS = (
    [0, 0, 1, 3],
    [[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.2, 0.3, 0.5, 0], [0.1, 0.2, 0.3, 0.4]],
    [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0]],
)


def ready() -> None:
    import stitch.synthesis.patterns.pattern  # noqa: F401


def read_file(path: Path) -> Any:
    from stitch.synthesis.patterns.pattern import read_pattern

    return read_pattern(str(path), LENGTH)


def causal(rows: Any, pattern: Any) -> bool:
    """Targets up to the query's own position, or rows of attention that sum to 1 and see nothing later."""
    if rows.shape == (LENGTH,):
        whole = bool((rows == np.floor(rows)).all())
        return whole and all(0 <= rows[i] <= i for i in range(LENGTH)) and pattern.targets.tolist() == rows.tolist()
    return (
        rows.shape == (LENGTH, LENGTH)
        and bool(np.isfinite(rows).all() and (rows >= 0).all())
        and bool(np.allclose(rows.sum(1), 1, atol=2e-4) and np.allclose(np.triu(rows, 1), 0, atol=2e-6))
        and (pattern.matrix is None or bool(np.allclose(pattern.matrix.numpy(), rows, atol=1e-4)))
    )


def json_sound(content: bytes, pattern: Any) -> bool:
    found = strictly(content)
    cells = [cell for row in found for cell in (row if isinstance(row, list) else [row])]
    return all(type(cell) in (int, float) for cell in cells) and causal(np.array(found, dtype=float), pattern)


def npy_sound(content: bytes, pattern: Any) -> bool:
    return causal(np.load(io.BytesIO(content), allow_pickle=False).astype(float), pattern)


@st.composite
def npy_files(draw: Any) -> bytes:
    array = np.array(draw(st.sampled_from(DOCUMENTS)))
    array = array.astype(draw(st.sampled_from("f8 f4 f2 i8 i4 u1 ? c16 U3 S2 >f8 M8[s] O".split())))
    if draw(st.booleans()) and array.dtype.kind == "f":
        array.flat[draw(st.integers(0, array.size - 1))] = draw(st.sampled_from((np.nan, np.inf, -1.0, 0.3)))
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    content = file.getvalue()
    match draw(st.integers(0, 5)):
        case 0:  # a header that promises much more
            shape = draw(
                st.sampled_from((b"(99999999999,)", b"(4, 400000000000)", b"(-4,)", b"(4,4,4)", b"()", b"(0,)", b"[4]"))
            )
            content = re.sub(rb"\([\d, ]*\)(?=[^)]*\})", shape, content)
        case 1:
            content = content[: draw(st.integers(0, len(content)))]
        case 2:
            place = draw(st.integers(0, len(content)))
            content = content[:place] + draw(st.binary(max_size=8)) + content[place:]
        case 3:
            content = draw(st.binary(max_size=40))
    return content


def read_name(case: tuple[str, int]) -> Any:
    from stitch.synthesis.patterns.pattern import read_pattern

    return read_pattern(case[0], case[1])


def name_sound(case: tuple[str, int], pattern: Any) -> bool:
    """Every query sees a token that is not later than itself, where the name says."""
    name, _, number = case[0].partition(":")
    count = int(number) if number else 0
    at = {
        "previous": lambda i: max(i - 1, 0),
        "self": lambda i: i,
        "first": lambda i: 0,
        "parent": lambda i: i // 2,
        "offset": lambda i: max(i - count, 0),
        "block": lambda i: i - i % count,
    }
    if bool(number) != (name in ("offset", "block", "random")):
        return False
    if name == "random":
        rows = pattern.matrix.numpy()
        return 0 < count <= case[1] and bool(np.isfinite(rows).all() and np.allclose(rows.sum(1), 1))
    return pattern.targets.tolist() == [at[name](i) for i in range(case[1])]


NAMES = st.sampled_from("previous self first parent offset block random self:2 offset: : x previous:0".split())
COUNTS = st.sampled_from(
    ("", "0", "1", "3", "9", "-1", "²", "٣", "1e3", str(10**9), str(10**20), "9" * 5_000, "1.5", " 2", "\x1b[31m")
)

DOORS = [
    Door(
        "pattern.json",
        json_files(DOCUMENTS),
        read_file,
        json_sound,
        file="pattern.json",
        ready=ready,
        kept=(b"[0, 0, 1, 3]", b"12154", b"{}", b"[[0], [0, 1]]", b"[0, 0.5, 1, 3]", b"[0, true, 1, 3]"),
    ),
    Door("pattern.npy", npy_files(), read_file, npy_sound, file="pattern.npy", ready=ready),
    Door(
        name="pattern by name",
        cases=st.tuples(
            st.one_of(NAMES, st.tuples(NAMES, COUNTS).map(":".join), st.text(max_size=9)),
            st.sampled_from((2, 4, 64, 512, 10**6, 10**9, 10**12, 10**20, 1, 0, -1)),
        ),
        call=read_name,
        sound=name_sound,
        ready=ready,
        kept=(("previous", 8), ("random:2", 8), ("offset:3", 10**12), ("random:3", 10**6), ("random:99999999999", 8)),
    ),
]
