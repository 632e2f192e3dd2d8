"""Doors whose input is a folder: a sound one that is made once, with one of its files changed, replaced or taken away."""

import functools
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from fuzz.documents import json_files
from fuzz.door import Door

Files = dict[str, bytes | None]  # by name; None: the file is taken away
BYTES = (
    *(b"", b"{", b"[]", b"null", b"7", b'"x"', b"\xff\xfe{}", b"{} {}", b"\0" * 64, b"{'a': 1}"),
    *(b"[" * 100_000, b'{"a":' * 100_000, b'{"a":' + b"9" * 5000 + b"}", b'{"a": 1, "a": 2}'),
)


@functools.cache
def _root() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="stitch-fuzz-")


@functools.cache
def sound_folder(make: Callable[[Path], Path]) -> Path:
    """What `make` makes in an empty folder, once in a process."""
    return make(Path(tempfile.mkdtemp(dir=_root().name)))


@dataclass(frozen=True, kw_only=True)
class FolderDoor(Door):
    """A door for copies of the folder that `make` makes, with the files of a case put in.

    What is accepted is the folder and what `read` returned for it. A message must name the folder, a file that was put in, or the
    option `given_by`; so the folder's name must be one that no message says by chance.
    """

    make: Callable[[Path], Path]
    given_by: str | None = None

    def given(self, case: Files, folder: Path) -> Path:
        sound = sound_folder(self.make)
        place = folder / sound.name
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(sound, place)
        for name, content in case.items():
            if content is None:
                (place / name).unlink(missing_ok=True)
            else:
                (place / name).write_bytes(content)
        return place

    def names(self, line: str, case: Files) -> bool:
        return any(name in line for name in (sound_folder(self.make).name, *case, self.given_by) if name)


def folder_door(
    name: str, make: Callable[[Path], Path], cases: Callable[[Path], st.SearchStrategy[Files]],
    read: Callable[[Path], Any], sound: Callable[[Path, Any], bool], kept: Sequence[Files] = (), given_by: str | None = None,
) -> FolderDoor:  # fmt: skip
    """`cases` gets the folder that is sound; `read` a copy with a case in it; `sound` that copy and what was read."""

    def ready() -> None:
        read(sound_folder(make))

    return FolderDoor(
        name=name,
        cases=st.deferred(lambda: cases(sound_folder(make))),
        call=lambda place: (place, read(place)),
        sound=lambda _, found: sound(*found),
        kept=({}, *kept),
        ready=ready,
        make=make,
        given_by=given_by,
    )


def json_file(file: str, known: Sequence[Any] = ()) -> Callable[[Path], st.SearchStrategy[Files]]:
    """Cases for one JSON file of a folder. `known` are values that the format has."""

    def cases(folder: Path) -> st.SearchStrategy[Files]:
        edited = json_files([json.loads((folder / file).read_bytes())], known=known)
        other: st.SearchStrategy[bytes | None] = st.sampled_from((None, *BYTES))
        return st.integers(0, 9).flatmap(lambda kind: edited if kind else other).map(lambda content: {file: content})

    return cases
