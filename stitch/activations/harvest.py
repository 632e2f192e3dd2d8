"""Residual streams of a model at chosen sites over many windows, written to safetensors shards on disk."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stitch.activations.observe import finite, residuals
from stitch.activations.one_behind import one_behind
from stitch.files.durable import replacing
from stitch.files.seals import is_sealed, seal
from stitch.files.shards import write_header
from stitch.files.store import Store
from stitch.models.identity import identity_of
from stitch.models.model import Model
from stitch.progress import Progress
from stitch.text.windows import Windows

# Tokens in one forward pass, by device. With more, intermediate results do not fit a CPU's caches: SmolLM2 takes a quarter more
# time with 8,192. The numbers are fixed because the last bits of activations depend on them: same inputs, same bytes.
TOKENS_AT_ONCE = {"cpu": 2_048, "cuda": 16_384}

# A file and a pass are alike for all runs over the same text, whatever sites and models they read: runs find each other's files.
TOKENS_PER_FILE = 16_384
STREAMS_AT_ONCE = 2**30  # bytes that a pass would take with the streams of all sites

WINDOWS_PER_SHARD = 256  # at most
KIND = "activations"  # in the store

# For a model and a site, a function that gives the streams at later sites from that there; None where that is impossible.
Late = Callable[[Model, int], Callable[[Tensor, Sequence[int]], dict[int, Tensor]] | None]

SHARE_OF_MEMORY = 32  # a shard of all sites takes at most this part of the memory budget: several are read at once


@dataclass(frozen=True)
class Activations:
    """Activations on disk: residual streams at `sites` of one model over `windows`, a site and `per_file` windows in each file.

    A shard is what is read at once, `per_shard` windows. `identity` names the model's weights and all else that values depend
    on, where that was asked for. `exact` marks the tokens that end where a token of the model's own tokenizer does; None: all.
    """

    folder: Path
    sites: tuple[int, ...]
    windows: Windows
    per_shard: int
    identity: str = ""
    exact: Bool[Tensor, "windows context"] | None = None

    @property
    def per_file(self) -> int:
        return max(1, TOKENS_PER_FILE // self.windows.context)

    @property
    def files(self) -> int:
        """How many files a site has."""
        return -(-len(self.windows.ids) // self.per_file)

    def in_file(self, file: int) -> slice:
        """The windows in file number `file`."""
        return slice(file * self.per_file, min((file + 1) * self.per_file, len(self.windows.ids)))

    @property
    def shards(self) -> int:
        return -(-len(self.windows.ids) // self.per_shard)

    def rows(self, shard: int) -> slice:
        """The windows in shard number `shard`."""
        return slice(shard * self.per_shard, min((shard + 1) * self.per_shard, len(self.windows.ids)))

    def path(self, file: int, site: int) -> Path:
        return self.folder / f"{file:05d}-{site}.safetensors"

    def width(self, site: int) -> int:
        from safetensors import safe_open

        with safe_open(self.path(0, site), framework="pt") as file:
            return file.get_slice(f"resid_pre.{site}").get_shape()[-1]

    def read(self, shard: int, site: int) -> Float[Tensor, "windows context width"]:
        return self.at(site, self.rows(shard))

    def at(self, site: int, rows: slice) -> Float[Tensor, "windows context width"]:
        """The streams of the windows `rows`, which are neighbours."""
        files = range(rows.start // self.per_file, -(-rows.stop // self.per_file))
        parts = [self._part(file, site, rows) for file in files]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _part(self, number: int, site: int, rows: slice) -> Float[Tensor, "_ context width"]:
        """Those of the windows `rows` that are in file number `number`."""
        from safetensors import safe_open

        first, stop = self.in_file(number).start, self.in_file(number).stop
        with safe_open(self.path(number, site), framework="pt") as file:
            return file.get_slice(f"resid_pre.{site}")[max(rows.start, first) - first : min(rows.stop, stop) - first]

    def first(self, site: int) -> Float[Tensor, " width"]:
        """The stream of the first token, with no other behind it in memory."""
        return self.at(site, slice(0, 1))[0, 0].float().clone()

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
    store: Store | None = None,
    keep: bool = True,
    late: Late | None = None,
    progress: Progress | None = None,
) -> Activations:
    """Writes the residual streams of `model` at `sites` over `windows` into `folder`. Files already there are kept.

    `per_shard` is for reading, see `Activations`. `part` (k, n) writes only every n-th file, from the k-th on, so that n calls
    can share the work. What `store` has of an earlier run is taken from there, and what it lacks is kept in it; with `keep` False
    the store is only read, and counts nothing. With `late` the model runs from the nearest earlier site that the store has, not
    from its first block.
    Raises: StitchError when activations are not finite.
    """
    identity = "" if store is None else identity_of(model, progress)
    exact = None if model.original is None else model.original.coincides(windows.ids)
    result = Activations(folder, tuple(sites), windows, per_shard, identity, exact)
    batch = windows_at_once(model, windows.context)

    def tell(done: int) -> None:
        if progress:
            where = f" on the {windows.split} split" if windows.split else ""
            progress(f"activations of {model.name}{where} (tokens)", done * windows.context, windows.tokens)

    folder.mkdir(parents=True, exist_ok=True)
    for file in range(part[0], result.files, part[1]):
        rows = result.in_file(file)
        ids = windows.ids[rows]
        contents = {site: digest(model, site, ids, identity) for site in sites}
        missing = [site for site in sites if not _holds(result.path(file, site), contents[site])]
        if store:
            found = store.get if keep else store.take
            missing = [site for site in missing if not found(KIND, contents[site], result.path(file, site))]
        if missing:
            batches = _told(_streams(model, ids.split(batch), missing, store, identity, late), rows.start, tell)
            _write({site: (result.path(file, site), contents[site]) for site in missing}, len(ids), batches)
            for site in missing:
                seal(result.path(file, site))
        if store and keep:
            for site in missing:
                about = f"{model.name}, resid_pre.{site}, {ids.numel():,} tokens"
                store.put(KIND, contents[site], result.path(file, site), about)
        if not missing:
            tell(rows.stop)
    return result


def windows_at_once(model: Model, context: int) -> int:
    """Windows in one forward pass. The last bits of activations depend on it, so it must not depend on which sites are read."""
    width = sum(map(model.width_at, range(model.depth + 1)))
    tokens = TOKENS_AT_ONCE.get(model.device.type, TOKENS_AT_ONCE["cpu"])
    return max(1, min(tokens, STREAMS_AT_ONCE // (width * model.dtype.itemsize)) // context)


def nearest(model: Model, ids: Tensor, site: int, store: Store, identity: str) -> int | None:
    """The last site before `site` whose stream over these windows the store has."""
    return next((s for s in range(site - 1, 0, -1) if store.has(KIND, digest(model, s, ids, identity))), None)


def _streams(
    model: Model, batches: Sequence[Tensor], sites: Sequence[int], store: Store | None, identity: str, late: Late | None
) -> Iterator[dict[int, Tensor]]:
    """The streams at `sites` of one batch of windows after another. From a stored stream they have the same bits as from ids."""
    ids = torch.cat(list(batches))
    start = nearest(model, ids, min(sites), store, identity) if store and late else None
    streams = late(model, start) if late and start else None
    with TemporaryDirectory() as folder:
        place = Path(folder) / "stream.safetensors"
        if store and start and streams and store.take(KIND, digest(model, start, ids, identity), place):
            for some in _in_parts(place, f"resid_pre.{start}", len(batches[0])):
                yield finite(streams(some, sites), model.name)
            return
    for some in batches:
        yield residuals(model, some.to(model.device).long(), sites)


def _told(
    batches: Iterator[dict[int, Tensor]], before: int, tell: Callable[[int], None]
) -> Iterator[dict[int, Tensor]]:
    """The same batches. `tell` gets the number of windows behind each; there are `before` in front of the first."""
    done = before
    tell(done)
    for streams in batches:
        done += len(next(iter(streams.values())))
        tell(done)
        yield streams


def _in_parts(place: Path, name: str, size: int) -> Iterator[Tensor]:
    """The tensor called `name` in a file, `size` rows at a time."""
    from safetensors import safe_open

    with safe_open(place, framework="pt") as file:
        stored = file.get_slice(name)
        rows = stored.get_shape()[0]
        for first in range(0, rows, size):
            yield stored[first : min(first + size, rows)]


def _write(targets: Mapping[int, tuple[Path, str]], windows: int, batches: Iterator[dict[int, Tensor]]) -> None:
    """Writes the files of some `windows` windows, by site with their content's digest, from batches of streams by site.

    Each batch is written while the next is computed.
    """
    starts, done = {}, 0
    with ExitStack() as stack:
        files = {}
        for site, (target, _) in targets.items():
            temporary = stack.enter_context(replacing(target))
            files[site] = stack.enter_context(temporary.open("wb"))

        def put(streams: dict[int, Tensor]) -> None:
            nonlocal done
            for site, x in streams.items():
                name = f"resid_pre.{site}"
                if site not in starts:
                    shape = {name: (x.dtype, (windows, *x.shape[1:]))}
                    starts[site] = write_header(files[site], shape, {"content": targets[site][1]})[name]
                files[site].seek(starts[site] + done * x[0].numel() * x.itemsize)
                files[site].write(_on_cpu(x).contiguous().view(torch.uint8).numpy().data)
            done += len(next(iter(streams.values())))

        one_behind(batches, put)


def _on_cpu(x: Tensor) -> Tensor:
    """`x` on the CPU. From CUDA it is copied to pinned memory, which is faster."""
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x) if x.is_cuda else x.cpu()


def digest(model: Model, site: int, ids: Tensor, identity: str) -> str:
    """A hash of everything that a file's content depends on. Without an identity the model enters by its name alone."""
    what = f"{identity or model.name} {model.dtype} {site} {tuple(ids.shape)}"
    return hashlib.sha256(what.encode() + ids.long().numpy().tobytes()).hexdigest()


def _holds(path: Path, content: str) -> bool:
    """Whether the file at `path` was written for the digest `content`, and is as it was written."""
    from safetensors import safe_open

    if not is_sealed(path):
        return False
    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get("content") == content
