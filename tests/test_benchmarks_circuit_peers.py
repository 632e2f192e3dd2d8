"""The peers of circuit attribution have the values that their formulas give, on models made by hand and tiny ones."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from _circuit_edges import EDGE_METHODS, edges, split_pass
from _circuit_peers import (
    _Tempered,
    activation_patching,
    attribution_patching,
    divided_gates,
    eap_ig_activations,
    eap_ig_inputs,
    frozen_norms,
    gim,
    tempered,
)
from circuits import LEVELS, SHARES, areas, described, measured, nats_by_share, ordered
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

import tiny
from stitch.circuits.attribution import attribute
from stitch.circuits.behaviours.named import make_prompts
from stitch.circuits.behaviours.prompts import Prompts
from stitch.circuits.edges import direct_effects
from stitch.circuits.score import logits_of, sums_of
from stitch.models.anatomy import Anatomy
from stitch.models.model import Model

UNLIKELY = 100.0  # nats: so far below the only other token, an answer's log probability is its logit minus a constant
HEADS, NEURONS = ("heads", 0), ("neurons", 0)


class _Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.out, self.down = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)

    def forward(self, x):
        return x + self.out(1 * x) + self.down(3 * x)


class _BlockInTurn(_Block):
    """Its neurons read what its heads wrote."""

    def forward(self, x):
        x = x + self.out(1 * x)
        return x + self.down(3 * x)


class _ByHand(PreTrainedModel):
    """Two heads of one column and two neurons, all linear in the embedding; the answer's logit is `read` of their sum."""

    config_class = PretrainedConfig

    def __init__(self, config, read, block):
        super().__init__(config)
        self.embed, self.blocks, self.read = nn.Embedding(4, 2), nn.ModuleList([block]), read
        self.norm = nn.Identity()

    def forward(self, input_ids=None, inputs_embeds=None, use_cache=False):
        x = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        answer = self.read(self.norm(self.blocks[0](x))) - UNLIKELY
        return SimpleNamespace(logits=torch.stack([answer, *[torch.zeros_like(answer)] * 3], -1))


def by_hand(read, block: nn.Module | None = None) -> Model:
    config = PretrainedConfig(num_hidden_layers=1, num_attention_heads=2, hidden_size=2, vocab_size=4)
    net = _ByHand(config, read, block or _Block()).requires_grad_(False)
    net.embed.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 2.0], [3.0, 1.0]]))
    net.blocks[0].out.weight.copy_(torch.tensor([[1.0, 0.5], [0.0, 2.0]]))
    net.blocks[0].down.weight.zero_()
    anatomy = Anatomy(
        family="by hand", body="", embedding="embed", blocks="blocks", heads_out="out", down="down", final_norm="norm",
        tested=True,  # too small to be looked at
    )  # fmt: skip
    return Model("by hand", net, None, anatomy, Path("."))


def asking(clean: list[int], corrupt: list[int]) -> Prompts:
    ids = torch.tensor([clean]), torch.tensor([corrupt])
    asked = torch.zeros_like(ids[0], dtype=torch.bool)
    asked[:, -1] = True
    return Prompts(*ids, asked, torch.zeros_like(ids[0]))


def same(found, expected, tolerance=1e-4):
    assert found.keys() == expected.keys()
    for place, values in found.items():
        torch.testing.assert_close(values.double(), expected[place].double(), rtol=tolerance, atol=tolerance)


def test_of_a_linear_model_every_method_is_exact():
    model = by_hand(lambda x: x @ torch.tensor([2.0, -1.0]))
    model.net.blocks[0].down.weight.copy_(torch.tensor([[0.5, 0.0], [1.0, 1.0]]))
    prompts = asking([1, 3], [2, 1])  # at the last position the embedding changes from (1, 0) to (3, 1)
    expected = {HEADS: torch.tensor([2 * 2.0, 1 * (2 * 0.5 - 2.0)]), NEURONS: torch.tensor([0.0, 3 * (0 - 1.0)])}
    same(activation_patching(model, prompts), expected)
    for method in (attribute, attribution_patching, eap_ig_inputs, eap_ig_activations, gim_without_gates):
        same(method(model, prompts), expected)


