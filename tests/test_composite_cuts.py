"""Models that can be cut at some layers alone, or at none."""

import json
from math import isfinite

import _families
import pytest
import torch
from transformers.modeling_outputs import CausalLMOutputWithPast

import tiny
from jobs import settings, write_text
from own_family import MyConfig, MyDecoder, my_decoder
from stitch.composite import cuts
from stitch.composite.compose import compose, late_logits, whole_from
from stitch.composite.cuts import can_be_cut, exact_streams_from, require_exact, require_exact_everywhere
from stitch.composite.exact import inexact, inexact_before
from stitch.composite.surgery import why_not_foldable
from stitch.errors import UsageError
from stitch.jobs.join import stitch
from stitch.models.flops import block_flops, block_parameters
from stitch.models.flow import flow_of
from stitch.models.loading import load
from stitch.models.model import Model
from stitch.models.module_inputs import module_inputs
from translations import affine


def refusal(use, *arguments, **options) -> str:
    with pytest.raises(UsageError) as caught:
        use(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def sharing(tmp_path_factory) -> Model:
    """A Gemma 4 whose last two blocks read the keys of blocks 2 and 3, and whose every block reads the token ids."""
    folder = tmp_path_factory.mktemp("gemma4")
    shape = {"num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 3}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(_families.OWN, "gemma4_text", shape)
        _families.net("gemma4_text").save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return load(folder, name="mine")


def test_a_model_that_shares_keys_is_refused_with_the_layers_where_it_can_be_cut(sharing):
    assert [site for site in range(7) if inexact(sharing, site) is None] == [0, 1, 2, 6]
    told = refusal(require_exact, sharing, 3)
    assert "mine (gemma4_text) does not at layer 3: a whole text fails (KeyError: 'sliding_attention')" in told
    assert told.endswith("It does at layers 0 to 2 and 6: choose one of these, or another model.")
    told = refusal(require_exact_everywhere, sharing)
    assert "does not stay the same when it is cut and joined to itself at layers 3 to 5: a whole text fails" in told


def test_layers_of_a_large_model_are_tried_as_far_as_that_is_cheap(sharing, monkeypatch):
    monkeypatch.setattr(cuts, "FLOPS", 0)
    monkeypatch.setattr(cuts, "LEAST", 2)
    assert "It does at layer 2 of layers 2 and 4, the nearest: choose one" in refusal(require_exact, sharing, 3)
    assert "Nor does it at any other layer of layers 3 and 5, the nearest" in refusal(require_exact, sharing, 4)


@torch.no_grad()
def test_the_first_part_needs_the_blocks_before_the_cut_alone(sharing):
    """Joined to a Llama it reads texts in pieces as it reads them whole, and its blocks give the stream of the whole model."""
    require_exact(sharing, 4, first=True)
    assert inexact_before(sharing, 4) is None
    llama = tiny.model("llama")
    net = compose(sharing, llama, 4, 2, affine(sharing, llama, 4)).eval()
    net.early.watch({4})  # pyright: ignore[reportOptionalMemberAccess]
    ids = tiny.ids(2, 9)
    given: list[torch.Tensor] = []
    handle = sharing.blocks[4].register_forward_pre_hook(lambda _, args: given.append(args[0]))
    sharing.net(ids, use_cache=False)
    handle.remove()
    net(ids, use_cache=False)
    assert torch.equal(net.early.seen[4], given[0])  # pyright: ignore[reportOptionalMemberAccess]
    assert torch.equal(
        *(net.generate(ids, max_new_tokens=5, do_sample=False, use_cache=cache) for cache in (True, False))
    )


def test_a_join_says_so_before_anything_is_computed_and_of_the_default_layer_too(sharing, tmp_path):
    llama = tiny.save(tmp_path / "llama", "llama")
    for layer_b in (3, None):
        asked = settings(llama, sharing.folder, tmp_path / "no text", layer=3, layer_b=layer_b)
        assert "(gemma4_text) does not at layer 3" in refusal(stitch, asked, tmp_path / "out")


class MixedConfig(MyConfig):
    model_type = "mixed"

    def __init__(self, **kwargs):
        super().__init__(**kwargs)


class Mixed(MyDecoder):
    """Before its last block the stream of the first comes in again."""

    config_class = MixedConfig

    def forward(self, input_ids=None, inputs_embeds=None, **kwargs) -> CausalLMOutputWithPast:
        stream = first = self.words(input_ids) if inputs_embeds is None else inputs_embeds
        for number, block in enumerate(self.stack):
            _, stream = block(number, stream + first if number == 3 else stream)
            first = stream if number == 0 else first
        return CausalLMOutputWithPast(logits=self.out(self.scale(stream)))


def test_a_model_that_is_not_exact_is_refused_with_the_reason(tmp_path):
    model = my_decoder(tmp_path, Mixed)
    told = refusal(require_exact, model, 2)
    assert "(mixed) does not at layer 2: a whole text changes its logits by" in told
    assert "It does at layers 0, 3 and 4: choose" in told
    assert not can_be_cut(model, 2) and exact_streams_from(model, 2) is None
    assert can_be_cut(model, 3) and exact_streams_from(model, 3) is not None


class AheadConfig(MyConfig):
    model_type = "ahead"

    def __init__(self, **kwargs):
        super().__init__(**kwargs)


class Ahead(MyDecoder):
    """The last block reads the embeddings before the first one does."""

    config_class = AheadConfig

    def forward(self, input_ids=None, inputs_embeds=None, **kwargs) -> CausalLMOutputWithPast:
        stream = self.words(input_ids) if inputs_embeds is None else inputs_embeds
        return super().forward(inputs_embeds=stream + self.stack[-1].now(stream))


def test_first_blocks_that_need_later_ones_are_no_first_part(tmp_path):
    told = refusal(require_exact, my_decoder(tmp_path, Ahead), 2, first=True)
    assert "(ahead) does not at layer 2: a whole text fails (the model reads `now` of a part of it that " in told
    assert "It does at layer 4: choose" in told


# What a report needs beside the cut


@pytest.mark.parametrize("kind", ["gemma4_text", "mamba"])
def test_blocks_with_heads_of_two_sizes_and_without_heads_have_flops(kind):
    """A Gemma 4 has wider heads in blocks that see the whole text; a Mamba has none."""
    net = _families.net(kind)
    found = [block_flops(net.config, block, 32) - 2 * block_parameters(net.config, block) for block in range(6)]
    # 4 · heads · width · mean number of keys: 5 at most in a window, 16.5 of 32 otherwise
    assert found == ([4.0 * 4 * 8 * 4.6875] * 5 + [4.0 * 4 * 512 * 16.5] if kind == "gemma4_text" else [0.0] * 6)


def test_a_model_whose_down_projections_are_not_known_has_no_bridge_in_its_weights(tmp_path):
    assert "`down` of qwen3_moe models is not known" in str(why_not_foldable(saved("qwen3_moe", tmp_path), 3, 4, 2**28))


@pytest.mark.slow
def test_a_whole_report_is_made_where_parts_can_be_cut_at_some_layers_alone(sharing, tmp_path):
    """Some rows need A's blocks after the cut, or B's elsewhere: they run the whole model, or cut it where that is possible."""
    saved("qwen3_moe", tmp_path / "moe")
    text = write_text(tmp_path)
    for a, b, layer in ((sharing.folder, tmp_path / "moe", 4), (tmp_path / "moe", sharing.folder, 3)):
        stitch(settings(a, b, text, layer=layer, layer_b=2), tmp_path / f"{layer}")
        report = json.loads((tmp_path / f"{layer}" / "report.json").read_text())
        assert {"composite", "reference:own-tables", "reference:a-own-tables"} <= {
            row["name"] for row in report["results"] if isfinite(row["ce"])
        }


@torch.no_grad()
def test_a_whole_model_takes_a_stream_at_a_layer_where_it_cannot_be_cut(sharing):
    ids = tiny.ids(2, 9)
    stream = module_inputs(sharing.net, {0: sharing.blocks[4]}, input_ids=ids)[0]
    half = whole_from(sharing, 4)
    assert torch.equal(late_logits(half, stream, ids=ids), sharing.net(ids, use_cache=False).logits)
    assert not torch.equal(late_logits(half, 2 * stream, ids=ids), sharing.net(ids, use_cache=False).logits)


# What families raise themselves


def saved(kind: str, folder) -> Model:
    _families.net(kind).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return load(folder, name=kind)


def test_a_list_of_modules_of_another_length_than_the_config_says_is_not_the_blocks(tmp_path, monkeypatch):
    """Blocks of a Gemma 3n take several streams at once, and its only list through which one runs is a projection."""
    small = {**_families.OWN["gemma3n_text"], "altup_num_inputs": 2}
    monkeypatch.setitem(_families.OWN, "gemma3n_text", small)
    told = refusal(saved, "gemma3n_text", tmp_path)
    assert "in gemma3n_text no list of 6 modules, its num_hidden_layers, does: choose another family" in told


def test_a_block_that_others_read_is_the_reason_of_a_refusal(tmp_path):
    told = refusal(require_exact, saved("zamba2", tmp_path), 3)
    assert "its halves cannot be made (the model reads `shared_transformer` of a part of it that would not run)" in told
    assert "It does at layer 6: choose one" in told


def test_a_model_without_a_final_norm_can_be_cut_before_its_last_block(tmp_path):
    model = saved("openai-gpt", tmp_path)
    assert [site for site in range(7) if inexact(model, site) is None] == [*range(6)]
    told = refusal(require_exact, model, 6)
    assert "at layer 6: padding fails (StopIteration). It does at layers 0 to 5: choose" in told


def test_what_a_family_raises_in_the_first_pass_is_a_refusal():
    class Stops(MyDecoder):
        def forward(self, input_ids=None, inputs_embeds=None, **kwargs):
            return next(iter([]))

    assert "my_decoder fails (StopIteration)" in refusal(flow_of, Stops(MyConfig()))
