"""Cache policies of other work: each keeps the keys that its paper says, at the positions that it says, in as many bytes."""

import pytest
import torch
from _cache_peers import HeavyHitters, Snapshots, Streaming, keys_of_bytes
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

import tiny
from recurrent import recurrent
from stitch.conversions.recurrence.forms import RecurrentForm, sibling, wrap

TOKENS = 24


@pytest.fixture(scope="module")
def llama():
    return wrap(tiny.model("llama"), RecurrentForm(features="none", window=4, sinks=0))


@pytest.fixture(scope="module")
def heads(llama):
    """Queries, keys and values of one text before positions [heads, tokens, width], for two key heads with two queries each."""
    width = 10
    return tuple(tiny.noise(count, TOKENS, width, seed=seed) * 2 for count, seed in ((4, 1), (2, 2), (2, 3)))


def at(llama, x, positions):
    """Rotated by transformers' own function."""
    cos, sin = LlamaRotaryEmbedding(llama.base.config)(x, positions[None])
    return apply_rotary_pos_emb(x[None], x[None], cos, sin)[0][0]


def outputs(peer, llama, heads):
    q, k, v = heads
    every = torch.arange(TOKENS)
    q, k = at(llama, q, every), at(llama, k, every)
    return peer.outputs(q.unflatten(0, (2, 2))[None], k[None], v[None], 0)[0].flatten(0, 1)


