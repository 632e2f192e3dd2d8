"""Exact keys allocated to key heads: every head computes what it would alone, costs are as predicted, the allocation
is optimal.
"""

from itertools import chain, product
from types import SimpleNamespace

import pytest
import torch
from torch.nn import ModuleList

import tiny
from passes import by_token
from recurrent import WINDOW, donor, recurrent, windows
from stitch.conversions.recurrence.allocation import (
    CostProbe,
    allocate,
    candidate_sizes,
    costs_by_size,
    distribute_keys,
    shuffled_sizes,
)
from stitch.conversions.recurrence.fit import donor_moments, scores_of
from stitch.conversions.recurrence.forms import RecurrentForm, sibling, state_bytes, wrap
from stitch.conversions.recurrence.head_moments import head_moments
from stitch.conversions.recurrence.initialise import initialise
from stitch.modeling.modeling_features import HeadShape
from stitch.modeling.modeling_recurrent import RecurrentConfig, RecurrentLayer, RecurrentMemory

UNEVEN = {"gpt2": (2, 11, 5, 7), "llama": (2, 11), "gpt_bigcode": (6,)}


def uneven(family: str) -> tuple[tuple[int, ...], ...]:
    """A different number of keys in every block, below and above the window of 5."""
    sizes = UNEVEN[family]
    return tuple(sizes[block % len(sizes) :] + sizes[: block % len(sizes)] for block in range(6))


@pytest.mark.parametrize("slots", [0, 3])
@torch.no_grad()
def test_each_head_computes_what_it_would_alone(slots):
    shape, config = (
        HeadShape(groups=3, shared=2, width=4),
        RecurrentConfig(features="mean", window=5, sinks=1, slots=slots),
    )
    config.keys = [[2, 9, 6]]
    memory = RecurrentMemory(config, shape, 0)
    for parameter in memory.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    q, k, v = (tiny.noise(2, heads, 20, 4, seed=heads + n) for n, heads in enumerate((6, 3, 3)))
    real = torch.ones(2, 20, dtype=torch.bool)
    past = RecurrentLayer()
    found = memory.attend(q, k, v, real, past, 0.5, 8)
    exact = {"keys": past.keys.shape[1], "slots": past.slot_keys.shape[1] if slots else 0}
    assert exact == ({"keys": 2 + 5 + 5, "slots": 0 + 4 + 1} if slots else {"keys": 17, "slots": 0}), "not a byte more"
    for head, size in enumerate((2, 9, 6)):
        config.keys = [[size]]
        alone = RecurrentMemory(config, HeadShape(1, 2, 4), 0)
        for name, parameter in alone.named_parameters():
            parameter.copy_(memory.get_parameter(name)[head : head + 1])
        own = q[:, 2 * head : 2 * head + 2], k[:, head : head + 1], v[:, head : head + 1]
        wanted = alone.attend(*own, real, RecurrentLayer(), 0.5, 8)
        torch.testing.assert_close(found[:, 2 * head : 2 * head + 2], wanted)


@pytest.mark.parametrize(
    ("family", "features", "slots"), [("gpt2", "mean", 4), ("llama", "hedgehog", 0), ("gpt_bigcode", "none", 4)]
)
@torch.no_grad()
def test_parallel_and_recurrent_form_agree(family, features, slots):
    net = recurrent(family, features, slots=slots, keys=uneven(family))
    for length in (1, WINDOW, WINDOW + 1, 4 * WINDOW):
        ids = tiny.ids(2, length)
        stepwise, cache = by_token(net, ids)
        assert (net(ids).logits - stepwise).abs().max() <= 1e-4
        assert cache.bytes() == state_bytes(net, 1)


