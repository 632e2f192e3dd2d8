"""Residual streams of a model at chosen sites over many windows, written to safetensors shards on disk."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.activations.observe import residuals
from stitch.activations.one_behind import one_behind
from stitch.files.durable import replacing
from stitch.files.shards import write_header
from stitch.models.model import Model
from stitch.progress import Progress
from stitch.text.windows import Windows

# Tokens in one forward pass, by device. With more, intermediate results do not fit a CPU's caches: SmolLM2 takes a quarter more
# time with 8,192. The numbers are fixed because the last bits of activations depend on them: same inputs, same bytes.
TOKENS_AT_ONCE = {"cpu": 2_048, "cuda": 16_384}

WINDOWS_PER_SHARD = 256  # at most
SHARE_OF_MEMORY = 32  # a shard of all sites takes at most this part of the memory budget: several are read at once


@dataclass(frozen=True)
class Activations:
    """Activations on disk: residual streams at `sites` of one model over `windows`, `per_shard` windows in each file."""

    folder: Path
    sites: tuple[int, ...]
    windows: Windows
    per_shard: int

    @property
    def shards(self) -> int:
        return -(-len(self.windows.ids) // self.per_shard)

    def rows(self, shard: int) -> slice:
        """The windows in shard number `shard`."""
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

    def all(self, site: int) -> Float[Tensor, "windows context width"]:
        """The streams of one site over all windows, in memory."""
        return torch.cat([self.read(shard, site) for shard in range(self.shards)])


def windows_per_shard(context: int, width: int, dtype: torch.dtype, memory: int) -> int:
    """Windows of `context` tokens in a shard, for streams of `width` values per token in all and `memory` bytes in all."""
    bytes_per_window = context * width * torch.finfo(dtype).bits // 8
    return max(1, min(WINDOWS_PER_SHARD, memory // SHARE_OF_MEMORY // bytes_per_window))


def harvest(
    model: Model,
    windows: Windows,
    sites: Sequence[int],
    folder: Path,
    *,
    per_shard: int = WINDOWS_PER_SHARD,
    part: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
) -> Activations:
    """Writes the residual streams of `model` at `sites` over `windows` into `folder`. Shards already there are kept.

    `part` (k, n) writes only every n-th shard, from the k-th on, so that n calls can share the work.
    Raises: StitchError when activations are not finite.
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
    """Writes a shard of `windows` windows from batches of streams by site; each batch is written while the next is computed."""
    starts, done = {}, 0
    with replacing(target) as temporary, temporary.open("wb") as file:

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


def _on_cpu(x: Tensor) -> Tensor:
    """`x` on the CPU. From CUDA it is copied to pinned memory, which is faster."""
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x) if x.is_cuda else x.cpu()


def _digest(model: Model, sites: Sequence[int], ids: Tensor) -> str:
    """A hash of everything that a shard's content depends on. The model enters by its name; its weights are not hashed."""
    what = f"{model.name} {model.dtype} {list(sites)} {tuple(ids.shape)}"
    return hashlib.sha256(what.encode() + ids.long().numpy().tobytes()).hexdigest()


def _holds(path: Path, content: str) -> bool:
    """Whether the file at `path` was written for the digest `content`."""
    from safetensors import safe_open

    if not path.exists():
        return False
    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get("content") == content
