"""The parts of grafts (heads, neurons, positions, channels), each against an equivalent computation."""

import math

import pytest
import torch

import tiny
from stitch.errors import StitchError, UsageError
from stitch.grafts import heads, neurons
from stitch.grafts.allocation import FreeSpace
from stitch.grafts.frame import narrowed, whole
from stitch.grafts.norm_inputs import normalised_inputs
from stitch.grafts.placing import _divided
from stitch.grafts.positions import PositionScheme
from stitch.internals import weights
from stitch.internals.positions import Profile, code_frequencies, fitted_profile, offset_head, position_codes
from stitch.models.model import Model

pytestmark = pytest.mark.numeric

ROPE = 1e4 ** (-torch.arange(0, 64, 2, dtype=torch.float64) / 64)


def attention_of(model: Model, ids: torch.Tensor, block: int) -> torch.Tensor:
    model.net.set_attn_implementation("eager")
    with torch.no_grad():
        return model.net(ids, output_attentions=True).attentions[block].double()


@pytest.mark.parametrize("family", [*weights.FAMILIES, weights.ONE_KEY_HEAD])
def test_a_head_attends_as_the_model_does(family: str):
    changes = {"sliding_window": None} if family == "mistral" else {}
    model, ids = tiny.model(family, **changes), tiny.ids()
    weights.check(model, "donor")
    for block in (0, 2):
        x = normalised_inputs(model, [("attention", block)], ids)["attention", block]
        attention, wanted = weights.attention(model, block), attention_of(model, ids, block)
        norm, frequencies = weights.norm(model, "attention", block), weights.frequencies(model)
        for number in range(model.heads(block)):
            head = heads.donor_head(attention, norm, number)
            found = heads.attended(heads.scores(head, x, frequencies, attention.scale))
            assert (found - wanted[:, number]).abs().max() < 1e-5
            assert wanted[:, number].diagonal(0, 1, 2)[:, 1:].std() > 1e-3  # attention differs from uniform


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@torch.no_grad()
def test_neurons_write_what_the_models_do(family: str):
    model, ids = tiny.model(family), tiny.ids()
    x = normalised_inputs(model, [("mlp", 1)], ids)["mlp", 1]
    mlp, norm = weights.mlp(model, 1), weights.norm(model, "mlp", 1)
    kept = neurons.donor_neurons(mlp, norm, torch.ones(len(mlp.down), dtype=torch.bool))
    found = neurons.written(kept, x.flatten(0, 1), weights.activation(model))
    seen = []
    handle = model.blocks[1].mlp.register_forward_hook(lambda module, args, output: seen.append(output))
    model.net(ids)
    handle.remove()
    wanted = seen[0].flatten(0, 1).double() - (0 if mlp.down_bias is None else mlp.down_bias)
    assert (found - wanted).abs().max() < 2e-3 * wanted.abs().max()  # gelu_new differs slightly from gelu


@pytest.mark.parametrize("family", [*weights.FAMILIES, weights.ONE_KEY_HEAD])
@torch.no_grad()
def test_writing_to_a_view_changes_the_model(family: str):
    model, ids = tiny.model(family, **({"sliding_window": None} if family == "mistral" else {})), tiny.ids()
    before = model.net(ids).logits
    attention, mlp = weights.attention(model, 3), weights.mlp(model, 3)
    for part in (attention.o, attention.o_bias, mlp.down, mlp.down_bias):
        if part is not None:
            part.zero_()
    after = model.net(ids).logits
    without = model.net.get_submodule(f"{model.anatomy.body}.{model.anatomy.blocks}")
    removed = without.pop(3)
    model.net.config.num_hidden_layers -= 1
    assert torch.allclose(model.net(ids, use_cache=False).logits, after, atol=1e-5)
    assert (before - after).abs().max() > 1e-2 and removed is not None


