"""SAEs on disk: SAELens reads the saved SAEs, and broken folders are refused in one line."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae.config import ARCHITECTURES, SAEConfig
from sae.convert import for_inference, to_dictionary
from sae.errors import SAEError
from sae.storage import load, read_provenance, save

D, FEATURES = 12, 40
PROVENANCE = {"model": "demo:gpt2", "site": "resid_pre.3", "seed": 0}


def _sae(architecture="batchtopk"):
    """A training SAE after a few steps, with its normalisation folded in."""
    from sae.trainer import train_sites

    def batches(start):
        for step in range(start, 5):
            yield {"x": torch.randn(32, D, generator=torch.Generator().manual_seed(step))}

    config = SAEConfig(architecture=architecture, features=FEATURES, k=4, steps=5, batch_size=32)
    return train_sites({"x": config}, {"x": D}, batches)["x"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sae") / "good"
    save(_sae(), folder, PROVENANCE)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_saelens_reads_a_saved_sae_and_computes_the_same(architecture, tmp_path):
    import sae_lens

    sae = _sae(architecture)
    save(sae, tmp_path / "sae", PROVENANCE)
    theirs = sae_lens.SAE.load_from_disk(tmp_path / "sae")
    ours = to_dictionary(load(tmp_path / "sae", width=D))
    x = torch.randn(100, D, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(to_dictionary(sae)(x), ours(x), rtol=0, atol=0)
    torch.testing.assert_close(for_inference(sae)(x), theirs(x), rtol=0, atol=0)
    assert read_provenance(tmp_path / "sae") == PROVENANCE


def test_a_loaded_sae_can_be_saved_again(saved, tmp_path):
    save(load(saved), tmp_path / "again", {})
    for name, tensor in load_file(saved / "sae_weights.safetensors").items():
        assert torch.equal(load_file(tmp_path / "again" / "sae_weights.safetensors")[name], tensor)


def test_a_folder_may_be_text_and_nothing_need_be_said_of_what_it_was_made_from(saved, tmp_path):
    save(load(saved), str(tmp_path / "plain"))
    assert torch.equal(load(tmp_path / "plain").W_dec, load(saved).W_dec)
    assert read_provenance(tmp_path / "plain") == {}


def test_what_is_no_sae_is_not_saved(tmp_path):
    with pytest.raises(SAEError, match=r"an SAE must be one of SAELens, as `sae.train` gives it; got dict"):
        save({}, tmp_path / "sae")  # pyright: ignore[reportArgumentType]
    assert list(tmp_path.iterdir()) == []


def test_the_same_sae_is_saved_as_the_same_bytes(saved, tmp_path):
    save(_sae(), tmp_path / "twin", PROVENANCE)
    assert sorted(path.name for path in saved.iterdir()) == ["cfg.json", "provenance.json", "sae_weights.safetensors"]
    for path in saved.iterdir():
        assert path.read_bytes() == (tmp_path / "twin" / path.name).read_bytes()


def test_a_failed_save_leaves_nothing_behind(tmp_path):
    sae = load_nothing = _sae()
    with pytest.raises(TypeError):
        save(sae, tmp_path / "sae", {"not JSON": load_nothing})
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_not_overwritten(saved):
    before = (saved / "sae_weights.safetensors").read_bytes()
    with pytest.raises(SAEError, match=r"must not exist; .*good does. Remove it or give another folder"):
        save(_sae("topk"), saved, {})
    assert (saved / "sae_weights.safetensors").read_bytes() == before


def _without(name):
    return lambda folder: (folder / name).unlink()


def _truncated(folder):
    path = folder / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _garbage(folder):
    (folder / "sae_weights.safetensors").write_bytes(b"\x80\x02garbage" * 50)


def _with_nan(folder):
    weights = load_file(folder / "sae_weights.safetensors")
    weights["W_enc"][0, 0] = float("nan")
    save_file(weights, folder / "sae_weights.safetensors")


def _short_of_a_tensor(folder):
    weights = load_file(folder / "sae_weights.safetensors")
    del weights["b_enc"]
    save_file(weights, folder / "sae_weights.safetensors")


def _of_other_shapes(folder):
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**config, "d_in": 7}))


def _training_checkpoint(folder):
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**config, "architecture": "batchtopk"}))


def _pickled(folder):
    (folder / "sae_weights.safetensors").unlink()
    torch.save({}, folder / "sae.pt")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_without("sae_weights.safetensors"), "has no sae_weights.safetensors"),
        (_without("cfg.json"), "has no cfg.json"),
        (lambda folder: (folder / "cfg.json").write_text("{"), "must be a JSON object; line 1, column 2"),
        (lambda folder: (folder / "cfg.json").write_text("[]"), "must be a JSON object; got a list"),
        (_truncated, "is truncated, corrupt or not an SAE"),
        (_garbage, "is truncated, corrupt or not an SAE"),
        (_short_of_a_tensor, "is truncated, corrupt or not an SAE: .*b_enc"),
        (
            _of_other_shapes,
            r"cfg.json must describe the SAE beside it; W_dec: shape \(40, 12\) does not agree with d_in = 7",
        ),
        (_with_nan, "must hold finite numbers; W_enc of .* does not"),
        (_training_checkpoint, "must hold an SAE in its inference form; got the architecture 'batchtopk'"),
        (_pickled, "only safetensors are read; .* holds sae.pt"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(copy, harm, message):
    harm(copy)
    with pytest.raises(SAEError, match=message) as refusal:
        load(copy)
    assert "\n" not in str(refusal.value)


def test_a_different_width_is_refused(saved):
    with pytest.raises(SAEError, match=r"must read activations of width 16; .* reads 12\. Use this model's"):
        load(saved, width=16)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such/folder", "there is no folder no/such/folder"),
        ("no-such-release:blocks.0", "neither a folder, a release that SAELens knows, nor"),
        ("gpt2-small-res-jb:blocks.99.nothing", "release gpt2-small-res-jb has .* 'blocks.99.nothing' is not one"),
        ("gemma-scope-2b-pt-res-canonical:layer_0/width_16k/canonical", r"only safetensors are read.*gemma_2.*FOLDER"),
    ],
)
def test_a_missing_or_unsafe_source_is_refused_before_any_download(source, message):
    with pytest.raises(SAEError, match=message):
        load(source)


def test_a_release_is_read_through_saelens(saved, monkeypatch):
    import sae_lens.loading.pretrained_sae_loaders as loaders

    def download(repo_id, filename, **_):
        assert repo_id == "someone/saes"
        path = saved / filename.removeprefix("layer.3/")
        if not path.exists():
            raise loaders.EntryNotFoundError(filename)
        return str(path)

    monkeypatch.setattr(loaders, "hf_hub_download", download)
    assert torch.equal(load("someone/saes:layer.3", width=D).W_dec, load(saved).W_dec)

    def offline(**_):
        raise OSError("We couldn't connect\nto the Hub.")

    monkeypatch.setattr(loaders, "hf_hub_download", offline)
    with pytest.raises(
        SAEError, match=r"someone/saes:layer.3 cannot be loaded: We couldn't connect to the Hub\. Check"
    ):
        load("someone/saes:layer.3")
