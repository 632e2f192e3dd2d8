"""Translations within a number of bytes: what is kept, what it loses, and that a checkpoint computes the same."""

import dataclasses
from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM

import tiny
from allocations import Largest
from sae.types import Dictionary
from stitch.composite.compose import compose
from stitch.composite.costs import Costs, of_translation
from stitch.modeling.modeling_translation import ngram_keys
from stitch.translation.least_squares import draws_within
from stitch.translation.module import translation_module
from stitch.translation.packed import Packed
from stitch.translation.packing import bytes_without_tables, pack, steps
from stitch.translation.types import Codes, Ngram, Position, Residual, Term, Token, Translation
from stitch.translation.unfolded import Unfolded

WIDTH = 48
MEMORY = 2**26  # bytes
packed_to = partial(pack, memory=MEMORY)


@pytest.fixture(scope="module")
def pair():
    return tiny.model("gpt2"), tiny.model("llama", hidden_size=WIDTH, num_attention_heads=4)


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    """Tokens of which low ids are frequent."""
    generator = torch.Generator().manual_seed(0)
    weights = 1 / torch.arange(1, tiny.VOCABULARY + 1).double()
    return torch.multinomial(weights, 40 * 16, replacement=True, generator=generator).view(40, 16).int()


def of_tokens(table, keys: torch.Tensor | None = None) -> Translation:
    return Translation("t", (Term(Token(0, keys), table),), torch.zeros(WIDTH))


def translation(ids: torch.Tensor, width_a: int) -> Translation:
    pairs = ngram_keys([ids[:, 1:].long(), ids[:, :-1].long()], tiny.VOCABULARY).unique()
    terms = (
        Term(Residual(2), tiny.noise(width_a, WIDTH)),
        Term(Token(), tiny.noise(tiny.VOCABULARY, WIDTH, seed=1)),
        Term(Token(1), tiny.noise(tiny.VOCABULARY, WIDTH, seed=2)),
        Term(Position(), tiny.noise(16, WIDTH, seed=3)),
        Term(Ngram(2, pairs), tiny.noise(len(pairs), WIDTH, seed=4)),
    )
    return Translation("t", terms, torch.zeros(WIDTH), torch.ones(WIDTH))


def test_draws_of_a_null_are_as_many_as_an_eighth_of_the_memory_holds():
    assert draws_within(2**30, 2**20) == 32 and draws_within(2**26, 2**24) == 1


@pytest.mark.parametrize("activation", ["jumprelu", "topk"])
def test_bytes_of_a_translation_that_reads_features_are_those_of_its_tensors(pair, activation: str):
    a, b = pair
    encoder = tiny.noise(a.width, 24)
    threshold = torch.full((24,), 0.1) if activation == "jumprelu" else None
    zeros = torch.zeros(24), torch.zeros(a.width)
    dictionary = Dictionary(encoder, zeros[0], activation, threshold, 4, encoder.T.contiguous(), zeros[1])
    found = Translation("t", (Term(Codes(2, dictionary), tiny.noise(24, WIDTH)),), torch.zeros(WIDTH))
    stored = of_translation(found, a, b, 2)
    assert (found.bytes(b.dtype), found.parameters) == (stored.bytes, stored.parameters)


def test_bytes_are_those_of_the_tensors_and_keep_within_the_limit(pair, ids):
    a, b = pair
    whole = translation(ids, a.width)
    least = bytes_without_tables(whole, b.dtype)
    for limit in (least, least + 3_000, least + 12_000, whole.bytes(b.dtype) - 1):
        found = packed_to(whole, limit, ids, tiny.VOCABULARY, b.dtype)
        assert found.bytes(b.dtype) == of_translation(found, a, b, 2).bytes <= limit
        assert all(isinstance(term.weight, Packed) for term in found.terms if term.is_table)
        costs = Costs(a, b, 16).composite(2, 3, found)
        assert costs.parameters == sum(p.numel() for p in compose(a, b, 2, 3, found).parameters()) + sum(
            term.weight.codes.numel() for term in found.terms if isinstance(term.weight, Packed)
        )
    assert packed_to(whole, whole.bytes(b.dtype), ids, tiny.VOCABULARY, b.dtype) is whole
    assert [term.input for term in packed_to(whole, least, ids, tiny.VOCABULARY, b.dtype).terms] == [Residual(2)]


