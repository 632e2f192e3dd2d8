"""Sparse codes of an SAE: computed in chunks, and kept on disk for the passes that read them again."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float
from safetensors.numpy import load_file, save_file
from torch import Tensor

from sae.types import Dictionary
from stitch.activations.paired import Paired
from stitch.files.durable import replacing
from stitch.files.seals import is_sealed, seal
from stitch.progress import Progress

Codes = sp.csr_array  # [tokens, features]


@torch.no_grad()
def sparse_codes(dictionary: Dictionary, x: Float[Tensor, "tokens d"]) -> Codes:
    """The dictionary's codes of x as a scipy CSR array [tokens, features] in float32, on the CPU."""
    z = dictionary.encode(x.to(dictionary.encoder.device))
    tokens, features = z.shape
    active = (z != 0).flatten()
    # On the CPU, numpy's flatnonzero is several times as fast as torch's nonzero.
    on_cpu = z.device.type == "cpu"
    places = np.flatnonzero(active.numpy()) if on_cpu else active.nonzero()[:, 0].cpu().numpy()
    values = z.flatten()[torch.from_numpy(places).to(z.device)].cpu().numpy()
    starts = np.searchsorted(places, np.arange(tokens + 1) * features)
    return sp.csr_array((values, places % features, starts), shape=(tokens, features))


def code_stream(
    paired: Paired, a: Dictionary, b: Dictionary, *, chunk: int, folder: Path, progress: Progress | None = None
) -> Callable[[], Iterator[tuple[Codes, Codes]]]:
    """A function that starts a stream of both models' codes on the same tokens, since matching reads it several times.

    Encoding takes longer than anything that reads the codes. The first pass therefore writes them to `folder`, one file per
    shard of activations, and later passes read these files. `chunk` is the number of tokens encoded at a time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    whole: set[Path] = set()  # files that need no second look

    def start() -> Iterator[tuple[Codes, Codes]]:
        for index in range(paired.a.shards):
            place = folder / f"{index:05d}.safetensors"
            if place not in whole and not is_sealed(place):
                x, y, _ = paired.shard(index)
                found = {"a": _encoded(a, x, chunk), "b": _encoded(b, y, chunk)}
                _write_codes(place, found)
                seal(place)
                stage = "feature codes (windows)"
            else:
                found, stage = _read_codes(place, {"a": a, "b": b}), "feature codes again (windows)"
            whole.add(place)
            if progress:
                progress(stage, paired.a.rows(index).stop, len(paired.a.windows.ids))
            yield found["a"], found["b"]

    return start


def _encoded(dictionary: Dictionary, x: Float[Tensor, "tokens d"], chunk: int) -> Codes:
    parts = [sparse_codes(dictionary, part) for part in x.split(chunk)]
    return sp.csr_array(sp.vstack(parts, format="csr"))


def _write_codes(place: Path, codes: dict[str, Codes]) -> None:
    tensors = {}
    for side, found in codes.items():
        tensors[f"{side}.values"] = np.asarray(found.data)
        tensors[f"{side}.columns"] = np.asarray(found.indices, dtype=np.int32)
        tensors[f"{side}.starts"] = np.asarray(found.indptr, dtype=np.int64)
    with replacing(place) as temporary:
        save_file(tensors, temporary)


def _read_codes(place: Path, dictionaries: dict[str, Dictionary]) -> dict[str, Codes]:
    found = load_file(place)
    codes = {}
    for side, dictionary in dictionaries.items():
        parts = tuple(found[f"{side}.{name}"] for name in ("values", "columns", "starts"))
        codes[side] = sp.csr_array(parts, shape=(len(parts[2]) - 1, dictionary.encoder.shape[1]))
    return codes
