"""The peers of circuit attribution have the values that their formulas give on models made by hand."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
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
from circuits import SHARES, areas, ordered
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

import tiny
from stitch.circuits.attribution import attribute
from stitch.circuits.behaviours import Prompts, make_prompts
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


class _ByHand(PreTrainedModel):
    """Two heads of one column and two neurons, all linear in the embedding; the answer's logit is `read` of their sum."""

    config_class = PretrainedConfig

    def __init__(self, config, read):
        super().__init__(config)
        self.embed, self.blocks, self.read = nn.Embedding(4, 2), nn.ModuleList([_Block()]), read

    def forward(self, input_ids=None, inputs_embeds=None, use_cache=False):
        x = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        answer = self.read(self.blocks[0](x)) - UNLIKELY
        return SimpleNamespace(logits=torch.stack([answer, *[torch.zeros_like(answer)] * 3], -1))


def by_hand(read) -> Model:
    config = PretrainedConfig(num_hidden_layers=1, num_attention_heads=2, hidden_size=2, vocab_size=4)
    net = _ByHand(config, read).requires_grad_(False)
    net.embed.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 2.0], [3.0, 1.0]]))
    net.blocks[0].out.weight.copy_(torch.tensor([[1.0, 0.5], [0.0, 2.0]]))
    net.blocks[0].down.weight.zero_()
    anatomy = Anatomy(family="by hand", body="", embedding="embed", blocks="blocks", heads_out="out", down="down")
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


def test_the_factors_of_a_gated_neuron_share_its_gradient():
    model = tiny.shared("llama")
    mlp = model.blocks[0].get_submodule("mlp")
    x = tiny.noise(4, model.width).requires_grad_()
    (whole,) = torch.autograd.grad(mlp(x).sum(), x)
    with divided_gates(model, 0.5):
        (half,) = torch.autograd.grad(mlp(x).sum(), x)
    torch.testing.assert_close(half, whole / 2)


def test_orders_are_by_signed_or_by_absolute_scores():
    scores = {HEADS: torch.tensor([0.5, -2.0]), NEURONS: torch.tensor([1.0])}
    assert ordered(scores, signed=True) == [(NEURONS, 0), (HEADS, 0), (HEADS, 1)]
    assert ordered(scores, signed=False) == [(HEADS, 1), (NEURONS, 0), (HEADS, 0)]


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
        found = {key: float(sums.sum() / most.sum()) for key, sums in areas(gains, most).items()}
        assert found == pytest.approx({"cpr": cpr, "cmd": cmd})
