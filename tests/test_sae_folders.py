"""SAEs in folders of sparsify and dictionary_learning: the formulas of these packages, and what is refused."""

import json
import os
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae.attachment import Attachment, attachment
from sae.convert import to_dictionary
from sae.errors import SAEError
from sae.storage import load
from stitch.features.given import Place, look_at, require_fitting
from stitch.models.sources import resolve

D, FEATURES, K = 12, 40, 5
GENERATOR = torch.Generator().manual_seed(0)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=GENERATOR)


X = noise(200, D)
ENCODER, BIAS, DECODER, OUT = (
    noise(FEATURES, D),
    noise(FEATURES),
    torch.nn.functional.normalize(noise(FEATURES, D)),
    noise(D),
)
THRESHOLDS = noise(FEATURES).abs()
LINEAR = {"encoder.weight": ENCODER, "encoder.bias": BIAS, "decoder.weight": DECODER.T}
PLAIN = {"W_enc": ENCODER.T, "b_enc": BIAS, "W_dec": DECODER, "b_dec": OUT}
SCALARS = {"k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(1.5)}
CENTRED, RAW = (X - OUT) @ ENCODER.T + BIAS, X @ ENCODER.T + BIAS


def largest(pre: torch.Tensor, k: int) -> torch.Tensor:
    """All but the k largest of each row become 0, and so does what is negative."""
    return torch.where(pre >= pre.sort(-1, descending=True).values[:, k - 1 : k], pre.clamp(min=0), 0)


def above(pre: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    return torch.where((pre > threshold) & (pre > 0), pre, 0)


# By class, what ae.pt holds and the codes of X.
CLASSES = {
    "AutoEncoder": ({**LINEAR, "bias": OUT}, CENTRED.clamp(min=0)),
    "AutoEncoderNew": ({**LINEAR, "decoder.bias": OUT}, RAW.clamp(min=0)),
    "AutoEncoderTopK": ({**LINEAR, "b_dec": OUT, **SCALARS}, largest(CENTRED, K)),
    "BatchTopKSAE": ({**LINEAR, "b_dec": OUT, **SCALARS}, above(CENTRED, torch.tensor(1.5))),
    "MatryoshkaBatchTopKSAE": (
        {**PLAIN, **SCALARS, "group_sizes": torch.tensor([10, 30])},
        above(CENTRED, torch.tensor(1.5)),
    ),
    "JumpReluAutoEncoder": ({**PLAIN, "threshold": THRESHOLDS}, above(RAW, THRESHOLDS)),
}


def dictionary(folder: Path, kind: str = "BatchTopKSAE", buffer: dict | None = None, **trainer) -> Path:
    folder.mkdir()
    torch.save(CLASSES[kind][0], folder / "ae.pt")
    said = {"trainer_class": "ATrainer", "dict_class": kind, "activation_dim": D, "dict_size": FEATURES, "layer": 2,
            "lm_name": "EleutherAI/pythia-70m-deduped", "submodule_name": None, "device": "cuda:0"}  # fmt: skip
    said |= {"k": K} if "TopK" in kind else {}
    (folder / "config.json").write_text(json.dumps({"trainer": {**said, **trainer}, "buffer": buffer or {"io": "out"}}))
    return folder


def sparsify(folder: Path, **changes) -> Path:
    """As `SparseCoder.save_to_disk` writes it, in a folder of its hook."""
    folder.mkdir(parents=True)
    tensors = {"encoder.weight": ENCODER, "encoder.bias": BIAS, "W_dec": DECODER, "b_dec": OUT}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "sae.safetensors")
    said = {"activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": FEATURES, "k": K,
            "multi_topk": False, "skip_connection": False, "transcode": False, "d_in": D}  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps({**said, **changes}))
    (folder.parent / "config.json").write_text(json.dumps({"model": "EleutherAI/pythia-70m-deduped", "batch_size": 32}))
    return folder


