"""Stages that may take longer than a few seconds say how far they are, from their start to their end."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import tiny
from heard import Heard
from stitch.conversions.consolidation import arms
from stitch.conversions.ngrams.backfit import TableSamples, backfit, collect
from stitch.conversions.retokenization import at_once
from stitch.conversions.retokenization.bias import with_bias
from stitch.conversions.retokenization.solve import Products, passes_of_ridge, ridge
from stitch.features.matching import match
from stitch.files.shards import Held, write_shards
from stitch.models.loading import load
from stitch.progress import Steps, counted
from stitch.regression.moments import accumulate
from stitch.regression.ridge import ridge as ridge_from_moments
from stitch.text import docstrings
from stitch.text.documents import SPLITS, read
from stitch.text.windows import Windows


def test_a_counted_loop_is_heard_of_before_between_and_after():
    heard, met = Heard(), []
    for item in counted("abc", "letters", heard):
        met.append((item, heard.stages["letters"][-1]))
    assert met == [("a", (0, 3)), ("b", (1, 3)), ("c", (2, 3))]
    assert heard.stages["letters"][-1] == (3, 3)
    assert list(counted(iter("ab"), "letters", None, 2)) == ["a", "b"]


@pytest.mark.parametrize("last", ["break", "error", "end"])
def test_a_counted_loop_that_is_left_ends(last):
    heard = Heard()
    try:
        for item in counted(iter("abcd"), "letters", heard, 4 if last != "end" else 5):
            if item == "c" and last == "break":
                break
            if item == "c" and last == "error":
                raise ValueError
    except ValueError:
        pass
    assert not heard.unfinished
    assert heard.stages["letters"][-1] == ((4, 4) if last == "end" else (2, 2))


@pytest.mark.parametrize("characters, last", [(100, (60, 60)), (50, (50, 50))])
def test_a_dataset_with_less_text_than_wanted_ends(characters, last, monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", lambda *arguments, **options: [{"text": one * 20} for one in "xyz"])
    heard = Heard()
    assert len(list(read("someone/text", characters, heard))) == 3
    assert not heard.unfinished and heard.stages["reading someone/text (characters)"][-1] == last


def test_fewer_steps_than_expected_are_all():
    heard = Heard()
    step = Steps("tries", 5, heard)
    step()
    step()
    step.end()
    step.end()
    assert heard.stages["tries"] == [(0, 5), (1, 5), (2, 5), (2, 2)]


@pytest.mark.parametrize("stage", ["letters", "others"])
def test_what_is_not_heard_of_is_missed(stage):
    heard = Heard()
    heard("letters", 0, 3)
    heard("letters", 2, 3)
    with pytest.raises(AssertionError, match=stage):
        heard.require([stage])
    assert heard.unfinished == {"letters"}


def test_the_corpus_counts_its_files(tmp_path, monkeypatch):
    package = tmp_path / "package_with_docstrings"
    package.mkdir()
    for number in range(150):
        (package / f"part{number}.py").write_text(f'"""{f"Sentence {number} of it. " * 20}"""\n')
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    heard = Heard()
    found = docstrings.documents((package.name,), heard)
    assert len(found) == 150 and found == docstrings.documents((package.name,))
    heard.require(["looking for docstrings (packages)"])
    heard.require(["reading docstrings (files)"], between=149)


def test_backfitting_counts_tables():
    generator, heard = torch.Generator().manual_seed(0), Heard()
    places = torch.stack([torch.randint(-1, size, (300,), generator=generator) for size in (5, 9, 4)])
    samples = TableSamples(places, torch.ones(300, dtype=torch.float64), tiny.noise(300, 3))
    found = backfit(collect((5, 9, 4), [samples]), samples, progress=heard)
    heard.require(["backfitting (tables, at most)"], between=2)
    assert heard.stages["backfitting (tables, at most)"][-1] == (3 * (len(found.errors) - 1),) * 2


def test_ridges_tick_for_each_strength_and_each_part():
    ticks: list[int] = []
    x, y = tiny.noise(60, 4).double(), tiny.noise(60, 2, seed=1).double()
    pairs = [("x", "x"), ("x", "y"), ("y", "y")]
    moments = [accumulate([{"x": x[part], "y": y[part]}], pairs) for part in (slice(40), slice(40, 60))]
    ridge_from_moments(*moments, ("x",), "y", tick=lambda: ticks.append(1))
    assert 3 <= len(ticks) <= 19
    products = [Products.empty(4, 40_000) for _ in range(2)]
    for one, seed in zip(products, (2, 3), strict=True):
        one.add(tiny.noise(20, 4, seed=seed), tiny.noise(20, 40_000, seed=seed))
    ticks.clear()
    ridge(*products, lambda: ticks.append(1))
    assert len(ticks) == passes_of_ridge(products[0]) == 6


def test_a_bias_counts_parts_of_its_text(monkeypatch):
    monkeypatch.setattr(at_once, "LOGITS", 20 * 10)
    heard = Heard()
    targets = torch.randint(0, 20, (35,), generator=torch.Generator().manual_seed(0))
    with_bias(tiny.noise(35, 6), targets, tiny.noise(20, 6, seed=1), None, heard)
    assert heard.stages["bias (parts of the text)"] == [(done, 16) for done in range(17)]


@pytest.mark.parametrize("threads", [1, 3])
def test_a_matching_counts_features_and_rounds(threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    heard, generator = Heard(), np.random.default_rng(0)
    codes = [sp.csr_array(generator.random((200, 90)) * (generator.random((200, 90)) < 0.3)) for _ in range(2)]
    match(lambda: iter([(codes[0], codes[1])]), "hungarian", seed=0, budget_bytes=2**24, progress=heard)
    heard.require(["assignment (rounds, at most)", "transport and shuffles (steps)"], between=1)
    heard.require(["correlations (features)"], between=20)


def test_writing_and_loading_weights_count_tensors(tmp_path):
    heard = Heard()
    write_shards(tmp_path, {str(number): Held(torch.ones(4)) for number in range(5)}, 32, heard)
    heard.require(["writing weights (tensors)"], between=4)
    load(tiny.save(tmp_path / "model", "llama"), name="it", progress=heard)
    heard.require(["loading it (tensors)"], between=20)


def test_an_edit_counts_its_steps():
    heard = Heard()
    ids = torch.randint(3, tiny.VOCABULARY, (24, 64), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    windows = Windows(ids, torch.arange(24, dtype=torch.int32)[:, None].expand(-1, 64).contiguous())
    setup = arms.prepare(tiny.model("gpt2"), dict.fromkeys(SPLITS, windows), heard)
    edits = arms.arms(setup, [ids[0, 1:20].long()], [ids[1, 1:20].long()], 0.02)
    for name in ("converted", "baseline:closed form", "baseline:adamw"):
        edits[name]()
    heard.require(
        ["curvature (batches)", "coordinates (matrices)", "natural gradient (steps)", "closed form (blocks)", "adamw (steps)",
         "continuations of the document (tokens)"], between=1,
    )  # fmt: skip
    heard.require(["what the model says with the document (batches)"])
