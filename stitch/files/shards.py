"""Safetensors files as bytes: find tensors by their headers, copy them by byte range, write shards and an index.

The format (https://github.com/huggingface/safetensors): 8 bytes with the header's length, little-endian; a JSON header
{name: {dtype, shape, data_offsets}}; the tensors' bytes, without gaps.
"""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from stitch.errors import StitchError
from stitch.files.headers import INDEX, SINGLE, verify_weights, weight_map
from stitch.progress import Progress, Steps

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
CHUNK = 16 * 2**20  # bytes read at a time where the kernel does not copy


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, at bytes `start`..`stop`. With `cast` it is written in that dtype instead of its own."""

    path: Path
    start: int
    stop: int
    stored_dtype: torch.dtype
    shape: tuple[int, ...]
    cast: torch.dtype | None = None

    @property
    def dtype(self) -> torch.dtype:
        return self.cast or self.stored_dtype

    def write_to(self, file: BinaryIO) -> None:
        """Appends the tensor's bytes to `file`. Raises: StitchError when the source has become shorter meanwhile."""
        with self.path.open("rb") as source:
            if self.dtype == self.stored_dtype:
                copied = _copy(source, self.start, self.stop, file)
            else:
                source.seek(self.start)
                data = bytearray(source.read(self.stop - self.start))
                copied = len(data)
                if copied == self.stop - self.start:
                    values = torch.frombuffer(data, dtype=self.stored_dtype) if data else torch.empty(0)
                    file.write(as_bytes(values.to(self.dtype)))
        if copied != self.stop - self.start:
            missing = self.stop - self.start - copied
            raise StitchError(f"{self.path} must not change while it is copied; it ended {missing} bytes early.")


@dataclass(frozen=True)
class Held:
    """A tensor in memory, written as it is."""

    tensor: Tensor

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def write_to(self, file: BinaryIO) -> None:
        file.write(as_bytes(self.tensor))


def _copy(source: BinaryIO, start: int, stop: int, target: BinaryIO) -> int:
    """Copies bytes `start`..`stop` to the current position of `target` and returns how many there were.

    Where possible the kernel copies: the bytes do not pass through this process, and some file systems share the blocks.
    """
    position, copied = target.tell(), 0
    try:
        while copied < stop - start:
            count = os.copy_file_range(
                source.fileno(), target.fileno(), stop - start - copied, start + copied, position + copied
            )
            if not count:
                break
            copied += count
    except (AttributeError, OSError):  # unsupported by this system, or between these two file systems
        pass
    source.seek(start + copied)
    target.seek(position + copied)
    while piece := source.read(min(CHUNK, stop - start - copied)):
        target.write(piece)
        copied += len(piece)
    return copied


def as_bytes(tensor: Tensor) -> bytes:
    """The tensor's values in row-major order, in the machine's byte order."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def size_of(tensor: Stored | Held) -> int:
    """Bytes that the tensor takes in the file."""
    return math.prod(tensor.shape) * tensor.dtype.itemsize


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """The place of every tensor of the checkpoint in `folder`, by name. Reads only headers.

    Raises: the errors of `verify_weights` when files are missing, damaged or pickled; StitchError for a type that is not plain,
    unless an index does not name the tensor.
    """
    found, named = {}, named_tensors(folder)
    for path, header in verify_weights(folder).items():
        for name, entry in header.tensors.items():
            if entry["dtype"] not in DTYPES:
                if named and name not in named:
                    continue
                raise StitchError(f"tensors must be plain floats or integers; {name} in {path} is {entry['dtype']}.")
            start, stop = (header.start + offset for offset in entry["data_offsets"])
            found[name] = Stored(path, start, stop, DTYPES[entry["dtype"]], tuple(entry["shape"]))
    return found


def named_tensors(folder: Path) -> set[str]:
    """The tensors that the index in `folder` names; empty where there is none, or it does not count beside a single file."""
    return set() if (folder / SINGLE).exists() else set(weight_map(folder))


def write_shards(
    folder: Path, tensors: dict[str, Stored | Held], max_shard_bytes: int, progress: Progress | None = None
) -> None:
    """Writes `tensors` into `folder` as one file, or as an index and several of at most `max_shard_bytes` each.

    A tensor larger than that gets a file of its own.
    """
    step = Steps("writing weights (tensors)", len(tensors), progress)
    shards: list[dict[str, Stored | Held]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        if shards[-1] and filled + size_of(tensor) > max_shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += size_of(tensor)
    if len(shards) == 1:
        _write(folder / SINGLE, shards[0], step)
        return
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write(folder / file, shard, step)
        weight_map.update(dict.fromkeys(shard, file))
    total = sum(size_of(tensor) for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _write(path: Path, tensors: dict[str, Stored | Held], tick: Callable[[], None]) -> None:
    # Widest types first, so that every tensor begins at a multiple of its own element size.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    with path.open("wb") as file:
        write_header(file, {name: (tensor.dtype, tensor.shape) for name, tensor in ordered}, {"format": "pt"})
        for _, tensor in ordered:
            tensor.write_to(file)
            tick()


def write_header(
    file: BinaryIO, tensors: Mapping[str, tuple[torch.dtype, Sequence[int]]], metadata: Mapping[str, str]
) -> dict[str, int]:
    """Writes the header of a file that will hold `tensors` (dtype, shape) in this order.

    Returns the byte offset of each tensor in the file, by name.
    """
    header: dict = {"__metadata__": metadata}
    starts, stop = {}, 0
    for name, (dtype, shape) in tensors.items():
        starts[name], stop = stop, stop + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [starts[name], stop]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    file.write(len(encoded).to_bytes(8, "little"))
    file.write(encoded)
    return {name: 8 + len(encoded) + start for name, start in starts.items()}
