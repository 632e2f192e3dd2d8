"""Recurrent forms: parallel equals recurrent, second implementations, constant state, refusals, and a fit that
improves.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tiny
import tolerance
from passes import by_token, in_pieces
from recurrent import FAMILIES, WINDOW, donor, recurrent
from stitch.conversions.donor import Donor
from stitch.conversions.recurrence.convert import convert_recurrent
from stitch.conversions.recurrence.fit import donor_moments, fit
from stitch.conversions.recurrence.fit_outputs import feature_parameters, output_loss
from stitch.conversions.recurrence.forms import (
    RecurrentForm,
    cache_bytes,
    check_convertible,
    matching_bytes,
    memories,
    sibling,
    state_bytes,
    wrap,
)
from stitch.conversions.recurrence.head_moments import HeadInputs, HeadMoments
from stitch.conversions.recurrence.initialise import initialise, initialise_priority
from stitch.conversions.recurrence.recall import DISTINCT, recall_prompts
from stitch.errors import UsageError
from stitch.modeling.modeling_features import HeadShape
from stitch.modeling.modeling_recurrent import (
    RecurrentCache,
    RecurrentConfig,
    RecurrentLayer,
    RecurrentMemory,
)
from stitch.models.loading import load, register_composites
from tolerance import apart

FEATURES = ("hedgehog", "random", "taylor2", "mean", "none")
WITH_SLOTS = [*((features, 0) for features in FEATURES), ("hedgehog", 3), ("taylor2", 3), ("none", 3)]


@pytest.mark.numeric
@pytest.mark.parametrize(
    ("family", "features", "slots"),
    [
        *((family, *what) for family in ("gpt2", "llama") for what in WITH_SLOTS),
        *((family, "hedgehog", 3) for family in FAMILIES if family not in ("gpt2", "llama")),
    ],
)
def test_parallel_and_recurrent_form_agree(family, features, slots):
    net = recurrent(family, features, slots=slots)
    with torch.no_grad():
        for length in (1, WINDOW, WINDOW + 1, 4 * WINDOW):
            ids = tiny.ids(2, length)
            assert (net(ids).logits - by_token(net, ids)[0]).abs().max() <= 1e-4


@pytest.mark.numeric
@pytest.mark.parametrize(("features", "slots"), [*WITH_SLOTS, ("identity", 0)])
@torch.no_grad()
def test_results_do_not_depend_on_the_chunk_size(features, slots):
    options = {"window": 0, "sinks": 0} if features == "identity" else {}
    net, ids = recurrent("llama", features, slots=slots, **options), tiny.ids(2, 37)
    whole = net(ids, chunk=64).logits
    for chunk in (1, 3, 16):
        assert (net(ids, chunk=chunk).logits - whole).abs().max() <= 1e-4


@pytest.mark.numeric
@torch.no_grad()
def test_a_text_may_be_read_in_pieces_of_any_size():
    net, ids = recurrent(), tiny.ids(2, 30)
    assert (in_pieces(net, ids, [7, 1, 12, 10])[0] - net(ids).logits).abs().max() <= 1e-4


@pytest.mark.numeric
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_window_over_the_whole_text_reproduces_the_donor(family):
    model, ids = tiny.model(family, **FAMILIES[family]), tiny.ids(2, 24)
    before = model.net(ids).logits
    net = wrap(model, RecurrentForm(features="none", window=24, sinks=0))
    assert apart(net(ids).logits, before) < tolerance.of_a_pass(model)
    assert torch.equal(model.net(ids).logits, before), "the donor has been changed"


@torch.no_grad()
def test_blocks_that_are_not_converted_keep_all_keys():
    model, ids = tiny.model("llama"), tiny.ids(2, 24)
    net = wrap(model, RecurrentForm(features="none", window=2, sinks=0, layers=()))
    assert apart(net(ids).logits, model.net(ids).logits) < tolerance.of_a_pass(model)
    assert apart(by_token(net, ids)[0], model.net(ids).logits) < tolerance.of_a_pass(model)
    some = wrap(model, RecurrentForm(features="none", window=2, sinks=0, layers=(1, 4)))
    growth = state_bytes(some, 20) - state_bytes(some, 10)
    assert growth == 4 * 10 * (2 * 2 * 10 * 4 + 1)  # blocks · tokens · (keys and values of two groups in fp32, a flag)


@pytest.mark.numeric
def test_one_key_head_has_one_state():
    """A GPTBigCode has one state per block, not one per query head."""
    net = recurrent("gpt_bigcode", "mean", window=3)
    cache = net(tiny.ids(1, 9), use_cache=True).past_key_values
    assert all(layer.state.shape == (1, 1, 1, 8) and layer.keys.shape == (1, 3, 8) for layer in cache.layers)
    assert cache_bytes(tiny.model("gpt_bigcode"), 10) == 6 * 10 * 2 * 8 * 4


def attend(
    memory: RecurrentMemory, q: Tensor, k: Tensor, v: Tensor, real: Tensor | None = None, chunk: int = 8
) -> Tensor:
    real = torch.ones(len(k), k.shape[2], dtype=torch.bool) if real is None else real
    return memory.attend(q, k, v, real, RecurrentLayer(), q.shape[-1] ** -0.5, chunk)


def heads(shape: HeadShape, tokens: int, seed: int = 0, size: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    q = tiny.noise(2, shape.groups * shape.shared, tokens, shape.width, seed=seed)
    k, v = (tiny.noise(2, shape.groups, tokens, shape.width, seed=seed + n) for n in (1, 2))
    return size * q.double(), size * k.double(), v.double()


def by_weights(weights: Tensor, v: Tensor) -> Tensor:
    """Causal averages: weights [batch, heads, tokens, tokens], values by group of heads."""
    weights = weights.tril()
    return weights / weights.sum(-1, keepdim=True) @ v.repeat_interleave(weights.shape[1] // v.shape[1], 1)


def scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).mT * q.shape[-1] ** -0.5


@pytest.mark.numeric
def test_taylor_features_equal_the_polynomial():
    shape = HeadShape(groups=2, shared=3, width=6)
    memory = RecurrentMemory(RecurrentConfig(features="taylor2"), shape, 0)
    q, k, v = heads(shape, 20)
    s = scores(q, k)
    assert memory.map.dimension == 1 + 6 + 6 * 7 // 2
    torch.testing.assert_close(attend(memory, q, k, v), by_weights(1 + s + s**2 / 2, v), rtol=1e-9, atol=1e-9)


@pytest.mark.numeric
def test_centred_taylor_features_weigh_keys_and_queries_by_the_means():
    """e^{q·k} = e^{q'·k'} e^{q·μ_k} e^{μ_q·k'}: only the first factor is approximated; beside exact keys all three
    matter.
    """
    shape = HeadShape(groups=2, shared=3, width=6)
    memory = RecurrentMemory(RecurrentConfig(features="taylor2", window=4, sinks=1), shape, 0)
    q, k, v = heads(shape, 20)
    means = 0.3 * tiny.noise(2, 2, 6)
    with torch.no_grad():
        memory.map.key_mean.copy_(means[0])
        memory.map.query_mean.copy_(means[1])
    root = 6**-0.25
    key_mean, query_mean = (mean.double()[:, None] for mean in means)
    query_mean = query_mean.repeat_interleave(3, 0)
    s = scores(q - query_mean / root, k - key_mean / root)
    rest = scores(q, (key_mean / root).expand_as(k)) + scores((query_mean / root).expand_as(q), k - key_mean / root)
    ago = torch.arange(20)[:, None] - torch.arange(20)
    exact = (ago < 4) | (torch.arange(20) < 1)
    weights = torch.where(exact, scores(q, k).exp(), (1 + s + s**2 / 2) * rest.exp())
    torch.testing.assert_close(attend(memory, q, k, v), by_weights(weights, v), rtol=1e-6, atol=1e-6)


@pytest.mark.numeric
def test_random_features_are_unbiased():
    """With very many features the result approaches the donor's softmax."""
    shape = HeadShape(groups=1, shared=1, width=4)
    memory = RecurrentMemory(RecurrentConfig(features="random", dimension=2**15, window=3), shape, 0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        memory.map.directions.copy_(torch.randn(memory.map.directions.shape, generator=generator))
    q, k, v = heads(shape, 10, size=0.5)
    torch.testing.assert_close(attend(memory, q, k, v), by_weights(scores(q, k).exp(), v), rtol=0, atol=0.02)


@pytest.mark.numeric
def test_identity_features_are_unnormalised_linear_attention():
    shape = HeadShape(groups=2, shared=2, width=5)
    q, k, v = heads(shape, 12)
    memory = RecurrentMemory(RecurrentConfig(features="identity"), shape, 0)
    expected = scores(q, k).tril() @ v.repeat_interleave(2, 1)
    torch.testing.assert_close(attend(memory, q, k, v), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.numeric
@pytest.mark.parametrize("chunk", [1, 4, 16])
@pytest.mark.parametrize("window", [0, 2])
def test_denominators_may_span_forty_orders_of_magnitude(window, chunk):
    """Logs of features vary by two hundred, and float32 sums agree with a pairwise logsumexp in float64."""
    shape = HeadShape(groups=1, shared=1, width=3)
    memory = RecurrentMemory(RecurrentConfig(features="hedgehog", dimension=2, window=window), shape, 0)
    with torch.no_grad():
        memory.map.key.weight[0] = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
        memory.map.query.weight[0, 0] = torch.tensor([[0, 0, 1.0], [1, 0, 0]])
    q, k, v = heads(shape, 40)
    steps = torch.tensor([-90.0, -30, 60, 70, 70, -120, 140, 0, 70, -70]).repeat(4)
    k[:, 0, :, 0] += steps
    k[:, 0, :, 1] -= steps.roll(3)
    root = 3**-0.25
    pairs = (q[..., [2, 0]] * root).unsqueeze(3) + (k[..., [0, 1]] * root).unsqueeze(2)
    old = pairs.logsumexp(-1)
    exact = torch.arange(40)[:, None] - torch.arange(40) < window
    logs = torch.where(exact, scores(q, k), old).masked_fill(~torch.ones(40, 40).tril().bool(), -torch.inf)
    found = attend(memory, q.float(), k.float(), v.float(), chunk=chunk)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found.double(), logs.softmax(-1) @ v, rtol=0, atol=1e-4)


@pytest.mark.numeric
@pytest.mark.parametrize("chunk", [1, 4, 16])
@pytest.mark.parametrize("window", [0, 2])
def test_slots_keep_the_old_keys_of_highest_priority_and_features_the_rest(window, chunk):
    """Against a queue updated token by token in float64: one key enters, and the one with the lowest priority leaves
    for good.
    """
    shape = HeadShape(groups=2, shared=2, width=4)
    config = RecurrentConfig(features="hedgehog", dimension=3, window=window, sinks=1, slots=3, hidden=2)
    memory = RecurrentMemory(config, shape, 0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
        memory.priority.slope.fill_(0.05)
    q, k, v = heads(shape, 25)
    root = 4**-0.25
    priority = memory.priority(k * root, v, torch.arange(25)).detach()
    _, log_q = memory.map.queries(q.unflatten(1, (2, 2)) * root)
    _, log_k = memory.map.keys(k * root)
    features = (log_q.unsqueeze(4) + log_k[:, :, None, None]).logsumexp(-1).flatten(1, 2)
    logs, plain = torch.full_like(features, -torch.inf), scores(q, k)
    replaced = 0
    for text in range(2):
        for group in range(2):
            queue: list[int] = []
            for token in range(25):
                if (leaving := token - window) >= 1:  # token 0 is the sink
                    queue = sorted([*queue, leaving], key=lambda key: float(priority[text, group, key]))[-3:]
                    replaced += leaving not in queue
                for key in range(token + 1):
                    exact = key == 0 or token - key < window or key in queue
                    for head in (2 * group, 2 * group + 1):
                        logs[text, head, token, key] = (plain if exact else features)[text, head, token, key]
    assert 5 < replaced < 60, "priorities never change what a window would keep"
    found = attend(memory, q, k, v, chunk=chunk)
    torch.testing.assert_close(found, logs.softmax(-1) @ v.repeat_interleave(2, 1), rtol=1e-6, atol=1e-6)


@pytest.mark.numeric
@pytest.mark.parametrize("slope", [1.0, 0.0])
@torch.no_grad()
def test_slots_with_priority_by_position_equal_a_window(slope):
    """Also if all priorities are equal: of two equal ones the later key stays."""
    model, ids = tiny.model("llama"), tiny.ids(2, 30)
    net = wrap(model, RecurrentForm(features="none", window=2, sinks=1, slots=5))
    for memory in memories(net):
        memory.priority.slope.fill_(slope)
    wanted = wrap(model, RecurrentForm(features="none", window=7, sinks=1))(ids).logits
    assert apart(net(ids, chunk=8).logits, wanted) < tolerance.of_a_pass(model)


def test_gradients_are_finite_when_no_key_is_old_yet():
    net = recurrent("gpt2", "mean", window=30)
    with torch.no_grad():
        for parameter in feature_parameters(net):
            parameter.mul_(20)
    net(tiny.ids(1, 40)).logits.logsumexp(-1).mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in feature_parameters(net) if p.grad is not None)


@pytest.mark.numeric
@pytest.mark.parametrize(("features", "slots"), WITH_SLOTS)
@torch.no_grad()
def test_padding_on_the_left_changes_nothing(features, slots):
    net, ids = recurrent("llama", features, slots=slots), tiny.ids(2, 20)
    alone = net(ids).logits
    padded = torch.cat([torch.full((2, 6), tiny.PAD), ids], 1)
    mask = torch.ones_like(padded)
    mask[:, :6] = 0
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    both = net(padded, attention_mask=mask, position_ids=positions).logits[:, 6:]
    assert (both - alone).abs().max() <= 1e-4


def test_generation_keeps_the_state_size_and_agrees_with_the_parallel_form():
    net = recurrent("llama")
    prompt = tiny.ids(2, 9)
    out = net.generate(prompt, max_new_tokens=30, min_new_tokens=30, do_sample=False, return_dict_in_generate=True)
    with torch.no_grad():
        best = net(out.sequences).logits[..., :].argmax(-1)[:, 8:-1]
    said = out.sequences[:, 9:]
    assert ((best == said) | (said == tiny.BOS) | (best == tiny.BOS)).all()  # BOS is also EOS and was suppressed
    assert isinstance(out.past_key_values, RecurrentCache)
    assert out.past_key_values.bytes() == state_bytes(net, 1) == state_bytes(net, 100)
    assert state_bytes(net, 1) < cache_bytes(tiny.model("llama"), 100)


def test_beams_follow_their_own_state():
    """The result equals generation without a cache, which reads every beam anew."""
    net, prompt = recurrent("gpt2"), tiny.ids(2, 10)
    options = {
        "max_new_tokens": 10,
        "min_new_tokens": 10,
        "num_beams": 4,
        "do_sample": False,
        "num_return_sequences": 4,
    }
    found, wanted = (net.generate(prompt, use_cache=cached, **options) for cached in (True, False))
    assert torch.equal(found, wanted)


@pytest.mark.numeric
@pytest.mark.parametrize(("slots", "keys"), [(0, None), (4, None), (0, [[2, 5]]), (4, [[2, 6]])])
def test_the_objective_agrees_with_a_second_implementation(slots, keys):
    """Pairwise in float64: exact and old keys, normalised, against the donor's attention."""
    shape = HeadShape(groups=2, shared=2, width=4)
    config = RecurrentConfig(features="hedgehog", dimension=6, window=3, sinks=1, slots=slots, keys=keys)
    memory = RecurrentMemory(config, shape, 0)
    windows, places = (torch.tensor(one).repeat_interleave(2)[:, None, None] for one in (memory.windows, memory.slots))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
    q, k, v = heads(shape, 12)
    rows = torch.arange(12)
    found = output_loss(HeadInputs(memory, q.unflatten(1, (2, 2)), k, v, 0.5), rows)
    _, log_q = memory.map.queries(q.unflatten(1, (2, 2)) * 0.5**0.5)
    _, log_k = memory.map.keys(k * 0.5**0.5)
    old = (log_q.unsqueeze(4) + log_k[:, :, None, None]).logsumexp(-1).flatten(1, 2)
    ago = rows[:, None] - rows
    hidden = torch.where(ago < 0, -torch.inf, 0.0)
    p = (scores(q, k) + hidden).softmax(-1)
    exact = ((ago < windows) | (rows < 1)).expand(2, 4, -1, -1).clone()
    if slots:
        priority = memory.priority(k * 0.5**0.5, v, rows).repeat_interleave(2, 1)
        ranked = priority[:, :, None].masked_fill(exact | (ago < 0), -torch.inf)
        exact |= (ranked[..., None, :] > ranked[..., None]).sum(-1) < places
    ours = (torch.where(exact, scores(q, k), old) + hidden).softmax(-1)
    values = v.repeat_interleave(2, 1)
    given, wanted = ours @ values, p @ values
    torch.testing.assert_close(attend(memory, q, k, v), given)
    grouped = wanted.unflatten(1, (2, 2))
    spread = (grouped - grouped.mean((0, 3), keepdim=True)).square().mean()
    torch.testing.assert_close(found, (given - wanted).square().mean() / spread)


def test_priorities_learn_which_keys_get_attention():
    """Queries look for keys of one direction only; a window loses them, learned slots keep them."""
    shape = HeadShape(groups=1, shared=1, width=4)
    memory = RecurrentMemory(RecurrentConfig(features="mean", window=2, sinks=1, slots=4), shape, 0)
    k, v = tiny.noise(8, 1, 40, 4, seed=1), tiny.noise(8, 1, 40, 4, seed=2)
    wanted = torch.tensor([3.0, 0, 0, 0])
    k[:, :, ::10] = 4 * wanted
    view, rows = HeadInputs(memory, wanted.expand(8, 1, 1, 40, 4), k, v, 0.5), torch.arange(40)
    initialise_priority(memory.priority, HeadMoments.of(view), torch.Generator().manual_seed(0))
    before = output_loss(view, rows).item()
    optimiser = torch.optim.Adam([one for one in memory.parameters() if one.requires_grad], lr=0.03)
    for _ in range(60):
        optimiser.zero_grad()
        output_loss(view, rows).backward()
        optimiser.step()
    after = output_loss(view, rows).item()
    assert after < 1e-3 * before  # without slots half of the loss remains


def test_a_fit_lowers_the_loss_and_is_repeatable():
    one = donor()
    form = RecurrentForm(features="hedgehog", window=4, sinks=1, dimension=16, hidden=8, steps=12, logit_steps=3)
    net = wrap(one.model, form)
    course = fit(net, one, form, sums := donor_moments(net, one))
    assert course["outputs"] < 0.95 * course["start"]
    ours = {name: tensor.clone() for name, tensor in net.memories.state_dict().items()}
    again = wrap(one.model, form)
    fit(again, one, form, sums)
    assert all(torch.equal(tensor, ours[name]) for name, tensor in again.memories.state_dict().items()), (
        "not repeatable"
    )


def test_a_fit_that_increases_the_loss_is_undone(monkeypatch):
    import stitch.conversions.recurrence.fit as module

    monkeypatch.setattr(module, "RATE", 30.0)
    one, form = donor(), RecurrentForm(features="hedgehog", window=4, sinks=1, dimension=16, steps=3)
    net = wrap(one.model, form)
    course = fit(net, one, form, sums := donor_moments(net, one))
    assert course["outputs"] > course["start"]
    untouched = sibling(net, form)
    initialise(untouched, sums, seed=0)
    left, right = net.memories.state_dict(), untouched.memories.state_dict()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_baselines_have_at_least_as_many_bytes():
    one = tiny.model("llama")
    form = RecurrentForm(features="hedgehog", window=4, sinks=1, dimension=20)
    net = wrap(one, form)
    for rival in (RecurrentForm(features="mean", window=0, sinks=1), RecurrentForm(features="none", window=0, sinks=0)):
        found = matching_bytes(net, one, rival, 100)
        at = state_bytes(sibling(net, found), 1)
        less = state_bytes(sibling(net, RecurrentForm(**{**found.__dict__, "window": found.window - 1})), 1)
        assert less < state_bytes(net, 1) <= at


def test_recall_prompts_need_keys_beyond_any_window():
    asked = recall_prompts(tiny.tokenizer(), 80, count=5)
    assert asked.clean.shape == (5, 80) and int(asked.asked.sum()) == 5 * (DISTINCT - 1)
    for row in range(5):
        for place in asked.asked[row].nonzero()[:, 0].tolist():
            earlier = place - (80 - DISTINCT - 1)
            assert asked.clean[row, place] == asked.clean[row, earlier]
            assert asked.answers[row, place] == asked.clean[row, earlier + 1]
        assert not set(asked.corrupt[row, 1:-DISTINCT].tolist()) & set(asked.clean[row, -DISTINCT:].tolist())


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("gemma2", {}, "capped"),
        ("mistral", {}, "window of .*, 5 tokens"),
        ("gemma3_text", {}, "window of .*, 7 tokens"),
    ],
)
def test_unsupported_attention_is_refused(family, changes, reason):
    with pytest.raises(UsageError, match=reason):
        check_convertible(tiny.model(family, **changes), 64)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"window": 32}, "nothing would be converted"),
        ({"window": 0}, "window must be 1 or more"),
        ({"slots": 31}, "nothing would be converted"),
        ({"features": "taylor2", "slots": 3}, "unless features are fitted"),
        ({"features": "cosine"}, "must be one of taylor2"),
        ({"layers": "4-9"}, "in 0..5"),
        ({"layers": "first"}, "blocks such as"),
        ({"layers": "0,3-1"}, "the first block of a range first; got 3-1"),
        ({"multiple": 0.001}, "at least one feature"),
        ({"steps": -1}, "0 or more"),
    ],
)
def test_impossible_requests_are_refused(options, reason, tmp_path, monkeypatch):
    monkeypatch.setattr("stitch.conversions.recurrence.convert.read_donor", lambda *_, **__: donor())
    with pytest.raises(UsageError, match=reason):
        convert_recurrent("gpt2", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_the_modeling_code_refuses_what_it_cannot_compute():
    net, ids = recurrent(), tiny.ids(1, 6)
    with pytest.raises(ValueError, match="no denominator"):
        RecurrentMemory(RecurrentConfig(features="identity", slots=3), HeadShape(1, 1, 4), 0)
    with pytest.raises(ValueError, match="must be one of"):
        RecurrentMemory(RecurrentConfig(features="cosine"), HeadShape(1, 1, 4), 0)
    with pytest.raises(ValueError, match="no key would be seen"):
        RecurrentMemory(RecurrentConfig(features="none"), HeadShape(1, 1, 4), 0)
    with pytest.raises(ValueError, match="of its own"):
        net.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="RecurrentCache"):
        net(ids, past_key_values=tiny.net("llama")(ids, use_cache=True).past_key_values)
    with pytest.raises(ValueError, match="causal attention"):
        net(ids, attention_mask=torch.ones(1, 1, 6, 6))
    with pytest.raises(ValueError, match="runs inside"):
        net.base(ids)


