"""SAEs of both sites: trained together in one pass over the activations, or loaded, and measured on held-out tokens."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from sae.config import SAEConfig
from sae.convert import to_dictionary
from sae.errors import DamagedSnapshot
from sae.metrics import Quality, measure
from sae.storage import save
from sae.trainer import SNAPSHOT_FORMAT, train_sites
from sae.types import Dictionary
from stitch.activations.paired import Paired
from stitch.files.seals import is_sealed, seal
from stitch.files.store import Store
from stitch.models.published_saes import load
from stitch.progress import Progress, counted

KIND = "saes"  # in the store


@dataclass(frozen=True)
class SAERequest:
    """The SAE to get for one site: `given` names one to load; None means to train one by `config` and save it in `folder`.

    `provenance` is saved with a trained SAE.
    """

    config: SAEConfig
    folder: Path
    given: str | None
    provenance: dict

    @property
    def place(self) -> str | Path:
        """Where the finished SAE is loaded from."""
        return self.given or self.folder

    @property
    def is_missing(self) -> bool:
        """Whether it has to be trained. A sealed folder holds a finished SAE of an earlier, interrupted run."""
        return self.given is None and not is_sealed(self.folder)


@dataclass(frozen=True)
class SAEs:
    """The dictionaries of both sites, their quality on held-out tokens, and the configs they were requested with."""

    a: Dictionary
    b: Dictionary
    quality_a: Quality
    quality_b: Quality
    config_a: SAEConfig
    config_b: SAEConfig


def train(
    fit: Paired,
    held_out: Paired,
    requests: dict[str, SAERequest],
    *,
    snapshots: Path,
    group: int,
    device: torch.device,
    store: Store | None = None,
    progress: Progress | None = None,
) -> SAEs:
    """The SAEs that `requests` ask for at the sites "a" and "b" of `fit`, measured on `held_out`.

    Missing ones are trained together on shuffled tokens, `group` shards in memory at a time, and saved in SAELens's format.
    `snapshots` is a folder from which interrupted training resumes. SAEs that `store` has of the same request on the same
    activations are not trained again.
    Raises: StitchError when the text does not fill one batch; SAEError when an SAE cannot be loaded or training diverges.
    """
    widths = {"a": fit.width_a, "b": fit.width_b}
    missing = {side: request for side, request in requests.items() if request.is_missing}
    for request in missing.values():
        shutil.rmtree(request.folder, ignore_errors=True)  # damaged
    keys = {side: _key(fit, side, request, group, device) for side, request in missing.items()} if store else {}
    if store:
        missing = {
            side: request for side, request in missing.items() if not store.get(KIND, keys[side], request.folder)
        }
    if missing:
        arguments = (
            {side: request.config for side, request in missing.items()},
            {side: widths[side] for side in missing},
            _batches(fit, missing, group),
        )
        place, steps = snapshots / "".join(missing), _steps_reported(progress)
        steps(0, max(request.config.steps for request in missing.values()), {})  # importing SAELens takes a while
        try:
            trained = train_sites(*arguments, snapshots=place, device=device, progress=steps)
        except DamagedSnapshot:
            shutil.rmtree(place)
            trained = train_sites(*arguments, snapshots=place, device=device, progress=steps)
        for side, sae in trained.items():
            provenance = missing[side].provenance
            save(sae, missing[side].folder, provenance, place_of(provenance["model"], provenance["site"]))
            if store:
                store.put(KIND, keys[side], missing[side].folder, about(missing[side], fit.a.windows.tokens))
    for request in requests.values():
        if request.given is None:
            seal(request.folder)
    found = {
        side: to_dictionary(load(request.place, width=widths[side], device=str(device)))
        for side, request in requests.items()
    }
    streams = {"a": (x for x, _, _ in held_out.chunks()), "b": (y for _, y, _ in held_out.chunks())}
    sides = counted(list(requests), "SAEs measured (sides)", progress)
    quality = {side: measure(found[side], streams[side]) for side in sides}
    configs = {side: request.config for side, request in requests.items()}
    return SAEs(found["a"], found["b"], quality["a"], quality["b"], configs["a"], configs["b"])


def about(request: SAERequest, tokens: int) -> str:
    """What the store says of an SAE: its site, size, and the tokens that it was trained on."""
    provenance, config = request.provenance, request.config
    return f"{provenance['model']}, {provenance['site']}, {config.features:,} features, k {config.k}, {tokens:,} tokens"


def _key(fit: Paired, side: str, request: SAERequest, group: int, device: torch.device) -> str:
    """A hash of everything that a trained SAE and its files depend on."""
    streams, site = (fit.a, fit.site_a) if side == "a" else (fit.b, fit.site_b)
    tensors = (streams.windows.ids, fit.keep)
    what = {
        "identity": streams.identity, "site": site, "per_shard": fit.a.per_shard, "group": group, "device": device.type,
        "config": dataclasses.asdict(request.config), "provenance": request.provenance,
        "trainer": SNAPSHOT_FORMAT, "sae_lens": version("sae-lens"),
        "tokens": [sha256(one.numpy().tobytes()).hexdigest() for one in tensors],
    }  # fmt: skip
    return sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def place_of(model: str, site: str) -> dict[str, str]:
    """Where an SAE belongs, in SAELens's words. `site` is resid_pre.N, where N may be the number of blocks.

    So the hook is the output of the block before: it is the same stream, and the last block has one as well.
    """
    block = int(site.removeprefix("resid_pre."))
    hook = f"blocks.{block - 1}.hook_resid_post" if block else "blocks.0.hook_resid_pre"
    return {"model_name": model, "hook_name": hook}


def _batches(fit: Paired, missing: dict[str, SAERequest], group: int) -> Callable[[int], Iterator[dict[str, Tensor]]]:
    """A function that starts the stream of training batches at a given step. All configs share batch size and seed."""
    config = next(iter(missing.values())).config

    def start_at(step: int) -> Iterator[dict[str, Tensor]]:
        for x, y in fit.batches(config.batch_size, seed=config.seed, group=group, start=step):
            yield {side: {"a": x, "b": y}[side] for side in missing}

    return start_at


def _steps_reported(progress: Progress | None) -> Callable[[int, int, dict], None]:
    def report(step: int, steps: int, losses: dict) -> None:
        if progress:
            progress("SAE training (steps)", step, steps)

    return report