@pytest.mark.parametrize(("offset", "length"), [(0, 64), (1, 256), (1, 1024), (3, 128), (100, 256)])
@pytest.mark.parametrize("coded", [False, True])
def test_a_synthesised_head_attends_only_to_its_offset(offset: int, length: int, coded: bool):
    frequencies = code_frequencies(12, length) if coded else ROPE
    found = offset_head(frequencies, offset, length)
    blank = torch.zeros(3, 64, dtype=torch.float64)
    head = heads.Head(blank, blank[0], blank, blank[0], blank, blank[0], blank.T)
    head = heads.looking_back(head, found, 64, 0.125, coded=coded, steady=True)
    codes, turning = (position_codes(frequencies, length), 0 * ROPE) if coded else (None, ROPE)
    attention = heads.attended(
        heads.scores(head, torch.randn(1, length, 3, dtype=torch.float64), turning, 0.125, codes)
    )
    right = attention[0].diagonal(-offset)
    assert 1 - right.min() <= 1e-6
    assert found.gap > 0.2 and found.weights.sum() == pytest.approx(1)


@pytest.mark.parametrize("length", [2, 3, 9, 40])
def test_the_offset_of_a_head_is_found_in_short_prompts_too(length: int):
    scores = torch.full((2, length, length), -50.0, dtype=torch.float64)
    scores.diagonal(0 if length == 2 else -1, 1, 2).fill_(50.0)
    back = heads.by_offset(heads.attended(scores))
    assert back == pytest.approx([float(offset == (length > 2)) for offset in range(min(length - 1, 9))], abs=1e-6)


@pytest.mark.parametrize("width", [16, 32, 64])
def test_content_and_distance_never_share_a_dimension(width: int):
    """In hosts with position codes, for every division of a head's dimensions."""
    generator = torch.Generator().manual_seed(0)
    q, k, x = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((20, 32), (20, 32), (99, 20))
    )
    none = torch.zeros(32, dtype=torch.float64)
    gpt2 = tiny.model("gpt2", n_embd=4 * width, n_head=4)
    scheme = PositionScheme.of(tiny.model("llama"), gpt2)
    ways = list(_divided(heads.Head(q, none, k, none, q, none, q.T), x, scheme, width))
    assert len(ways) >= 3
    for head, usable in ways:
        profile = Profile(usable.double(), 0 * usable.double())
        codes = heads.with_profile(head, profile, coded=True).q_codes
        assert codes is not None and not (codes.any(0) & head.q.any(0)).any()
        assert int(codes.any(0).sum()) == 2 * int(usable.sum())


def test_slow_planes_cannot_distinguish_neighbours():
    with pytest.raises(UsageError, match="must tell 256 positions apart to attend 1 back"):
        offset_head(torch.full((8,), 1e-4, dtype=torch.float64), 1, 256)
    with pytest.raises(UsageError, match="needs a longer context than 8"):
        offset_head(ROPE, 8, 8)


def test_a_profile_of_planes_is_recovered():
    distance = (torch.arange(40)[:, None] - torch.arange(40)).clamp_min(0)
    wanted = 3 * torch.cos(ROPE[4] * distance - 0.7) + 2 * torch.sin(ROPE[9] * distance)
    wanted = (wanted + 5 * torch.randn(40, 1))[None].double()  # a constant per row has no effect on attention
    usable = torch.zeros(32, dtype=torch.bool)
    usable[[4, 9, 20]] = True
    profile = fitted_profile(wanted, heads.attended(wanted), ROPE, usable)
    assert profile.amplitude[[4, 9]].tolist() == pytest.approx([3, 2], rel=1e-3)
    assert profile.amplitude[20] < 0.05 and not profile.amplitude[~usable].any()
    assert float(profile.phase[4]) == pytest.approx(0.7, abs=1e-2)


def test_a_narrower_head_is_the_best_approximation():
    """In its scores, up to a constant per row: no random projection to as many dimensions is closer."""
    generator = torch.Generator().manual_seed(0)
    q, k, x = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((20, 8), (20, 8), (300, 20)))
    q = q * torch.logspace(0, -2, 8, dtype=torch.float64)
    none = torch.zeros(8, dtype=torch.float64)
    head = heads.Head(q, none, k, none, q, none, q.T)

    def far(other: heads.Head) -> float:
        gap = (x @ head.q) @ (x @ head.k).T - (x @ other.q + other.q_bias) @ (x @ other.k).T
        return float((gap - gap.mean(1, keepdim=True)).norm())

    assert far(heads.fitted_rank(head, x, 8)) < 1e-8
    best = far(heads.fitted_rank(head, x, 3))
    for _ in range(20):
        basis = torch.linalg.qr(torch.randn(8, 3, generator=generator, dtype=torch.float64)).Q
        assert best < far(heads.Head(q @ basis, none[:3], k @ basis, none[:3], q, none, q.T))


