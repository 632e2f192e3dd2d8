"""Residual streams of a model, harvested in one truncated forward pass and kept on disk as safetensors shards.

A shard holds the same windows for every model, so shard k of A and shard k of B are token by token the same text. Shards are
written atomically and never twice: an interrupted harvest continues where it stopped, and a shard of another model, other sites
or other text is replaced. Memory is bounded by two batches, one of which is written while the next is computed, whatever the
size of the text.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from stitch.errors import StitchError
from stitch.models import Model
from stitch.overlap import one_behind
from stitch.shards import begin
from stitch.tokens import Windows

Progress = Callable[[str, int, int], None]  # stage, done, total (tokens or steps)
# In one forward pass. On a CPU what a block computes of more tokens outgrows the caches: SmolLM2 takes a quarter more time with
# 8,192. Fixed, as the last bits of activations depend on it, and the same inputs are to give the same bytes.
TOKENS_AT_ONCE = {"cpu": 2_048, "cuda": 16_384}
SINK_RATIO = 10.0  # a token whose norm exceeds the median this many times is a sink, not text


class _Enough(Exception):
    """Raised by the hook at the last site: nothing after it is computed."""


@dataclass(frozen=True)
class Observed:
    """What one pass saw: residual streams [batch, context, width] by site, neurons [batch, context, d_ff] by block.

    Neurons are what the MLP's down projection reads, so W_down and its bias turn them into the MLP's output.
    """

    streams: dict[int, Tensor]
    neurons: dict[int, Tensor]


@torch.no_grad()
def observe(
    model: Model, inputs: dict[str, Tensor], *, streams: Sequence[int] = (), neurons: Sequence[int] = ()
) -> Observed:
    """Residual streams entering the blocks `streams` and neurons of the blocks `neurons`, in one pass that ends at the last.

    `inputs` are `input_ids`, or `inputs_embeds` for a `late_half`. Site `depth` is the stream entering the final norm.
    Raises StitchError when anything seen holds NaN or infinity.
    """
    seen = Observed({}, {})
    places = [*model.blocks, model.final_norm]
    watched: list[tuple[nn.Module, dict[int, Tensor], int]] = [
        *((places[site], seen.streams, site) for site in dict.fromkeys(streams)),
        *((model.down(block), seen.neurons, block) for block in dict.fromkeys(neurons)),
    ]

    def catch(store: dict[int, Tensor], key: int):
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            store[key] = args[0] if args else kwargs["hidden_states"]
            if len(seen.streams) + len(seen.neurons) == len(watched):
                raise _Enough

        return hook

    handles = [module.register_forward_pre_hook(catch(store, key), with_kwargs=True) for module, store, key in watched]
    try:
        model.net(**inputs, use_cache=False)
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    for what, store in (("at site", seen.streams), ("among the neurons of block", seen.neurons)):
        for key, values in store.items():
            # What is not finite makes no finite sum; a sum that is not may be of large values.
            if not torch.isfinite(values.sum(dtype=torch.float32)) and not torch.isfinite(values).all():
                raise StitchError(
                    f"activations must be finite; {model.name} gives NaN or infinity {what} {key}: "
                    "load it in another precision (--dtype fp32) or check its weights."
                )
    return seen


def residuals(model: Model, ids: Int[Tensor, "batch context"], sites: Sequence[int]) -> dict[int, Tensor]:
    """Residual stream [batch, context, width] entering block `site`, for every site; see `observe`."""
    return observe(model, {"input_ids": ids}, streams=sites).streams


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
                starts = begin(file, shapes, {"content": content})
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


@dataclass(frozen=True)
class Tokens:
    """Some tokens with what a translation may read of them: streams by (site, tokens back), zero where these are absent;
    ids of the token and those before it, −1 where there are none; the position; B's stream, which is to be predicted."""

    streams: dict[tuple[int, int], Float[Tensor, "_ d_a"]]
    ids: Int[Tensor, "_ reach"]
    positions: Int[Tensor, " _"]
    target: Float[Tensor, "_ d_b"]