def test_the_error_falls_with_bytes_and_vanishes_where_all_fits(pair, ids):
    a, b = pair
    whole = translation(ids, a.width)
    least = bytes_without_tables(whole, b.dtype)
    errors = [error(packed_to(whole, least + more, ids, tiny.VOCABULARY, b.dtype), whole, pair, ids)
              for more in (0, 4_000, 12_000, 40_000, whole.bytes(b.dtype) - least - 1)]  # fmt: skip
    assert errors == sorted(errors, reverse=True) and errors[0] > 10 * errors[3]
    assert errors[-1] < 1e-3 * errors[0]  # 8 bits


def test_frequent_tokens_and_long_rows_are_kept_first(ids):
    pairs = ngram_keys([ids[:, 1:].long(), ids[:, :-1].long()], tiny.VOCABULARY)
    keys, counts = pairs.unique(return_counts=True)
    rows = tiny.noise(len(keys), WIDTH)
    of_one = Translation("t", (Term(Ngram(2, keys), rows),), torch.zeros(WIDTH))
    price = 8 + 4 + WIDTH
    found = packed_to(of_one, of_one.bias.numel() * 4 + 10 * price, ids, tiny.VOCABULARY, torch.float32)
    worth = counts * rows.square().sum(1)
    kept = found.terms[0].input
    assert isinstance(kept, Ngram)
    assert torch.equal(kept.keys, keys[worth.argsort(descending=True)[:10]].sort().values)


@pytest.mark.parametrize("most", [0, 100, 1000])
def test_directions_keep_within_multiply_adds_and_rows_take_their_bytes(pair, ids, most):
    a, b = pair
    whole = translation(ids, a.width)
    limit = bytes_without_tables(whole, b.dtype) + 8_000
    packed = partial(packed_to, whole, limit, ids, tiny.VOCABULARY, b.dtype)
    free, found = packed(), packed(multiply_adds=most)
    products = [sum(term.weight.multiply_adds for term in one.terms if term.is_table) for one in (found, free)]
    rows = [sum(len(term.weight) for term in one.terms if isinstance(term.input, Ngram)) for one in (found, free)]
    assert products[0] <= most < products[1] and rows[0] > rows[1] and found.bytes(b.dtype) <= limit


def test_a_table_of_low_rank_needs_no_more_than_its_rank(ids):
    table = tiny.noise(tiny.VOCABULARY, 3) @ tiny.noise(3, WIDTH, seed=1)
    of_one = of_tokens(table)
    found = packed_to(of_one, of_one.bytes(torch.float32) - 1, ids, tiny.VOCABULARY, torch.float32)
    packed = found.terms[0].weight
    assert isinstance(packed, Packed) and packed.codes.shape[1] < 8
    some = ids.unique().long()
    assert (packed.rows(some) - table[some]).norm() < 0.02 * table[some].norm()


def in_factors(entries: int, width: int) -> Unfolded:
    """A table of two factors, as that of a token's embedding and state."""
    return Unfolded(tuple(
        (tiny.noise(entries, width, seed=seed), tiny.noise(width, width, seed=seed + 1).double()) for seed in (0, 2)
    ))  # fmt: skip