def test_a_denominator_of_round_off_is_refused():
    """With huge scores of opposite sign, 1 + s + s²/2 near its minimum is a small difference of very large numbers."""
    shape = HeadShape(groups=1, shared=1, width=2)
    memory = RecurrentMemory(RecurrentConfig(features="taylor2"), shape, 0)
    q = torch.tensor([[[[12345.6, -9876.5]]]]).expand(1, 1, 3, 2)
    k = torch.tensor([[[[9876.5, 12345.6]]]]).expand(1, 1, 3, 2)
    with pytest.raises(ValueError, match="round-off"):
        attend(memory, q, k, torch.ones(1, 1, 3, 2))


def test_bf16_models_accumulate_in_float32():
    net = recurrent("llama")
    whole = net.to(torch.bfloat16)
    cache = whole(tiny.ids(1, 20), use_cache=True).past_key_values
    assert cache.layers[0].state.dtype == cache.layers[0].mass.dtype == torch.float32
    assert cache.layers[0].keys.dtype == torch.bfloat16


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("recurrent") / "out"
    one = donor("llama")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stitch.conversions.recurrence.convert.read_donor", lambda *_, **__: one)
        origin = {"provenance": {"settings": {}, "models": {}}, "recipe": {"command": "convert recurrent"}}
        patch.setattr(Donor, "origin", lambda self, command, settings, without: origin)
        report = convert_recurrent("pico", out, window=4, steps=4, logit_steps=2)
    return out, report


