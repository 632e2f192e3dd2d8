"""Safetensors files as bytes: find tensors by headers alone, copy them by byte range, write shards and an index.

The format (https://github.com/huggingface/safetensors): 8 bytes with the header's length, little-endian; a JSON header
{name: {dtype, shape, data_offsets}}; the tensors' bytes, without gaps.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stitch.errors import StitchError

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
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
HEADER_LIMIT = 100 * 2**20  # the reference reader's own limit
CHUNK = 16 * 2**20


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its bytes are `start`..`stop`. With `cast` it is written in that dtype instead of its own."""

    path: Path
    start: int
    stop: int
    stored_dtype: torch.dtype
    shape: tuple[int, ...]
    cast: torch.dtype | None = None

    @property
    def dtype(self) -> torch.dtype:
        return self.cast or self.stored_dtype

    def chunks(self) -> Iterator[bytes]:
        if self.dtype != self.stored_dtype:
            data = b"".join(self._stored_chunks())
            values = torch.frombuffer(bytearray(data), dtype=self.stored_dtype) if data else torch.empty(0)
            yield as_bytes(values.to(self.dtype))
        else:
            yield from self._stored_chunks()

    def _stored_chunks(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            file.seek(self.start)
            left = self.stop - self.start
            while left:
                piece = file.read(min(CHUNK, left))
                if not piece:
                    raise StitchError(f"{self.path} must not change while it is copied; it ended {left} bytes early.")
                left -= len(piece)
                yield piece


@dataclass(frozen=True)
class Held:
    """A tensor in memory, to be written as it is."""

    tensor: Tensor

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def chunks(self) -> Iterator[bytes]:
        yield as_bytes(self.tensor)


def as_bytes(tensor: Tensor) -> bytes:
    """The tensor's values in row-major order, as they lie in memory."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def size_of(tensor: Stored | Held) -> int:
    return math.prod(tensor.shape) * tensor.dtype.itemsize


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Where every tensor of the checkpoint in `folder` lies. Reads headers alone.

    Raises StitchError when files are missing, truncated or corrupt, or when there are only pickle files.
    """
    if (folder / INDEX).is_file():
        weight_map = _weight_map(folder / INDEX)
        return {
            name: stored for file in sorted(set(weight_map.values())) for name, stored in _header(folder / file).items()
        }
    if (folder / SINGLE).is_file():
        return _header(folder / SINGLE)
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
    if pickled:
        raise StitchError(
            f"weights must be safetensors; {folder} has only {pickled[0]}, a pickle that can run code: "
            "convert it where it came from."
        )
    raise StitchError(f"weights must be in {SINGLE} or shards with {INDEX}; {folder} has neither: check the path.")


def _weight_map(path: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(path.read_text())["weight_map"]
        if not isinstance(weight_map, dict) or any(Path(file).name != file for file in weight_map.values()):
            raise ValueError("weight_map must name files of the same folder")
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise _damaged(path, f"no usable weight_map ({error})") from error
    return weight_map


def _header(path: Path) -> dict[str, Stored]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, HEADER_LIMIT):
                raise _damaged(path, f"its header needs {length:,} bytes, the file has {size:,}")
            entries = json.loads(file.read(length))
    except FileNotFoundError as error:
        raise StitchError(
            f"the checkpoint needs {path.name}; {path.parent} does not have it: download it again."
        ) from error
    except (ValueError, OSError) as error:
        raise _damaged(path, "its header cannot be read") from error
    if not isinstance(entries, dict):
        raise _damaged(path, "its header is not a table of tensors")
    entries.pop("__metadata__", None)
    found, end = {}, 0
    for name, entry in entries.items():
        try:
            dtype, shape, (start, stop) = DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
        except KeyError as error:
            raise StitchError(
                f"tensors must be plain floats or integers; {name} in {path} has {error} instead."
            ) from error
        except (TypeError, ValueError) as error:
            raise _damaged(path, f"the entry of {name} is malformed") from error
        if stop - start != math.prod(shape) * dtype.itemsize or start < 0:
            raise _damaged(path, f"{name} of shape {shape} cannot fill {stop - start:,} bytes")
        found[name] = Stored(path, 8 + length + start, 8 + length + stop, dtype, shape)
        end = max(end, stop)
    if 8 + length + end != size:
        raise _damaged(path, f"its header promises {8 + length + end:,} bytes, the file has {size:,}")
    return found


def _damaged(path: Path, what: str) -> StitchError:
    return StitchError(f"{path} must be a complete file; {what}: download it again.")


def write_shards(folder: Path, tensors: dict[str, Stored | Held], max_shard_bytes: int) -> None:
    """Writes `tensors` into `folder` as one file, or as an index and several of at most `max_shard_bytes` each.

    A tensor larger than that has a file of its own.
    """
    shards: list[dict[str, Stored | Held]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        if shards[-1] and filled + size_of(tensor) > max_shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += size_of(tensor)
    if len(shards) == 1:
        _write(folder / SINGLE, shards[0])
        return
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write(folder / file, shard)
        weight_map.update(dict.fromkeys(shard, file))
    total = sum(size_of(tensor) for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _write(path: Path, tensors: dict[str, Stored | Held]) -> None:
    # Widest types first: every tensor then begins at a multiple of its own element size.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    header: dict = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in ordered:
        stop = offset + size_of(tensor)
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, stop]}
        offset = stop
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for _, tensor in ordered:
            for chunk in tensor.chunks():
                file.write(chunk)
