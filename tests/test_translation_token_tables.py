"""Tables by token cost what the text costs, and other ids get a fall-back that a composite computes from what it holds."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import tiny
from allocations import Largest
from chains import as_model
from stitch.composite.checkpoint import write_checkpoint
from stitch.composite.compose import compose, early_half
from stitch.models.flops import block_flops
from stitch.models.loading import load
from stitch.models.model import Model
from stitch.text.windows import Windows
from stitch.translation import look_ups
from stitch.translation.module import embeddings_of, translation_module, unfolded_module
from stitch.translation.token_tables import SMALL, TokenTables, _scale, token_tables
from stitch.translation.types import Residual, Term, Token, Translation, merged
from stitch.translation.unfolded import Unfolded

SITE_A, SITE_B = 2, 3


def text(seed: int, highest: int = 60) -> Windows:
    ids = torch.randint(3, highest, (2, 40), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)
    ids[:, 0] = tiny.BOS
    return Windows(ids, torch.zeros_like(ids))


def tables(a: Model, b: Model) -> TokenTables:
    return token_tables(a, b, text(0), text(1), SITE_B)


def translation(a: Model, b: Model) -> Translation:
    """One that reads A's stream, and embeddings and states of this token and of the one before."""
    found, terms = tables(a, b), [Term(Residual(SITE_A), tiny.noise(a.width, b.width, seed=9) / 6)]
    for seed, name in enumerate(("embedding", "state")):
        for back in (0, 1):
            terms.append(found.input(name, back).term(tiny.noise(b.width, b.width, seed=2 * seed + back).double() / 6))
    return merged(Translation("tables", tuple(terms), tiny.noise(b.width)))


def by_hand(a: Model, b: Model, ids: Tensor) -> Tensor:
    """What the token terms of `translation` add, from the definition."""
    found, total = tables(a, b), torch.zeros(*ids.shape, b.width, dtype=torch.float64)
    for seed, name in enumerate(("embedding", "state")):
        fallback = found.fallbacks[name]
        held = embeddings_of(a, b)[fallback.of].detach().double()
        rows = torch.cat([held, torch.ones(len(held), 1, dtype=torch.float64)], 1) @ fallback.weight.double()
        rows[found.keys] = found.tables[name].double()
        for back in (0, 1):
            y = rows[ids] @ (tiny.noise(b.width, b.width, seed=2 * seed + back).double() / 6)
            total[:, back:] += y[:, : ids.shape[1] - back]
    return total


PAIRS = [
    ("gpt2", "llama"),
    ("llama", "qwen2"),
    ("qwen3", "gemma2"),
]  # B's embedding is its head's in the first and the last


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_states_after_a_cached_bos_are_those_of_two_tokens(family):
    model, ids = tiny.shared(family), torch.arange(3, 40)
    for site in (1, 3, tiny.DEPTH):
        cache = look_ups._cache_of_bos(model, site, ids[: look_ups.PROBED])
        wanted = look_ups._after_bos(model, site, ids)
        assert look_ups._agrees(model, site, ids[: look_ups.PROBED], cache)
        assert (look_ups.context_free(model, site, ids) - wanted).norm() < 1e-5 * wanted.norm()


def test_a_cache_that_gives_other_states_is_not_used(monkeypatch):
    model, ids = tiny.shared("llama"), torch.arange(3, 40)
    wanted = look_ups._after_bos(model, 3, ids)
    monkeypatch.setattr(look_ups, "_after_cached_bos", lambda *given: look_ups._after_bos(*given[:3]) * 1.1)
    assert torch.equal(look_ups.context_free(model, 3, ids), wanted)


def test_b_runs_on_as_many_tokens_as_occur():
    model, lengths, seen = tiny.model("llama"), [], []
    model.blocks[0].register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[0] * args[0].shape[1]))
    found = token_tables(model, model, text(0), text(1), 2, lambda *done: seen.append(done))
    occurring = len(torch.cat([text(0).ids, text(1).ids]).unique())
    probe = look_ups.PROBED * 3
    assert found.keys is not None and len(found.keys) == occurring < 60
    assert sum(lengths) == 1 + probe + occurring
    assert seen[-1] == ("states (tokens)", occurring, occurring)


def test_a_vocabulary_no_larger_than_the_text_has_all_rows():
    b = tiny.shared("llama")
    wide = Windows(text(0).ids.repeat(2, 1), text(0).document.repeat(2, 1))
    found = token_tables(b, b, wide, text(1), SITE_B)
    assert found.keys is None and len(found.tables["state"]) == tiny.VOCABULARY and not found.fallbacks