@pytest.mark.parametrize("method", ["ours", "EAP-IG, inputs", "attribution patching"])
def test_of_a_linear_model_every_method_has_the_exact_edges(method):
    model = by_hand(lambda x: x @ torch.tensor([2.0, -1.0]), _BlockInTurn())
    model.net.blocks[0].down.weight.copy_(torch.tensor([[0.5, 0.0], [1.0, 1.0]]))
    found = EDGE_METHODS[method](model, asking([1, 3], [2, 1]))
    # Tokens, head 0, head 1 and the MLP change by (2, 1), (2, 0), (1 / 2, 2) and 3 (9 / 4, 15 / 2).
    # The answer reads (2, -1) of each; the MLP passes on (2, -1) W · 3 = (0, -3), and what head h reads goes on as 2 + 0, -1 - 3.
    expected = torch.tensor(
        [
            [2 * 2.0, 0.0, 0.0, 0.0],
            [1 * (0.5 * 2 + 2 * (-1 - 3.0)), 0.0, 0.0, 0.0],
            [1 * -3.0, 0.0, 2 * -3.0, 0.0],
            [2 * 2 - 1.0, 2 * 2.0, 0.5 * 2 - 2.0, 3 * (2.25 * 2 - 7.5)],
        ]
    )
    torch.testing.assert_close(found.float(), expected, rtol=1e-4, atol=1e-4)


def gim_without_gates(model: Model, prompts: Prompts):
    """GIM on a model without attention and without gates."""
    with frozen_norms(model):
        return attribution_patching(model, prompts)


def test_of_a_quadratic_model_middles_are_exact_and_far_ends_are_known():
    model = by_hand(lambda x: x[..., 1].square())
    model.net.blocks[0].out.weight.copy_(torch.tensor([[0.0, 0.0], [0.0, 1.0]]))
    prompts = asking([0, 2], [0, 1])  # the second channel of the stream goes from 0 to 2 + 2
    whole = torch.tensor([0.0, 16.0 / 2])  # the embedding and the head share (2 + 2)² equally
    for steps in (1, 4):
        same({HEADS: attribute(model, prompts, steps=steps)[HEADS]}, {HEADS: whole})
        far = eap_ig_inputs(model, prompts, steps=steps)
        same({HEADS: far[HEADS]}, {HEADS: whole * (1 + 1 / steps)})
    exact = activation_patching(model, prompts)[HEADS]  # (2 + 2)² − (2 + 0)²
    torch.testing.assert_close(exact, torch.tensor([0.0, 12.0], dtype=torch.float64))
    # Between its own outputs, the embedding clean: the mean of 2 (2 + 2 k / 4) over k = 1 … 4, times 2.
    alone = eap_ig_activations(model, prompts, steps=4)[HEADS]
    torch.testing.assert_close(alone, torch.tensor([0.0, 13.0], dtype=torch.float64))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_gim_without_its_changes_is_the_gradient(family):
    model = tiny.shared(family)
    prompts = make_prompts("previous-token", model.tokenizer, count=3)
    plain = attribution_patching(model, prompts)
    with tempered(model, 1.0, 1.0), divided_gates(model, 1.0):
        same(attribution_patching(model, prompts), plain, 1e-3)
    assert (gim(model, prompts)[HEADS] - plain[HEADS]).abs().max() > 1e-2


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_gim_changes_no_value(family):
    model = tiny.shared(family)
    with torch.no_grad():
        before = model.net(input_ids=tiny.ids()).logits
        with frozen_norms(model), tempered(model, 2.0, 0.5), divided_gates(model, 0.5):
            torch.testing.assert_close(model.net(input_ids=tiny.ids()).logits, before, rtol=1e-4, atol=1e-4)