def attended(llama, heads, kept, head, token, own_positions=False):
    """The output of a query head, and its weights, on the keys `kept` in their order, as if the text were only these."""
    q, k, v = heads
    places = torch.tensor(kept) if own_positions else torch.arange(len(kept))
    key = at(llama, k[head // 2 : head // 2 + 1, kept], places)[0]
    query = at(llama, q[head : head + 1, token : token + 1], places[-1:])[0]
    weights = (query @ key.T).softmax(-1)[0]
    return weights @ v[head // 2, kept], weights


@pytest.mark.parametrize(("family", "groups"), [("llama", 2), ("gpt2", 4)])
@torch.no_grad()
def test_with_room_for_all_keys_nothing_changes(family, groups):
    model, ids = tiny.model(family), tiny.ids(2, TOKENS)
    net = wrap(model, RecurrentForm(features="none", window=4, sinks=0))
    wanted = model.net(ids).logits
    peers = (
        Streaming(net, [[30] * groups] * 6, 2), HeavyHitters(net, 60), Snapshots(net, 40, 3, 3), Snapshots(net, 40, 6, 3, True),
    )  # fmt: skip
    for peer in peers:
        torch.testing.assert_close(peer(ids).logits, wanted, atol=2e-4, rtol=1e-4)


positions = pytest.mark.parametrize("own", [False, True], ids=["positions in the cache", "own positions"])


@positions
def test_streaming_keeps_the_first_and_the_last(llama, heads, own):
    windows, sinks = (6, 9), 2
    found = outputs(Streaming(llama, [windows], sinks, own), llama, heads)
    for head in range(4):
        for token in range(TOKENS):
            last = list(range(max(0, token + 1 - windows[head // 2]), token + 1))
            kept = [one for one in range(sinks) if one not in last and one <= token] + last
            torch.testing.assert_close(found[head, token], attended(llama, heads, kept, head, token, own)[0])


@torch.no_grad()
def test_without_sinks_streaming_is_a_window():
    net, ids = recurrent("llama", "none", window=5, sinks=0), tiny.ids(2, TOKENS)
    torch.testing.assert_close(Streaming(net, [[5, 5]] * 6, 0)(ids).logits, net(ids).logits, atol=2e-4, rtol=1e-4)


@positions
@pytest.mark.parametrize(("recent", "last"), [(0.5, 4), (0.75, 6), (0.25, 2)])
def test_heavy_hitters_lose_the_key_with_the_least_attention_so_far(llama, heads, own, recent, last):
    keys = 8
    found = outputs(HeavyHitters(llama, keys, recent, own), llama, heads)
    for group in range(2):
        kept, total = [], torch.zeros(TOKENS)
        for token in range(TOKENS):
            kept.append(token)
            assert len(kept) <= keys
            for head in (2 * group, 2 * group + 1):
                out, weights = attended(llama, heads, kept, head, token, own)
                torch.testing.assert_close(found[head, token], out)
                total[kept] += weights / 2
            if len(kept) == keys:
                kept.remove(min(kept[: 1 - last], key=lambda one: float(total[one])))


@positions
@pytest.mark.parametrize("shared", [False, True], ids=["SnapKV", "Ada-KV"])
@pytest.mark.parametrize(("last", "neighbours"), [(3, 5), (3, 1), (6, 5)])
def test_snapshots_keep_what_the_last_queries_looked_at(llama, heads, shared, own, last, neighbours):
    keys, step = 15, 3
    chosen, side = keys - last - step, neighbours // 2
    found = outputs(Snapshots(llama, keys, last, step, shared, neighbours, own), llama, heads)
    kept, sizes = [[], []], set()
    looks = [[torch.zeros(TOKENS)] * (last // step) for _ in range(2)]  # by step, what its queries looked at
    for start in range(0, TOKENS, step):
        near = range(max(0, start - last), start)
        leaving = range(near.start, max(0, start + step - last))
        votes = []
        for group in range(2):
            assert len(kept[group]) + len(near) + step <= keys or shared
            summed = torch.zeros(TOKENS)
            for token in range(start, start + step):
                seen = [*kept[group], *near, *range(start, token + 1)]
                for head in (2 * group, 2 * group + 1):
                    out, weights = attended(llama, heads, seen, head, token, own)
                    torch.testing.assert_close(found[head, token], out)
                    summed[seen] += weights
            looks[group] = [*looks[group][1:], summed]
            candidates = [*kept[group], *leaving]
            looked = [float(sum(look[one] for look in looks[group])) for one in candidates]
            padded = [*[0.0] * side, *looked, *[0.0] * side]
            votes.append({one: sum(padded[i : i + neighbours]) for i, one in enumerate(candidates)})
        ranked = [sorted(one, key=lambda key, one=one: -one[key]) for one in votes]
        if shared:
            safe = [(group, key) for group in range(2) for key in ranked[group][: max(1, int(0.2 * chosen))]]
            others = [(group, key) for group in range(2) for key in votes[group] if (group, key) not in safe]
            others.sort(key=lambda pair: -votes[pair[0]][pair[1]])
            best = [*safe, *others][: 2 * chosen]
            kept = [sorted(key for of, key in best if of == group) for group in range(2)]
        else:
            kept = [sorted(one[:chosen]) for one in ranked]
        sizes.add(tuple(map(len, kept)))
        assert sum(map(len, kept)) <= 2 * chosen
    assert any(one != two for one, two in sizes) == shared


def test_a_policy_that_would_hold_more_keys_than_it_has_is_refused(llama):
    with pytest.raises(ValueError, match="keys must be above"):
        Snapshots(llama, 10, 5, 5)
    with pytest.raises(ValueError, match="multiple of step"):
        Snapshots(llama, 30, 8, 5)


@torch.no_grad()
def test_bytes_of_a_policy_are_those_of_the_keys_that_it_holds(llama):
    """Two key heads in each of six blocks; a key and its value have 2 · 10 numbers of 4 bytes."""
    assert Streaming(llama, [[5, 9]] * 6, 2).state_bytes() == 6 * (7 + 11) * 80
    for peer in (HeavyHitters(llama, 12), Snapshots(llama, 12, 6, 3), Snapshots(llama, 12, 3, 3, shared=True)):
        assert peer.state_bytes() == 6 * 2 * 12 * 80


def test_bytes_buy_as_many_keys_as_a_window_has(llama):
    from stitch.conversions.recurrence.forms import state_bytes

    form = RecurrentForm(features="none", window=7, sinks=0)
    assert keys_of_bytes(llama, state_bytes(sibling(llama, form), 1)) == 7
