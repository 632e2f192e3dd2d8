"""What a model computes, as a hash: of its files, and of all else that the last bits of its activations depend on."""

import hashlib
import json
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stitch.files.cache import cache_folder
from stitch.files.durable import replacing
from stitch.models.model import Model
from stitch.progress import Progress

READ = 2**24  # bytes at a time
HASHED = ("*.safetensors", "*.json", "ae.pt")  # the last is of dictionary_learning's SAEs
TIMED = "report.json"  # tells how long the model took to make, so a model made again has another


def identity_of(model: Model, progress: Progress | None = None) -> str:
    """What a model computes from token ids, as a hash: `identity_of_net`, the tokenizer that it is behind, if any, and the mark
    of one whose weights are not those of its folder."""
    other = ("" if model.original is None else f" {model.original.mark}") + model.altered
    return identity_of_net(model.folder, model.net, other, progress)


def identity_of_net(folder: Path, net: Any, other: str = "", progress: Progress | None = None) -> str:
    """A hash of the files in a model's folder, its precision, device and attention, the number of threads, the libraries'
    versions, and what `other` says."""
    import torch

    surroundings = (
        net.dtype, net.device.type, net.config._attn_implementation, torch.get_num_threads(),
        *(version(package) for package in ("torch", "transformers", "stitch-lm")),
    )  # fmt: skip
    return hashlib.sha256(f"{weights_hash(folder, progress)} {surroundings}{other}".encode()).hexdigest()


def weights_hash(folder: Path, progress: Progress | None = None) -> str:
    """SHA-256 over the names and SHA-256 of all files in `folder` that are HASHED but TIMED, subfolders left out.

    A file's hash is remembered in the cache for its place, size and time of change, as large weights take a while.
    """
    memo = cache_folder() / "file-hashes.json"
    known = _read(memo)
    found, fresh = hashlib.sha256(), False
    for file in sorted(file for pattern in HASHED for file in folder.glob(pattern)):
        if file.name == TIMED:
            continue
        place = file.resolve()
        stat = place.stat()
        mark = f"{place} {stat.st_size} {stat.st_mtime_ns}"
        if mark not in known:
            known[mark], fresh = _sha256(place, progress), True
        found.update(f"{file.name} {known[mark]}\n".encode())
    if fresh:
        with suppress(OSError):  # where the cache cannot be written, files are hashed again by the next run
            memo.parent.mkdir(parents=True, exist_ok=True)
            with replacing(memo) as temporary:
                temporary.write_text(json.dumps(known, indent=0))
    return found.hexdigest()


def _read(memo: Path) -> dict[str, str]:
    try:
        found = json.loads(memo.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _sha256(file: Path, progress: Progress | None) -> str:
    digest, size = hashlib.sha256(), file.stat().st_size
    with file.open("rb") as content:
        while part := content.read(READ):
            digest.update(part)
            if progress and size > READ:
                progress(f"hashing {file.name} (bytes)", content.tell(), size)
    return digest.hexdigest()
