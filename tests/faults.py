"""A disk that refuses: inside a block, the k-th step of writing below a folder fails with an error of the system.

Steps are: opening a file to write, every write to it, making, renaming, linking and flushing, and what safetensors and torch
write themselves, with their own errors. Reading and removing always work.
"""

import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS, errno.EDQUOT)


class Disk:
    """Counts the steps below `folder`, and fails the one with number `failing`, from 1 on; 0: none. `of` is an errno."""

    def __init__(self, folder: Path, failing: int = 0, of: int = errno.ENOSPC):
        self.folder, self.failing, self.of = os.path.realpath(folder), failing, of
        self.steps = 0
        self.open = io.open

    def error(self) -> OSError:
        return OSError(self.of, os.strerror(self.of))

    def step(self, *places: Any) -> bool:
        """Whether this step fails; places elsewhere do not count."""
        if not any(self.has(place) for place in places):
            return False
        self.steps += 1
        return self.steps == self.failing

    def has(self, place: Any) -> bool:
        return isinstance(place, (str, bytes, os.PathLike)) and os.path.realpath(os.fsdecode(place)).startswith(
            self.folder
        )


@contextmanager
def failing_disk(disk: Disk) -> Iterator[Disk]:
    """Inside the block all of Python's ways to write go through `disk`."""

    def refusing(function: Callable) -> Callable:
        def call(*arguments: Any, **named: Any) -> Any:
            if disk.step(*arguments[:2]):
                raise disk.error()
            return function(*arguments, **named)

        return call

    class Raw(io.FileIO):
        def write(self, data: Any, /) -> int:
            if disk.step(self.name):
                raise disk.error()
            return super().write(data)

    def opened(file: Any, mode: str = "r", buffering: int = -1, *arguments: Any, **named: Any) -> Any:
        if not set(mode) & set("wax+") or not disk.has(file):
            return disk.open(file, mode, buffering, *arguments, **named)
        if disk.step(file):
            raise disk.error()
        raw = Raw(file, mode.replace("b", "").replace("t", ""))
        if buffering == 0:
            return raw
        binary = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return binary if "b" in mode else io.TextIOWrapper(binary, *arguments, **named)

    def os_open(path: Any, flags: int, *arguments: Any, **named: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR) and disk.step(path):
            raise disk.error()
        return real["open"](path, flags, *arguments, **named)

    def by_descriptor(function: Callable) -> Callable:
        def call(descriptor: Any, *arguments: Any) -> Any:
            numbers = [one for one in (descriptor, *arguments[:1]) if isinstance(one, int)]
            if disk.step(*(os.readlink(f"/proc/self/fd/{one}") for one in numbers)):
                raise disk.error()
            return function(descriptor, *arguments)

        return call

    def serialized(function: Callable) -> Callable:
        def call(tensors: Any, filename: Any, *arguments: Any, **named: Any) -> None:
            if disk.step(filename):
                disk.open(filename, "wb").close()  # what it leaves
                raise SafetensorError(
                    f"Error while serializing: I/O error: {os.strerror(disk.of)} (os error {disk.of})"
                )
            function(tensors, filename, *arguments, **named)

        return call

    def saved(function: Callable) -> Callable:
        def call(content: Any, place: Any, *arguments: Any, **named: Any) -> None:
            if disk.step(place):
                disk.open(place, "wb").close()
                raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")
            function(content, place, *arguments, **named)

        return call

    real = {"open": os.open}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("replace", "rename", "link", "mkdir"):
            patch.setattr(os, name, refusing(getattr(os, name)))
        patch.setattr(os, "open", os_open)
        patch.setattr(os, "fsync", by_descriptor(os.fsync))
        patch.setattr(os, "write", by_descriptor(os.write))
        for name in ("copy_file_range", "sendfile"):
            if hasattr(os, name):
                patch.setattr(os, name, by_descriptor(getattr(os, name)))
        patch.setattr(io, "open", opened)
        patch.setattr("builtins.open", opened)
        for module in ("torch", "numpy"):
            if module not in sys.modules:
                continue
            patch.setattr(f"safetensors.{module}.serialize_file", serialized(_serialize(module)))
        if "torch" in sys.modules:
            patch.setattr("torch.save", saved(sys.modules["torch"].save))
        yield disk


def _serialize(module: str) -> Callable:
    import importlib

    return importlib.import_module(f"safetensors.{module}").serialize_file


OLD = b"the old output"


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def old_output(out: Path) -> dict[str, bytes]:
    """An output of an earlier run, which may be replaced."""
    out.mkdir(parents=True)
    (out / "report.json").write_bytes(OLD)
    (out / "stitch.json").write_text(
        '{"written_by": "stitch-lm", "command": "join", "files": ["report.json", "stitch.json"]}'
    )
    return content_of(out)
