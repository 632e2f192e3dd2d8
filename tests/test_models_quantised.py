"""Quantised donors: dequantised once, so that the model and its composite are those of the same weights in plain floats; other
methods are refused by name.
"""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import jobs
import tiny
from quantised_models import bits_and_bytes, compressed, fp8, mxfp4
from stitch.errors import StitchError, UsageError
from stitch.jobs.join import stitch
from stitch.models import quantised
from stitch.models.loading import load
from stitch.models.sources import resolve
from stitch.report.card import footnotes


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("STITCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def needs(package: str, *values):
    absent = importlib.util.find_spec(package) is None
    return pytest.param(*values, marks=pytest.mark.skipif(absent, reason=f"needs {package}"))


MADE = [
    pytest.param("fp8", fp8),
    pytest.param("fp8", lambda root: fp8(root, in_blocks=False)),
    pytest.param("mxfp4", mxfp4),
    *(needs("compressed_tensors", "compressed-tensors", compressed(kind)) for kind in ("int4", "int8", "fp8")),
    needs("bitsandbytes", "bitsandbytes", bits_and_bytes(load_in_4bit=True, bnb_4bit_quant_type="nf4")),
    needs("bitsandbytes", "bitsandbytes", bits_and_bytes(load_in_4bit=True, bnb_4bit_use_double_quant=True)),
    needs("bitsandbytes", "bitsandbytes", bits_and_bytes(load_in_8bit=True)),
]


@pytest.mark.parametrize("method, make", MADE)
@torch.no_grad()
def test_a_dequantised_model_has_the_values_that_its_weights_stand_for(method, make, tmp_path, cache):
    packed, plain = make(tmp_path)
    found = resolve(str(packed))
    assert (found.note, found.kind, found.name) == (f"dequantised from {method}", "folder", str(packed))
    assert (
        found.folder.is_relative_to(cache) and "quantization_config" not in (found.folder / "config.json").read_text()
    )
    mine, expected = load(found.folder, dtype=torch.float32).net, load(plain, dtype=torch.float32).net
    for name, weight in expected.state_dict().items():
        rounding = 2e-6 * weight.abs().max() if method in ("compressed-tensors", "bitsandbytes") else 0
        assert (mine.state_dict()[name] - weight).abs().max() <= rounding, name
    assert {one.dtype for one in load(found.folder).net.parameters()} == {
        torch.bfloat16 if method == "mxfp4" else torch.float32
    }


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3"])
def test_experts_in_fp8_are_dequantised_one_by_one(family, tmp_path):
    packed, plain = fp8(tmp_path, family)
    names = load_file(packed / "model.safetensors")
    assert any("experts.3.up_proj.weight_scale_inv" in name for name in names)
    mine, expected = load(resolve(str(packed)).folder).net.state_dict(), load(plain).net.state_dict()
    assert all(torch.equal(mine[name], weight) for name, weight in expected.items())


@pytest.mark.slow
@torch.no_grad()
def test_a_composite_of_a_quantised_model_is_that_of_its_plain_weights(tmp_path):
    """Byte for byte, but for the name of its first model."""
    packed, plain = fp8(tmp_path)
    text = jobs.write_text(tmp_path)
    again = shutil.copytree(plain, tmp_path / "again")  # a tied model joined to itself would store its head once
    made = {}
    for name, folder in (("packed", packed), ("plain", again)):
        settings = jobs.settings(folder, plain, text, translation="affine", brief=True)
        made[name] = stitch(settings, tmp_path / "out" / name)
    weights, config = (
        {name: (folder / file).read_bytes() for name, (_, folder) in made.items()}
        for file in ("model.safetensors", "config.json")
    )
    assert weights["packed"] == weights["plain"] and config["packed"] == config["plain"]
    assert b"quantization_config" not in config["packed"]
    report, folder = made["packed"]
    told = f"{packed}: dequantised from fp8."
    assert told in footnotes(report) and told in (folder / "README.md").read_text()
    assert "dequantised" not in (made["plain"][1] / "README.md").read_text()


def test_a_model_is_dequantised_once_and_keeps_card_and_tokenizer(tmp_path, monkeypatch):
    packed, _ = fp8(tmp_path)
    (packed / "README.md").write_text("---\nlicense: mit\n---\n")
    (packed / "chat_template.jinja").write_text("{{ messages }}")
    told: list = []
    first = resolve(str(packed), progress=lambda *step: told.append(step))
    (stage,), (begun, *_, done) = {stage for stage, *_ in told}, [counts for _, *counts in told]
    assert stage == f"dequantising {packed} (tensors)" and begun[0] == 0 and done[0] == done[1] == begun[1] > 1
    assert (first.folder / "README.md").read_text() == "---\nlicense: mit\n---\n"
    assert (first.folder / "chat_template.jinja").read_text() == "{{ messages }}"
    monkeypatch.setattr(quantised, "_read", lambda *_: pytest.fail("dequantised again"))
    assert resolve(str(packed)).folder == first.folder


def test_scales_that_are_not_read_are_an_error(tmp_path, cache):
    """transformers leaves tensors of an unknown name out, and the weights would be off by their scales."""
    packed, _ = fp8(tmp_path)
    tensors = {name.replace("scale_inv", "scale"): one for name, one in load_file(packed / "model.safetensors").items()}
    save_file(tensors, packed / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        StitchError, match=r"84 tensors are not \(fp8\), model.layers.0.mlp.down_proj.weight_scale first"
    ):
        resolve(str(packed))
    assert [file.suffix for file in (cache / quantised.FORMAT).iterdir()] == [".lock"]


METHODS = (
    "gptq awq hqq aqlm quanto torchao bitnet vptq spqr eetq higgs fbgemm_fp8 quark auto-round nvfp4 unheard-of".split()
)


@pytest.mark.parametrize("method", METHODS)
def test_other_methods_are_refused_by_name_before_weights_are_read(method, tmp_path):
    folder = tiny.save(tmp_path / "model", "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": method}}))
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(UsageError) as caught:
        resolve(str(folder))
    assert str(caught.value) == (
        "weights must be plain floats or quantised by fp8, mxfp4, compressed-tensors, bitsandbytes or GGUF; those of "
        f"{folder} are quantised ({method}): use the unquantised checkpoint or a GGUF file."
    )


def test_a_method_is_found_wherever_a_config_says_it():
    method = {"quant_method": "gptq"}
    assert quantised.method_of({"quantization_config": method}) == "gptq"
    assert quantised.method_of({"text_config": {"quantization_config": method}}) == "gptq"
    assert quantised.method_of({"compression_config": {"quant_method": "compressed-tensors"}}) == "compressed-tensors"
    assert quantised.method_of({"quantization_config": {"load_in_4bit": True}}) == "bitsandbytes"
    assert quantised.method_of({"model_type": "llama", "text_config": None}) is None
