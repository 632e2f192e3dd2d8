"""Cuts are tried on a small copy of a model, made from its config.json, before its weights are downloaded or read."""

import json
from pathlib import Path
from typing import Any

import _families
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import tiny
from hub_double import hub  # noqa: F401 (a fixture)
from jobs import settings
from stitch.composite import cuts
from stitch.composite.cuts import TRIED, Cut, require_exact_small
from stitch.composite.parts import Part
from stitch.errors import StitchError, UsageError
from stitch.jobs.chain import chain
from stitch.jobs.join import stitch
from stitch.jobs.sweep import sweep
from stitch.jobs.transfer_vector import transfer_vector
from stitch.models import pico
from stitch.models.pico import small_config, small_model

# ruff: noqa: F811 (an imported fixture is also the name of an argument)

BLOCKS = 6
SHARING: dict[str, Any] = dict(
    vocab_size=20_000, vocab_size_per_layer_input=20_000, hidden_size=640, intermediate_size=2048, num_attention_heads=8,
    num_key_value_heads=2, head_dim=64, global_head_dim=128, num_hidden_layers=BLOCKS, num_kv_shared_layers=2,
    hidden_size_per_layer_input=128, layer_types=["sliding_attention", "full_attention"] * (BLOCKS // 2),
)  # fmt: skip
"""A Gemma 4 whose last two blocks read the keys of blocks 2 and 3."""
REPEATING: dict[str, Any] = dict(
    vocab_size=20_000, hidden_size=512, intermediate_size=1024, num_hidden_layers=BLOCKS, num_attention_heads=8,
    num_key_value_heads=8, n_mamba_heads=16, mamba_headdim=64, layers_block_type=["mamba", "hybrid"] * (BLOCKS // 2),
    hybrid_layer_ids=[*range(1, BLOCKS, 2)],
)  # fmt: skip
"""A Zamba 2 whose attention is one block's, that stands in several places."""
MIXTURE: dict[str, Any] = dict(
    vocab_size=20_000, hidden_size=512, moe_intermediate_size=256, num_hidden_layers=BLOCKS, num_attention_heads=8,
    num_key_value_heads=2, head_dim=64, num_experts=32, num_experts_per_tok=4,
)  # fmt: skip
CONFIGS = {"gemma4_text": SHARING, "zamba2": REPEATING, "qwen3_moe": MIXTURE}


def described(kind: str) -> bytes:
    return CONFIG_MAPPING[kind](**CONFIGS[kind]).to_json_string().encode()


def folder_of(config: bytes, folder: Path) -> Path:
    """A model whose weights would be refused if they were read."""
    tiny.tokenizer().save_pretrained(folder)
    (folder / "config.json").write_bytes(config)
    (folder / "model.safetensors").write_bytes(b"no weights")
    return folder


def refusal(use, *arguments, kind: type[StitchError] = UsageError, **options) -> str:
    with pytest.raises(StitchError) as caught:
        use(*arguments, **options)
    assert type(caught.value) is kind and "\n" not in str(caught.value)
    return str(caught.value)


UNREAD = "model.safetensors"  # what is said where the weights are read


# On the Hub


def weights_asked_for(hub) -> list[str]:
    return [request.path for request in hub.requests if "/resolve/" in request.path and "safetensors" in request.path]


@pytest.mark.parametrize(
    ("kind", "layer_b", "told"),
    [
        ("gemma4_text", 3, "user/second (gemma4_text) does not at layer 3: a whole text fails (KeyError: 'sliding_attention'). "
         "It does at layers 0 to 2 and 6: choose one of these, or another model."),
        ("gemma4_text", None, "(gemma4_text) does not at layer 3: "),  # at the same share of its depth
        ("zamba2", 3, "(zamba2) does not at layer 3: its halves cannot be made"),
    ],
)  # fmt: skip
def test_no_weights_are_downloaded_of_a_model_that_cannot_be_cut_there(kind, layer_b, told, hub, tmp_path):
    small: dict[str, Any] = {"num_hidden_layers": 4, "num_attention_heads": 2, "hidden_size": 8, "intermediate_size": 8}
    first = CONFIG_MAPPING["llama"](**small).to_json_string().encode()
    for name, config in (("first", first), ("second", described(kind))):
        hub.add(f"user/{name}", {"config.json": config, "model.safetensors": bytes(300_000), "tokenizer.json": b"{}"})
    asked = settings(Path("user/first"), Path("user/second"), tmp_path / "no text", layer=2, layer_b=layer_b)
    said = refusal(stitch, asked, tmp_path / "out")
    assert told in said and said.endswith(TRIED)
    assert weights_asked_for(hub) == [] and not (tmp_path / "out").exists()


# Folders, whose weights are not read


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("models")
    return {
        **{kind: folder_of(described(kind), place / kind) for kind in CONFIGS},
        "llama": tiny.save(place / "llama", "llama"),
    }


def use_join(folders: dict[str, Path], kind: str, layer: int) -> None:
    stitch(settings(folders["llama"], folders[kind], Path("no text"), layer=1, layer_b=layer))


def use_join_native(folders: dict[str, Path], kind: str, layer: int) -> None:
    stitch(settings(folders[kind], folders[kind], Path("no text"), layer=layer, layer_b=layer, native=True))


def use_chain(folders: dict[str, Path], kind: str, layer: int) -> None:
    chain([Part(str(folders["llama"]), 0, 1), Part(str(folders[kind]), layer, 5), Part(str(folders["llama"]), 1, None)])


def use_transfer(folders: dict[str, Path], kind: str, layer: int) -> None:
    transfer_vector(settings(folders[kind], folders["llama"], Path("no text"), layer=layer, layer_b=1), Path("no file"))


def use_sweep(folders: dict[str, Path], kind: str, _layer: int) -> None:
    sweep(str(folders["llama"]), str(folders[kind]))


@pytest.mark.parametrize("use", [use_join, use_join_native, use_chain, use_transfer, use_sweep])
def test_every_command_that_cuts_a_model_tries_a_small_copy_first(use, folders):
    said = refusal(use, folders, "gemma4_text", 3)
    assert "(gemma4_text) does not" in said and said.endswith(TRIED)
    assert UNREAD in refusal(use, folders, "qwen3_moe", 3, kind=StitchError)


def test_a_small_copy_as_a_first_part_needs_the_blocks_before_the_cut_alone(folders, tmp_path):
    asked = settings(folders["gemma4_text"], folders["llama"], tmp_path / "no text", layer=3, layer_b=1)
    assert UNREAD in refusal(stitch, asked, kind=StitchError)


# What is tried, and what is not


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_small_copy_has_the_blocks_of_the_model_and_its_ratios(kind):
    whole = AutoConfig.for_model(kind, **CONFIGS[kind])
    small = small_config(whole, 8)
    for name in ("num_hidden_layers", "layer_types", "layers_block_type", "num_kv_shared_layers", "sliding_window"):
        assert getattr(small, name, None) == getattr(whole, name, None)
    heads, keys = "num_attention_heads", "num_key_value_heads"
    assert getattr(small, heads) * getattr(whole, keys) == getattr(whole, heads) * getattr(small, keys)
    assert type(small) is type(whole) and small.hidden_size <= 80


def test_families_that_are_known_by_name_and_composites_are_not_tried(folders, tmp_path):
    assert small_model(folders["llama"], "llama") is None
    assert small_model(folder_of(b'{"model_type": "stitch"}', tmp_path), "composite") is None


def test_so_many_blocks_that_the_copy_would_take_long_are_not_built(tmp_path, monkeypatch):
    """This comes before config.json is compared with the weights."""
    monkeypatch.setattr(AutoModelForCausalLM, "from_config", lambda *_, **__: pytest.fail("built"))
    config = CONFIG_MAPPING["qwen3_moe"](**{**MIXTURE, "num_hidden_layers": 10_000})
    assert small_model(folder_of(config.to_json_string().encode(), tmp_path), "deep") is None


def test_code_that_a_config_names_does_not_run(tmp_path, monkeypatch):
    """transformers has a config of this type and no causal model, and would ask whether to run the code of the folder."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    config = CONFIG_MAPPING["clip_text_model"](num_hidden_layers=2)
    described = json.loads(config.to_json_string()) | {"auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"}}
    folder = folder_of(json.dumps(described).encode(), tmp_path)
    (folder / "modeling_evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert small_model(folder, "evil") is None and not (tmp_path / "ran").exists()


def test_a_deep_copy_is_tried_at_few_layers_for_a_sweep(tmp_path, monkeypatch):
    seen: list[int] = []
    monkeypatch.setattr(cuts, "inexact", lambda _, site, *__: seen.append(site))
    config = CONFIG_MAPPING["qwen3_moe"](**{**MIXTURE, "num_hidden_layers": 40})
    require_exact_small(folder_of(config.to_json_string().encode(), tmp_path), "deep", [Cut(None)])
    assert seen == [0, 5, 10, 15, 20, 25, 30, 35, 40]


def nothing_said(folders, kind: str, site: int) -> None:
    require_exact_small(folders[kind], kind, [Cut(site)])


def test_a_small_copy_that_does_not_work_says_nothing(folders, monkeypatch):
    """Here every cut changes the model, so that any copy that is tried is refused."""
    monkeypatch.setattr(cuts, "inexact", lambda *_: "changed")
    assert "(qwen3_moe) does not at layer 3: changed" in refusal(nothing_said, folders, "qwen3_moe", 3)

    def overflowing(make):
        net = make().eval()
        with torch.no_grad():
            net.lm_head.weight.fill_(torch.inf)
        return net

    with monkeypatch.context() as patch:
        patch.setattr(pico, "LARGEST", 1000)
        nothing_said(folders, "qwen3_moe", 3)
    with monkeypatch.context() as patch:
        patch.setattr(pico, "drawn", overflowing)
        nothing_said(folders, "qwen3_moe", 3)
    with monkeypatch.context() as patch:
        patch.setattr(AutoModelForCausalLM, "from_config", lambda *_, **__: 1 / 0)  # what a family raises itself
        nothing_said(folders, "qwen3_moe", 3)


# Every family


RESULTS = Path(__file__).parent.parent / "benchmarks" / "results" / "families.jsonl"
EXACT = {line["family"] for line in map(json.loads, RESULTS.read_text().splitlines()) if line["outcome"] == "exact"}
QUICK = ("gpt_oss",)
# By default the first has no attention, and its halves fail, of whatever size they are; the decoder of the second has more blocks
# than the number in its config that counts.
NOT_BY_DEFAULT = {"granitemoehybrid", "blenderbot"}


@pytest.mark.parametrize(
    "kind", [*QUICK, *(pytest.param(kind, marks=pytest.mark.slow) for kind in sorted(EXACT - {*QUICK}))]
)
def test_no_exact_family_is_refused_for_its_small_copy(kind, tmp_path, monkeypatch):
    """Also those that are known by name, which are not tried otherwise."""
    monkeypatch.setattr(pico, "ANATOMIES", {})
    monkeypatch.setattr(cuts, "is_known", lambda _: False)
    made: list[bool] = []
    configs = [_families.config(kind), *([] if kind in NOT_BY_DEFAULT else [CONFIG_MAPPING[kind]()])]
    for config in configs:
        config.is_encoder_decoder = False  # the decoder alone is a checkpoint that works
        config.save_pretrained(tmp_path)
        depth = pico.depth_of(tmp_path) or 2
        made.append(small_model(tmp_path, kind) is not None)
        require_exact_small(tmp_path, kind, [Cut(depth // 2), Cut(depth - 1)])
    assert any(made)
