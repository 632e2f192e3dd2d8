"""Given SAEs: which hooks and models count as those of a site, and what is refused before any work."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from jobs import gpt2_and_qwen3, settings
from sae.attachment import attachment
from sae.convert import from_dictionary
from sae.errors import SAEError
from sae.storage import load, save
from sae.types import Dictionary
from stitch.features.hooks import is_elsewhere, site_of
from stitch.features.model_names import compared
from stitch.features.saes import place_of
from stitch.jobs.join import stitch
from stitch.jobs.transfer_sae import transfer_sae
from stitch.models.sources import Source


@pytest.mark.parametrize(
    "hook",
    [
        *(
            "blocks.3.hook_resid_pre",
            "blocks.2.hook_resid_post",
            "blocks.3.hook_in",
            "blocks.2.hook_out",
            "resid_pre.3",
        ),
        *("resid_post_layer_2", "layers.2", "model.layers.2", "transformer.h.2", "gpt_neox.layers.2"),
    ],
)
def test_every_spelling_of_a_stream_is_its_site(hook):
    assert site_of(hook) == 3 and not is_elsewhere(hook)


@pytest.mark.parametrize(
    "hook",
    [
        *("blocks.3.hook_mlp_out", "blocks.3.attn.hook_z", "blocks.3.hook_resid_mid", "blocks.3.ln2.hook_normalized"),
        *("blocks.3.hook_attn_out", "model.layers.3.mlp", "mlp_out_layer_3", "hook_embed"),
    ],
)
def test_other_outputs_of_a_block_are_no_site(hook):
    assert site_of(hook) is None and is_elsewhere(hook)


def test_an_unknown_hook_is_neither():
    assert site_of("activations") is None and not is_elsewhere("activations")


@pytest.mark.parametrize(
    ("name", "model", "verdict"),
    [
        ("gpt2-small", "openai-community/gpt2", "same"),
        ("gpt2-small", "gpt2@607a30d", "same"),
        ("openai-community/gpt2", "models/gpt2", "same"),
        ("https://huggingface.co/EleutherAI/pythia-70m-deduped", "EleutherAI/pythia-70m-deduped", "same"),
        ("meta-llama/Meta-Llama-3.1-8B", "meta-llama/Llama-3.1-8B", "same"),
        ("gpt2", "gpt2-medium", "other"),
        ("gemma-2-2b", "google/gemma-2-2b-it", "other"),
        ("demo:gpt2", "demo:llama", "other"),
        ("demo:gpt2", "openai-community/gpt2", "other"),
        ("someone/a-model", "someone/another", "other"),
        ("gpt2-small", "models/mine", "unknown"),
        ("snapshots", "openai-community/gpt2", "unknown"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2", "unknown"),
    ],
)
def test_a_model_is_another_only_where_both_names_are_known(name, model, verdict, tmp_path):
    kind = "folder" if model.startswith("models/") else "gguf" if model == "smollm2" else "hub"
    assert compared(name, Source(model, tmp_path, None, kind)) == verdict


def test_folders_are_compared_as_folders(tmp_path):
    first, second, moved = (tmp_path / name for name in ("first", "second", "moved/first"))
    for folder in (first, second, moved):
        folder.mkdir(parents=True)

    def verdict(name: Path, folder: Path):
        return compared(str(name), Source(str(folder), folder, None, "folder"))

    assert verdict(first, first) == "same" and verdict(first, second) == "other"
    assert verdict(first, moved) == "unknown"  # many folders are called `model`
    assert verdict(tmp_path / "gone" / "first", first) == "same"
    (second / "README.md").write_text("---\nbase_model: openai-community/gpt2\n---\n")
    assert compared("gpt2-small", Source(str(second), second, None, "folder")) == "derived"


@pytest.fixture(scope="module")
def donors(tmp_path_factory) -> dict[str, Path]:
    """Two pico models of the same width, called by names that nobody knows, and a text."""
    folder = tmp_path_factory.mktemp("donors")
    found = gpt2_and_qwen3(folder)
    return {
        "a": tiny.save(folder / "one", "gpt2"),
        "b": tiny.save(folder / "two", "llama", hidden_size=32),
        "text": found["text"],
    }


def write_sae(folder: Path, model: Path, site: int, width: int = 32, **metadata: str | None) -> Path:
    drawn = torch.randn(64, width, generator=torch.Generator().manual_seed(0))
    rows = drawn / drawn.norm(dim=1, keepdim=True)
    zeros = torch.zeros(64)
    dictionary = Dictionary(
        encoder=rows.T.contiguous(), encoder_bias=zeros, activation="jumprelu", threshold=zeros + 0.1, k=None, decoder=rows,
        decoder_bias=torch.zeros(width),
    )  # fmt: skip
    place = {**place_of(str(model), f"resid_pre.{site}"), **metadata}
    save(from_dictionary(dictionary), folder, {}, {name: value for name, value in place.items() if value is not None})
    return folder


def joined(donors: dict[str, Path], out: Path, **changes):
    """A join that fails as soon as anything but the models is read, harvested or trained."""

    def heard(task: str, *_) -> None:
        assert task.startswith("loading "), f"{task} began before the SAEs were checked"

    asked = settings(donors["a"], donors["b"], donors["text"], brief=True, reference_steps=None, **changes)
    return stitch(asked, out, progress=heard)


def test_names_are_read_from_metadata_or_from_our_own_record(donors, tmp_path):
    folder = write_sae(tmp_path / "sae", donors["a"], 2)
    found = attachment(load(folder), folder)
    assert (found.model, found.hook) == (str(donors["a"]), "blocks.1.hook_resid_post")
    config = json.loads((folder / "cfg.json").read_text())
    del config["metadata"]["hook_name"], config["metadata"]["model_name"]
    (folder / "cfg.json").write_text(json.dumps(config))
    assert attachment(load(folder), folder).hook is None
    (folder / "provenance.json").write_text(json.dumps({"model": "m", "site": "resid_pre.2"}))
    found = attachment(load(folder), folder)
    assert (found.model, found.hook) == ("m", "resid_pre.2")


def test_names_of_an_old_folder_are_found_through_saelens(donors, tmp_path):
    folder = write_sae(tmp_path / "sae", donors["a"], 2)
    config = json.loads((folder / "cfg.json").read_text())
    del config["metadata"]
    (folder / "cfg.json").write_text(json.dumps({**config, "hook_point": "blocks.2.hook_resid_pre", "model_name": "x"}))
    found = attachment(load(folder), folder)
    assert (found.model, found.hook) == ("x", "blocks.2.hook_resid_pre")


def test_all_faults_of_both_saes_are_said_in_one_line_before_any_work(donors, tmp_path):
    wrong = write_sae(tmp_path / "wrong", donors["b"], 3)
    with pytest.raises(SAEError) as refusal:
        joined(donors, tmp_path / "out", sae_a=str(wrong), sae_b=str(tmp_path / "nowhere"))
    told = str(refusal.value)
    assert told.startswith("sae_a and sae_b must be usable at resid_pre.2 of ") and "\n" not in told
    for fault in ("blocks.2.hook_resid_post, which is resid_pre.3", f"trained on {donors['b']}", "there is no folder"):
        assert fault in told
    assert "`sae_any_hook`" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["wrong"]


def test_a_wrong_second_sae_is_noticed_before_the_first_is_trained(donors, tmp_path):
    narrow = write_sae(tmp_path / "narrow", donors["b"], 2, width=16)
    with pytest.raises(SAEError, match=r"sae_b must be usable at .*must read activations of width 32; .* reads 16\.$"):
        joined(donors, tmp_path / "out", sae_b=str(narrow))


@pytest.mark.parametrize("metadata", [{"hook_name": "blocks.2.hook_mlp_out"}, {"hook_name": "blocks.4.hook_resid_pre"}])
def test_an_sae_of_another_hook_is_refused(donors, tmp_path, metadata):
    with pytest.raises(SAEError, match=rf"trained at {metadata['hook_name']}"):
        joined(donors, tmp_path / "out", sae_a=str(write_sae(tmp_path / "sae", donors["a"], 2, **metadata)))


def test_normalisation_and_norms_are_checked_as_well(donors, tmp_path):
    folder = write_sae(tmp_path / "sae", donors["a"], 2)
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**config, "normalize_activations": "layer_norm"}))
    with pytest.raises(SAEError, match=r"sae_a must be usable at .*: an SAE must take raw activations"):
        joined(donors, tmp_path / "out", sae_a=str(folder))
    topk = {name: value for name, value in config.items() if name != "architecture"}
    (folder / "cfg.json").write_text(
        json.dumps({**topk, "architecture": "topk", "k": 4, "rescale_acts_by_decoder_norm": False})
    )
    weights = load_file(folder / "sae_weights.safetensors")
    weights.pop("threshold")
    weights["W_dec"][0] *= 3
    save_file(weights, folder / "sae_weights.safetensors")
    with pytest.raises(SAEError, match="must have decoder rows of equal norm"):
        joined(donors, tmp_path / "out", sae_a=str(folder))


@pytest.mark.slow
def test_an_sae_of_another_place_is_used_on_insistence_and_doubts_are_noted(donors, tmp_path):
    wrong = write_sae(tmp_path / "wrong", donors["b"], 3)
    unnamed = write_sae(tmp_path / "unnamed", donors["b"], 2, model_name=None, hook_name="activations")
    asked = settings(
        donors["a"], donors["b"], donors["text"], brief=True, reference_steps=None, sae_a=str(wrong), sae_b=str(unnamed),
        sae_any_hook=True,
    )  # fmt: skip
    report, _ = stitch(asked, tmp_path / "out")
    told = " ".join(report["sae_notes"])
    assert len(report["sae_notes"]) == 4
    for note in (
        "which is resid_pre.3",
        f"trained on {donors['b']}",
        "hook of unknown name",
        "does not say on which model",
    ):
        assert note in told
    assert "Given SAE: " in (tmp_path / "out" / "README.md").read_text()


def test_a_transfer_checks_both_saes(donors, tmp_path):
    wrong = write_sae(tmp_path / "wrong", donors["a"], 4)
    asked = settings(donors["a"], donors["b"], donors["text"], brief=True, reference_steps=None)
    with pytest.raises(
        SAEError, match=r"file and native must be usable at .*`file`: .*resid_pre\.4.*`native`: .*no folder"
    ):
        transfer_sae(asked, str(wrong), tmp_path / "out", native=str(tmp_path / "nowhere"))


def test_the_hook_of_a_layer_still_to_be_chosen_is_checked_once_it_is(donors, tmp_path):
    """The block is never 0, so an SAE of site 0 fits no choice; the layer is chosen before anything is trained."""
    first = write_sae(tmp_path / "sae", donors["b"], 0)
    done = []
    asked = settings(
        donors["a"], donors["b"], donors["text"], brief=True, reference_steps=None, layer_b="auto", sae_b=str(first)
    )
    with pytest.raises(SAEError, match=r"blocks\.0\.hook_resid_pre, which is resid_pre\.0"):
        stitch(asked, tmp_path / "out", progress=lambda task, *_: done.append(task))
    assert done and not [task for task in done if "SAE" in task]
    assert not (tmp_path / "out").exists()


@torch.no_grad()
def test_a_hooked_transformer_attaches_a_written_sae_at_its_site(donors, tmp_path):
    from sae_lens import HookedSAETransformer
    from transformer_lens import HookedTransformerConfig

    sae = load(write_sae(tmp_path / "sae", donors["a"], 2))
    shape = HookedTransformerConfig(
        n_layers=3, d_model=32, n_ctx=16, d_head=8, n_heads=4, d_vocab=50, act_fn="gelu", seed=0, device="cpu"
    )
    model, ids = HookedSAETransformer(shape), torch.arange(12)[None]
    _, plain = model.run_with_cache(ids)
    _, spliced = model.run_with_cache_with_saes(ids, saes=[sae])
    torch.testing.assert_close(
        spliced["blocks.1.hook_resid_post.hook_sae_acts_post"], sae.encode(plain["blocks.2.hook_resid_pre"])
    )