def test_the_softmax_is_differentiated_at_its_temperature():
    scores, gradient = tiny.noise(3, 5).requires_grad_(), tiny.noise(3, 5, seed=1)
    (found,) = torch.autograd.grad(_Tempered.apply(scores.softmax(-1), 2.0), scores, gradient)
    softer = (scores.detach() / 2).softmax(-1)
    jacobian = torch.diag_embed(softer) - softer[:, :, None] * softer[:, None]
    torch.testing.assert_close(found, torch.einsum("rij,rj->ri", jacobian, gradient))


@pytest.mark.parametrize(("family", "centred"), [("gpt2", True), ("llama", False)])
def test_frozen_norms_pass_gradients_through_a_constant_scale(family, centred):
    model = tiny.shared(family)
    width = model.width
    x, gradient = tiny.noise(4, width).requires_grad_(), tiny.noise(4, width, seed=1)
    with frozen_norms(model):
        (found,) = torch.autograd.grad(model.final_norm(x), x, gradient)
    weighted = gradient * model.final_norm.weight.detach()
    held = x.detach() - x.detach().mean(-1, keepdim=True) * centred
    expected = (weighted - weighted.mean(-1, keepdim=True) * centred) / held.square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_queries_and_keys_get_a_quarter_of_their_gradient_and_values_a_half():
    model = tiny.shared("llama")
    attention, embedded = model.blocks[-1].self_attn, model.embedding(tiny.ids())

    def gradients() -> list[torch.Tensor]:
        """Of the last block's queries, keys and values: nothing behind them is changed."""
        seen = []
        readers = [attention.q_proj, attention.k_proj, attention.v_proj]
        hooks = [reader.register_forward_hook(lambda _, __, output: seen.append(output)) for reader in readers]
        logits = model.net(inputs_embeds=embedded.detach().requires_grad_(), use_cache=False).logits
        for hook in hooks:
            hook.remove()
        return list(torch.autograd.grad((logits * tiny.noise(*logits.shape)).sum(), seen))

    plain = gradients()
    with tempered(model, 1.0, 0.5):
        halved = gradients()
    for share, found, whole in zip((0.25, 0.25, 0.5), halved, plain, strict=True):
        assert whole.abs().max() > 1e-3
        torch.testing.assert_close(found, share * whole, rtol=1e-3, atol=1e-5)


def test_the_factors_of_a_gated_neuron_share_its_gradient():
    model = tiny.shared("llama")
    mlp = model.blocks[0].get_submodule("mlp")
    x = tiny.noise(4, model.width).requires_grad_()
    (whole,) = torch.autograd.grad(mlp(x).sum(), x)
    with divided_gates(model, 0.5):
        (half,) = torch.autograd.grad(mlp(x).sum(), x)
    torch.testing.assert_close(half, whole / 2)


def test_orders_are_by_signed_or_by_absolute_scores():
    scores = torch.tensor([0.5, -2.0, 1.0])
    assert ordered(scores, signed=True).tolist() == [2, 0, 1]
    assert ordered(scores, signed=False).tolist() == [1, 2, 0]