def test_gelu_neurons_are_approximated_by_gated_silu_neurons_and_back():
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x = draw(2000, 10)
    plain = neurons.Neurons(None, None, draw(10, 5), draw(5), draw(5, 10), torch.zeros(10, dtype=torch.float64))
    goal = neurons.written(plain, x, "gelu")
    gated = neurons.gated(plain)
    worst = (neurons.written(gated, x, "silu") - goal).abs().max() / plain.down.abs().sum(0).max()
    assert 1e-3 < worst < 0.022
    both = neurons.Neurons(draw(10, 5), draw(5), draw(10, 5), draw(5), draw(5, 10), draw(10))
    wanted = neurons.written(both, x, "silu")
    found = neurons.ungated(both, x)
    assert len(found) == 8 * len(both)
    other = draw(2000, 10)  # not used for fitting
    assert neurons.unexplained(wanted, neurons.written(found, x, "gelu")) < 0.05
    assert neurons.unexplained(neurons.written(both, other, "silu"), neurons.written(found, other, "gelu")) < 0.06


@pytest.mark.parametrize("centred", [False, True])
def test_channels_are_orthonormal_disjoint_and_centred_for_layer_norm(centred: bool):
    space = FreeSpace(40, centred, "host")
    first, second = space.take_channels(12), space.take_channels(9)
    both = torch.cat([first, second])
    assert torch.allclose(both @ both.T, torch.eye(21, dtype=torch.float64), atol=1e-12)
    assert (both.sum(1).abs().max() < 1e-12) == centred
    assert not (first.abs().sum(0) * second.abs().sum(0)).any()
    assert space.free == 40 - 21 - 3 * centred
    with pytest.raises(UsageError, match=r"needs 20 channels; \d+ of the 40 of host are free"):
        space.take_channels(20)


def test_a_whole_stream_keeps_its_norms_and_a_narrowed_one_the_directions_read():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 12, generator=generator, dtype=torch.float64)
    write, read = whole(FreeSpace(30, False, "host").take_channels(12), centred=False)
    assert torch.allclose((x @ write).square().mean(1), x.square().mean(1))
    assert torch.allclose(x @ write @ read, x)
    x = x * torch.logspace(0, -2, 12, dtype=torch.float64)
    reads = torch.randn(12, 4, generator=generator, dtype=torch.float64)
    write, read, kept = narrowed(FreeSpace(30, False, "host").take_channels(4), x.T @ x / 500, reads)
    assert kept == pytest.approx(1) and torch.allclose(x @ write @ read @ reads, x @ reads)
    write, read, kept = narrowed(FreeSpace(30, False, "host").take_channels(3), x.T @ x / 500, reads)
    lost = (x @ write @ read @ reads - x @ reads).square().sum() / (x @ reads).square().sum()
    assert float(lost) == pytest.approx(1 - kept) and 1e-4 < lost < 0.3


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("qwen3", {}, "is qwen3 \\(its queries and keys are normalised\\)"),
        ("gemma2", {}, "is gemma2 \\(its scores are softcapped\\)"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "must scale attention alike"),
        ("mistral", {}, "sees 5 tokens"),
    ],
)
def test_models_with_unsupported_attention_are_refused(family: str, changes: dict, message: str):
    with pytest.raises(UsageError, match=message):
        weights.check(tiny.model(family, **changes), "donor")


@torch.no_grad()
def test_weights_that_are_not_finite_are_refused():
    model = tiny.model("llama")
    model.blocks[1].mlp.up_proj.weight[3, 2] = math.nan
    with pytest.raises(StitchError, match=r"layers\.1\.mlp\.up_proj\.weight is not"):
        weights.check(model, "donor")
    with pytest.raises(UsageError, match="neurons must be GELU or SiLU"):
        weights.activation(tiny.model("gpt2", activation_function="relu"))
