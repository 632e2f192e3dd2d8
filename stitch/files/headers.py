"""The structure of safetensors checkpoints, read from their headers. No tensor is loaded and nothing is unpickled."""

import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

from sae.json_file import shown
from stitch.errors import StitchError, UsageError
from stitch.files.specification import once

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")  # never read and never pushed: unpickling can run code

# Bits per value of every type in the safetensors format.
DTYPE_BITS = {
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8},
    **{
        "F8_E4M3FNUZ": 8,
        "F8_E5M2FNUZ": 8,
        "I16": 16,
        "U16": 16,
        "F16": 16,
        "BF16": 16,
        "I32": 32,
        "U32": 32,
        "F32": 32,
    },
    **{"C64": 64, "F64": 64, "I64": 64, "U64": 64},
}
SHARD = re.compile(r"(?!\.)[^/\\\x00-\x1f\x7f]{1,200}")  # a name in the folder: no path out of it
HEADER_LIMIT = 100_000_000  # bytes; the format's own limit


@dataclass(frozen=True)
class Header:
    """The content of a safetensors file: `tensors[name]` is {dtype, shape, data_offsets}, with offsets from byte `start` on."""

    start: int
    tensors: dict[str, dict]


def verify_weights(folder: Path) -> dict[Path, Header]:
    """The headers of the weight files that transformers would load from `folder`, checked against the files and the index.

    `model.safetensors` takes precedence over an index beside it, as in transformers. Tensor values are not read or checked.

    Raises: UsageError when there are no safetensors weights that transformers would load (pickles are not read);
    StitchError for a truncated or damaged file, an index that names a missing shard or tensor, and a tensor in two shards.
    """
    headers = {file.name: safetensors_header(file) for file in sorted(folder.glob("*.safetensors"))}
    if SINGLE in headers:
        return {folder / SINGLE: headers[SINGLE]}
    if not (folder / INDEX).is_file():
        raise UsageError(_no_weights(folder, list(headers)))
    named = sorted((shard, tensor) for tensor, shard in weight_map(folder).items())
    if missing := sorted({shard for shard, _ in named} - set(headers)):
        raise StitchError(
            f"{folder} lacks {len(missing)} of the shards its index names, {missing[0]} first: download it again."
        )
    for shard, tensor in named:
        if tensor not in headers[shard].tensors:
            raise StitchError(f"the index says that {folder / shard} holds {tensor}; it does not: download both again.")
    shards = dict.fromkeys(shard for shard, _ in named)
    for shard, tensor in named:
        if others := [one for one in shards if one != shard and tensor in headers[one].tensors]:
            raise StitchError(
                f"a tensor must stand in one shard; {tensor} is in {shard} and {others[0]} of {folder}: remove the one that "
                "the index does not name."
            )
    return {folder / shard: headers[shard] for shard in shards}


def weight_map(folder: Path) -> dict[str, str]:
    """The file of every tensor, as the index in `folder` says; empty where there is no index.

    Raises: StitchError where it is damaged.
    """
    index = folder / INDEX
    try:
        shards = json.loads(index.read_bytes())["weight_map"].items()
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise StitchError(f"{index} is damaged: it must map tensors to shards; download it again.") from None
    for tensor, shard in shards:
        if not isinstance(shard, str) or not SHARD.fullmatch(shard):
            raise StitchError(
                f"{index} must name files beside it; got {shown(shard)} for {shown(tensor)}: download it again."
            )
    return dict(shards)


def _no_weights(folder: Path, safetensors: list[str]) -> str:
    """The message for a folder without a loadable model; `safetensors` are the names of such files in it."""
    if "adapter_model.safetensors" in safetensors:
        return f"weights must be a whole model; {folder} holds an adapter: merge it into its base model first."
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLE_SUFFIXES)
    if safetensors:
        return (
            f"weights must be {SINGLE}, or shards that {INDEX} names; {folder} has {safetensors[0]} and no index: rename it to "
            f"{SINGLE} if it is the whole model, or download the index."
        )
    got = f"{folder} has only pickles ({pickles[0]})" if pickles else f"{folder} has none"
    return (
        f"weights must be model.safetensors or shards of it; {got}, and pickles are never read, because unpickling can "
        "run code: convert pickles you trust with transformers' save_pretrained."
    )


def safetensors_header(file: Path) -> Header:
    """The header of a safetensors file, checked against the file's size: its tensors fill the rest of the file without gaps.

    Raises: StitchError when the file is damaged or cannot be read.
    Source: https://github.com/huggingface/safetensors#format
    """
    try:
        with open(file, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            start = stream.read(8)
            if start == b"version ":
                raise _damaged(file, "it is a Git LFS pointer, whose content `git lfs pull` fetches")
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > min(HEADER_LIMIT, size - 8):
                raise _damaged(file, f"its {size} bytes do not hold the header")
            text = stream.read(length)
    except OSError as error:
        raise StitchError(f"{file} cannot be read: {error.strerror}.") from None
    try:
        # int("NaN") fails: it is no JSON
        tensors = dict(json.loads(text.decode(), parse_constant=int, object_pairs_hook=once))
        notes = tensors.pop("__metadata__", None) or {}
        if not all(isinstance(text, str) for text in notes.values()):
            raise _damaged(file, "its metadata must be text")
        end = 0
        for begin, stop, name in sorted((*entry["data_offsets"], name) for name, entry in tensors.items()):
            shape = tensors[name]["shape"]
            if not all(type(number) is int for number in (begin, stop, *shape)) or not name.isprintable():
                raise _damaged(file, f"{shown(name)} has no shape and place in whole numbers, or no name to print")
            if (
                begin != end
                or (stop - begin) * 8 != math.prod(shape) * DTYPE_BITS[tensors[name]["dtype"]]
                or min(shape, default=0) < 0
            ):
                raise _damaged(file, f"the bytes of {name} are not where its shape says")
            end = stop
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _damaged(file, "its header cannot be read") from None
    if 8 + length + end != size:
        raise _damaged(file, f"its tensors need {8 + length + end} bytes, it has {size}")
    return Header(8 + length, tensors)


def _damaged(file: Path, what: str) -> StitchError:
    return StitchError(f"{file} is not an intact safetensors file: {what}; download or write it again.")
