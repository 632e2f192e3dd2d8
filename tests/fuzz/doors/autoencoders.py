"""Folders of SAEs whose JSON files are damaged."""

import json
from pathlib import Path
from typing import Any

from fuzz.folders import folder_door, json_file

WIDTH = 12  # of the stream that an SAE has to read


def autoencoder(folder: Path) -> Path:
    import torch
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig

    from sae.storage import save

    named = {"hook_name": "blocks.3.hook_resid_pre", "model_name": "gpt2"}
    with torch.random.fork_rng(devices=[]):
        sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=WIDTH, d_sae=40))
    save(sae, folder / "autoencoder-7f3", {"model": "demo:gpt2"}, named)
    return folder / "autoencoder-7f3"


def load_sae(folder: Path) -> Any:
    """As a join looks at the SAE that it is given."""
    from sae.convert import to_dictionary
    from sae.storage import load
    from stitch.features.given import Place, look_at, require_fitting
    from stitch.models.sources import resolve

    given = look_at("sae_a", str(folder), WIDTH)
    require_fitting([given], {"sae_a": Place(resolve("demo:gpt2"), None)}, insist=True)
    return to_dictionary(load(folder)), given.attachment


def is_sound(folder: Path, found: Any) -> bool:
    """Codes and reconstructions are finite, have the sizes that cfg.json says, and names are text."""
    import torch

    dictionary, place = found
    config = json.loads((folder / "cfg.json").read_bytes())
    x = torch.linspace(-1, 1, 3 * len(dictionary.encoder)).view(3, -1)
    codes = dictionary.encode(x)
    return bool(
        codes.isfinite().all()
        and dictionary.decode(codes).isfinite().all()
        and codes.shape[1] == config["d_sae"] and type(config["d_sae"]) is int
        and x.shape[1] == config["d_in"] and type(config["d_in"]) is int
        and all(name is None or type(name) is str for name in (place.model, place.hook))
        and isinstance(config.get("metadata", {}), dict)
    )  # fmt: skip


KNOWN = ("jumprelu", "topk", "gated", "batchtopk", "temporal", "float16", "cuda:9", "layer_norm", "hook_z", 64, 10**6)
FILES = {"cfg.json": KNOWN, "provenance.json": ()}
DOORS = [
    folder_door(f"{name} of an SAE", autoencoder, json_file(name, known), load_sae, is_sound, given_by="sae_a")
    for name, known in FILES.items()
]
