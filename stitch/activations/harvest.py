"""Activations of chosen sites, streamed to safetensors shards on disk."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.activations.observe import residuals
from stitch.activations.one_behind import one_behind
from stitch.files.shards import write_header
from stitch.models.model import Model
from stitch.progress import Progress
from stitch.text.windows import Windows

# In one forward pass. On a CPU what a block computes of more tokens outgrows the caches: SmolLM2 takes a quarter more time with
# 8,192. Fixed, as the last bits of activations depend on it, and the same inputs are to give the same bytes.
TOKENS_AT_ONCE = {"cpu": 2_048, "cuda": 16_384}


@dataclass(frozen=True)
class Activations:
    """A harvest on disk: `sites` of one model over `windows`, `per_shard` windows to a file."""

    folder: Path
    sites: tuple[int, ...]
    windows: Windows
    per_shard: int

    @property
    def shards(self) -> int:
        return -(-len(self.windows.ids) // self.per_shard)

    def rows(self, shard: int) -> slice:
        return slice(shard * self.per_shard, min((shard + 1) * self.per_shard, len(self.windows.ids)))

    def path(self, shard: int) -> Path:
        return self.folder / f"{shard:05d}.safetensors"

    def width(self, site: int) -> int:
        from safetensors import safe_open

        with safe_open(self.path(0), framework="pt") as file:
            return file.get_slice(f"resid_pre.{site}").get_shape()[-1]

    def read(self, shard: int, site: int) -> Float[Tensor, "windows context width"]:
        from safetensors import safe_open

        with safe_open(self.path(shard), framework="pt") as file:
            return file.get_tensor(f"resid_pre.{site}")


def harvest(
    model: Model,
    windows: Windows,
    sites: Sequence[int],
    folder: Path,
    *,
    per_shard: int = 256,
    part: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
) -> Activations:
    """Writes the residual stream of `model` at `sites` over `windows` into `folder`; what is there already is kept.

    `part` (k, n) writes every n-th shard from the k-th on: n calls together write all.
    """
    result = Activations(folder, tuple(sites), windows, per_shard)
    batch = max(1, TOKENS_AT_ONCE.get(model.device.type, TOKENS_AT_ONCE["cpu"]) // windows.context)
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(part[0], result.shards, part[1]):
        target, ids = result.path(shard), windows.ids[result.rows(shard)]
        content = _digest(model, sites, ids)
        if not _holds(target, content):
            batches = (residuals(model, some.to(model.device).long(), sites) for some in ids.split(batch))
            _write(target, content, len(ids), batches)
        if progress:
            done = min(result.rows(shard).stop, len(windows.ids))
            progress(f"activations of {model.name}", done * windows.context, windows.tokens)
    return result


def _write(target: Path, content: str, windows: int, batches: Iterator[dict[int, Tensor]]) -> None:
    """Streams by site, a batch of windows after another; each is written while the next is computed."""
    temporary = target.with_suffix(".tmp")
    starts, done = {}, 0
    with temporary.open("wb") as file:

        def put(streams: dict[int, Tensor]) -> None:
            nonlocal starts, done
            if not starts:
                shapes = {f"resid_pre.{site}": (x.dtype, (windows, *x.shape[1:])) for site, x in streams.items()}
                starts = write_header(file, shapes, {"content": content})
            for site, x in streams.items():
                file.seek(starts[f"resid_pre.{site}"] + done * x[0].numel() * x.itemsize)
                file.write(_on_cpu(x).contiguous().view(torch.uint8).numpy().data)
            done += len(next(iter(streams.values())))

        one_behind(batches, put)
    os.replace(temporary, target)


def _on_cpu(x: Tensor) -> Tensor:
    """From CUDA into memory that it writes to directly."""
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x) if x.is_cuda else x.cpu()


def _digest(model: Model, sites: Sequence[int], ids: Tensor) -> str:
    """Of what decides a shard's content. The model goes by its name: its weights are not read again."""
    what = f"{model.name} {model.dtype} {list(sites)} {tuple(ids.shape)}"
    return hashlib.sha256(what.encode() + ids.long().numpy().tobytes()).hexdigest()


def _holds(path: Path, content: str) -> bool:
    from safetensors import safe_open

    if not path.exists():
        return False
    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get("content") == content