@torch.no_grad()
def test_uneven_sizes_can_be_saved_and_used_with_beam_search(tmp_path):
    from transformers import AutoModelForCausalLM

    from stitch.models.loading import register_composites

    net, ids = recurrent("llama", "mean", slots=4, keys=uneven("llama")), tiny.ids(2, 20)
    net.save_pretrained(tmp_path)
    register_composites()
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(ids).logits, net(ids).logits)
    options = dict(max_new_tokens=8, min_new_tokens=8, num_beams=3, do_sample=False, num_return_sequences=3)
    found, wanted = (again.generate(ids[:, :9], use_cache=cached, **options) for cached in (True, False))
    assert torch.equal(found, wanted)


@pytest.mark.slow
def test_predicted_costs_agree_with_measured_ones():
    """Against the divergence measured with one head changed. The prediction is second-order, and a window is one sample of it."""
    one = donor("llama")
    sizes, many = [2, 6, 12], windows(960, seed=3)
    net = wrap(one.model, RecurrentForm(features="mean", window=8, sinks=1))
    sums = head_moments(net, many, batch=32)
    initialise(net, sums, seed=0)
    costs = costs_by_size(net, many, sizes, seed=0, batch=16)
    for block, head in ((0, 1), (3, 0)):
        for index, size in enumerate(sizes):
            keys = [[31] * 2 for _ in range(6)]
            keys[block][head] = size
            changed = sibling(net, RecurrentForm(features="mean", window=8, sinks=1, keys=tuple(map(tuple, keys))))
            initialise(changed, sums, seed=0)
            score = scores_of({"changed": changed}, one, many)["changed"]
            assert score.kl is not None
            measured = float(score.kl.sum() / score.tokens.sum())
            assert float(costs[block][head, index]) == pytest.approx(measured, rel=0.15), (block, head, size)
    assert all((cost[:, 0] > cost[:, -1]).all() for cost in costs)


def test_the_cost_of_a_head_sums_its_tokens_before_squaring():
    """The square of the sum over a window's tokens, a key head's queries and their dimensions, against explicit weights for each
    pair.
    """
    config, shape = RecurrentConfig(features="mean", window=3, sinks=1), HeadShape(groups=2, shared=2, width=4)
    module = SimpleNamespace(memory_index=0)
    q, k, v = (tiny.noise(3, heads, 12, 4, seed=heads + n).double() for n, heads in enumerate((4, 2, 2)))
    costs, zero = torch.zeros(2, 1, dtype=torch.float64), torch.zeros((), requires_grad=True)
    # the feature is constant, 1
    probe = CostProbe(ModuleList([RecurrentMemory(config, shape, 0)]), [5], [costs], zero)
    gradient = tiny.noise(3, 4, 12, 4, seed=9).double()
    probe.attend(module, q, k, v, 0.5).backward(gradient)
    ago = torch.arange(12)[:, None] - torch.arange(12)
    values = v.repeat_interleave(2, 1)
    scores = (q @ k.repeat_interleave(2, 1).mT * 0.5).exp()
    exact, changed = (
        (weights.tril() / weights.tril().sum(-1, keepdim=True)) @ values
        for weights in (scores, torch.where((ago < 5) | (torch.arange(12) < 1), scores, 1.0))
    )
    effect = (gradient * (changed - exact)).sum(-1).unflatten(1, (2, 2)).sum(2)  # batch, groups, tokens
    torch.testing.assert_close(costs[:, 0], effect.sum(-1).square().sum(0))


def test_changes_of_a_block_are_made_and_dropped_in_the_backward_pass(monkeypatch):
    """All blocks' at once would be many times the model's own activations."""
    net = wrap(donor("llama").model, RecurrentForm(features="mean", window=8, sinks=1))
    made, real = [], CostProbe.changes
    monkeypatch.setattr(CostProbe, "changes", lambda *given: made.append(len(made)) or real(*given))
    zero = torch.zeros((), requires_grad=True)
    costs = [torch.zeros(2, 2) for _ in range(6)]
    logits = net.base(input_ids=tiny.ids(1, 20), recurrent=CostProbe(net.memories, [2, 6], costs, zero)).logits
    assert made == []
    logits.sum().backward()
    assert len(made) == 6 and all((cost > 0).any() for cost in costs)