@torch.no_grad()
def require_codes(folder: Path, codes: torch.Tensor) -> None:
    found = load(folder, width=D)
    ours, decoded = to_dictionary(found), codes @ DECODER + OUT
    for one in (found, ours):
        torch.testing.assert_close(one.encode(X), codes, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(one.decode(codes), decoded, rtol=1e-5, atol=1e-5)
    assert 0 < float((codes > 0).float().mean()) < 1


@pytest.mark.parametrize("kind", CLASSES)
def test_a_dictionary_computes_what_its_class_does(kind, tmp_path):
    require_codes(dictionary(tmp_path / "sae", kind), CLASSES[kind][1])


@pytest.mark.parametrize("normalised", [True, False])
def test_an_sae_of_sparsify_computes_what_sparsify_does(normalised, tmp_path):
    require_codes(sparsify(tmp_path / "run" / "layers.2", normalize_decoder=normalised), largest(CENTRED, K))


def linked(folder: Path, link: Path) -> Path:
    link.symlink_to(folder)
    return link


PYTHIA = "EleutherAI/pythia-70m-deduped"


@pytest.mark.parametrize(
    ("write", "hook"),
    [
        (lambda folder: dictionary(folder / "trainer_0"), None),
        (lambda folder: dictionary(folder / "a", submodule_name="resid_post_layer_2"), "resid_post_layer_2"),
        (lambda folder: dictionary(folder / "a", submodule_name="mlp_out_layer_2"), "mlp_out_layer_2"),
        (lambda folder: sparsify(folder / "run" / "layers.2"), "layers.2"),
        (lambda folder: sparsify(folder / "run" / "h.3.mlp" / "seed1"), "h.3.mlp"),
        (lambda folder: sparsify(folder / "run" / "my-best"), None),
        (lambda folder: sparsify(folder / "run" / "v1.2"), None),
        (lambda folder: linked(sparsify(folder / "run" / "layers.2"), folder / "best"), "layers.2"),
        (lambda folder: linked(sparsify(folder / "run" / "7f3e"), folder / "layers.2"), "layers.2"),
    ],
)
def test_a_folder_says_its_model_and_hook(write, hook, tmp_path):
    folder = write(tmp_path)
    if folder.name == "seed1":
        (tmp_path / "run" / "config.json").write_text(json.dumps({"model": PYTHIA}))
    assert attachment(load(folder), folder) == Attachment(PYTHIA, hook)


def test_an_sae_of_another_layer_or_model_is_refused(tmp_path):
    given = look_at("sae_a", str(dictionary(tmp_path / "a", lm_name="gpt2", submodule_name="resid_post_layer_2")), D)
    with pytest.raises(SAEError, match=r"trained at resid_post_layer_2, which is resid_pre.3; it was trained on gpt2"):
        require_fitting([given], {"sae_a": Place(resolve("demo:gpt2"), 2)}, insist=False)
    given = look_at("sae_a", str(sparsify(tmp_path / "run" / "layers.2.mlp")), D)
    with pytest.raises(SAEError, match=r"trained at layers.2.mlp, which is no site .* trained on EleutherAI/pythia"):
        require_fitting([given], {"sae_a": Place(resolve("demo:gpt2"), 3)}, insist=False)


class Bomb:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


def test_code_in_a_pickle_does_not_run(tmp_path):
    folder = dictionary(tmp_path / "sae")
    torch.save({**CLASSES["BatchTopKSAE"][0], "more": Bomb(tmp_path / "ran")}, folder / "ae.pt")
    with pytest.raises(SAEError, match=r"ae.pt is truncated, corrupt or holds more than tensors") as refusal:
        load(folder)
    assert "\n" not in str(refusal.value) and not (tmp_path / "ran").exists()


def compressed(file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


def huge(file: Path) -> None:
    """A tensor of 4 TB from one number."""
    torch.save({**CLASSES["BatchTopKSAE"][0], "encoder.weight": torch.zeros(1, 1).expand(10**6, 10**6)}, file)


def old_form(file: Path) -> None:
    torch.save(CLASSES["BatchTopKSAE"][0], file, _use_new_zipfile_serialization=False)


def backup(file: Path) -> None:
    torch.save({"step": 3, "ae": CLASSES["BatchTopKSAE"][0]}, file)


class Bytes:
    """300 MiB from a few bytes, by a type that torch's reader allows."""

    def __reduce__(self):
        return (bytearray, (300 * 2**20,))


def zeros(file: Path) -> None:
    torch.save({**CLASSES["BatchTopKSAE"][0], "more": Bytes()}, file)


def capitals(file: Path) -> None:
    """The same under a name that torch finds, as it does not tell cases apart."""
    zeros(file)
    file.write_bytes(file.read_bytes().replace(b"/data.pkl", b"/DATA.PKL"))


def lines(file: Path) -> None:
    torch.save({**CLASSES["BatchTopKSAE"][0], "padding": "a" * 2**14}, file)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (compressed, "it is compressed, as torch.save never does"),
        (huge, "it must hold tensors alone"),
        (old_form, "File is not a zip file"),
        (backup, "it must hold tensors alone"),
        (zeros, "it names __builtin__ bytearray"),
        (capitals, "it names __builtin__ bytearray"),
        (lines, "its list of tensors is too long"),
        (lambda file: file.write_bytes(file.read_bytes()[:-300]), "File is not a zip file"),
    ],
)
def test_a_pickle_that_claims_too_much_is_refused(harm, message, tmp_path):
    folder = dictionary(tmp_path / "sae")
    harm(folder / "ae.pt")
    with pytest.raises(SAEError, match=f"ae.pt is truncated, corrupt or holds more than tensors: {message}"):
        load(folder)


