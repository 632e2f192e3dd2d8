"""Matched features read at other blocks: correlations by pair of sites, on models whose answer is known."""

import dataclasses

import numpy as np
import pytest
import torch

import tiny
from heard import Heard
from matching.types import Pairs
from sae.types import Dictionary
from stitch.activations.observe import residuals
from stitch.activations.paired import SINK_RATIO
from stitch.features import by_block as module
from stitch.features.by_block import PAIRS_AT_ONCE, SITES, Side, _Sums, by_block, sites_around

FEATURES = 24


def dictionary(width: int, seed: int = 0) -> Dictionary:
    """Random features, four of them active per token."""
    encoder = tiny.noise(width, FEATURES, seed=seed)
    bias, decoder = torch.zeros(FEATURES), torch.nn.functional.normalize(encoder.T, dim=1)
    return Dictionary(encoder, bias, "topk", None, 4, decoder, torch.zeros(width))


def matched(cols: list[int]) -> Pairs:
    """Feature n of A with feature `cols[n]` of B."""
    return Pairs(np.arange(len(cols)), np.array(cols), np.linspace(0.9, 0.5, len(cols)), np.zeros(len(cols)))


def found(a: Side, b: Side, pairs: Pairs, **more) -> dict:
    return by_block(a, b, tiny.ids(16, 32), pairs, seed=0, chunk=100, **{"budget_bytes": 2**30, **more})


def test_a_model_agrees_with_itself_wherever_both_are_read_at_one_block():
    model = tiny.shared("gpt2")
    side = Side(model, dictionary(model.width), 2)
    report = found(side, side, matched(list(range(FEATURES))))
    assert report["sites"] == {"a": list(range(model.depth + 1)), "b": list(range(model.depth + 1))}
    assert np.diag(report["correlation"]) == pytest.approx(1)
    off = ~np.eye(model.depth + 1, dtype=bool)
    assert np.array(report["correlation"])[off].max() < 0.999
    assert np.abs(report["null"]).max() < 0.3
    wrong = found(side, side, matched([*range(1, FEATURES), 0]))
    assert np.abs(np.diag(wrong["correlation"])).max() < 0.3


def test_every_square_is_what_the_streams_say():
    a, b = tiny.shared("gpt2"), tiny.shared("llama")
    saes = [dictionary(model.width, seed) for seed, model in enumerate((a, b))]
    # With a bias it matters how long a stream is.
    saes = [dataclasses.replace(one, encoder_bias=5 * tiny.noise(FEATURES, seed=9)) for one in saes]
    sides = Side(a, saes[0], 1), Side(b, saes[1], 2)
    cols = [5, 3, 9, 0, 7]
    report = found(*sides, matched(cols))
    ids = tiny.ids(16, 32)
    streams = [residuals(side.model, ids, side.sites) for side in sides]
    norms = [{site: stream.norm(dim=-1) for site, stream in seen.items()} for seen in streams]
    medians = [{site: norm[:, 1:].median() for site, norm in seen.items()} for seen in norms]
    keep = torch.ones(ids.shape, dtype=torch.bool)
    keep[:, 0] = False
    for norm, median in zip(norms, medians, strict=True):
        for site in norm:
            keep &= norm[site] <= SINK_RATIO * median[site]
    assert report["tokens"] == int(keep.sum()) and report["pairs"] == 5

    def codes(number: int, site: int) -> np.ndarray:
        scale = medians[number][sides[number].site] / medians[number][site]
        return sides[number].dictionary.encode(streams[number][site][keep] * scale).numpy()

    for i in sides[0].sites:
        for j in sides[1].sites:
            x, y = codes(0, i), codes(1, j)
            each = [np.corrcoef(x[:, n], y[:, col])[0, 1] for n, col in enumerate(cols)]
            assert report["correlation"][i][j] == pytest.approx(np.nan_to_num(each).mean(), abs=2e-4)


@pytest.mark.parametrize("windows, budget, batches", [(5, 2**30, 4), (1, 2**30, 16), (5, 1, 16)])
def test_numbers_are_the_same_however_much_is_read_at_once(windows, budget, batches, monkeypatch):
    monkeypatch.setattr(module, "LENGTHS", 256)  # 8 of the 16 windows
    model = tiny.shared("gpt2")
    biased = dataclasses.replace(
        dictionary(model.width), encoder_bias=5 * tiny.noise(FEATURES, seed=9)
    )  # where lengths matter
    side = Side(model, biased, 2)
    pairs = matched(list(range(FEATURES)))
    whole, heard = found(side, side, pairs), Heard()
    monkeypatch.setattr(module, "windows_at_once", lambda model, context: windows)
    parts = found(side, side, pairs, budget_bytes=budget, progress=heard)
    for name in ("correlation", "null"):
        assert np.array(parts[name]) == pytest.approx(np.array(whole[name]), abs=1.01e-4)
    assert parts["tokens"] == whole["tokens"]
    heard.require(["features at other blocks (batches)"], between=batches)


def test_the_control_of_many_pairs_is_what_exchanged_codes_say():
    count = 3 * PAIRS_AT_ONCE + 5
    exchanged = torch.arange(count).roll(7)
    a, b = tiny.noise(2, 300, count), tiny.noise(3, 300, count, seed=1) + tiny.noise(2, 300, count)[:1]
    sums = _Sums(exchanged)
    for some in (slice(100), slice(100, 300)):
        sums.add(a[:, some], b[:, some])
    measured = sums.correlations()
    for name, partners in (("correlation", torch.arange(count)), ("null", exchanged)):
        for i, j in np.ndindex(2, 3):
            each = [np.corrcoef(a[i, :, n], b[j, :, other])[0, 1] for n, other in enumerate(partners.tolist())]
            assert measured[name][i, j].item() == pytest.approx(np.mean(each), abs=1e-9)
    assert measured["correlation"].max() > 0.5


def test_a_feature_with_equal_codes_counts_as_nothing():
    model = tiny.shared("gpt2")
    silent = dictionary(model.width)
    silent = dataclasses.replace(silent, encoder=silent.encoder.clone(), activation="relu")
    silent.encoder[:, 0] = 0
    silent.encoder_bias[0] = 0.1
    side = Side(model, silent, 2)
    report = found(side, side, matched([0, 1]))
    assert np.diag(report["correlation"]) == pytest.approx(0.5)


@pytest.mark.parametrize("first, last, site", [(0, 32, 5), (0, 80, 13), (7, 200, 199)])
def test_sites_of_deep_models_are_few_and_have_the_saes_own(first, last, site):
    sites = sites_around(site, first, last)
    assert site in sites and SITES / 2 < len(sites) <= SITES
    assert min(sites) >= first and max(sites) <= last and len(set(np.diff(sites))) == 1


def test_one_pair_has_no_control():
    model = tiny.shared("gpt2")
    side = Side(model, dictionary(model.width), 2)
    assert found(side, side, matched([0])) == {}