@pytest.mark.numeric
@pytest.mark.parametrize("memory", [MEMORY, 2**16])  # the whole table at a time, or two rows
def test_a_table_in_factors_is_packed_as_the_whole_table_would_be(ids, memory):
    """The whole table: in float64, its directions by a singular value decomposition, its columns brought to one size."""
    table = in_factors(tiny.VOCABULARY, WIDTH)
    limit = 4 * WIDTH + 12 * (tiny.VOCABULARY + 4 * WIDTH) + 4 * tiny.VOCABULARY
    found = pack(of_tokens(table), limit, ids, tiny.VOCABULARY, torch.float32, memory=memory).terms[0].weight
    whole = sum(rows.double() @ weight for rows, weight in table.factors)
    read = torch.bincount(ids.flatten().long(), minlength=tiny.VOCABULARY)
    _, _, directions = torch.linalg.svd(read.sqrt()[:, None] * whole, full_matrices=False)
    wanted = Packed.of(lambda: [(whole @ directions[:12].T).float()], directions[:12].float())
    assert isinstance(found, Packed) and found.shape == wanted.shape and found.codes.shape[1] == 12
    every = torch.arange(tiny.VOCABULARY)
    signs = (found.basis * wanted.basis).sum(1).sign()  # a direction has two
    assert (found.codes - wanted.codes * signs).abs().max() <= 1
    assert (found.rows(every) - wanted.rows(every)).norm() < 1e-4 * wanted.rows(every).norm()


def test_rows_of_a_large_vocabulary_are_computed_some_at_a_time(ids):
    """Neither the table nor its product with the directions is ever there."""
    entries, memory = 50_000, 2**22
    table = in_factors(entries, WIDTH)
    keys = torch.arange(10_000, 60_000)
    limit = 4 * WIDTH + 12 * entries + 6 * (entries + 4 * WIDTH)
    with Largest() as seen:
        found = pack(of_tokens(table, keys), limit, ids + 10_000, 60_000, torch.float32, memory=memory).terms[0].weight
    assert isinstance(found, Packed) and found.codes.shape == (entries, 6)
    assert seen.numbers == entries  # how often each row is read, and its scale


def test_it_is_heard_of_every_table_twice(ids, pair):
    heard = []
    whole = translation(ids, pair[0].width)
    least = bytes_without_tables(whole, torch.float32)
    packed_to(whole, least + 9_000, ids, tiny.VOCABULARY, torch.float32, tick=lambda: heard.append(1))
    assert len(heard) == steps(whole) == 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_computes_what_the_translation_does(pair, ids, dtype, tmp_path):
    a, b = (dataclasses.replace(model, net=model.net.to(dtype)) for model in (tiny.model("gpt2"), tiny.model("llama")))
    whole = translation(ids, a.width)
    whole = dataclasses.replace(whole, terms=tuple(
        dataclasses.replace(term, weight=term.matrix[..., : b.width]) for term in whole.terms
    ), bias=whole.bias[: b.width], first=whole.first[: b.width])  # fmt: skip
    found = packed_to(whole, bytes_without_tables(whole, dtype) + 9_000, ids, tiny.VOCABULARY, dtype)
    composite = compose(a, b, 2, 3, found)
    composite.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True, dtype=dtype).eval()
    stored, wanted = loaded.translation.state_dict(), composite.translation.state_dict()
    assert stored.keys() == wanted.keys() and {"codes", "scales"} <= {name.rpartition(".")[2] for name in stored}
    for name, tensor in wanted.items():
        assert stored[name].dtype == tensor.dtype and torch.equal(stored[name], tensor), name
    if dtype == torch.float32:  # `.to` also rounds the frequencies of rotary embeddings, loading does not
        with torch.no_grad():
            assert torch.equal(loaded(ids[:4].long()).logits, composite(ids[:4].long()).logits)


@torch.no_grad()
def error(found: Translation, whole: Translation, pair, ids: torch.Tensor) -> float:
    """Mean squared difference of what two translations give for the text."""
    a, b = pair
    streams = {2: tiny.noise(*ids.shape, a.width)}
    positions = torch.arange(ids.shape[1]).expand(ids.shape)
    one, other = (translation_module(each, a, b, 2)(streams, ids.long(), positions) for each in (found, whole))
    return float((one - other).square().mean())