def without(name: str):
    def change(folder: Path) -> None:
        tensors = dict(CLASSES["BatchTopKSAE"][0])
        del tensors[name]
        torch.save(tensors, folder / "ae.pt")

    return change


def other_tensor(name: str, tensor: torch.Tensor):
    return lambda folder: torch.save({**CLASSES["BatchTopKSAE"][0], name: tensor}, folder / "ae.pt")


@pytest.mark.parametrize(
    ("changes", "harm", "message"),
    [
        ({"dict_class": "GatedAutoEncoder"}, None, "must be one of AutoEncoder, .* is a GatedAutoEncoder"),
        ({"dict_size": 10**9}, None, r"describe the SAE beside it, of shape \(12, 40\); it says \(12, 1000000000\)"),
        ({"dict_size": "40"}, None, "dict_size: input should be a valid integer, got '40'"),
        ({"dict_class": "AutoEncoderTopK", "k": 6}, None, r"must be one number in .*; got \[5, 6\]"),
        ({"buffer": {"io": "in_and_out"}}, None, "io: input should be 'in' or 'out', got 'in_and_out'"),
        ({}, without("b_dec"), "b_dec is not there"),
        ({}, other_tensor("threshold", torch.ones(7)), r"a threshold of shape \(7,\)"),
        (
            {},
            other_tensor("encoder.bias", torch.ones(FEATURES, dtype=torch.int)),
            r"b_enc of shape \(40,\) and type int32",
        ),
        ({}, other_tensor("b_dec", torch.full((D,), torch.nan)), "must hold finite numbers; b_dec"),
        ({}, lambda folder: (folder / "config.json").write_text("{"), "must be a JSON object; line 1, column 2"),
    ],
)
def test_a_dictionary_that_cannot_be_right_is_refused(changes, harm, message, tmp_path):
    folder = dictionary(tmp_path / "sae", **changes)
    if harm is not None:
        harm(folder)
    with pytest.raises(SAEError, match=message) as refusal:
        load(folder)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transcode": True}, "transcode: input should be False, got True"),
        ({"skip_connection": True}, "skip_connection: input should be False"),
        ({"activation": "groupmax"}, "activation: input should be 'topk', got 'groupmax'"),
        ({"signed": True}, "signed: input should be False"),
        ({"d_in": 13}, "must read activations of width 13, as it says; it reads 12"),
        ({"k": 41}, r"k must be in 1..40, the features of"),
    ],
)
def test_what_sparsify_writes_besides_saes_is_refused(changes, message, tmp_path):
    with pytest.raises(SAEError, match=message):
        load(sparsify(tmp_path / "run" / "layers.2", **changes))


def test_a_damaged_folder_of_sparsify_is_refused(tmp_path):
    folder = sparsify(tmp_path / "run" / "layers.2")
    tensors = load_file(folder / "sae.safetensors")
    (folder / "sae.safetensors").write_bytes((folder / "sae.safetensors").read_bytes()[:-9])
    with pytest.raises(SAEError, match="truncated, corrupt or no safetensors file"):
        load(folder)
    del tensors["b_dec"]
    save_file(tensors, folder / "sae.safetensors")
    with pytest.raises(SAEError, match=r"must hold encoder.weight, encoder.bias, W_dec, b_dec; got W_dec"):
        load(folder)
