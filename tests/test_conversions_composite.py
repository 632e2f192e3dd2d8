"""Conversions of composites: each part is converted, seams are unchanged, and the written checkpoint is the measured
one.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import tiny
from chains import as_model, everything
from clean_process import run_clean
from fewer_heads import OURS, converted, shared_behind_a_gauge, windows
from jobs import write_text
from passes import by_token, in_pieces, left_padded
from recurrent import donor
from stitch.activations.observe import residuals
from stitch.composite.compose import compose
from stitch.conversions.consolidation.arms import prepare
from stitch.conversions.consolidation.convert import consolidate
from stitch.conversions.donor import read_donor
from stitch.conversions.heads.convert import cache_bytes, check_heads, convert_heads
from stitch.conversions.heads.methods import methods
from stitch.conversions.heads.rebuilt import with_heads
from stitch.conversions.heads.seams import entering
from stitch.conversions.heads.streams import after_mlp, attention_output, written
from stitch.conversions.recurrence.allocation import allocate
from stitch.conversions.recurrence.convert import convert_recurrent
from stitch.conversions.recurrence.fit import donor_moments
from stitch.conversions.recurrence.forms import RecurrentForm, check_convertible, state_bytes, wrap
from stitch.errors import UsageError
from stitch.evaluation.scores import evaluate, whole_model
from stitch.internals import weights
from stitch.modeling.modeling_recurrent import RecurrentForCausalLM
from stitch.models.loading import load, register_composites
from stitch.models.model import Model
from tolerance import apart

V = tiny.VOCABULARY
SMALL = dict(tokens=4096, held_out=1024, context=32, device="cpu")


def chain(*families: str, gauge: bool = False, blocks: int = 2) -> Model:
    """So many blocks of each family but the last, which has one more. Seams have every kind of input."""
    donors = [tiny.model(family) for family in families]
    if gauge:
        donors = [shared_behind_a_gauge(donor) for donor in donors]
    model, site = donors[0], blocks
    for after in donors[1:]:
        translation = everything(model, after, site)
        model, site = as_model(compose(model, after, site, tiny.DEPTH - blocks - 1, translation)), site + blocks
    return model


def logits(net, ids: Tensor) -> Tensor:
    return net(input_ids=ids.long(), use_cache=False).logits.detach()


# ------------------------------------------------------------------------------------------------------------------- parts


def test_parts_share_the_composites_own_modules():
    model = chain("gpt2", "llama", "qwen2")
    assert [part.config.model_type for part in model.parts] == ["gpt2", "llama", "qwen2"]
    assert [part.depth for part in model.parts] == [2, 2, 3]
    for block in range(model.depth):
        part, own = model.in_part(block)
        assert part.blocks[own] is model.blocks[block]
        assert part.down(own) is model.down(block) and part.heads_out(own) is model.heads_out(block)
    assert [site for site, _ in model.seams] == [2, 4]
    stock = tiny.model("llama")
    assert stock.parts == [stock] and stock.seams == []


@pytest.mark.numeric
@torch.no_grad()
def test_the_stream_crosses_seams_as_in_the_composite():
    """Computed by hand, block by block, with seams that look back and read earlier sites, against hooks."""
    model, ids = chain("gpt2", "llama", "qwen2"), tiny.ids(18, 12)
    wanted = residuals(model, ids, range(model.depth))
    stream, earlier = wanted[0], {}
    for number in range(model.depth):
        part, block = model.in_part(number)
        stream = entering(model, number, stream, ids, earlier)
        assert apart(stream, wanted[number]) < 1e-5, number
        attention = weights.attention(part, block)
        stream = after_mlp(part, block, stream + written(attention, attention_output(part, block, attention, stream)))


# -------------------------------------------------------------------------------------------------------- fewer key heads


@pytest.mark.numeric
def test_gauges_planted_in_every_part_are_undone():
    model, ids = chain("gpt2", "llama", "qwen2", gauge=True), windows(seed=2)
    net, wanted = with_heads(model, converted(model, OURS)), logits(model.net, ids)
    assert apart(logits(net, ids), wanted) < 1e-5
    assert [part.config.model_type for part in as_model(net).parts] == ["gpt_bigcode", "llama", "qwen2"]
    pooled = with_heads(model, converted(model, methods(0)["baseline:mean pooling"]))
    assert apart(logits(pooled, ids), wanted) > 0.05
    refitted = with_heads(model, converted(model, methods(0)["contraction + refit"]))
    assert apart(logits(refitted, ids), wanted) < 1e-3


def test_a_part_that_already_has_few_key_heads_is_unchanged():
    one, four = tiny.model("llama"), tiny.model("qwen2", num_key_value_heads=4)
    model = as_model(compose(one, four, 2, 3, everything(one, four, 2)))
    assert check_heads(model, 2) == [2, 4]

    def groups(part: Model, *_) -> tuple[tuple[int, ...], ...]:
        return ((0,), (1,)) if part.config.model_type == "llama" else ((0, 1), (2, 3))

    found = converted(model, methods(0)["null:random"], groups)
    assert all(torch.equal(found[block].k, weights.attention(model.parts[0], block).k) for block in range(2))
    assert [attention.k.shape[1] for attention in found] == [2] * 5
    assert cache_bytes(model, None) == 4 * 2 * (2 * 2 * 10 + 3 * 4 * 12)
    assert cache_bytes(model, 2) == 4 * 2 * (2 * 2 * 10 + 3 * 2 * 12)


def test_a_converted_gpt2_in_a_composite_keeps_its_key_head():
    model, ids = chain("gpt_bigcode", "llama", gauge=True), windows(seed=2)
    assert check_heads(model, 1) == [1, 2]
    net = as_model(with_heads(model, converted(model, OURS)))
    assert apart(logits(net.net, ids), logits(model.net, ids)) < 1e-5
    for block in range(2):
        before, after = (of.parts[0].blocks[block].state_dict() for of in (model, net))
        assert all(torch.equal(value, before[name]) for name, value in after.items())


@pytest.mark.parametrize(
    ("families", "kv_heads", "reason"),
    [
        (("llama", "qwen2"), 2, "proper divisor of the 2 key heads of composite"),
        (("llama", "gpt2"), 2, r"key heads of every part \(2, 4\) of composite \(1, 2\)|must be 1 for a GPT-2"),
        (("llama", "gpt2"), 3, r"every part \(2, 4\) of composite \(1, 2\); got 3"),
        (("llama", "gemma2"), 1, "scores are softcapped"),
    ],
)
def test_every_part_must_allow_the_requested_number_of_key_heads(families, kv_heads, reason):
    with pytest.raises(UsageError, match=reason):
        check_heads(chain(*families), kv_heads)


# --------------------------------------------------------------------------------------------------------- recurrent form


def recurrent(model: Model, features: str = "hedgehog", **options) -> RecurrentForCausalLM:
    """A composite in recurrent form with random feature maps."""
    net = wrap(model, RecurrentForm(**{"features": features, "window": 5, "sinks": 1, "hidden": 4, **options}))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in sorted(net.memories.named_parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return net


@pytest.mark.numeric
@torch.no_grad()
def test_a_window_over_the_whole_text_reproduces_the_composite():
    model, ids = chain("llama", "gpt2", "qwen2"), tiny.ids(2, 24)
    wanted = model.net(ids).logits
    net = wrap(model, RecurrentForm(features="none", window=24, sinks=0))
    assert (net(ids).logits - wanted).abs().max() <= 5e-5
    assert (by_token(net, ids)[0] - wanted).abs().max() <= 5e-5
    some = wrap(model, RecurrentForm(features="none", window=2, sinks=0, layers=()))
    assert (by_token(some, ids)[0] - wanted).abs().max() <= 5e-5
    assert torch.equal(model.net(ids).logits, wanted), "the donor has been changed"


@pytest.mark.numeric
@pytest.mark.parametrize("features", ["hedgehog", "taylor2", "mean"])
@torch.no_grad()
def test_parallel_and_recurrent_form_agree_when_seams_look_back(features):
    net = recurrent(chain("gpt2", "llama", "qwen2"), features)
    assert net.histories == [2, 2]
    for length in (1, 2, 6, 20):
        ids = tiny.ids(2, length)
        stepwise, cache = by_token(net, ids)
        assert (net(ids).logits - stepwise).abs().max() <= 1e-4
        assert cache.bytes() == state_bytes(net, 1)
    assert (in_pieces(net, ids, [3, 1, 9, 7])[0] - net(ids).logits).abs().max() <= 1e-4


@pytest.mark.numeric
@torch.no_grad()
def test_a_single_part_may_be_recurrent_with_the_feature_maps_of_its_model():
    """Equivalent to stitching a recurrent model: its blocks have their own feature maps, and the other part keeps
    all keys.
    """
    a, model, ids = tiny.model("llama"), chain("llama", "gpt2"), tiny.ids(2, 20)
    alone, joined = recurrent(a), recurrent(model, layers=(0, 1))
    for block in range(2):
        joined.memories[block].load_state_dict(alone.memories[block].state_dict())
    wanted = alone(ids, output_hidden_states=True).hidden_states[2]
    seen = []
    handle = joined.base.a.register_forward_hook(lambda module, args, output: seen.append(output.last_hidden_state))
    parallel = joined(ids).logits
    handle.remove()
    assert apart(seen[0], wanted) < 1e-5
    assert apart(seen[0], residuals(a, ids, [2])[2]) > 1e-2  # the stock blocks would give other logits
    assert (by_token(joined, ids)[0] - parallel).abs().max() <= 1e-4


@pytest.mark.numeric
def test_exact_keys_are_allocated_across_parts_of_different_widths():
    model, form = chain("gpt2", "llama"), RecurrentForm(features="mean", window=2, slots=4, sinks=1, hidden=4, steps=2)
    net = wrap(model, form)
    one = replace(donor(), model=model)
    keys = allocate(net, one, form, donor_moments(net, one))
    widths = [block.shape.width for block in net.memories]  # pyright: ignore
    assert set(widths) == {8, 10} and len({size for block in keys for size in block}) > 2
    used = sum(width * sum(block) for width, block in zip(widths, keys, strict=True))
    assert used <= 6 * sum(width * len(block) for width, block in zip(widths, keys, strict=True))
    shared, ids = recurrent(model, "mean", window=2, slots=4, keys=keys), tiny.ids(2, 20)
    with torch.no_grad():
        assert (by_token(shared, ids)[0] - shared(ids).logits).abs().max() <= 1e-4


@pytest.mark.numeric
@torch.no_grad()
def test_padding_on_the_left_changes_nothing():
    net = recurrent(chain("gpt2", "llama"))
    padded, mask = left_padded((11, 4))
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    found = net(padded, attention_mask=mask, position_ids=positions).logits
    assert (found[1, -4:] - net(padded[1:, -4:]).logits[0]).abs().max() <= 1e-4


def test_beams_follow_their_own_histories():
    net, prompt = recurrent(chain("gpt2", "llama")), tiny.ids(2, 10)
    options = dict(max_new_tokens=8, min_new_tokens=8, num_beams=4, do_sample=False, num_return_sequences=4)
    found, wanted = (net.generate(prompt, use_cache=cached, **options) for cached in (True, False))
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("form", ["composite", "recurrent"])
def test_models_in_half_precision_keep_translations_and_maps_in_float32(tmp_path, form):
    """With three parts: the dtype also reaches the configs of the inner composite's parts."""
    model = chain("gpt2", "llama", "qwen2")
    net = model.net if form == "composite" else recurrent(model, "mean")
    net.save_pretrained(tmp_path)
    register_composites()
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for name, parameter in again.named_parameters():
        wide = "memories." in name or ("translation." in name and not name.endswith(".table"))
        assert parameter.dtype == (torch.float32 if wide else torch.bfloat16), name
    assert torch.isfinite(again(tiny.ids()).logits).all()


