"""Folders of SAEs whose JSON files, or whose pickle, are damaged."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from fuzz.folders import Files, folder_door, json_file

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


def dictionary(folder: Path) -> Path:
    """In the format of dictionary_learning."""
    import torch

    (folder / "dictionary-7f3").mkdir()
    with torch.random.fork_rng(devices=[]):
        tensors = {
            "encoder.weight": torch.randn(40, WIDTH),
            "encoder.bias": torch.zeros(40),
            "b_dec": torch.zeros(WIDTH),
        }
        tensors |= {"decoder.weight": torch.eye(40)[:WIDTH], "threshold": torch.tensor(0.5), "k": torch.tensor(4)}
    torch.save(tensors, folder / "dictionary-7f3" / "ae.pt")
    trainer = {"dict_class": "BatchTopKSAE", "activation_dim": WIDTH, "dict_size": 40, "k": 4, "layer": 2}
    trainer |= {"lm_name": "gpt2", "submodule_name": "resid_post_layer_2"}
    config = {"trainer": trainer, "buffer": {"io": "out"}}
    (folder / "dictionary-7f3" / "config.json").write_text(json.dumps(config))
    return folder / "dictionary-7f3"


MADE = b"R"  # calls the function below it with the tuple on top
LARGE = (2**30).to_bytes(4, "little")
VALUES = (
    *(b"c" + name + b"\nJ" + LARGE + b"\x85" + MADE for name in (b"builtins\nbytearray", b"builtins\nrange", b"torch\nzeros")),
    *(b"c" + name + b"\n)" + MADE for name in (b"os\ngetpid", b"builtins\nset", b"collections\nOrderedDict", b"torch\nSize")),
    *(b"\x8a\xff" + b"\x7f" * 255, b"]", b"}", b"K\x07", b"ctorch\nfloat32\n", b"X" + LARGE, b"r" + LARGE),
)  # fmt: skip


def pickles(folder: Path) -> st.SearchStrategy[Files]:
    """ae.pt with more in its dict, or with some bytes of its pickle changed."""
    with zipfile.ZipFile(folder / "ae.pt") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    [name] = [name for name in parts if name.endswith(".pkl")]
    start = parts[name].index(b"(") + 1  # of what the dict holds
    more = st.sampled_from(VALUES).map(lambda one: parts[name][:start] + b"X\1\0\0\0z" + one + parts[name][start:])
    places = st.dictionaries(st.integers(0, len(parts[name]) - 1), st.integers(0, 255), max_size=3)
    other = places.map(lambda new: bytes(new.get(place, byte) for place, byte in enumerate(parts[name])))

    def packed(pickle: bytes) -> Files:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for part, content in {**parts, name: pickle}.items():
                archive.writestr(part, content)
        return {"ae.pt": file.getvalue()}

    return st.one_of(more, other).map(packed)


def coder(folder: Path) -> Path:
    """In the format of sparsify."""
    import torch
    from safetensors.torch import save_file

    place = folder / "layers.2"
    place.mkdir()
    with torch.random.fork_rng(devices=[]):
        tensors = {"encoder.weight": torch.randn(40, WIDTH), "W_dec": torch.ones(40, WIDTH)}
    save_file({**tensors, "encoder.bias": torch.zeros(40), "b_dec": torch.zeros(WIDTH)}, place / "sae.safetensors")
    (place / "cfg.json").write_text(json.dumps({"activation": "topk", "k": 4, "d_in": WIDTH, "transcode": False}))
    return place


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
    """Codes and reconstructions are finite, have the sizes that the file says, and names are text."""
    import torch

    dictionary, place = found
    config = sizes(folder)
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


def sizes(folder: Path) -> dict:
    """The file, with sizes under SAELens's names. sparsify leaves one of them to the weights."""
    if (folder / "ae.pt").exists():
        trainer = json.loads((folder / "config.json").read_bytes())["trainer"]
        return {"d_in": trainer["activation_dim"], "d_sae": trainer["dict_size"]}
    config = json.loads((folder / "cfg.json").read_bytes())
    return {**config, "d_sae": 40} if (folder / "sae.safetensors").exists() else config


KNOWN = ("jumprelu", "topk", "gated", "batchtopk", "temporal", "float16", "cuda:9", "layer_norm", "hook_z", 64, 10**6)
FILES = {"cfg.json": KNOWN, "provenance.json": ()}
CLASSES = (
    "AutoEncoder",
    "AutoEncoderTopK",
    "JumpReluAutoEncoder",
    "GatedAutoEncoder",
    "in_and_out",
    "attn_out",
    64,
    10**6,
)
CODERS = ("groupmax", "topk", True, 41, 10**6)
DOORS = [
    *(
        folder_door(f"{name} of an SAE", autoencoder, json_file(name, known), load_sae, is_sound, given_by="sae_a")
        for name, known in FILES.items()
    ),
    folder_door(
        "config.json of dictionary_learning", dictionary, json_file("config.json", CLASSES), load_sae, is_sound, given_by="sae_a"
    ),
    folder_door("ae.pt of dictionary_learning", dictionary, pickles, load_sae, is_sound, given_by="sae_a"),
    folder_door("cfg.json of sparsify", coder, json_file("cfg.json", CODERS), load_sae, is_sound, given_by="sae_a"),
]  # fmt: skip
