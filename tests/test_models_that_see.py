"""Models that also see: cut to their text part, a stock model of text with the same logits, and the report says so."""

import json
from pathlib import Path

import _families
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Emu3Config,
    LlavaConfig,
    Mistral3Config,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
    Qwen3VLConfig,
)

import jobs
import tiny
from quantised_models import blocks_of_fp8
from stitch.composite.native import with_blocks, write_native
from stitch.errors import UsageError
from stitch.jobs.join import stitch
from stitch.models.describe import describe
from stitch.models.loading import load
from stitch.models.sources import resolve
from stitch.report.card import footnotes

TEXT = dict(
    vocab_size=tiny.VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=6, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, max_position_embeddings=128, bos_token_id=0, eos_token_id=0, pad_token_id=1,
)  # fmt: skip
EYES = dict(
    hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
)
OF_QWEN = dict(depth=2, intermediate_size=16, num_heads=2, patch_size=4)
CODES = dict(
    codebook_size=8, embed_dim=8, latent_channels=8, base_channels=32, channel_multiplier=[1], num_res_blocks=1,
    attn_resolutions=[], hidden_size=32,
)  # fmt: skip
PIECES = {"<image>": 120, "<|extra_200|>": 121, "<|visual token 000000|>": 122}
IDS = dict(image_token_id=120, video_token_id=121, vision_start_token_id=122, vision_end_token_id=123)


def three_axes(*section: int) -> dict:
    return {**TEXT, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(section)}}


CONFIGS = {
    "qwen2_vl": lambda: Qwen2VLConfig(
        text_config=three_axes(1, 1, 2), vision_config={**OF_QWEN, "embed_dim": 16, "hidden_size": 32}, **IDS
    ),
    "qwen2_5_vl": lambda: Qwen2_5_VLConfig(
        text_config=three_axes(1, 1, 2), vision_config={**OF_QWEN, "hidden_size": 16, "out_hidden_size": 32}, **IDS
    ),
    "qwen3_vl": lambda: Qwen3VLConfig(
        text_config=three_axes(2, 1, 1), **IDS,
        vision_config={
            **OF_QWEN, "hidden_size": 16, "out_hidden_size": 32, "deepstack_visual_indexes": [1], "num_position_embeddings": 16,
        },
    ),
    "llava": lambda: LlavaConfig(
        text_config={**TEXT, "model_type": "llama"}, vision_config={**EYES, "model_type": "clip_vision_model"},
        image_token_index=120,
    ),
    "mistral3": lambda: Mistral3Config(
        text_config={**TEXT, "model_type": "mistral"}, vision_config={**EYES, "model_type": "pixtral", "head_dim": 8},
        image_token_index=120,
    ),
    "gemma3": lambda: _families.config("gemma3"),
    "emu3": lambda: Emu3Config(text_config=TEXT, vq_config=CODES, vocabulary_map=PIECES),
}  # fmt: skip
TEXT_FAMILY = {
    "qwen2_vl": "qwen2", "qwen2_5_vl": "qwen2", "qwen3_vl": "qwen3", "llava": "llama", "mistral3": "mistral",
    "gemma3": "gemma3_text", "emu3": "emu3_text_model",
}  # fmt: skip