@pytest.mark.parametrize("level", LEVELS)
def test_a_circuit_of_all_is_the_model_and_an_order_starts_from_its_front(level):
    model = tiny.shared("llama")
    prompts = make_prompts("previous-token", model.tokenizer, count=4)
    row, alone = LEVELS[level].row(model, LEVELS[level].random(model, 0)), LEVELS[level].alone
    whole = sums_of(logits_of(model.net), prompts.clean, prompts, None)[:, 2]
    with torch.no_grad():
        kept = sums_of(
            lambda _: alone(model, prompts)(torch.ones(len(row), dtype=torch.bool)), prompts.clean, prompts, None
        )
    torch.testing.assert_close(kept[:, 2], whole, rtol=1e-3, atol=1e-3)
    nats = nats_by_share(model, prompts, ordered(row, signed=True), alone)
    assert nats.shape == (4, len(SHARES) - 1)
    first = torch.zeros(len(row), dtype=torch.bool)
    first[row.argsort(descending=True)[: len(row) // 2]] = True
    with torch.no_grad():
        half = sums_of(lambda _: alone(model, prompts)(first), prompts.clean, prompts, None)[:, 2]
    torch.testing.assert_close(nats[:, SHARES.index(0.5)], half)


def test_areas_are_those_of_known_curves():
    most = torch.tensor([1.0, 3.0], dtype=torch.float64)
    shares = torch.tensor(SHARES, dtype=torch.float64)
    whole, line, above = (most[:, None] * curve for curve in (torch.ones_like(shares), shares, 2 - shares))
    span = 1 - SHARES[0]
    for gains, cpr, cmd in (
        (whole, span, 0.0),
        (line, (1 - SHARES[0] ** 2) / 2, span**2 / 2),
        (above, span + span**2 / 2, span**2 / 2),  # above the whole model counts for CPR and against CMD
    ):
        found = {key: float(sums.sum() / most.sum()) for key, sums in areas(gains).items()}
        assert found == pytest.approx({"area": cpr, "distance": cmd})


def test_what_one_draw_overshoots_does_not_make_up_for_another():
    shares = torch.tensor(SHARES, dtype=torch.float64)
    draws = [torch.tensor([[1.0], [3.0]]).double() * curve for curve in (shares, 2 - shares)]
    both = {"signed": draws, "absolute": draws}
    found = described(both, measured(both))
    span = 1 - SHARES[0]
    assert found["cmd_by_draw"] == pytest.approx([span**2 / 2] * 2, abs=1e-4)
    assert found["cmd"] == pytest.approx(span**2 / 2, abs=1e-4)
    assert found["area"] == found["cpr"] == pytest.approx(span, abs=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_edges_are_scored_as_the_package_scores_them(family):
    model = tiny.shared(family)
    prompts = make_prompts("previous-token", model.tokenizer, count=2)
    heads = [(("heads", block), number) for block in (0, 2) for number in range(4)]
    neurons = [
        (("neurons", 1), number) for number in range(model.net.config.intermediate_size if family == "llama" else 48)
    ]
    found = EDGE_METHODS["ours"](model, prompts)
    own = direct_effects(model, prompts, heads, [*((head, None) for head in heads), (None, None)]).sum(1)
    into_mlp = direct_effects(model, prompts, heads, [(neuron, None) for neuron in neurons]).sum((0, 1))
    rows = [block * 5 + number for block in (0, 2) for number in range(4)]
    columns = [*(row + 1 for row in rows), 0]  # the tokens are last there and first here
    torch.testing.assert_close(found[[*rows, -1]][:, columns], own, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found[9, columns], into_mlp, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_cut_edges_carry_the_corrupt_prompt(family):
    model = tiny.shared(family)
    clean, corrupt = tiny.ids(seed=1), tiny.ids(seed=2)
    with torch.no_grad():
        one, other = (model.net(input_ids=ids).logits for ids in (clean, corrupt))
        embedded, instead = model.embedding(clean), split_pass(model, model.embedding(corrupt)).written
        none, every = torch.zeros_like(edges(model)), edges(model)
        torch.testing.assert_close(split_pass(model, embedded, none, instead).logits, one, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(split_pass(model, embedded, every, instead).logits, other, rtol=1e-3, atol=1e-3)
        only_answers = none.clone()
        only_answers[-1] = True  # the answers read all sources' corrupt outputs
        found = split_pass(model, embedded, only_answers, instead).logits
        torch.testing.assert_close(found, other, rtol=1e-3, atol=1e-3)
        behind = none.clone()
        behind[:4, 0] = True  # the first block's heads read corrupt tokens: all other edges carry what follows from it
        assert (split_pass(model, embedded, behind, instead).logits - one).abs().max() > 0.1
        assert (split_pass(model, embedded, behind, instead).logits - other).abs().max() > 0.1