def test_the_report_has_every_row_with_its_bytes(written):
    out, report = written
    rows = {row["name"]: row for row in report["results"]}
    assert list(rows) == [
        *("donor", "converted", "baseline:window", "null:window+first+mean", "null:keys at random", "null:unfitted")
    ]
    assert rows["donor"]["kl_to_b"] == pytest.approx(0, abs=1e-6)
    assert rows["converted"]["state_bytes"] == rows["null:unfitted"]["state_bytes"]
    assert rows["converted"]["state_bytes"] == pytest.approx(rows["null:keys at random"]["state_bytes"], rel=0.02)
    assert all(rows[name]["state_bytes"] >= rows["converted"]["state_bytes"] for name in rows if ":window" in name)
    keys = [size for block in rows["converted"]["keys"] for size in block]
    assert 8 * len(keys) < sum(keys) <= 9 * len(keys), "window 4 and slots 5 for each head on average"
    assert rows["null:window+first+mean"]["keys"] is None
    assert json.loads((out / "report.json").read_text())["conversion"] == "recurrent"
    assert "bytes per sequence at any length" in (out / "README.md").read_text()


@torch.no_grad()
def test_a_checkpoint_read_back_equals_the_saved_one(tmp_path):
    """Also if another attention implementation is requested, because a recurrent model has its own."""
    from transformers import AutoModelForCausalLM

    net, ids = recurrent("gpt2"), tiny.ids(2, 20)
    net.save_pretrained(tmp_path)
    register_composites()
    for options in ({}, {"attn_implementation": "eager"}):
        again = AutoModelForCausalLM.from_pretrained(tmp_path, **options)
        assert torch.equal(again(ids).logits, net(ids).logits)


