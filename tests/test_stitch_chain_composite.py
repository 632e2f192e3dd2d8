"""Composites of three and four parts, exact against their donors, against hooked models, and with and without a
cache.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

import tiny
from chains import as_model, chained, everything
from clean_process import run_clean
from passes import in_chunks, left_padded
from stitch.activations.harvest import harvest
from stitch.activations.observe import observe
from stitch.activations.paired import pair
from stitch.composite.checkpoint import write_checkpoint
from stitch.composite.compose import compose, late_half, late_logits
from stitch.composite.costs import Costs
from stitch.errors import UsageError
from stitch.evaluation.stage import Stage
from stitch.layers.choose import choose_layer
from stitch.modeling.modeling_composite import StitchForCausalLM
from stitch.models.flops import block_flops, block_parameters
from stitch.models.loading import load, load_any
from stitch.models.model import Model
from stitch.models.sources import Source
from stitch.text.windows import Windows
from stitch.translation.module import translation_module
from stitch.translation.types import Translation
from translations import affine, identity

pico = tiny.shared


# -------------------------------------------------------------------------------------------------------------- exactness


@pytest.mark.numeric
@pytest.mark.parametrize("family", tiny.FAMILIES)
@torch.no_grad()
def test_a_model_in_three_parts_is_unchanged_bit_for_bit(family):
    model, ids = pico(family), tiny.ids(2, 13)
    padded, mask = left_padded((11, 4, 8))
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    whole, chunked = model.net(ids).logits, in_chunks(model.net, ids, (5, 6))
    with_mask = model.net(padded, attention_mask=mask, position_ids=positions).logits
    for first, second in ((2, 4), (1, 5), (3, 6), (2, 3)):
        early = as_model(compose(model, model, first, first, identity(model, first)))
        composite = compose(early, model, second, second, identity(model, second))
        assert torch.equal(composite(ids, use_cache=False).logits, whole), (first, second)
        assert torch.equal(in_chunks(composite, ids, (5, 6)), chunked), (first, second)
        assert torch.equal(composite(padded, attention_mask=mask, position_ids=positions).logits, with_mask)


@torch.no_grad()
def test_omitting_one_block_of_the_middle_part_changes_the_logits():
    model, ids = pico("llama"), tiny.ids()
    early = as_model(compose(model, model, 2, 2, identity(model, 2)))
    composite = compose(early, model, 3, 4, identity(model, 3))
    assert (composite(ids).logits - model.net(ids).logits).abs().max() > 1


@torch.no_grad()
def hooked(models: list[Model], sites: list[tuple[int, int]], translations: list[Translation], ids: Tensor, **inputs):
    """Runs whole donors one after another: a hook reads each stream, it is translated by hand, and a hook puts it
    into the next donor.
    """
    stream = None
    for number, model in enumerate(models):
        seen, handles, places = {}, [], [*model.blocks, model.final_norm]
        if number:
            put = stream
            handles.append(
                places[sites[number - 1][1]].register_forward_pre_hook(lambda module, args, put=put: (put, *args[1:]))
            )
        if number < len(sites):
            handles.append(
                places[sites[number][0]].register_forward_pre_hook(
                    lambda module, args, seen=seen: seen.update(x=args[0])
                )
            )
        logits = model.net(ids, **inputs, use_cache=False).logits
        for handle in handles:
            handle.remove()
        if number < len(sites):
            (term,) = translations[number].terms
            stream = seen["x"] @ term.weight + translations[number].bias
    return logits


TRIPLES = [
    (family, tiny.FAMILIES[(k + 4) % len(tiny.FAMILIES)], tiny.FAMILIES[(k + 7) % len(tiny.FAMILIES)])
    for k, family in enumerate(tiny.FAMILIES)
]


@pytest.mark.numeric
@pytest.mark.parametrize("families", TRIPLES)
@torch.no_grad()
def test_three_families_in_a_row_equal_three_hooked_models(families):
    models = [pico(family) for family in families]
    a, b, c = models
    first, second = affine(a, b, 2), affine(b, c, 4)
    composite = compose(as_model(compose(a, b, 2, 3, first)), c, 4, 2, second)
    sites = [(2, 3), (5, 2)]  # B runs blocks 3 and 4, which are the composite's sites 2 to 4
    ids, (padded, mask) = tiny.ids(2, 13), left_padded((11, 4, 8))
    assert torch.equal(composite(ids).logits, hooked(models, sites, [first, second], ids))
    inputs = {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    assert torch.equal(composite(padded, **inputs).logits, hooked(models, sites, [first, second], padded, **inputs))


# ------------------------------------------------------------------------------------------------------ cache and history

CHAINS = [
    ("gpt2", "llama", "gpt2"),
    ("mistral", "gemma3_text", "phi"),
    ("llama", "gpt2", "mistral", "qwen3"),
    ("gemma2", "gpt_neox", "olmo2"),
]


@pytest.mark.numeric
@pytest.mark.parametrize("families", CHAINS)
@torch.no_grad()
def test_a_cache_filled_in_any_chunks_gives_the_logits_of_one_pass(families):
    composite, ids = chained(*families, make=everything), tiny.ids(2, 13)
    assert composite.histories == len(families) - 1
    whole = composite(ids, use_cache=False).logits
    for cuts in ((5, 6), (1,), (2, 3, 4), tuple(range(1, 13))):
        for cache in (DynamicCache(config=composite.config), DynamicCache()):
            found = in_chunks(composite, ids, cuts, cache)
            assert torch.allclose(found, whole, atol=5e-4), (cuts, (found - whole).abs().max())
            assert len(cache.layers) == composite.config.num_hidden_layers + len(families) - 1


@pytest.mark.parametrize("families", CHAINS)
@torch.no_grad()
def test_generation_does_not_depend_on_cache_padding_or_batch(families):
    composite = chained(*families, make=everything)
    padded, mask = left_padded((9, 3, 1))
    settings = {"max_new_tokens": 10, "min_new_tokens": 10, "do_sample": False}
    cached = composite.generate(padded, attention_mask=mask, **settings)
    assert torch.equal(cached, composite.generate(padded, attention_mask=mask, use_cache=False, **settings))
    for row, length in enumerate((9, 3, 1)):
        part = slice(row, row + 1), slice(-length, None)
        alone = composite.generate(padded[part], attention_mask=mask[part], **settings)
        assert torch.equal(alone[0, length:], cached[row, 9:]), row


@pytest.mark.numeric
@pytest.mark.parametrize("families", CHAINS[:3])
@torch.no_grad()
def test_beams_and_roll_back_move_every_history(families):
    composite = chained(*families, make=everything)
    padded, mask = left_padded((9, 4))
    beams = dict(attention_mask=mask, num_beams=4, max_new_tokens=8, min_new_tokens=8, num_return_sequences=2)
    assert torch.equal(
        composite.generate(padded, use_cache=True, **beams), composite.generate(padded, use_cache=False, **beams)
    )
    if composite.config.is_heterogeneous:  # a sliding window's cache cannot be rolled back
        return
    ids = tiny.ids(1, 6).repeat(1, 3)
    plain = composite.generate(ids, max_new_tokens=20, do_sample=False)
    assert torch.equal(plain, composite.generate(ids, max_new_tokens=20, do_sample=False, prompt_lookup_num_tokens=4))


@torch.no_grad()
def test_a_cache_uses_the_windows_of_all_parts():
    composite = chained("mistral", "gpt2", "gemma3_text", "mistral", make=everything)
    cache = DynamicCache(config=composite.config)
    # GPT-2 runs blocks 2 and 3; Gemma 3 blocks 3 and 4, one of which has a sliding window; Mistral the last two.
    assert [getattr(layer, "sliding_window", None) for layer in cache.layers] == [5, 5, None, None, 7, None, 5, 5]
    ids = tiny.ids(2, 20)
    whole = composite(ids, use_cache=False).logits
    torch.testing.assert_close(in_chunks(composite, ids, (9, 10, 11, 16), cache), whole, rtol=0, atol=2e-3)


# ----------------------------------------------------------------------------------------------------- as a model like others


@pytest.mark.numeric
@torch.no_grad()
def test_harvested_activations_of_a_composite_are_those_it_computes(tmp_path):
    """Harvested streams passed through the second translation and the last half give the logits of the chain."""
    a, b, c = pico("gpt2"), pico("llama"), pico("qwen2")
    early = as_model(compose(a, b, 3, 2, everything(a, b, 3)))
    site = 5  # blocks 2 and 3 of B
    translation = everything(early, c, site)
    ids = tiny.ids(4, 16, seed=3)
    windows = Windows(ids.int(), torch.zeros_like(ids).int())
    harvested = harvest(early, windows, [1, 4, site], tmp_path / "a")
    streams = {number: harvested.read(0, number) for number in (1, 4, site)}
    assert [stream.shape[-1] for stream in streams.values()] == [a.width, b.width, b.width]
    module = translation_module(translation, early, c, site)
    translated = module(streams, ids, torch.arange(16).expand_as(ids))
    composite = compose(early, c, site, 2, translation)
    assert torch.equal(late_logits(composite.late, translated), composite(ids, use_cache=False).logits)
    assert torch.equal(late_logits(late_half(early, site), streams[site]), early.net(ids, use_cache=False).logits)
    paired = pair(harvested, harvest(c, windows, [2], tmp_path / "c"), site, 2)
    stage = Stage(early, c, site, 2, paired, 2**28)
    from stitch.evaluation.scores import Batch

    batch = Batch(ids, slice(0, 4))
    assert torch.equal(stage.translated(translation)(batch), composite(ids, use_cache=False).logits)


@pytest.mark.numeric
@torch.no_grad()
def test_the_late_half_of_a_composite_counts_blocks_from_its_donors_first():
    model, ids = tiny.model("gpt2", scale_attn_by_inverse_layer_idx=True), tiny.ids()
    early = as_model(compose(model, model, 2, 2, identity(model, 2)))
    assert torch.equal(compose(early, model, 4, 4, identity(model, 4))(ids).logits, model.net(ids).logits)
    stream = observe(early, {"input_ids": ids}, streams=[4]).streams[4]
    assert torch.equal(late_logits(late_half(early, 4), stream), model.net(ids).logits)


def test_the_cost_of_a_composite_is_that_of_its_parts_and_translations():
    a, b = pico("gpt2"), pico("llama")
    translation = everything(a, b, 3)
    early = as_model(compose(a, b, 3, 2, translation))
    expected = [block_flops(a.config, block, 16) for block in range(3)]
    expected += [block_flops(b.config, block, 16) for block in range(2, 6)]
    expected[3] += 2 * translation.multiply_adds
    assert [block_flops(early.config, block, 16) for block in range(early.depth)] == pytest.approx(expected)
    assert block_parameters(early.config, 1) == block_parameters(a.config, 1)
    assert block_parameters(early.config, 6) == block_parameters(b.config, 5)
    assert (early.depth, early.width, len(early.blocks), early.longest) == (7, b.width, 7, 128)


def test_the_best_layer_is_found_for_a_composite_too(tmp_path):
    """Also if its last model's embedding has more rows than its first one's."""
    a, b, c = pico("gpt2"), tiny.model("llama", vocab_size=140), pico("qwen2")
    early = as_model(compose(a, b, 3, 2, affine(a, b, 3)))
    ids = tiny.ids(40, 16, seed=3)
    windows = {
        split: Windows(part.int(), torch.zeros_like(part).int()) for split, part in (("fit", ids), ("sweep", ids[:4]))
    }
    choice = choose_layer(early, c, 5, windows, tmp_path / "layer", memory=2**28)
    assert {layer["b"]: layer["ce"] is not None for layer in choice["layers"]}[choice["b"]]
    assert choice["layers"][0]["flops"] == pytest.approx(Costs(early, c, 16).flops(5, 1, b.width * c.width))


def test_a_composite_is_cut_after_its_seam_and_comes_first():
    a, b = pico("gpt2"), pico("llama")
    early = as_model(compose(a, b, 3, 2, affine(a, b, 3)))
    with pytest.raises(
        UsageError, match=r"layer must be in 3\.\.7 for composite \(.* last seam, which is at 3\); got 2"
    ):
        compose(early, a, 2, 2, affine(a, a, 2))
    with pytest.raises(UsageError, match="a composite can only come first"):
        compose(a, early, 2, 4, affine(a, b, 2))


# ------------------------------------------------------------------------------------------------------------ checkpoints


def written(folders: list[Path], root: Path, make=everything, dtype=torch.float32) -> tuple[StitchForCausalLM, Path]:
    """Composes the models in `folders`, writing and loading each composite before the next step, as the job does."""
    model, site = load(folders[0], dtype=dtype), 2
    for number, folder in enumerate(folders[1:]):
        after, start = load(folder, dtype=dtype), 2 + number
        translation = make(model, after, site)
        net = compose(model, after, site, start, translation)
        out = root / f"after-{number}"
        write_checkpoint(out, net.config, model.folder, folder, translation, dtype=dtype)
        model, site = load(out, dtype=dtype), site + 2
    return net, out


@pytest.mark.slow
@torch.no_grad()
def test_a_chain_is_the_same_in_an_environment_without_this_package(tmp_path):
    """Three and four parts, in one clean process: logits, cache, save and reload, batch, pipeline, bf16."""
    ids, expected, narrow = tiny.ids(), {}, {}
    for families in (("gpt2", "llama", "gpt2"), ("mistral", "gemma3_text", "gpt_neox", "qwen3")):
        folders = [tiny.save(tmp_path / "donors" / family, family) for family in families]
        name = families[0]
        net, place = written(folders, tmp_path / name)
        (tmp_path / "out").mkdir(exist_ok=True)
        expected[name] = net(ids).logits
        assert torch.equal(load(place).net(ids).logits, expected[name])
        place.rename(tmp_path / "out" / name)
        narrow[name] = written(folders, tmp_path / "narrow" / name, dtype=torch.bfloat16)[0](ids).logits
        content = json.loads((tmp_path / "out" / name / "config.json").read_text())
        assert str(tmp_path) not in json.dumps(content)
    run_clean(tmp_path / "out", ids, "gpt2,mistral", tmp_path)
    for name, logits in expected.items():
        result = load_file(tmp_path / "out" / name / "result")
        for same in ("logits", "again", "mapped"):
            assert torch.equal(result[same], logits), (name, same)
        assert torch.equal(result["cached"], result["uncached"]), name
        assert torch.equal(result["together"], result["alone"]), name
        assert torch.equal(result["narrow"], narrow[name]), name


def test_translations_in_a_chain_stay_float32_and_its_weights_keep_their_dtype(tmp_path):
    folders = [tiny.save(tmp_path / family, family, dtype=torch.bfloat16) for family in ("gpt2", "llama")]
    _, place = written([*folders, folders[0]], tmp_path / "chain", dtype=torch.bfloat16)
    for name, tensor in load_file(place / "model.safetensors").items():
        kept = "translation." in name and not name.endswith((".table", ".keys"))
        wanted = torch.int64 if name.endswith(".keys") else torch.float32 if kept else torch.bfloat16
        assert tensor.dtype == wanted, name
    assert json.loads((place / "config.json").read_text())["dtype"] == "bfloat16"


@torch.no_grad()
def test_standard_tools_load_a_chain_and_its_longest_context(tmp_path):
    folders = [tiny.save(tmp_path / "gpt2", "gpt2", n_positions=64), tiny.save(tmp_path / "llama", "llama")]
    net, place = written([*folders, folders[1]], tmp_path / "chain", make=affine)
    found = load_any(Source("chain", place, None, "folder"), torch.float32, torch.device("cpu"), False)
    assert found.longest == 64
    assert torch.equal(found.net(tiny.ids()).logits, net(tiny.ids()).logits)
    remote = AutoModelForCausalLM.from_pretrained(place, trust_remote_code=True)
    assert torch.equal(remote(tiny.ids()).logits, net(tiny.ids()).logits)
