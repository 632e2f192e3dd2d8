"""What heads look at, how many keys matter to them, and what it costs that they know fewer."""

from pathlib import Path

import pytest
import torch
from transformers import AttentionInterface

import stitch
import tiny
from jobs import write_text
from stitch.errors import UsageError
from stitch.evaluation.scores import Batch, whole_model
from stitch.internals.attention import Attended, attending
from stitch.layers.curve import score_keys
from stitch.layers.heads import HeadSums, _look, measure_heads
from stitch.layers.keys import at_random, dropped, equalised, permuted, strongest
from stitch.layers.tokens import by_distance, kinds_of, shuffled_windows
from stitch.models.loading import load
from stitch.models.sources import resolve
from stitch.text.windows import Windows


def attended(t: int = 7, heads: int = 2, seed: int = 0) -> Attended:
    generator = torch.Generator().manual_seed(seed)
    visible = torch.ones(1, heads, t, t, dtype=torch.bool).tril()
    scores = torch.randn(1, heads, t, t, generator=generator).masked_fill(~visible, -torch.inf)
    return Attended(0, scores.softmax(-1), visible, torch.randn(1, heads, t, 3, generator=generator))


def windows(ids: torch.Tensor) -> Windows:
    return Windows(ids.int(), torch.arange(len(ids), dtype=torch.int32)[:, None].expand_as(ids))


@pytest.mark.parametrize("family", tiny.FAMILIES)
@torch.no_grad()
def test_attention_that_is_replaced_by_itself_changes_nothing(family):
    model, ids = tiny.model(family), tiny.ids(length=20)
    before = model.net(ids).logits
    with attending(model, lambda seen: seen.exact):
        after = model.net(ids, use_cache=False).logits
    assert (after - before).abs().max() < 1e-4 * before.abs().max()
    with attending(model, lambda seen: seen.exact.roll(1, 1)):
        assert (model.net(ids, use_cache=False).logits - before).abs().max() > 0.1
    assert torch.equal(model.net(ids).logits, before), "the model's own attention is back"


def test_keys_that_are_not_kept_share_exchange_or_lose_their_probability():
    seen = attended()
    kept = strongest(seen, 2)
    rest = seen.visible & ~kept
    assert kept.sum(-1).tolist() == [[[1, 2, 2, 2, 2, 2, 2]] * 2]
    assert (seen.pattern.masked_fill(~kept, 2).amin(-1) >= seen.pattern.masked_fill(~rest, -1).amax(-1)).all()
    same, mixed, fewer = (
        equalised(seen, kept),
        permuted(seen, kept, torch.Generator().manual_seed(0)),
        dropped(seen, kept),
    )
    for pattern in (same, mixed, fewer):
        assert torch.allclose(pattern.sum(-1), torch.ones(1, 2, 7)) and not pattern[~seen.visible].any()
    for pattern in (same, mixed):
        assert torch.equal(pattern[kept], seen.pattern[kept])
    spread = (same.masked_fill(~rest, -1).amax(-1) - same.masked_fill(~rest, 2).amin(-1))[..., 2:]
    assert (spread.abs() < 1e-7).all()
    assert torch.equal(mixed.sort(-1).values, seen.pattern.sort(-1).values) and not torch.equal(mixed, seen.pattern)
    assert not fewer[rest].any()
    drawn = at_random(seen, 2, torch.Generator().manual_seed(0))
    assert torch.equal(drawn.sum(-1), kept.sum(-1)) and not torch.equal(drawn, kept) and not drawn[~seen.visible].any()


def test_rare_tokens_and_tokens_after_copies_are_counted():
    ids = torch.tensor([[0, 5, 6, 7, 5, 6], [0, 6, 6, 6, 6, 6]])
    kinds = kinds_of(ids, start=0, far=1)
    assert kinds.rare.tolist() == [[False, False, False, True, False, False], [False] * 6]
    assert kinds.rare_share == pytest.approx(0.1)
    everything = slice(0, 2)
    after = kinds.after_copies(everything, ids)[:, 0]
    assert after[0, 4].tolist() == [False, False, True, False, False, True], "6 follows the earlier 5"
    assert kinds.copies_at[2:4].tolist() == pytest.approx([4 / 6, 1 / 4])
    assert kinds.after_copies(everything, kinds.others)[0, 0, 3].tolist() == [False, False, False, True, False, False]
    assert kinds.far_keys(everything)[0, 0, 3].tolist() == [False, True, False, False, False, False]


@pytest.mark.parametrize("every", [2, 5, 40])
def test_a_head_without_preferences_is_not_enriched(every):
    """Whatever number of keys start a text, which far keys leave out."""
    generator = torch.Generator().manual_seed(0)
    ids = (1 / torch.rand(12, 41, generator=generator)).long().clamp(1, 200)  # few tokens are frequent, many rare
    ids[:, ::every] = 0
    kinds, sums, t = kinds_of(ids, start=0, far=4), HeadSums(), ids.shape[1]
    visible = torch.ones(1, 1, t, t, dtype=torch.bool).tril()
    seen = Attended(0, visible / visible.sum(-1, keepdim=True), visible, torch.ones(1, 1, t, 2))
    metric = torch.eye(2)[None]
    for row in range(12):
        chances = by_distance(kinds.copies_at), by_distance(kinds.other_copies_at)
        _look(sums, seen, metric, kinds, slice(row, row + 1), *chances)
    for name in ("rare", "copies", "other copies"):
        assert float(sums.sums[name] / sums.sums[f"{name} expected"]) == pytest.approx(1, abs=0.12), name