def test_a_recurrent_model_cannot_be_a_donor_of_a_composite(written):
    with pytest.raises(UsageError, match=r"cannot be a part .* then make the result recurrent"):
        load(written[0])


@pytest.mark.slow
def test_the_checkpoint_loads_with_its_own_code_only(written):
    out, _ = written
    register_composites()
    from transformers import AutoModelForCausalLM

    here = AutoModelForCausalLM.from_pretrained(out)
    ids = tiny.ids(2, 20)
    with torch.no_grad():
        torch.save((ids, here(ids).logits), out / "logits.pt")
    program = (
        "import sys, torch; from transformers import AutoModelForCausalLM\n"
        f"net = AutoModelForCausalLM.from_pretrained({str(out)!r}, trust_remote_code=True)\n"
        f"ids, wanted = torch.load({str(out / 'logits.pt')!r})\n"
        "assert not [name for name in sys.modules if name.split('.')[0] in ('stitch', 'sae', 'matching')]\n"
        "assert torch.equal(net(ids).logits, wanted)\n"
        "assert net.generate(ids, max_new_tokens=5).shape[0] == 2\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=out.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@torch.no_grad()
def test_memory_is_constant_over_thousands_of_tokens():
    """Runs beyond the donor's positions; it tests memory, not the predictions."""
    net = wrap(tiny.model("llama", num_hidden_layers=1), RecurrentForm(features="hedgehog", window=4, sinks=1))
    cache, sizes = None, set()
    for _ in range(8):
        cache = net(tiny.ids(1, 4096), past_key_values=cache, use_cache=True, logits_to_keep=1).past_key_values
        sizes.add(cache.bytes())
    assert cache.get_seq_length() == 2**15 and len(sizes) == 1
