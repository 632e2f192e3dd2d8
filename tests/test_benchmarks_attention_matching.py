"""Attention Matching: nothing changes with room for all keys, equal keys become one, and it beats leaving keys out."""

import torch
from _attention_matching import Matched, compacted, entries_of_bytes, non_negative

import tiny
from stitch.conversions.recurrence.forms import RecurrentForm, wrap

TOKENS = 24


def net_of(family: str):
    return wrap(tiny.model(family), RecurrentForm(features="none", window=4, sinks=0))


@torch.no_grad()
def test_with_room_for_all_keys_nothing_changes():
    for family, groups in (("llama", 2), ("gpt2", 4)):
        model, ids = tiny.model(family), tiny.ids(2, TOKENS)
        found = Matched(net_of(family), [[TOKENS] * groups] * 6, step=5)(ids).logits
        torch.testing.assert_close(found, model.net(ids).logits, atol=2e-4, rtol=1e-4)


@torch.no_grad()
def test_a_full_cache_changes_later_tokens_alone():
    net, ids = net_of("llama"), tiny.ids(2, TOKENS)
    whole = tiny.model("llama").net(ids).logits
    found = Matched(net, [[12, 14]] * 6, step=4)(ids).logits
    torch.testing.assert_close(found[:, :12], whole[:, :12], atol=2e-4, rtol=1e-4)
    assert (found[:, 13:] - whole[:, 13:]).abs().max() > 1e-2
    changed = ids.clone()
    changed[:, -1] = 7
    again = Matched(net, [[12, 14]] * 6, step=4)(changed).logits
    torch.testing.assert_close(again[:, :-1], found[:, :-1])


@torch.no_grad()
def test_a_head_of_one_key_sees_a_token_alone():
    net, ids = net_of("llama"), tiny.ids(2, TOKENS)
    assert torch.isfinite(Matched(net, [[1, 2], [3, 4]] * 3)(ids).logits).all()
    alone = wrap(tiny.model("llama"), RecurrentForm(features="none", window=1, sinks=0))
    torch.testing.assert_close(Matched(net, [[1, 1]] * 6)(ids).logits, alone(ids).logits, atol=2e-4, rtol=1e-4)


def test_equal_keys_become_one_that_weighs_as_much():
    """Every key is there twice, once with a bias of −1: the other stays, with the weight of both and the mean of their values."""
    queries, keys, values = tiny.noise(1, 30, 6) * 2, tiny.noise(1, 4, 6, seed=1), tiny.noise(1, 4, 6, seed=2)
    twice, both = torch.cat([keys, keys], 1), torch.cat([values, values + 1], 1)
    biases = torch.tensor([[0.0] * 4 + [-1.0] * 4])
    k, v, found = compacted(queries, twice, both, biases, 4, 1e-6)
    assert torch.equal(k, keys)
    light = torch.tensor(-1.0).exp()
    torch.testing.assert_close(found.exp(), (1 + light).expand(1, 4), atol=0.02, rtol=0)
    torch.testing.assert_close(v, values + light / (1 + light), atol=0.02, rtol=0)


def test_it_is_nearer_than_the_same_keys_with_their_own_values():
    queries, keys, values = tiny.noise(2, 40, 6) * 2, tiny.noise(2, 20, 6, seed=1), tiny.noise(2, 20, 6, seed=2)
    zero = torch.zeros(2, 20)
    wanted = attention(queries, keys, values, zero)
    k, v, biases = compacted(queries, keys, values, zero, 8, 1e-3)
    place = (keys[:, None] == k[:, :, None]).all(-1).float().argmax(-1)
    own = values.gather(1, place[..., None].expand(-1, -1, 6))
    error = (attention(queries, k, v, biases) - wanted).square().mean()
    dropped = (attention(queries, k, own, torch.zeros(2, 8)) - wanted).square().mean()
    assert error < 0.7 * dropped
    mass = (queries @ keys.mT).exp().sum(-1)
    kept, without = (((queries @ k.mT) + more).exp().sum(-1) / mass for more in (biases[:, None], 0))
    assert (kept - 1).square().mean() < 0.8 * (without - 1).square().mean()


def test_weights_are_those_of_scipy():
    from scipy.optimize import nnls

    parts = tiny.noise(1, 30, 5).abs()
    found = non_negative(parts.double(), torch.ones(1, 5).double())
    residual = (parts.double() @ found[..., None])[..., 0] - 1
    _, norm = nnls(parts[0].double().numpy(), torch.ones(30).double().numpy())
    assert residual.norm() < 1.02 * norm


def test_bytes_hold_the_biases():
    net = net_of("llama")
    size = sum((2 * one.shape.width + 1) * one.shape.groups * 4 for one in net.memories)
    assert entries_of_bytes(net, 10 * size + 5) == 10
    assert Matched(net, [[16, 16]] * 6).state_bytes() == 16 * size


def attention(q, k, v, biases):
    return (q @ k.mT + biases[:, None]).softmax(-1) @ v