def test_a_large_vocabulary_has_rows_for_what_occurs_also_where_the_text_is_longer():
    vocabulary = SMALL + 2_000
    b = tiny.model("llama", vocab_size=vocabulary)
    ids = text(0).ids.repeat(vocabulary // text(0).tokens + 1, 1)
    long = Windows(ids, torch.zeros_like(ids))
    found = token_tables(b, b, long, text(1), SITE_B)
    assert long.tokens > vocabulary and found.keys is not None
    assert torch.equal(found.keys, torch.cat([text(0).ids, text(1).ids]).unique().long())
    assert len(found.tables["state"]) == len(found.keys) < 60 and found.fallbacks.keys() == found.tables.keys()


@pytest.mark.numeric
@pytest.mark.parametrize(("a", "b"), PAIRS)
@torch.no_grad()
def test_known_ids_are_looked_up_and_others_are_computed_from_an_embedding_of_the_composite(a, b):
    a, b = tiny.shared(a), tiny.shared(b)
    given, ids = translation(a, b), tiny.ids(3, 30)
    assert (ids >= 60).any() and {term.fallback.of for term in given.terms if term.fallback} == {
        "b" if b.head.weight is b.embedding.weight else "a"
    }
    streams = {SITE_A: tiny.noise(3, 30, a.width)}
    positions = torch.arange(30).expand_as(ids)
    expected = by_hand(a, b, ids) + given.bias.double() + streams[SITE_A].double() @ given.terms[0].matrix.double()
    modules = [make(given, a, b, SITE_A) for make in (translation_module, unfolded_module)]
    folded, unfolded = (module(streams, ids, positions, embeddings=embeddings_of(a, b)) for module in modules)
    assert (folded - expected).abs().max() < 1e-4 * expected.abs().max()
    assert torch.equal(folded, unfolded)
    alone = [modules[0]({SITE_A: streams[SITE_A][:, : at + 1]}, ids[:, : at + 1], positions[:1, [at]],
                        embeddings=embeddings_of(a, b)) for at in (5, 20)]  # fmt: skip
    torch.testing.assert_close(torch.cat(alone, 1), folded[:, [5, 20]], rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_the_checkpoint_computes_what_was_composed(dtype, tmp_path):
    for side, family in (("a", "gpt2"), ("b", "llama")):
        tiny.save(tmp_path / side, family, dtype=dtype)
    a, b = (load(tmp_path / side) for side in "ab")
    given, ids = translation(a, b), tiny.ids(2, 40)
    composite = compose(a, b, SITE_A, SITE_B, given)
    write_checkpoint(tmp_path / "out", composite.config, a.folder, b.folder, given, dtype=dtype)
    written = load(tmp_path / "out")
    assert torch.equal(written.net(ids).logits, composite(ids).logits)
    file = (tmp_path / "out" / "model.safetensors").stat().st_size
    bare = replace(given, terms=given.terms[:1])
    write_checkpoint(
        tmp_path / "bare", compose(a, b, SITE_A, SITE_B, bare).config, a.folder, b.folder, bare, dtype=dtype
    )
    added = file - (tmp_path / "bare" / "model.safetensors").stat().st_size
    assert added == pytest.approx(given.bytes(dtype) - bare.bytes(dtype), abs=1024)  # a header
    # A chain keeps the head, as the translation reads it, and counts the expected products.
    for one, keeps in ((given, True), (bare, False)):
        joined = as_model(compose(a, b, SITE_A, SITE_B, one))
        early = early_half(joined, joined.depth)
        assert ("b.lm_head.weight" in early.state_dict()) == keeps and "b.model.norm.weight" not in early.state_dict()
    counted = [block_flops(compose(a, b, SITE_A, SITE_B, one).config, SITE_A, 40) for one in (given, bare)]
    assert counted[0] - counted[1] == 2 * (given.multiply_adds - bare.multiply_adds) > 0


@pytest.mark.numeric
def test_a_fall_back_predicts_the_rows_of_tokens_that_did_not_occur():
    """States of a model whose first block does little are almost linear in the embedding."""
    b = tiny.model("llama")
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        b.blocks[0].get_submodule(name).weight.data.mul_(0.01)
    ids = torch.randint(3, 120, (1, 120), generator=torch.Generator().manual_seed(0))
    wide = Windows(ids, torch.zeros_like(ids))
    found = token_tables(b, b, wide, text(1), 1)
    assert found.unexplained["embedding"] == 0.0 and found.unexplained["state"] < 0.1
    assert found.keys is not None
    others = torch.tensor([one for one in range(3, tiny.VOCABULARY) if one not in found.keys])
    wanted = look_ups.context_free(b, 1, others)
    weight = found.fallbacks["state"].weight
    predicted = b.embedding.weight[others] @ weight[:-1] + weight[-1]
    assert (predicted - wanted).square().sum() < 0.1 * (wanted - wanted.mean(0)).square().sum()
    assert found.share == pytest.approx(float((~torch.isin(text(1).ids, wide.ids)).float().mean()))


@torch.no_grad()
def test_no_table_of_the_whole_vocabulary_is_made():
    vocabulary = 20_000
    a, b = (tiny.model(family, vocab_size=vocabulary) for family in ("gpt2", "llama"))
    with Largest() as seen:
        given = translation(a, b)
        unfolded_module(given, a, b, SITE_A)
        translation_module(given, a, b, SITE_A)
    assert seen.numbers < vocabulary * b.width / 10


def test_tables_of_some_keys_add_up_with_tables_of_more():
    wide, narrow = torch.tensor([2, 5, 7, 9]), torch.tensor([5, 9])
    rows, weight, more = tiny.noise(4, 3), tiny.noise(3, 3, seed=1), tiny.noise(2, 3, seed=2)
    terms = Term(Token(0, wide), Unfolded(((rows, weight),))), Term(Token(0, narrow), more)
    (found,) = merged(Translation("sum", terms, torch.zeros(3))).terms
    expected = rows @ weight
    expected[[1, 3]] += more
    assert isinstance(found.weight, Unfolded) and torch.equal(found.input.keys, wide)
    torch.testing.assert_close(found.weight.folded(), expected)
    strange = Term(Token(0, torch.tensor([3])), more[:1])
    with pytest.raises(AssertionError, match="of the same text"):
        merged(Translation("sum", (terms[0], strange), torch.zeros(3)))


def test_rows_that_an_embedding_does_more_to_than_scale_are_not_taken_for_scaled():
    stored = tiny.noise(20, 8)
    assert _scale(3 * stored, stored) == pytest.approx(3)
    assert _scale((3 * stored).bfloat16().float(), stored) == pytest.approx(3, rel=1e-2)
    assert _scale(torch.nn.functional.normalize(stored), stored) is None
    assert _scale(tiny.noise(20, 9), stored) is None
