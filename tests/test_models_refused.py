"""Models that cannot be a part are refused in one line, with what is needed, what was got and what to do, before weights are
downloaded or loaded.
"""

import json
from pathlib import Path

import pytest
import transformers

import jobs
import tiny
from hub_double import hub  # noqa: F401 (a fixture)
from stitch.errors import StitchError, UsageError
from stitch.jobs.join import stitch
from stitch.models import quantised
from stitch.models.describe import describe
from stitch.models.loading import load
from stitch.models.sources import resolve, resolve_all

# ruff: noqa: F811 (an imported fixture is also the name of an argument)

SMALL = dict(vocab_size=tiny.VOCABULARY, bos_token_id=0, eos_token_id=0, pad_token_id=1)
SIDES = {
    f"{side}_{name}": size
    for side in ("encoder", "decoder")
    for name, size in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 16))
}
BLOCKS = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=16)
SEQUENCE = dict(d_model=16, **SIDES, decoder_start_token_id=0)
CLIP = dict(text_config={**SMALL, **BLOCKS}, vision_config={**BLOCKS, "image_size": 8, "patch_size": 4})
ENCODER_DECODER = "an encoder-decoder, whose decoder needs what its encoder returns"
NO_HEAD = "which has no head for that"

REFUSED = {
    "T5ForConditionalGeneration": (dict(d_model=16, d_kv=4, d_ff=16, num_layers=2, num_heads=4), ENCODER_DECODER),
    "T5EncoderModel": (dict(d_model=16, d_kv=4, d_ff=16, num_layers=2, num_heads=4), NO_HEAD),
    "BartForConditionalGeneration": (SEQUENCE, ENCODER_DECODER),
    "WhisperForConditionalGeneration": (SEQUENCE, ENCODER_DECODER),
    "BertForMaskedLM": (BLOCKS, NO_HEAD),
    "BertModel": (BLOCKS, NO_HEAD),
    "RobertaForMaskedLM": (BLOCKS, NO_HEAD),
    "LlamaForSequenceClassification": (BLOCKS, NO_HEAD),
    "CLIPModel": (CLIP, NO_HEAD),
}


def saved(folder: Path, architecture: str, **sizes) -> Path:
    cls = getattr(transformers, architecture)
    config = cls.config_class(**(sizes if "text_config" in sizes else {**SMALL, **sizes}))
    cls(config).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def refusal(use, *arguments, kind: type[StitchError] = UsageError) -> str:
    with pytest.raises(StitchError) as caught:
        use(*arguments)
    assert type(caught.value) is kind and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("architecture", REFUSED)
def test_what_is_no_decoder_is_refused_with_the_reason(architecture, tmp_path):
    sizes, why = REFUSED[architecture]
    folder = saved(tmp_path / "model", architecture, **sizes)
    family = json.loads((folder / "config.json").read_text())["model_type"]
    expected = (
        "the model must be a decoder that predicts the next token; "
        f"got {family} ({architecture}), {why}: choose a causal model."
    )
    assert {refusal(use, folder) for use in (lambda place: resolve(str(place)), load)} == {expected}
    assert refusal(describe, str(folder)) == expected


def test_the_decoder_of_an_encoder_decoder_is_a_model(tmp_path):
    assert load(saved(tmp_path, "BartForCausalLM", **SEQUENCE)).depth == 2


def test_a_model_that_sees_later_tokens_is_refused_although_it_has_the_head(tmp_path):
    """BERT attends to both sides unless its config says `is_decoder`."""
    both = saved(tmp_path / "both", "BertLMHeadModel", **BLOCKS)
    assert "must be causal; both (bert) sees the whole text: choose one that generates" in refusal(load, both)
    assert load(saved(tmp_path / "one", "BertLMHeadModel", **BLOCKS, is_decoder=True)).depth == 2


def test_a_base_model_without_a_head_is_told_from_a_damaged_one(tmp_path):
    folder = saved(tmp_path, "LlamaModel", **BLOCKS)
    told = refusal(load, folder, kind=StitchError)
    assert "1 tensors are missing, lm_head.weight first" in told and "choose one with such a head" in told


def test_a_join_is_refused_before_anything_is_written(tmp_path):
    good, bad = tiny.save(tmp_path / "good", "gpt2"), saved(tmp_path / "bad", "T5ForConditionalGeneration")
    told = refusal(stitch, jobs.settings(good, bad, tmp_path / "no text"), tmp_path / "out")
    assert ENCODER_DECODER in told and not (tmp_path / "out").exists()


# On the Hub


def weights_asked_for(hub) -> list[str]:
    return [request.path for request in hub.requests if "/resolve/" in request.path and "safetensors" in request.path]


def config(architecture: str, **more) -> bytes:
    kind = getattr(transformers, architecture).config_class.model_type
    return json.dumps({"model_type": kind, "architectures": [architecture], **more}).encode()


def model(config: bytes) -> dict[str, bytes]:
    return {"config.json": config, "model.safetensors": bytes(300_000), "tokenizer.json": b"{}"}


@pytest.mark.parametrize(
    "described, told",
    [
        (config("T5ForConditionalGeneration", is_encoder_decoder=True), ENCODER_DECODER),
        (config("BertForMaskedLM"), NO_HEAD),
        (config("LlamaForCausalLM", quantization_config={"quant_method": "awq"}), "quantised (awq)"),
    ],
)
def test_the_config_is_read_before_weights_are_downloaded(hub, described, told):
    hub.add("user/model", model(described))
    assert told in refusal(resolve, "user/model")
    assert weights_asked_for(hub) == []


def test_a_gated_second_model_is_refused_before_the_first_is_downloaded(hub):
    hub.add("user/first", model(config("LlamaForCausalLM")))
    hub.add("user/second", model(config("LlamaForCausalLM")), gated=True)
    told = refusal(resolve_all, ["user/first", "user/second"], kind=StitchError)
    assert told.startswith("user/second is gated, and no token was sent") and weights_asked_for(hub) == []


def test_both_models_of_a_join_are_looked_at_first(hub, tmp_path):
    hub.add("user/first", model(config("LlamaForCausalLM")))
    hub.add("user/second", model(config("BertForMaskedLM")))
    asked = jobs.settings(Path("user/first"), Path("user/second"), tmp_path / "no text")
    assert NO_HEAD in refusal(stitch, asked, tmp_path / "out") and weights_asked_for(hub) == []


def test_a_second_model_in_a_folder_is_refused_before_the_first_is_converted(tmp_path, monkeypatch):
    monkeypatch.setattr(quantised, "dequantised", lambda *_: pytest.fail("dequantised"))
    first = tiny.save(tmp_path / "first", "llama")
    described = json.loads((first / "config.json").read_text())
    (first / "config.json").write_text(json.dumps({**described, "quantization_config": {"quant_method": "mxfp4"}}))
    second = saved(tmp_path / "second", "BertForMaskedLM", **BLOCKS)
    assert NO_HEAD in refusal(resolve_all, [str(first), str(second)])


def test_only_the_tokenizer_of_an_encoder_decoder_may_be_used(tmp_path):
    folder = saved(tmp_path, "T5ForConditionalGeneration", **REFUSED["T5ForConditionalGeneration"][0])
    assert resolve(str(folder), for_tokenizer=True).folder == folder
