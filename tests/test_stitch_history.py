"""Translations that look back: a composite computes the same with a cache, padding, beams and roll-back, and least
squares is fitted on the inputs that the composite reads.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

import tiny
from sae.types import Dictionary
from stitch.activations.harvest import harvest
from stitch.activations.paired import pair
from stitch.composite.checkpoint import write_checkpoint
from stitch.composite.compose import compose
from stitch.errors import UsageError
from stitch.modeling.modeling_translation import ngram_keys
from stitch.models.model import Model
from stitch.text.windows import Windows
from stitch.translation.inputs import ByPosition, ByToken, Lift, Stream, reach, streams
from stitch.translation.module import Applied, translation_module
from stitch.translation.types import Ngram, Position, Residual, Routed, Term, Token, Translation, merged

pytestmark = pytest.mark.numeric

SITE_A, SITE_B, POSITIONS = 3, 4, 128
pico = tiny.shared


def dictionary(width: int) -> Dictionary:
    weight = tiny.noise(width, 20, seed=5)
    return Dictionary(
        weight, tiny.noise(20), "topk", None, 4, weight.T / weight.T.norm(dim=1, keepdim=True), tiny.noise(width)
    )


def inputs(a: Model, b: Model) -> dict:
    """One of every kind of input: A's streams, tokens and positions."""
    table = tiny.noise(tiny.VOCABULARY, 6, seed=9)
    return {
        "x": Stream(SITE_A),
        "earlier": Stream(1),
        "x-1": Stream(SITE_A, back=1),
        "codes": Lift(SITE_A, dictionary(a.width)),
        **{f"table-{back}": ByToken(table, back) for back in (0, 1, 2)},
        "position": ByPosition(tiny.noise(POSITIONS, 5, seed=3)),
    }


def weights(a: Model, b: Model) -> dict[str, Tensor]:
    columns = {"x": a.width, "earlier": a.width, "x-1": a.width, "codes": 20, "position": 5}
    return {
        name: tiny.noise(columns.get(name, 6), b.width, seed=number).double() / 6
        for number, name in enumerate(inputs(a, b))
    }