def saved(kind: str, folder: Path):
    """The whole model, and its folder with a tokenizer. All weights are drawn, so that every block changes the logits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = AutoModelForImageTextToText.from_config(CONFIGS[kind](), dtype=torch.float32).eval()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape))
    net.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return net


def texts() -> torch.Tensor:
    return tiny.ids().clamp(max=100)  # higher ones mean an image


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_the_text_part_has_the_logits_of_the_whole_model(kind, tmp_path):
    whole, ids = saved(kind, tmp_path), texts()
    part = load(tmp_path)
    assert part.config.model_type == TEXT_FAMILY[kind] and part.anatomy.tested == (kind != "emu3")
    assert torch.equal(part.net(ids).logits, whole(input_ids=ids).logits)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    padded, expected = (net(input_ids=ids, attention_mask=mask).logits[mask.bool()] for net in (part.net, whole))
    assert torch.equal(padded, expected)
    assert describe(str(tmp_path))["blocks"] == part.depth


@pytest.mark.parametrize(
    "prefixes", [("model.language_model.", "lm_head."), ("language_model.model.", "language_model.lm_head.")]
)
def test_old_and_new_names_in_files_are_understood(prefixes, tmp_path):
    saved("llava", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    expected = load(tmp_path).net(texts()).logits
    renamed = {
        name.replace("language_model.model.", prefixes[0]).replace("language_model.lm_head.", prefixes[1]): tensor
        for name, tensor in tensors.items()
    }
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(load(tmp_path).net(texts()).logits, expected)


def kinds_in(config: dict) -> set[str]:
    found = {config["model_type"]} if "model_type" in config else set()
    return found.union(*(kinds_in(value) for value in config.values() if isinstance(value, dict)))


@pytest.mark.parametrize(
    "kind", ["gemma3", *(pytest.param(one, marks=pytest.mark.slow) for one in ("qwen2_5_vl", "qwen3_vl"))]
)
@torch.no_grad()
def test_a_join_with_a_model_that_sees_gives_a_model_of_text_and_says_so(kind, tmp_path):
    saved(kind, tmp_path / "sees")
    plain = tiny.save(tmp_path / "plain", "gpt2")
    settings = jobs.settings(tmp_path / "sees", plain, jobs.write_text(tmp_path), translation="affine", brief=True)
    report, folder = stitch(settings, tmp_path / "out")
    family = TEXT_FAMILY[kind]
    note = f"the text part of a {kind} alone, a {family}"
    assert report["provenance"]["models"]["a"]["note"] == note and "note" not in report["provenance"]["models"]["b"]
    assert f"{tmp_path / 'sees'}: {note}." in footnotes(report)
    assert note in (folder / "README.md").read_text()
    assert kinds_in(json.loads((folder / "config.json").read_text())) == {"stitch", family, "gpt2"}
    names = load_file(folder / "model.safetensors")
    assert names and not any("vis" in name or "projector" in name or "language_model" in name for name in names)
    again = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert torch.equal(again.a.get_input_embeddings().weight, load(tmp_path / "sees").embedding.weight)
    assert again(texts()).logits.isfinite().all()


@torch.no_grad()
def test_fewer_blocks_of_a_model_that_sees_are_a_stock_model_of_text(tmp_path):
    saved("gemma3", tmp_path / "sees")
    model, order = load(tmp_path / "sees"), [0, 1, 3, 4, 5]
    write_native(tmp_path / "out", model, order, {})
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(again).__name__ == "Gemma3ForCausalLM"
    assert torch.equal(again(texts()).logits, with_blocks(model, order).net(texts()).logits)
    assert not any("vision" in name for name in load_file(tmp_path / "out" / "model.safetensors"))


@pytest.mark.parametrize("kind", ["qwen3_vl", "llava"])
@torch.no_grad()
def test_a_quantised_model_that_sees_is_dequantised_and_cut(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("STITCH_CACHE", str(tmp_path / "cache"))
    saved(kind, tmp_path / "packed")
    saved(kind, tmp_path / "plain")
    packed, plain = {}, {}
    for name, weight in load_file(tmp_path / "plain" / "model.safetensors").items():
        packed[name] = plain[name] = weight
        if "language_model" in name and name.endswith("proj.weight"):
            parts, plain[name] = blocks_of_fp8(weight)
            packed |= {name + end: part for end, part in parts.items()}
    for side, tensors in (("packed", packed), ("plain", plain)):
        save_file(tensors, tmp_path / side / "model.safetensors", {"format": "pt"})
    config = json.loads((tmp_path / "packed" / "config.json").read_text())
    method = {"quant_method": "fp8", "weight_block_size": [4, 4], "modules_to_not_convert": ["model.visual"]}
    (tmp_path / "packed" / "config.json").write_text(json.dumps({**config, "quantization_config": method}))
    found = resolve(str(tmp_path / "packed"))
    assert found.note == f"the text part of a {kind} alone, a {TEXT_FAMILY[kind]}, dequantised from fp8"
    assert torch.equal(load(found.folder).net(texts()).logits, load(tmp_path / "plain").net(texts()).logits)
    assert not any("vis" in name for name in load_file(found.folder / "model.safetensors"))


def test_a_text_part_is_saved_under_the_names_of_a_model_of_text(tmp_path):
    saved("llava", tmp_path / "sees")
    net = load(tmp_path / "sees").net
    net.save_pretrained(tmp_path / "text")
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "text")(texts()).logits, net(texts()).logits)


def test_a_text_part_that_is_no_model_of_its_own_is_refused(tmp_path):
    config = AutoConfig.for_model("glm4v")
    config.architectures = ["Glm4vForConditionalGeneration"]
    config.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="whose text part is no causal model of transformers: choose a causal model"):
        resolve(str(tmp_path))