def test_shuffled_windows_keep_their_tokens_and_their_starts():
    ids = tiny.ids(4, 30)
    mixed = shuffled_windows(windows(ids), 0).ids
    assert torch.equal(mixed[:, 0], ids[:, 0].int()) and torch.equal(mixed.sort(1).values, ids.int().sort(1).values)
    assert not torch.equal(mixed, ids.int())


@pytest.fixture(scope="module")
def induction():
    return load(resolve("demo:induction").folder, dtype=torch.float32, name="demo:induction")


def test_a_compiled_induction_head_is_recognised(induction):
    """Each window repeats a random sequence, of another length each; the head looks at what follows the earlier copy."""
    drawn = torch.randint(2, 2000, (10, 21), generator=torch.Generator().manual_seed(0))
    rows = [row[: 12 + length].repeat(4)[:40] for length, row in enumerate(drawn[:, 1:])]
    start = torch.full((10, 1), induction.bos or 0)
    found = measure_heads(induction, windows(torch.cat([start, torch.stack(rows)], 1)), far=8, sizes=(1, 4))
    copies = {(block, head): one["copies"] or 0 for block, row in enumerate(found) for head, one in enumerate(row)}
    best = max(copies, key=lambda key: copies[key])
    assert copies[best] > 5 and best[0] >= 1
    assert found[best[0]][best[1]]["far_moved"] > 0.3
    assert any(one["keys"] == 1 for one in found[0]), "a head that looks one token back needs one key"


def test_estimated_costs_are_near_what_heads_cost():
    """Beside KL(model ‖ model with that head alone changed, at all tokens), for the heads of a block, on English."""
    model = load(resolve("demo:gpt2").folder, dtype=torch.float32, name="demo:gpt2")
    text = (Path(__file__).parent.parent / "LICENSE").read_text()
    ids = torch.tensor(model.tokenizer.encode(text)[: 48 * 40]).view(-1, 40)
    found = measure_heads(model, windows(ids), far=10, sizes=(1,))[1]
    whole, batch = whole_model(model.net), Batch(ids, slice(0, len(ids)))
    with torch.no_grad():
        before = whole(batch).log_softmax(-1)
    for head, one in enumerate(found):

        def changed(seen: Attended, head: int = head) -> torch.Tensor:
            out = seen.exact
            if seen.block == 1:
                out[:, head] = (equalised(seen, strongest(seen, 1)) @ seen.values)[:, head]
            return out

        with torch.no_grad(), attending(model, changed):
            after = whole(batch).log_softmax(-1)
        exact = float((before.exp() * (before - after)).sum(-1).mean())
        assert 0.4 < one["cost"][0] / exact < 2.5, f"head {head}: {one['cost'][0]:.5f} for {exact:.5f}"


def test_measuring_leaves_the_model_as_it_was():
    model = tiny.model("llama")
    measure_heads(model, windows(tiny.ids(length=20)), far=4, sizes=(1,))
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.net.parameters())


def test_a_block_without_an_attention_that_can_be_replaced_is_named(monkeypatch):
    model = tiny.model("llama")
    monkeypatch.setattr(model.blocks[3].self_attn, "forward", lambda hidden_states, **_: (hidden_states, None))
    with pytest.raises(UsageError, match="that of block 3 of"):
        measure_heads(model, windows(tiny.ids(length=20)), far=4, sizes=(1,))


def test_more_keys_cost_less_and_random_keys_cost_more():
    model = load(resolve("demo:gpt2").folder, dtype=torch.float32, name="demo:gpt2")
    ids = torch.randint(5, 4000, (4, 64), generator=torch.Generator().manual_seed(0))
    scores = score_keys(model, windows(ids), (2, 64))
    kl = {name: float(score.kl.sum() / score.tokens.sum()) for name, score in scores.items() if score.kl is not None}
    assert kl["64 keys, equalised"] < 1e-5 and kl["64 keys, dropped"] < 1e-5
    assert 0 < kl["2 keys, equalised"] < kl["2 keys, dropped"] < 10
    assert kl["2 keys, equalised"] < kl["2 keys, null:random keys"]


def test_the_report_is_the_same_again_and_shows_every_head(tmp_path):
    text = write_text(tmp_path)
    found = [stitch.inspect("demo:llama", heads=True, text=text, tokens=128, context=32, quiet=True) for _ in range(2)]
    assert found[0].report == found[1].report
    assert len(found[0].report["heads"]) == 48 and len(found[0].rows) == 17
    text = str(found[0])
    assert "keys that matter" in text and "Few documents" in text and "16 keys" in text
    assert found[0].report["provenance"]["settings"]["context"] == 32


@pytest.mark.parametrize(
    "wrong, words",
    [
        (dict(heads=True, sites=True), "choose one"),
        (dict(heads=True, context=8), "at least 16"),
        (dict(sites=True, context=1), "at least 2"),
        (dict(sites=True, tokens=0), "at least 1"),
        (dict(heads=True, memory="1M"), "attention patterns"),
        (dict(sites=True, memory="1M"), "covariances"),
        (dict(sites=True, context=100_000), "at most 256"),
    ],
)
def test_what_cannot_be_inspected_is_refused(tmp_path, wrong, words):
    with pytest.raises(UsageError, match=words):
        stitch.inspect("demo:llama", text=write_text(tmp_path), quiet=True, **{"tokens": 512, **wrong})


def test_terms_that_are_not_known_are_refused():
    model = tiny.model("llama")
    module = next(part for part in model.net.modules() if type(part).__name__ == "LlamaAttention")

    def attend() -> None:
        with attending(model, lambda seen: seen.exact):
            one = torch.zeros(1, 4, 3, 10)
            AttentionInterface()["stitch_replaced"](module, one, one, one, None, s_aux=torch.zeros(4))

    with pytest.raises(UsageError, match="terms that are not known"):
        attend()
