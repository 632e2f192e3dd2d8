"""Other work that brings A into B: objectives of a joint, and weights that are merged through optimal transport."""

import stitch_objectives
import torch
import transport_merge
from stitch_objectives import clustered, fula, kl_to, task_loss, trained
from transport_merge import flat, matrices, merged, plan, put, strongest

import tiny
from stitch.composite.compose import late_half
from stitch.models.module_inputs import module_inputs
from stitch.regression.ridge import Ridge

SITE = 2


@torch.no_grad()
def streams(model, ids):
    """The model's streams at SITE and the two sites behind it."""
    places = {site: model.blocks[site] for site in range(SITE, SITE + 3)}
    return module_inputs(model.net, places, input_ids=ids)


def affine(weight, bias):
    return Ridge({"source": weight}, bias, 0.0, 0.0)


@torch.no_grad()
def test_every_objective_is_least_at_the_models_own_stream():
    model, ids = tiny.model("llama"), tiny.ids(4, 12)
    own, late, rows = streams(model, ids), late_half(model, SITE), torch.arange(4)
    aside = own[SITE] + 0.3 * tiny.noise(*own[SITE].shape)
    assert kl_to(own[SITE])(late, own[SITE], ids, rows) < 1e-5 < kl_to(own[SITE])(late, aside, ids, rows)
    assert fula(own, SITE)(late, own[SITE], ids, rows) < 1e-5 < fula(own, SITE)(late, aside, ids, rows)
    wanted = torch.nn.functional.cross_entropy(model.net(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(task_loss(late, own[SITE], ids, rows), wanted)


@torch.no_grad()
def test_fula_looks_behind_the_site_and_not_at_the_first_token():
    model, ids = tiny.model("llama"), tiny.ids(4, 12)
    own, late, rows = streams(model, ids), late_half(model, SITE), torch.arange(4)
    elsewhere = {site: stream + (site == SITE + 2) for site, stream in own.items()}
    assert fula(elsewhere, SITE)(late, own[SITE], ids, rows) > 1e-3
    first = {site: torch.cat([stream[:, :1] + 9, stream[:, 1:]], 1) for site, stream in own.items() if site > SITE}
    assert fula({SITE: own[SITE], **first}, SITE)(late, own[SITE], ids, rows) < 1e-5


def test_training_lowers_its_objective_and_leaves_the_start_alone(monkeypatch):
    monkeypatch.setattr(stitch_objectives, "STEPS", 30)
    model, ids = tiny.model("llama"), tiny.ids(8, 12)
    own, late = streams(model, ids), late_half(model, SITE)
    source = own[SITE] @ torch.linalg.qr(tiny.noise(model.width, model.width)).Q
    start = affine(torch.eye(model.width), torch.zeros(model.width) + 0.01)
    objective = kl_to(own[SITE])

    def loss(found):
        hidden = source @ found.weights["source"] + found.bias
        hidden[:, 0] = own[SITE][:, 0]
        return float(objective(late, hidden, ids, torch.arange(8)))

    found = trained(start, source, own[SITE][0, 0], late, ids, objective, 3e-2, 0)
    assert loss(found) < 0.7 * loss(start)
    assert torch.equal(start.weights["source"], torch.eye(model.width))


def test_noise_tells_labels_apart_and_nothing_else():
    labels = {"fit": torch.tensor([[3, 1, 3]]), "report": torch.tensor([[1, 3, 2]])}
    found = clustered(labels, 5, 40, seed=0)
    apart = torch.cdist(found["fit"][0], found["report"][0])
    assert (apart < 2).int().tolist() == [[0, 1, 0], [1, 0, 0], [0, 1, 0]]


def test_a_plan_finds_channels_in_another_order():
    x, order = tiny.noise(200, 6), torch.tensor([4, 2, 0, 5, 1, 3])
    found, cost = plan(x, x[:, order])
    assert found.argmax(1).tolist() == order.argsort().tolist()
    torch.testing.assert_close(found.sum(1), torch.full((6,), 1 / 6), atol=1e-3, rtol=0)
    assert cost < plan(x, tiny.noise(200, 6, seed=1))[1]


def test_three_blocks_keep_the_share_of_all():
    shares = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.3, 0.2]])
    found = strongest(shares)
    assert (found > 0).sum(1).tolist() == [3, 3]
    torch.testing.assert_close(found.sum(1), shares.sum(1))


@torch.no_grad()
def test_a_model_merged_with_nothing_or_by_none_is_itself():
    model, ids = tiny.model("gpt2"), tiny.ids(6, 20)
    before, own = model.net(ids).logits, matrices(model, ids)
    read = own["q"][1]
    torch.testing.assert_close(read.read @ read.weight + model.blocks[1].attn.c_attn.bias[: model.width], read.written)
    put(model, own, None, 0.2)
    assert not torch.allclose(model.net(ids).logits, before)
    put(model, own, None, 0.0)
    assert torch.equal(model.net(ids).logits, before)
    assert flat("o", own["o"][0].weight[None]).shape == own["o"][0].weight.shape


@torch.no_grad()
def test_a_merge_with_the_same_model_is_nearer_to_it_than_one_in_random_order(monkeypatch):
    monkeypatch.setattr(transport_merge, "BLOCKS", 1)
    monkeypatch.setattr(transport_merge, "ENTROPY", 0.02)
    model, ids = tiny.model("llama"), tiny.ids(12, 30)
    own = matrices(model, ids)["v"][:3]
    same = merged(own, own, True, torch.arange)
    other = merged(own, own, True, torch.randperm)
    for number, matrix in enumerate(own):
        cosine = [
            float(torch.cosine_similarity(one[number].flatten(), matrix.weight.flatten(), dim=0))
            for one in (same, other)
        ]
        assert cosine[0] > 0.9 > 0.4 > cosine[1]