def test_the_allocation_is_the_cheapest_within_its_bytes():
    """Against all allocations that take no more bytes than the one found, which respects the budget."""
    generator = torch.Generator().manual_seed(0)
    sizes, widths = [1, 2, 3, 4], [2, 2, 1]
    saved = torch.rand(3, 3, generator=generator, dtype=torch.float64).sort(1, descending=True).values
    costs = torch.cat([torch.full((3, 1), 5.0, dtype=torch.float64), 5 - saved.cumsum(1)], 1)  # convex
    reached = set()
    for alike in (1, 2, 3, 4):
        found = distribute_keys(costs, sizes, widths, alike=alike)
        price = sum(w * n for w, n in zip(widths, found, strict=True))
        assert price <= alike * sum(widths)
        cost = sum(costs[head, sizes.index(n)] for head, n in enumerate(found))
        cheapest = min(
            sum(costs[head, sizes.index(n)] for head, n in enumerate(choice))
            for choice in product(sizes, repeat=3)
            if sum(w * n for w, n in zip(widths, choice, strict=True)) <= price
        )
        assert cost == pytest.approx(float(cheapest))
        reached.add(tuple(found))
    assert len(reached) == 4


def test_steps_that_reduce_the_cost_only_together_are_taken_together():
    costs = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.9, 0.8]])
    assert distribute_keys(costs, [1, 2, 3], [1, 1], alike=2) == [3, 1]


@pytest.mark.parametrize(("context", "alike"), [(8, 2), (32, 3), (1024, 2), (1024, 192)])
def test_the_smallest_candidate_size_fits_the_budget(context, alike):
    """One 256th of a long context would be more than a small state holds."""
    sizes = candidate_sizes(context, alike)
    assert sizes[0] <= alike and sizes[-1] == context - 1
    costs = torch.tensor([1.0, 2.0])[:, None] / torch.tensor(sizes)
    assert sum(distribute_keys(costs, sizes, [1, 1], alike=alike)) <= 2 * alike


def test_heads_that_need_no_keys_get_none():
    """Queries of zero weigh all keys equally, and the mean feature represents this exactly. All keys go to the one
    head with queries.
    """
    one = donor("llama")
    with torch.no_grad():
        for number, block in enumerate(one.model.net.model.layers):
            weight = block.self_attn.q_proj.weight
            weight.mul_(4)
            weight[: len(weight) if number != 2 else len(weight) // 2] = 0
    form = RecurrentForm(features="mean", window=3, sinks=1, hidden=4, steps=2)
    net = wrap(one.model, form)
    found = allocate(net, one, form, donor_moments(net, one))
    assert found[2][1] > 20 and max(size for size in chain(*found) if size != found[2][1]) <= 2
    assert sum(chain(*found)) <= 3 * 12


def test_blocks_that_are_not_converted_are_left_out_of_the_allocation():
    one, form = donor("llama"), RecurrentForm(features="mean", window=4, sinks=1, hidden=4, steps=2, layers=(1, 4))
    net = wrap(one.model, form)
    found = allocate(net, one, form, donor_moments(net, one))
    assert [min(block) > 0 for block in found] == [False, True, False, False, True, False]
    assert sum(map(sum, found)) <= 4 * 4
    dealt = shuffled_sizes(net, found, 0)
    assert sorted(chain(*dealt)) == sorted(chain(*found)) and not any(chain(*(dealt[b] for b in (0, 2, 3, 5))))


def test_shuffled_sizes_take_the_same_bytes():
    net = recurrent("gpt2", "mean", slots=4, keys=uneven("gpt2"))
    keys = uneven("gpt2")
    dealt = shuffled_sizes(net, keys, 0)
    assert dealt != keys and sorted(chain(*dealt)) == sorted(chain(*keys))
    other = recurrent("gpt2", "mean", slots=4, keys=dealt)
    # except for the padding flags, which the heads of a block share
    assert state_bytes(net, 1) == pytest.approx(state_bytes(other, 1), rel=0.02)
