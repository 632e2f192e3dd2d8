"""SAEs on disk, in SAELens's format: cfg.json, sae_weights.safetensors, and a record of their provenance."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sae.atomic import whole_folder
from sae.errors import SAEError
from sae.json_file import read_object
from sae.messages import one_line

if TYPE_CHECKING:
    import sae_lens

CONFIG, WEIGHTS, PROVENANCE = "cfg.json", "sae_weights.safetensors", "provenance.json"
PICKLES = {".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle"}
# The readers of published SAEs in SAELens that read safetensors; the others unpickle or read npz.
SAFETENSORS_READERS = {"sae_lens", "gemma_3", "llama_scope", "llama_scope_r1_distill"}


def save(
    sae: "sae_lens.SAE",
    folder: str | Path,
    provenance: dict | None = None,
    metadata: Mapping[str, str | int | None] | None = None,
) -> None:
    """Writes the inference form of `sae` (batchtopk and matryoshka become jumprelu), and `provenance` as JSON.

    `folder` is written completely or not at all; `sae_lens.SAE.load_from_disk(folder)` reads it. `metadata` is added to
    SAELens's own; `hook_name` says where SAELens attaches the SAE.

    Raises: SAEError for what is no SAE of SAELens, and when the folder exists or cannot be written.

    >>> import tempfile, torch, sae
    >>> from pathlib import Path
    >>> trained = sae.train(torch.randn(512, 16), features=64, k=4)
    >>> folder = Path(tempfile.mkdtemp()) / "layer-3"
    >>> sae.save(trained, folder, {"text": "random numbers"}, {"hook_name": "blocks.3.hook_resid_pre"})
    >>> sae.load(folder, width=16).cfg.metadata.hook_name
    'blocks.3.hook_resid_pre'
    """
    from sae_lens import SAE, TrainingSAE

    if not isinstance(sae, SAE):
        raise SAEError(f"an SAE must be one of SAELens, as `sae.train` gives it; got {type(sae).__name__}.")
    folder = Path(folder)
    if folder.exists():
        raise SAEError(f"the folder of an SAE must not exist; {folder} does. Remove it or give another folder.")
    try:
        with whole_folder(folder) as partial:
            if isinstance(sae, TrainingSAE):
                sae.save_inference_model(partial)
            else:
                sae.save_model(partial)
            # SAELens writes keys in the order of a set, which differs between processes.
            config = json.loads((partial / CONFIG).read_text())
            config["metadata"] = {**config.get("metadata", {}), **(metadata or {})}
            (partial / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
            (partial / PROVENANCE).write_text(json.dumps(provenance or {}, indent=2, sort_keys=True) + "\n")
    except OSError as error:
        raise SAEError(f"{folder} cannot be written: {error.strerror or error}.") from error


def read_provenance(folder: Path) -> dict | None:
    """The provenance that `save` recorded; None for an SAE that was written by another program.

    Raises: SAEError when it is damaged.
    """
    try:
        return read_object(folder / PROVENANCE)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise SAEError(
            f"{folder / PROVENANCE} must be a JSON object; {error}. Remove it, or save the SAE again."
        ) from None


def repository_of(source: str) -> str | None:
    """The Hub repository of a release that `load` reads; None for a folder."""
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    if Path(source).exists():
        return None
    release, known = source.partition(":")[0], get_pretrained_saes_directory()
    return known[release].repo_id if release in known else release


def load(source: str | Path, width: int | None = None, device: str = "cpu") -> "sae_lens.SAE":
    """Loads an SAE from a folder, or from a published release given as `release:sae_id`.

    The folder is in the format of SAELens, of sparsify or of dictionary_learning. `width` is the width of the activations that
    the SAE has to read. Only safetensors are read, and of a pickle of dictionary_learning the tensors alone.

    Raises: SAEError when the SAE is missing, truncated, corrupt or pickled, holds NaN, has no inference form, or has
    another width.
    """
    folder = Path(source)
    if folder.exists():
        sae = _load_folder(folder, device)
    elif isinstance(source, str) and ":" in source:
        release, _, sae_id = source.partition(":")
        sae = _load_release(release, sae_id, device)
    else:
        raise SAEError(f"an SAE must be a folder or release:sae_id; there is no folder {source}.")
    if width is not None and sae.cfg.d_in != width:
        raise SAEError(
            f"the SAE must read activations of width {width}; {source} reads {sae.cfg.d_in}. Use this model's."
        )
    for name, tensor in sae.state_dict().items():
        if not tensor.isfinite().all():
            raise SAEError(f"an SAE must hold finite numbers; {name} of {source} does not. Train or download it again.")
    return sae


def _load_folder(folder: Path, device: str) -> "sae_lens.SAE":
    from sae_lens import SAE

    from sae import dictionary_learning, sparsify
    from sae.config_file import require_described

    if not (folder / WEIGHTS).exists():
        if sparsify.is_sparsify(folder):
            return sparsify.read(folder, device)
        if dictionary_learning.is_dictionary_learning(folder):
            return dictionary_learning.read(folder, device)
    if not (folder / WEIGHTS).is_file():
        pickles = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLES)
        if pickles:
            raise SAEError(
                f"only safetensors are read; {folder} holds {pickles[0]}. If you trust it, convert it with SAELens."
            )
        raise SAEError(f"an SAE folder must hold {CONFIG} and {WEIGHTS}; {folder} has no {WEIGHTS}.")
    if not (folder / CONFIG).is_file():
        raise SAEError(f"an SAE folder must hold {CONFIG} and {WEIGHTS}; {folder} has no {CONFIG}.")
    require_described(folder / CONFIG, folder / WEIGHTS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return SAE.load_from_disk(folder, device=device)
    except Exception as error:  # safetensors, torch and SAELens each raise their own for a broken file
        raise SAEError(
            f"{folder} is truncated, corrupt or not an SAE: {one_line(error)}. Save or download it again."
        ) from error


def _load_release(release: str, sae_id: str, device: str) -> "sae_lens.SAE":
    from sae_lens import SAE
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    known = get_pretrained_saes_directory()
    if release not in known and "/" not in release:
        raise SAEError(
            f"{release!r} is neither a folder, a release that SAELens knows, nor a Hub repository USER/NAME."
        )
    if release in known and sae_id not in known[release].saes_map:
        some = ", ".join(list(known[release].saes_map)[:3])
        raise SAEError(f"release {release} has {len(known[release].saes_map)} SAEs ({some}, …); {sae_id!r} is not one.")
    reader = (known[release].conversion_func if release in known else None) or "sae_lens"
    if reader not in SAFETENSORS_READERS:
        raise SAEError(
            f"only safetensors are read; release {release} is published in another format ({reader}). "
            f"If you trust it, run sae_lens.SAE.from_pretrained({release!r}, {sae_id!r}).save_model(FOLDER), "
            "and give that folder."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return SAE.from_pretrained(release, sae_id, device=device)
    except Exception as error:  # of the Hub, safetensors, torch and SAELens
        raise SAEError(
            f"{release}:{sae_id} cannot be loaded: {one_line(error)}. Check the network and the id."
        ) from error