def test_conversions_of_half_precision_composites_have_the_donors_dtypes(tmp_path):
    chain("gpt2", "llama").net.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    model = load(tmp_path, dtype=torch.bfloat16)
    wanted = {name: parameter.dtype for name, parameter in model.net.named_parameters()}
    assert set(wanted.values()) == {torch.float32, torch.bfloat16}
    found = (
        wrap(model, RecurrentForm(features="mean", window=3, sinks=1)).base,
        with_heads(model, converted(model, OURS)),
    )
    for net in found:
        assert all(parameter.dtype == wanted[name] for name, parameter in net.named_parameters())


def test_every_part_must_have_plain_attention():
    with pytest.raises(UsageError, match=r"scores must not be capped .* those of composite are"):
        check_convertible(chain("llama", "gemma2"), 24)
    with pytest.raises(UsageError, match=r"window of composite, 5 tokens"):
        check_convertible(chain("mistral", "llama"), 24)


# ---------------------------------------------------------------------------------------------------------- what is written


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A composite of three parts with one block, one and two, since what a conversion takes grows with them; and a text."""
    folder = tmp_path_factory.mktemp("composites")
    write_text(folder)
    chain("llama", "gpt2", "qwen2", blocks=1).net.save_pretrained(folder / "three")
    tiny.tokenizer().save_pretrained(folder / "three")
    return folder


def ce_again(root: Path, folder: Path, report: dict) -> float:
    """Scores of the checkpoint on disk, in the windows of the report split."""
    text = dict(SMALL, context=report["context"])
    given = read_donor(str(root / "three"), text=str(root / "text.jsonl"), **text)  # pyright: ignore[reportArgumentType]
    return evaluate({"it": whole_model(read_back(folder))}, given.windows["report"], vocabulary=V)["it"].ce


def read_back(folder: Path):
    register_composites()
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def made(root, tmp_path_factory) -> tuple[Path, dict[str, dict]]:
    folder, text = tmp_path_factory.mktemp("converted"), str(root / "text.jsonl")
    given: dict = dict(text=text, **SMALL)
    found = {"heads": convert_heads(str(root / "three"), folder / "heads", kv_heads=1, steps=2, **given)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stitch.conversions.recurrence.recall.TOKENS", 256)
        recurrent = dict(window=4, steps=6, logit_steps=1)
        found["recurrent"] = convert_recurrent(str(root / "three"), folder / "recurrent", **recurrent, **given)
    (folder.parent / "note.txt").write_text("Zoe keeps 3 owls and a fox. Zoe: fox.")
    (folder.parent / "queries.txt").write_text(
        "What does Zoe keep? Zoe keeps 3 owls and a fox, said Zoe to the owl of Zoe. "
    )
    found["consolidate"] = consolidate(
        str(root / "three"), [folder.parent / "note.txt"], folder / "consolidate", queries=[folder.parent / "queries.txt"],
        text=text, tokens=4096, held_out=1024, device="cpu",
    )  # fmt: skip
    return folder, found


@pytest.mark.slow
def test_only_the_down_projections_of_every_part_are_edited(root, made):
    folder, reports = made
    before, after = load(root / "three"), load(folder / "consolidate")
    values = dict(before.net.state_dict())
    changed = {key for key, value in after.net.state_dict().items() if not torch.equal(value, values[key])}
    downs = {id(after.down(block).weight): block for block in range(after.depth)}
    own = dict(after.net.named_parameters())
    assert {downs[id(own[key])] for key in changed} == set(range(after.depth)) and len(changed) == after.depth
    row = next(row for row in reports["consolidate"]["results"] if row["name"] == "converted")
    text = str(root / "text.jsonl")
    windows = read_donor(str(root / "three"), text=text, tokens=4096, held_out=1024, device="cpu").windows
    cost = [prepare(model, windows).unedited_scores["report"].ce for model in (before, after)]
    assert cost[1] - cost[0] == pytest.approx(row["retain_cost"], abs=1e-5) and row["retain_cost"] != 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["heads", "recurrent"])
def test_the_written_checkpoint_scores_as_reported(root, made, kind):
    folder, reports = made
    row = next(row for row in reports[kind]["results"] if row["name"] == "converted")
    assert ce_again(root, folder / kind, reports[kind]) == pytest.approx(row["ce"], abs=1e-5)


@pytest.mark.slow
def test_fewer_key_heads_beat_random_ones_in_every_part(made):
    folder, reports = made
    rows = {row["name"]: row for row in reports["heads"]["results"]}
    assert 0.01 < rows["converted"]["kl_to_b"] < rows["null:random + refit"]["kl_to_b"]
    assert rows["converted"]["cache_bytes"] < rows["donor"]["cache_bytes"] / 2 + 1
    kept = [part.config for part in load(folder / "heads").parts]
    assert all(getattr(config, "num_key_value_heads", 1) == 1 for config in kept)


@pytest.mark.slow
def test_checkpoints_decode_and_reload_where_this_package_is_missing(made, tmp_path):
    folder, reports = made
    ids, expected = tiny.ids(), {}
    for name in reports:
        expected[name] = logits(read_back(folder / name), ids)
    run_clean(folder, ids, "heads", tmp_path)
    for name, wanted in expected.items():
        found = load_file(folder / name / "result")
        assert torch.equal(found["logits"], wanted) and torch.equal(found["again"], wanted), name
        assert torch.equal(found["cached"], found["uncached"]), name
