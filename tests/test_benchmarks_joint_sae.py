"""Shared codes: one code finds features planted in several streams and translates between any two of them."""

from dataclasses import replace

import pytest
import torch
from _joint_sae import crosscoder, universal_sae

from sae.config import SAEConfig
from sae.errors import SAEError
from sae.metrics import measure
from sae.trainer import SAMPLE_BATCHES

WIDTHS = {"gpt": 16, "llama": 12, "qwen": 20}
PLANTED, FEATURES, BATCH = 20, 48, 256
LOOK = SAEConfig(features=FEATURES, k=2, lr=1e-2, steps=450, batch_size=BATCH)
SHORT = replace(LOOK, steps=20)
SCALES = {"gpt": 1.0, "llama": 30.0, "qwen": 0.1}  # norms of the streams differ as much as those of real models


def _unit_rows(count, width, seed):
    rows = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return rows / rows.norm(dim=1, keepdim=True)


TRUTH = {name: _unit_rows(PLANTED, width, index) for index, (name, width) in enumerate(WIDTHS.items())}


def _batch(step, widths=WIDTHS, shuffled=False):
    """The same sparse codes in every stream, each with its own directions and its own mean."""
    generator = torch.Generator().manual_seed(1000 + step)
    on = torch.rand(BATCH, PLANTED, generator=generator) < 2 / PLANTED
    codes = on * (torch.rand(BATCH, PLANTED, generator=generator) + 0.5)
    found = {}
    for name in widths:
        rows = codes[torch.randperm(BATCH, generator=generator)] if shuffled else codes
        found[name] = SCALES[name] * (rows @ TRUTH[name] + 3.0)
    return found


def _stream(widths=WIDTHS, stop=10**6, shuffled=False):
    return lambda start: (_batch(step, widths, shuffled) for step in range(start, stop))


HELD_OUT = [_batch(10**6 + step) for step in range(8)]
PAIRS = [(source, target) for source in WIDTHS for target in WIDTHS if source != target]


def _unexplained(code, source, target):
    """Share of the variance of `target` that is unexplained when its decoder is given the code of `source`."""
    rows = {name: torch.cat([batch[name] for batch in HELD_OUT]) for name in (source, target)}
    z = code.streams[source].encode(rows[source])
    written = z @ code.onto(source, target) + code.streams[target].decoder_bias
    y = rows[target]
    return float((y - written).square().sum() / (y - y.mean(0)).square().sum())


@pytest.fixture(scope="module")
def universal():
    return universal_sae(LOOK, WIDTHS, _stream())


@pytest.fixture(scope="module")
def crossed():
    return crosscoder(LOOK, WIDTHS, _stream())


@pytest.mark.parametrize("kind", ["universal", "crossed"])
def test_planted_features_have_the_same_index_in_the_code_of_every_stream(kind, request):
    code = request.getfixturevalue(kind)
    cosines = {name: TRUTH[name] @ found.decoder.T for name, found in code.streams.items()}
    together = sum(cosines.values()) / len(cosines)
    assert together.max(dim=1).values.mean() > 0.9  # the same feature, in all streams at once


@pytest.mark.parametrize("source, target", PAIRS)
def test_the_code_of_one_stream_reconstructs_every_other_stream(universal, source, target):
    assert _unexplained(universal, source, target) < 0.25


def test_codes_trained_on_permuted_pairs_translate_nothing(universal):
    null = universal_sae(LOOK, WIDTHS, _stream(shuffled=True))
    for source, target in PAIRS:
        assert _unexplained(null, source, target) > 0.9


@pytest.mark.parametrize("kind", ["universal", "crossed"])
def test_codes_are_as_sparse_as_requested(kind, request):
    code = request.getfixturevalue(kind)
    for name, dictionary in code.streams.items():
        assert abs(measure(dictionary, (batch[name] for batch in HELD_OUT)).l0 - LOOK.k) < 0.25
    sides = [torch.cat([batch[name] for name in WIDTHS], 1) for batch in HELD_OUT]
    assert abs(measure(code.joint, sides).l0 - LOOK.k) < 0.25


def test_the_crosscoder_reconstructs_all_streams_together_best(universal, crossed):
    sides = [torch.cat([batch[name] for name in WIDTHS], 1) for batch in HELD_OUT]
    assert measure(crossed.joint, sides).fvu < 0.1
    assert measure(crossed.joint, sides).fvu < measure(universal.joint, sides).fvu


def test_decoder_rows_have_unit_norm_and_norms_over_all_standardised_streams_do(universal):
    total = torch.zeros(FEATURES)
    for name, dictionary in universal.streams.items():
        torch.testing.assert_close(dictionary.decoder.norm(dim=1), torch.ones(FEATURES))
        assert dictionary.threshold is not None and (dictionary.threshold >= 0).all()
        rows = torch.cat([_batch(step)[name] for step in range(SAMPLE_BATCHES)])
        mean_square = (rows - rows.mean(0)).square().sum(1).mean() * len(WIDTHS) / sum(WIDTHS.values())
        total += universal.norms[name].square() / mean_square
    torch.testing.assert_close(total, torch.ones(FEATURES))


def test_a_stream_written_from_its_own_code_is_its_reconstruction(universal):
    x, own = HELD_OUT[0]["gpt"], universal.streams["gpt"]
    torch.testing.assert_close(own.encode(x) @ universal.onto("gpt", "gpt") + own.decoder_bias, own(x))


def test_one_stream_alone_gives_an_ordinary_sae():
    one = {"gpt": WIDTHS["gpt"]}
    code = universal_sae(LOOK, one, _stream(one))
    quality = measure(code.streams["gpt"], (batch["gpt"] for batch in HELD_OUT))
    assert quality.fvu < 0.1
    torch.testing.assert_close(code.joint.encoder, code.streams["gpt"].encoder)


@pytest.mark.parametrize("kind", [universal_sae, crosscoder])
def test_weights_depend_only_on_the_seed(kind):
    first, again, other = (kind(config, WIDTHS, _stream()) for config in (SHORT, SHORT, replace(SHORT, seed=1)))
    for name in WIDTHS:
        assert torch.equal(first.streams[name].encoder, again.streams[name].encoder)
        assert torch.equal(first.streams[name].threshold, again.streams[name].threshold)
        assert not torch.equal(first.streams[name].encoder, other.streams[name].encoder)


def test_requests_that_cannot_be_met_are_refused():
    with pytest.raises(SAEError, match="must be batchtopk"):
        universal_sae(replace(SHORT, architecture="topk"), WIDTHS, _stream())
    with pytest.raises(SAEError, match="features must be at least the width of every stream"):
        crosscoder(replace(SHORT, features=10), WIDTHS, _stream())
    with pytest.raises(SAEError, match="ended after 12"):
        crosscoder(SHORT, WIDTHS, _stream(stop=12))
    with pytest.raises(SAEError, match="qwen is missing"):
        universal_sae(SHORT, WIDTHS, _stream({"gpt": 16, "llama": 12}))
    with pytest.raises(SAEError, match="must vary"):
        crosscoder(SHORT, {"gpt": 16}, lambda start: iter([{"gpt": torch.ones(BATCH, 16)}] * 20))
