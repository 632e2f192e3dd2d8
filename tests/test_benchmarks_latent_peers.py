"""Latents in place of keys and values: nothing is lost with room for all, and planted structure is found."""

import pytest
import torch
from _latent_choice import best_latents, candidates
from _latent_nets import refitted, trace, with_latents
from _latent_peers import Latent, care, heads_of, mha2mla, spectra, transmla, water_filled

from fewer_heads import logits, pico, windows
from stitch.internals import weights

IDS = {"fit": windows(), "sweep": windows(seed=1)}


def heads(model, block):
    return heads_of(weights.attention(model, block), weights.frequencies(model))


def loss_of(model, make, outputs=None) -> float:
    """The largest difference of logits to the donor, relative to its largest logit."""
    of = trace(model, IDS)
    latents = [make(heads(model, block), of.inputs(block)) for block in range(model.depth)]
    before = logits(model.net, windows(seed=2))
    after = logits(with_latents(model, latents, refitted(model, latents, of) if outputs else None), windows(seed=2))
    return float((after - before).abs().max() / before.abs().max())


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
@pytest.mark.parametrize("outputs", [None, "refitted"])
def test_with_room_for_everything_the_donor_comes_back(family, outputs):
    model = pico(family)
    _, groups, d = weights.attention(model, 0).k.shape
    room = {
        "own": lambda own, inputs: Latent(own, 0, 0, 0),
        "mha2mla": lambda own, inputs: mha2mla(own, inputs, 2 * groups * d, planes=d // 2),
        "care": lambda own, inputs: care(own, inputs, (groups * d, groups * d)),
    }
    if family == "gpt2":  # with RoPE, all components but those of one head lose it
        room["transmla"] = lambda own, inputs: transmla(own, inputs, 2 * groups * d)
    for name, make in room.items():
        assert loss_of(model, make, outputs) < 1e-4, name


def test_keys_that_differ_by_a_factor_per_plane_become_one_by_rorope():
    model = pico("llama", head_dim=8)
    for block in range(model.depth):
        k = weights.attention(model, block).k  # width × 2 × d
        half = k.shape[2] // 2
        factor = torch.linspace(-1.5, 2.0, half)
        k[:, 1] = k[:, 0] * torch.cat([factor, factor])
    _, groups, d = weights.attention(model, 0).k.shape
    cached = 2 * groups * d  # room for all: what is lost is RoPE of what is not in the one rotated key
    assert loss_of(model, lambda own, inputs: transmla(own, inputs, cached)) < 1e-4
    assert loss_of(model, lambda own, inputs: transmla(own, inputs, cached, fold=2, collapse=2)) > 1e-2
    assert loss_of(pico("llama"), lambda own, inputs: transmla(own, inputs, cached)) > 1e-2


def test_planes_of_a_fold_that_are_multiples_of_one_another_become_one():
    model = pico("llama", head_dim=8)
    k = weights.attention(model, 0).k
    half = k.shape[2] // 2
    k[:, :, 1], k[:, :, half + 1] = 2 * k[:, :, 0], 2 * k[:, :, half]  # plane 1 is twice plane 0
    k[:, 1] = k[:, 0]  # and heads are alike
    inputs = trace(model, IDS).inputs(0)
    keys = transmla(heads(model, 0), inputs, 2 * k.shape[1] * k.shape[2], fold=2).heads.k[:, 0]
    lengths = (inputs @ keys).unflatten(1, (2, half // 2, -1)).norm(dim=(0, 1))  # folds × components
    assert lengths[0, 1:].max() < 1e-6 * lengths[0, 0]


def test_a_joint_svd_finds_a_planted_rank():
    model = pico("gpt2")
    generator = torch.Generator().manual_seed(3)
    for block in range(model.depth):
        of = weights.attention(model, block)
        shape, low = of.k.shape, torch.randn(of.k.shape[0], 6, generator=generator) / 6
        for weight in (of.k, of.v):
            weight.copy_((low @ torch.randn(6, shape[1] * shape[2], generator=generator)).view(shape))
    assert loss_of(model, lambda own, inputs: mha2mla(own, inputs, 6, planes=0)) < 1e-4
    assert loss_of(model, lambda own, inputs: mha2mla(own, inputs, 5, planes=0)) > 1e-2


def test_the_planes_that_contribute_most_keep_rope():
    model = pico("llama", head_dim=8)
    of = weights.attention(model, 0)
    half = of.k.shape[2] // 2
    for weight in (of.q, of.k):
        weight[:, :, [2, half + 2]] *= 10
    found = mha2mla(heads(model, 0), trace(model, IDS).inputs(0), 20, planes=1).heads
    assert [row.nonzero().flatten().tolist() for row in found.frequencies] == [[2], [2]]
    assert torch.equal(found.k[:, :, [2, half + 2]], heads(model, 0).k[:, :, [2, half + 2]])


def test_care_spends_ranks_on_what_inputs_use():
    """Inputs in a plane of four dimensions: four ranks are enough for any weights, if chosen by inputs."""
    own = heads(pico("gpt2"), 0)
    generator = torch.Generator().manual_seed(0)
    width = len(own.k) - 1
    used = torch.randn(50, 4, generator=generator).double() @ torch.randn(4, width, generator=generator).double()
    inputs = torch.cat([used, torch.ones(50, 1).double()], 1)

    def wrong(heads) -> float:
        off, whole = (inputs @ (heads.v - own.v).flatten(1)), inputs @ own.v.flatten(1)
        return float(off.norm() / whole.norm())

    assert wrong(care(own, inputs, (4, 4)).heads) < 1e-2
    assert wrong(mha2mla(own, inputs, 8, planes=0).heads) > 0.2
    assert all(len(part) == width for part in spectra(own, inputs))


def test_water_filling_by_hand():
    """Shares of what is left: 4/7, then 2/3, then 1/1 in the first block, 1/3 in the second."""
    energies = [torch.tensor([8.0, 4.0, 2.0, 1.0]), torch.ones(4)]
    assert [water_filled(energies, total, start=1) for total in (2, 4, 5, 6)] == [[1, 1], [3, 1], [4, 1], [4, 2]]
    assert water_filled(energies, 8, start=1) == [4, 4]
    larger = [torch.tensor([100.0, 10.0, 10.0, 10.0, 10.0]), torch.tensor([1.0, 0.9, 0.05])]
    assert water_filled(larger, 3, start=1) == [1, 2]  # 10/40 and 0.9/0.95: the scale of a block does not count


def test_counts_of_a_latent():
    model = pico("llama")
    width, groups, d = weights.attention(model, 0).k.shape
    own, inputs, queries = heads(model, 0), trace(model, IDS).inputs(0), weights.attention(model, 0).q.numel()
    found = care(own, inputs, (3, 5))
    assert (found.cached, found.parameters) == (8, queries + 8 * (width + groups * d))
    assert found.products == 3 * groups * d + 4 * d + 4 * 5  # keys rebuilt, scored, and values in the latent
    found = mha2mla(own, inputs, 12, planes=1)  # four rotated numbers, so a latent of eight
    assert (found.cached, found.parameters) == (12, queries + 12 * width + 8 * (2 * groups * d - 4))
    assert found.products == 4 * (8 + 2) + 4 * 8
    found = transmla(own, inputs, d + 3)
    assert found.parameters == queries + width * 4 * d + width * (d + 3) + 3 * (2 * groups * d - d)
    assert found.products == 4 * (d + 3) + 4 * 3


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_all_settings_cache_the_same_and_the_best_is_kept(family):
    model = pico(family)
    of = trace(model, IDS)
    cached = 2 * weights.attention(model, 0).k.shape[2]
    settings = candidates(model, of, cached, seed=0)
    totals = {sum(one.cached for one in latents) for some in settings.values() for _, latents in some}
    assert totals == {cached * model.depth}

    def loss(net) -> float:
        return float((logits(net, windows(seed=2)) - logits(model.net, windows(seed=2))).square().mean())

    found = best_latents(model, of, cached=cached, loss=loss)
    assert list(found) == [name + refit for name in settings for refit in ("", " + refit")]
    for name, some in settings.items():
        tried = sorted((loss(with_latents(model, latents)), setting, latents) for setting, latents in some)
        assert (found[name].sweep, found[name].setting) == tried[0][:2]
        again = [
            (loss(with_latents(model, latents, refitted(model, latents, of))), own) for _, own, latents in tried[:3]
        ]
        assert (found[name + " + refit"].sweep, found[name + " + refit"].setting) == min(again)
