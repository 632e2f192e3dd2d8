"""Matched features read at other blocks: correlations by pair of sites, on models whose answer is known."""

import dataclasses

import numpy as np
import pytest
import torch

import tiny
from matching.types import Pairs
from sae.types import Dictionary
from stitch.activations.observe import residuals
from stitch.activations.paired import SINK_RATIO
from stitch.features import by_block as module
from stitch.features.by_block import SITES, Side, by_block, sites_around

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
    return by_block(a, b, tiny.ids(16, 32), pairs, seed=0, chunk=100, **more)


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


def test_tokens_in_several_batches_are_summed(monkeypatch):
    model = tiny.shared("gpt2")
    side = Side(model, dictionary(model.width), 2)
    pairs = matched(list(range(FEATURES)))
    whole = found(side, side, pairs)
    seen = []
    monkeypatch.setattr(module, "windows_at_once", lambda model, context: 5)
    parts = found(side, side, pairs, progress=lambda stage, done, total: seen.append((done, total)))
    assert seen == [(160, 512), (320, 512), (480, 512), (512, 512)]
    # Lengths of streams are those of the first batch, so that other blocks are read a little differently.
    assert np.array(parts["correlation"]) == pytest.approx(np.array(whole["correlation"]), abs=0.02)
    assert parts["correlation"][2][2] == pytest.approx(1)


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
