"""SAEs of a stitch: trained on both sites in one pass, or loaded; and the sparse codes that matching reads."""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float
from safetensors.numpy import load_file, save_file
from torch import Tensor

from sae.config import SAEConfig
from sae.convert import to_dictionary
from sae.metrics import Quality, measure
from sae.storage import load, save
from sae.train import train as train_saes
from sae.types import Dictionary
from stitch.activations.paired import Paired
from stitch.progress import Progress

Codes = sp.csr_array


@dataclass(frozen=True)
class SAEs:
    """The two dictionaries, their quality on held-out tokens, and what they were asked to be."""

    a: Dictionary
    b: Dictionary
    quality_a: Quality
    quality_b: Quality
    config_a: SAEConfig
    config_b: SAEConfig


def steps_for(tokens: int, passes: float, batch: int) -> int:
    return max(1, math.floor(tokens * passes / batch))


def train(
    fit: Paired,
    held_out: Paired,
    configs: dict[str, SAEConfig],
    folders: dict[str, Path],
    given: dict[str, str | None],
    *,
    snapshots: Path,
    group: int,
    provenance: dict[str, dict],
    device: torch.device,
    progress: Progress | None = None,
) -> SAEs:
    """Trains the SAEs of sites "a" and "b" that are not `given` together, saves them in SAELens's format, measures both.

    A folder that is already there is a finished SAE of an earlier, interrupted run. `snapshots` lets training itself go on.
    """
    widths = {"a": fit.width_a, "b": fit.width_b}
    missing = [side for side in configs if given[side] is None and not folders[side].exists()]
    if missing:

        def batches(start: int) -> Iterator[dict[str, Tensor]]:
            config = configs[missing[0]]
            for x, y in fit.batches(config.batch_size, seed=config.seed, group=group, start=start):
                yield {side: {"a": x, "b": y}[side] for side in missing}

        def report(step: int, steps: int, found: dict) -> None:
            if progress:
                progress("SAE training (steps)", step, steps)

        trained = train_saes(
            {side: configs[side] for side in missing},
            {side: widths[side] for side in missing},
            batches,
            snapshots=snapshots,
            device=device,
            progress=report,
        )
        for side, sae in trained.items():
            save(sae, folders[side], provenance[side])
    dictionaries = {
        side: to_dictionary(load(given[side] or folders[side], width=widths[side], device=str(device)))
        for side in configs
    }
    streams = {"a": (x for x, _, _ in held_out.chunks()), "b": (y for _, y, _ in held_out.chunks())}
    quality = {side: measure(dictionaries[side], streams[side]) for side in configs}
    return SAEs(dictionaries["a"], dictionaries["b"], quality["a"], quality["b"], configs["a"], configs["b"])


@torch.no_grad()
def sparse_codes(dictionary: Dictionary, x: Float[Tensor, "tokens d"]) -> Codes:
    """The dictionary's codes of x as a scipy CSR array in float32."""
    z = dictionary.encode(x.to(dictionary.encoder.device))
    tokens, features = z.shape
    active = (z != 0).flatten()
    # numpy is several times as fast as torch where it reaches.
    on_cpu = z.device.type == "cpu"
    places = np.flatnonzero(active.numpy()) if on_cpu else active.nonzero()[:, 0].cpu().numpy()
    values = z.flatten()[torch.from_numpy(places).to(z.device)].cpu().numpy()
    starts = np.searchsorted(places, np.arange(tokens + 1) * features)
    return sp.csr_array((values, places % features, starts), shape=(tokens, features))


def code_stream(
    paired: Paired, a: Dictionary, b: Dictionary, *, chunk: int, folder: Path, progress: Progress | None = None
) -> Callable[[], Iterator[tuple[Codes, Codes]]]:
    """A stream of both models' codes on the same tokens that can be started again, for the passes that matching needs.

    Encoding costs more than everything that reads the codes, so the first pass leaves them in `folder`, a file per shard of
    activations, and later passes read them there.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def start() -> Iterator[tuple[Codes, Codes]]:
        for index in range(paired.a.shards):
            place = folder / f"{index:05d}.safetensors"
            if not place.exists():
                x, y, _ = paired.shard(index)
                found = {"a": _encoded(a, x, chunk), "b": _encoded(b, y, chunk)}
                _write_codes(place, found)
                if progress:
                    progress("feature codes", paired.a.rows(index).stop, len(paired.a.windows.ids))
            else:
                found = _read_codes(place, {"a": a, "b": b})
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
    temporary = place.with_suffix(".tmp")
    save_file(tensors, temporary)
    os.replace(temporary, place)


def _read_codes(place: Path, dictionaries: dict[str, Dictionary]) -> dict[str, Codes]:
    found = load_file(place)
    codes = {}
    for side, dictionary in dictionaries.items():
        parts = tuple(found[f"{side}.{name}"] for name in ("values", "columns", "starts"))
        codes[side] = sp.csr_array(parts, shape=(len(parts[2]) - 1, dictionary.encoder.shape[1]))
    return codes