@dataclass(frozen=True)
class Paired:
    """The same tokens seen by A at one site and by B at another. `keep` leaves out BOS at position 0 and either model's sinks."""

    a: Activations
    b: Activations
    site_a: int
    site_b: int
    keep: Bool[Tensor, "windows context"]

    @property
    def tokens(self) -> int:
        return int(self.keep.sum())

    @property
    def width_a(self) -> int:
        return self.a.width(self.site_a)

    @property
    def width_b(self) -> int:
        return self.b.width(self.site_b)

    def sample(self, tokens: int, seed: int) -> "Paired":
        """The same pair with random windows of about `tokens` tokens kept; itself if it has no more."""
        if self.tokens <= tokens:
            return self
        generator = torch.Generator().manual_seed(seed)
        count = max(1, round(len(self.keep) * tokens / self.tokens))
        chosen = torch.zeros(len(self.keep), dtype=torch.bool)
        chosen[torch.randperm(len(self.keep), generator=generator)[:count]] = True
        return replace(self, keep=self.keep & chosen[:, None])

    def shard(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Kept rows of a shard: x [tokens, width_a], y [tokens, width_b], ids [tokens]."""
        rows = self.a.rows(index)
        keep = self.keep[rows]
        x, y = self.a.read(index, self.site_a), self.b.read(index, self.site_b)
        return x[keep], y[keep], self.a.windows.ids[rows][keep].long()

    def chunks(self, tokens: int = 8192) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """All kept rows in text order, at most `tokens` at a time."""
        for index in range(self.a.shards):
            x, y, ids = self.shard(index)
            yield from zip(x.split(tokens), y.split(tokens), ids.split(tokens), strict=True)

    def with_history(self, streams: Sequence[tuple[int, int]], reach: int, tokens: int = 8192) -> Iterator[Tokens]:
        """All kept rows in text order, at most `tokens` at a time, with streams of A by (site, back) and `reach` ids back.

        A stream before a window's second token counts as absent, as in `stitch.modeling_composite.Seen`; rows whose previous
        token is a sink are left out.
        """
        place = torch.arange(self.keep.shape[1])
        usable = self.keep.clone()
        usable[:, 2:] &= self.keep[:, 1:-1]
        for index in range(self.a.shards):
            rows = self.a.rows(index)
            keep, ids = usable[rows], self.a.windows.ids[rows].long()
            past = torch.stack([_ago(ids, back, -1) for back in range(reach + 1)], -1)
            stored = {site: self.a.read(index, site) for site in {site for site, _ in streams}}
            found = {}
            for site, back in streams:
                before = _ago(stored[site], back, 0)
                if back:
                    before[:, : back + 1] = 0
                found[site, back] = before[keep].split(tokens)
            parts = past[keep].split(tokens), place.expand_as(ids)[keep].split(tokens)
            target = self.b.read(index, self.site_b)[keep].split(tokens)
            for number in range(len(target)):
                chosen = {key: value[number] for key, value in found.items()}
                yield Tokens(chosen, parts[0][number], parts[1][number], target[number])

    def batches(self, size: int, *, seed: int, group: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless shuffled batches of paired rows, from batch `start` on; the order is a pure function of the seed.

        Every epoch visits the shards in a fresh order, `group` of them in memory at a time, rows shuffled within the group; what
        does not fill a batch at the end of a group is left out of that epoch.
        """
        kept = [int(self.keep[self.a.rows(index)].sum()) for index in range(self.a.shards)]
        done, epoch = 0, 0
        if sum(kept) < size:
            raise StitchError(
                f"a batch needs {size} tokens; the text has {sum(kept)}: give more text or raise --tokens."
            )
        while True:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
            order = torch.randperm(self.a.shards, generator=generator).tolist()
            for position in range(0, len(order), group):
                members = order[position : position + group]
                count = sum(kept[index] for index in members)
                shuffle = torch.randperm(count, generator=generator)
                usable = count // size
                if done + usable > start:
                    parts = [self.shard(index) for index in members]
                    x, y = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
                    for number in range(max(0, start - done), usable):
                        chosen = shuffle[number * size : (number + 1) * size]
                        yield x[chosen], y[chosen]
                done += usable
            epoch += 1


def _ago(sequence: Tensor, back: int, absent: int) -> Tensor:
    """[windows, context, …] moved `back` tokens on; always a copy."""
    moved = torch.full_like(sequence, absent)
    moved[:, back:] = sequence[:, : sequence.shape[1] - back]
    return moved


def without_sinks(activations: Activations, sites: Iterable[int]) -> Bool[Tensor, "windows context"]:
    """Tokens to fit on: not BOS at position 0, a sink at none of `sites`.

    Sinks reach 10⁵ times the median norm and would own every least-squares fit; they are found by norm, with the median of the
    first shard as the yardstick. BOS at position 0 has no context, so it is a constant and needs no fit.
    """
    keep = torch.ones(activations.windows.ids.shape, dtype=torch.bool)
    keep[:, 0] = False
    for site in sites:
        limit = None
        for index in range(activations.shards):
            norms = activations.read(index, site).float().norm(dim=-1)
            if limit is None:
                limit = SINK_RATIO * norms[:, 1:].median()
            keep[activations.rows(index)] &= norms <= limit
    return keep


def pair(a: Activations, b: Activations, site_a: int, site_b: int) -> Paired:
    """Joins two harvests of the same windows and marks the rows to fit on: those that are text to both models."""
    return Paired(a, b, site_a, site_b, without_sinks(a, [site_a]) & without_sinks(b, [site_b]))
