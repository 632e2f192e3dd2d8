"""Anatomies, loading, and the cost of a block."""

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

import tiny
from stitch.errors import StitchError, UsageError
from stitch.models.anatomy import anatomy_of
from stitch.models.flops import block_flops, block_parameters
from stitch.models.loading import load


@pytest.mark.parametrize("family", tiny.FAMILIES)
@torch.no_grad()
def test_the_parts_of_every_family_compute_its_logits(family):
    """Final norm and head, found by anatomy and applied to the last block's output, give the model's logits."""
    model, ids, seen = tiny.model(family), tiny.ids(), []
    handles = [
        model.embedding.register_forward_hook(lambda *call: seen.append("embedding")),
        *(block.register_forward_hook(lambda *call: seen.append(call[-1])) for block in model.blocks),
        *(
            getattr(model.blocks[0], part).register_forward_hook(lambda *call, part=part: seen.append(part))
            for part in (model.anatomy.attention, model.anatomy.mlp)
        ),
    ]
    logits = model.net(ids).logits
    for handle in handles:
        handle.remove()
    assert seen[:3] == ["embedding", model.anatomy.attention, model.anatomy.mlp]
    assert len(model.blocks) == model.depth == tiny.DEPTH
    by_hand = model.head(model.final_norm(seen[-1]))
    if (cap := getattr(model.config, "final_logit_softcapping", None)) is not None:
        by_hand = torch.tanh(by_hand / cap) * cap
    assert torch.equal(by_hand, logits)
    assert seen[-1].shape[-1] == model.width


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_learned_positions_are_named_where_a_family_has_them(family):
    model = tiny.model(family)
    tables = {name for name, module in model.body.named_modules() if isinstance(module, torch.nn.Embedding)}
    named = {model.anatomy.embedding, model.anatomy.positions} - {None}
    assert tables == named
    dropouts = {name for name, module in model.body.named_children() if isinstance(module, torch.nn.Dropout)}
    assert dropouts == {model.anatomy.embedding_dropout} - {None}


@pytest.mark.parametrize(
    ("family", "architecture", "message"),
    [
        ("bert", "BertForMaskedLM", r"must be a decoder .*; got bert \(BertForMaskedLM\)"),
        ("t5", "T5ForConditionalGeneration", "must be a decoder"),
    ],
)
def test_unsupported_families_are_refused_with_a_remedy(family, architecture, message, tmp_path):
    config = AutoConfig.for_model(family)
    config.architectures = [architecture]
    with pytest.raises(UsageError, match=message):
        anatomy_of(config)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family, "architectures": [architecture]}))
    with pytest.raises(UsageError, match=message):
        load(tmp_path)


def test_a_bidirectional_gemma_is_refused():
    with pytest.raises(UsageError, match="sees the whole text"):
        anatomy_of(AutoConfig.for_model("gemma3_text", use_bidirectional_attention=True))


@torch.no_grad()
def test_a_loaded_model_equals_the_saved_one(tmp_path):
    folder = tiny.save(tmp_path / "pico", "llama")
    model = load(folder)
    assert torch.equal(model.net(tiny.ids()).logits, tiny.net("llama")(tiny.ids()).logits)
    assert (model.name, model.folder, model.bos, model.dtype) == ("pico", folder, tiny.BOS, torch.float32)
    narrow = load(folder, dtype=torch.bfloat16, name="demo:llama")
    assert (narrow.name, narrow.dtype) == ("demo:llama", torch.bfloat16)
    assert narrow.body.rotary_emb.inv_freq.dtype == torch.float32
    with pytest.raises(UsageError, match=r"layer must be in 0\.\.6 for demo:llama; got -1"):
        narrow.check_site(-1)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_weights_in_the_dtype_of_the_file_are_mapped_and_not_copied(tmp_path):
    folder = tiny.save(tmp_path / "pico", "llama", dtype=torch.bfloat16)
    for dtype, is_mapped in ((None, True), (torch.bfloat16, True), (torch.float32, False)):
        model = load(folder, dtype=dtype)  # kept, as its file is unmapped with it
        address = model.blocks[2].get_submodule("mlp.up_proj").get_parameter("weight").data_ptr()
        mapped = [
            line.split()[0].split("-")
            for line in Path("/proc/self/maps").read_text().splitlines()
            if str(folder) in line
        ]
        assert any(int(start, 16) <= address < int(stop, 16) for start, stop in mapped) == is_mapped


def test_unusable_model_folders_are_refused_in_one_line(tmp_path):
    def refusal(folder, kind) -> str:
        with pytest.raises(kind) as caught:
            load(folder)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    folder = tiny.save(tmp_path / "pico", "gpt2")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    assert "quantised (gptq)" in refusal(folder, UsageError)
    (folder / "config.json").write_text(json.dumps(config | {"n_layer": 9}))
    assert "whole causal model; 36 tensors are missing" in refusal(folder, StitchError)
    (folder / "config.json").write_text("{")
    assert "config.json of pico must be a JSON object; line 1, column 2" in refusal(folder, StitchError)
    (folder / "config.json").unlink()
    assert "must hold config.json" in refusal(folder, StitchError)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_block_parameters_are_counted_without_building_the_model(family):
    model = tiny.model(family)
    counts = [sum(parameter.numel() for parameter in block.parameters()) for block in model.blocks]
    assert [block_parameters(model.config, block) for block in (0, 3, 5)] == [counts[0], counts[3], counts[5]]


def test_the_cost_of_a_block_counts_its_products():
    config = AutoConfig.for_model("mistral", **tiny._COMMON, **tiny.SHAPES["mistral"])
    weights = block_parameters(config, 0)
    reached = [min(position, 5) for position in range(1, 13)]  # with a window of 5: keys visible to each of 12 tokens
    products = 2 * 4 * (32 // 4) * sum(reached) / 12  # scores and weighted values, over all heads
    assert block_flops(config, 0, context=12) == pytest.approx(2 * weights + 2 * products)
    config.sliding_window = None
    assert block_flops(config, 0, context=12) == pytest.approx(2 * weights + 2 * 2 * 4 * 8 * 6.5)
