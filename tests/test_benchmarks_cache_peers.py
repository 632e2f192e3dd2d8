"""Cache policies of other work: each keeps the keys that its paper says, at the positions that it says."""

import pytest
import torch
from _cache_peers import (
    HeavyHitters,
    Snapshots,
    Streaming,
    keys_of_bytes,
    retrieval,
    windows_by_retrieval,
)
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

import tiny
from recurrent import recurrent
from stitch.conversions.recurrence.forms import RecurrentForm, sibling, wrap
from stitch.conversions.recurrence.recall import recall_prompts

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


def attended(llama, heads, kept, head, token):
    """The output of a query head, and its weights, on the keys `kept` in their order, as if the text were only these."""
    q, k, v = heads
    places = torch.arange(len(kept))
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
        Streaming(net, [[30] * groups] * 6, 2), HeavyHitters(net, 60), Snapshots(net, 40, 3), Snapshots(net, 40, 3, True),
    )  # fmt: skip
    for peer in peers:
        torch.testing.assert_close(peer(ids).logits, wanted, atol=2e-4, rtol=1e-4)


def test_streaming_keeps_the_first_and_the_last_at_positions_in_the_cache(llama, heads):
    windows, sinks = (6, 9), 2
    found = outputs(Streaming(llama, [windows], sinks), llama, heads)
    for head in range(4):
        for token in range(TOKENS):
            last = list(range(max(0, token + 1 - windows[head // 2]), token + 1))
            kept = [one for one in range(sinks) if one not in last and one <= token] + last
            torch.testing.assert_close(found[head, token], attended(llama, heads, kept, head, token)[0])


@torch.no_grad()
def test_without_sinks_streaming_is_a_window():
    net, ids = recurrent("llama", "none", window=5, sinks=0), tiny.ids(2, TOKENS)
    torch.testing.assert_close(Streaming(net, [[5, 5]] * 6, 0)(ids).logits, net(ids).logits, atol=2e-4, rtol=1e-4)


def test_heavy_hitters_lose_the_key_with_the_least_attention_so_far(llama, heads):
    keys = 8
    found = outputs(HeavyHitters(llama, keys), llama, heads)
    for group in range(2):
        kept, total = [], torch.zeros(TOKENS)
        for token in range(TOKENS):
            kept.append(token)
            assert len(kept) <= keys
            for head in (2 * group, 2 * group + 1):
                out, weights = attended(llama, heads, kept, head, token)
                torch.testing.assert_close(found[head, token], out)
                total[kept] += weights / 2
            if len(kept) == keys:
                kept.remove(min(kept[: -(keys // 2) + 1], key=lambda one: float(total[one])))


@pytest.mark.parametrize("shared", [False, True])
def test_snapshots_keep_what_the_last_queries_looked_at(llama, heads, shared):
    keys, step = 12, 3
    chosen, last = keys - 2 * step, step + 1
    found = outputs(Snapshots(llama, keys, step, shared), llama, heads)
    kept, sizes = [[], []], set()
    for start in range(0, TOKENS, step):
        votes = []
        for group in range(2):
            summed = torch.zeros(TOKENS)
            for token in range(start, start + step):
                seen = kept[group] + list(range(max(0, start + 1 - last), token + 1))
                for head in (2 * group, 2 * group + 1):
                    out, weights = attended(llama, heads, seen, head, token)
                    torch.testing.assert_close(found[head, token], out)
                    summed[seen] += weights / (2 * step)
            candidates = kept[group] + list(range(max(0, start + 1 - last), max(0, start + step + 1 - last)))
            own = [float(summed[one]) for one in candidates]
            padded = [0.0, 0.0, *own, 0.0, 0.0]
            votes.append({one: sum(padded[i : i + 5]) / 5 for i, one in enumerate(candidates)})
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
        Snapshots(llama, 10, 5)


def test_heads_that_retrieve_have_the_whole_context_and_bytes_are_equal():
    scores = [torch.tensor([0.1, 0.7]), torch.tensor([0.2, 0.3])]
    assert windows_by_retrieval(scores, 20, context=44, sinks=4, least=8) == [[8, 40], [8, 8]]
    assert windows_by_retrieval(scores, 21, context=44, sinks=4, least=8) == [[9, 40], [9, 9]]
    assert windows_by_retrieval(scores, 36, context=44, sinks=4, least=8) == [[8, 40], [40, 40]]


@torch.no_grad()
def test_a_head_that_looks_behind_an_earlier_copy_has_the_highest_retrieval_score():
    """In a GPT-2 that knows positions alone, one head looks from every token as far back as from a copy to behind the first."""
    asked = recall_prompts(tiny.tokenizer(), 48, count=4)
    again = int(asked.asked[0].nonzero()[0])
    model = tiny.model("gpt2")
    net = wrap(model, RecurrentForm(features="mean", window=4, sinks=0))
    body = net.base.transformer
    body.wte.weight.zero_()
    angle = torch.arange(128)[:, None] * torch.tensor([2.0, 1.0, 0.5, 0.25])
    body.wpe.weight.zero_()
    body.wpe.weight[:, :8] = torch.cat([angle.cos(), angle.sin()], 1)
    first = body.h[0]
    first.ln_1.weight.fill_(1)
    first.ln_1.bias.zero_()
    first.attn.c_attn.weight.zero_()
    first.attn.c_attn.bias.zero_()
    head, width = 2, 8
    columns = slice(head * width, (head + 1) * width)
    first.attn.c_attn.weight[:8, 32:64][:, columns] = 10 * torch.eye(8)
    back = (again - 2) * torch.tensor([2.0, 1.0, 0.5, 0.25])
    turn = torch.cat(
        [torch.cat([back.cos().diag(), -back.sin().diag()], 1), torch.cat([back.sin().diag(), back.cos().diag()], 1)]
    )
    first.attn.c_attn.weight[:8, :32][:, columns] = 10 * turn
    scores = retrieval(net, asked)
    assert [len(block) for block in scores] == [4] * 6
    assert scores[0].argmax() == head and scores[0][head] > 0.5 > 5 * scores[0][[0, 1, 3]].max()


def test_bytes_buy_as_many_keys_as_a_window_has(llama):
    from stitch.conversions.recurrence.forms import state_bytes

    form = RecurrentForm(features="none", window=7, sinks=0)
    assert keys_of_bytes(llama, state_bytes(sibling(llama, form), 1)) == 7