def everything(a: Model, b: Model, *, refined: bool = True) -> Translation:
    read = inputs(a, b)
    terms = [read[name].term(weight) for name, weight in weights(a, b).items()]
    if refined:
        classes = torch.arange(tiny.VOCABULARY) % 5
        terms += [
            Term(Routed(SITE_A, 0, classes), tiny.noise(5, a.width, b.width, seed=30) / 6),
            Term(Routed(1, 2, classes), tiny.noise(5, a.width, b.width, seed=31) / 6),
        ]
        # every n-gram with an even first id is known, so that generated text has known and unknown ones
        pairs = torch.cartesian_prod(torch.arange(tiny.VOCABULARY), torch.arange(0, tiny.VOCABULARY, 2))
        keys = ngram_keys([pairs[:, 0], pairs[:, 1]], tiny.VOCABULARY).sort().values
        terms.append(Term(Ngram(2, keys), tiny.noise(len(keys), b.width, seed=20)))
        triples = ngram_keys([keys % tiny.VOCABULARY, keys // tiny.VOCABULARY, keys * 7 % 64 * 2], tiny.VOCABULARY)
        triples = triples.unique()
        terms.append(Term(Ngram(3, triples), tiny.noise(len(triples), b.width, seed=21)))
    return merged(Translation("everything", tuple(terms), tiny.noise(b.width))).starting_with(
        tiny.noise(b.width, seed=2)
    )


def pair_of(a: str, b: str):
    donors = pico(a), pico(b)
    return compose(*donors, SITE_A, SITE_B, everything(*donors))


def left_padded(lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    ids = torch.full((len(lengths), max(lengths)), tiny.PAD)
    for row, length in enumerate(lengths):
        ids[row, -length:] = tiny.ids(1, length, seed=row)[0]
    return ids, (ids != tiny.PAD).long()


PAIRS = [("gpt2", "llama"), ("mistral", "gemma3_text"), ("qwen3", "gpt2"), ("llama", "phi")]


@pytest.mark.parametrize(("a", "b"), PAIRS)
@torch.no_grad()
def test_a_cache_filled_in_any_chunks_gives_the_logits_of_one_pass(a, b):
    composite, ids = pair_of(a, b), tiny.ids(2, 13)
    whole = composite(ids, use_cache=False).logits
    for cuts in ((5, 6), (1,), (2, 3, 4), tuple(range(1, 13))):
        cache = DynamicCache(config=composite.config)
        parts = [composite(part, past_key_values=cache).logits for part in ids.tensor_split(cuts, dim=1)]
        assert torch.allclose(torch.cat(parts, 1), whole, atol=2e-4), cuts


@pytest.mark.parametrize(("a", "b"), PAIRS)
@torch.no_grad()
def test_generation_does_not_depend_on_cache_padding_or_batch(a, b):
    composite = pair_of(a, b)
    padded, mask = left_padded((9, 3, 1))
    settings = {"max_new_tokens": 10, "min_new_tokens": 10, "do_sample": False}
    cached = composite.generate(padded, attention_mask=mask, **settings)
    assert torch.equal(cached, composite.generate(padded, attention_mask=mask, use_cache=False, **settings))
    for row, length in enumerate((9, 3, 1)):
        alone = composite.generate(
            padded[row : row + 1, -length:], attention_mask=mask[row : row + 1, -length:], **settings
        )
        assert torch.equal(alone[0, length:], cached[row, 9:]), row


@torch.no_grad()
def test_beams_and_roll_back_move_the_history():
    composite = pair_of("gpt2", "llama")
    padded, mask = left_padded((9, 4))
    beams = {
        "attention_mask": mask,
        "num_beams": 4,
        "max_new_tokens": 8,
        "min_new_tokens": 8,
        "num_return_sequences": 2,
    }
    assert torch.equal(
        composite.generate(padded, use_cache=True, **beams), composite.generate(padded, use_cache=False, **beams)
    )
    ids = tiny.ids(1, 6).repeat(1, 3)  # with repeats, so that drafts are looked up and some are rolled back
    plain = composite.generate(ids, max_new_tokens=20, do_sample=False)
    drafted = composite.generate(ids, max_new_tokens=20, do_sample=False, prompt_lookup_num_tokens=4)
    assert torch.equal(plain, drafted)


@torch.no_grad()
def test_a_translation_reads_only_as_far_back_as_declared():
    """The translation alone: a changed id affects its own token's row and the next two, a changed stream its own and
    the next.
    """
    a, b = pico("gpt2"), pico("llama")
    module = translation_module(everything(a, b), a, b, SITE_A)
    ids, positions = tiny.ids(1, 12), torch.arange(12)[None]
    zeros = {site: torch.zeros(1, 12, a.width) for site in (1, SITE_A)}
    other = ids.clone()
    other[0, 5] = (other[0, 5] - 2 + 30) % 100 + 2
    moved = (module(zeros, ids, positions) - module(zeros, other, positions)).abs().amax(-1)[0] > 1e-6
    assert moved.nonzero().flatten().tolist() == [5, 6, 7]
    streams_moved = {site: stream.clone() for site, stream in zeros.items()}
    streams_moved[SITE_A][0, 5] = 1
    moved = (module(streams_moved, ids, positions) - module(zeros, ids, positions)).abs().amax(-1)[0] > 1e-6
    assert moved.nonzero().flatten().tolist() == [5, 6]


@pytest.fixture
def harvested(tmp_path):
    """A pair on seven windows, its kept rows, and the output of the composite's module for a translation on these
    rows.
    """
    a, b = pico("gpt2"), pico("llama")
    ids = tiny.ids(7, 16, seed=3)
    windows = Windows(ids.int(), torch.zeros_like(ids).int())
    paired = pair(
        harvest(a, windows, [1, SITE_A], tmp_path / "a", per_shard=3),
        harvest(b, windows, [SITE_B], tmp_path / "b", per_shard=3),
        SITE_A,
        SITE_B,
    )
    paired.keep[2, 7] = False  # marked like a sink: it and the next token are left out
    keep = paired.keep.clone()
    keep[2, 8] = False
    assert int(keep.sum()) == 7 * 15 - 2
    cached = {site: torch.cat([paired.a.read(shard, site) for shard in range(3)]) for site in (1, SITE_A)}

    def by_module(translation: Translation) -> Tensor:
        return translation_module(translation, a, b, SITE_A)(cached, ids, torch.arange(16).expand_as(ids))[keep]

    return a, b, paired, by_module


@torch.no_grad()
def test_least_squares_is_fitted_on_what_the_composite_reads(harvested):
    a, b, paired, by_module = harvested
    read, wanted = inputs(a, b), weights(a, b)
    found = []
    for tokens in paired.with_history(streams(read.values()), reach(read.values()), 10):
        parts = []
        for name, weight in wanted.items():
            columns = read[name].columns(tokens)
            parts.append(
                columns.double() @ weight if isinstance(columns, Tensor) else torch.from_numpy(columns @ weight.numpy())
            )
        found.append(sum(parts))
    translation = everything(a, b, refined=False)
    assert torch.allclose(torch.cat(found).float(), by_module(translation) - translation.bias, atol=1e-4)


@torch.no_grad()
def test_an_applied_translation_equals_the_composites_module(harvested):
    a, b, paired, by_module = harvested
    translation = replace(everything(a, b), first=None)
    applied = Applied(translation, SITE_A, tiny.VOCABULARY)
    written = [applied(tokens) for tokens in paired.with_history(applied.streams, applied.history, 10)]
    assert torch.allclose(torch.cat(written), by_module(translation), atol=1e-4)


def test_a_written_composite_generates_the_same(tmp_path):
    a = tiny.save(tmp_path / "a", "gpt2")
    b = tiny.save(tmp_path / "b", "llama", seed=1)
    from stitch.models.loading import load

    a, b = load(a), load(b)
    translation = everything(a, b)
    composite = compose(a, b, SITE_A, SITE_B, translation)
    write_checkpoint(tmp_path / "c", composite.config, a.folder, b.folder, translation)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "c", trust_remote_code=True)
    ids = tiny.ids(2, 9)
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, composite(ids).logits)
    loaded.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", trust_remote_code=True)
    assert torch.equal(
        again.generate(ids, max_new_tokens=9, do_sample=False),
        composite.generate(ids, max_new_tokens=9, do_sample=False),
    )


def test_ngrams_too_large_for_an_integer_key_are_refused():
    a, b = pico("gpt2"), pico("llama")
    term = Term(Ngram(10, torch.zeros(1, dtype=torch.int64)), torch.zeros(1, b.width))
    with pytest.raises(UsageError, match=r"n-grams of 128 ids must have an order below 10"):
        compose(a, b, SITE_A, SITE_B, Translation("long", (term,), torch.zeros(b.width)))


def test_merging_tables_changes_nothing_but_their_number():
    a, b = pico("gpt2"), pico("llama")
    ids, positions = tiny.ids(1, 8), torch.arange(8)[None]
    x = {SITE_A: tiny.noise(1, 8, a.width)}
    terms = [
        Term(Token(), tiny.noise(tiny.VOCABULARY, b.width, seed=1)),
        Term(Token(1), tiny.noise(tiny.VOCABULARY, b.width)),
    ]
    terms += [
        Term(Token(), tiny.noise(tiny.VOCABULARY, b.width, seed=2)),
        Term(Residual(SITE_A), tiny.noise(a.width, b.width)),
    ]
    terms += [Term(Position(), tiny.noise(9, b.width)), Term(Position(), tiny.noise(9, b.width, seed=4))]
    whole = Translation("many", tuple(terms), tiny.noise(b.width))
    few = merged(whole)
    assert len(few.terms) == 4
    outputs = [translation_module(each, a, b, SITE_A)(x, ids, positions) for each in (whole, few)]
    assert torch.allclose(*outputs, atol=1e-5)


@torch.no_grad()
def test_an_ngram_does_not_include_padding():
    """Every pair is known, also those with padding, but a row's first token must not match one."""
    a, b = pico("gpt2"), pico("llama")
    table = tiny.noise(tiny.VOCABULARY**2, b.width)
    terms = (Term(Ngram(2, torch.arange(tiny.VOCABULARY**2)), table),)
    module = translation_module(Translation("pairs", terms, torch.zeros(b.width)), a, b, SITE_A)
    ids, mask = left_padded((6, 3))
    found = module({}, ids, (mask.cumsum(-1) - 1).masked_fill(mask == 0, -1))
    assert torch.equal(found[1, 3], torch.zeros(b.width))  # the first token of this row, after three of padding
    assert torch.equal(found[0, 0], torch.zeros(b.width))
    assert torch.equal(found[1, 4], table[ids[1, 4] + tiny.VOCABULARY * ids[1, 3]])
