"""Training: a planted dictionary is found, and neither other sites nor interruptions change a bit of the result."""

import json
import os
import signal
import warnings
from dataclasses import replace

import pytest
import torch

import tiny
from sae.checksums import checksums
from sae.config import SAEConfig
from sae.convert import to_dictionary
from sae.errors import DamagedSnapshot, SAEError
from sae.metrics import measure
from sae.null import untrained
from sae.trainer import SAMPLE_BATCHES, train_sites

ARCHITECTURES = ("batchtopk", "topk", "jumprelu", "standard", "matryoshka")
WIDTHS = {"a.resid_pre.1": 16, "b/resid_pre.2": 12}
PLANTED, FEATURES, BATCH = 24, 64, 256
PLANTED_LOOK = SAEConfig(features=FEATURES, k=2, lr=1e-2, steps=300, batch_size=BATCH)
SHORT = SAEConfig(features=FEATURES, k=2, lr=3e-3, steps=30, batch_size=64)


def _unit_rows(count, width, seed):
    rows = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return rows / rows.norm(dim=1, keepdim=True)


TRUTH = {site: _unit_rows(PLANTED, width, index) for index, (site, width) in enumerate(WIDTHS.items())}


def _batch(step, size):
    """The same sparse codes at every site, each with its own planted directions."""
    generator = torch.Generator().manual_seed(1000 + step)
    on = torch.rand(size, PLANTED, generator=generator) < 2 / PLANTED
    codes = on * (torch.rand(size, PLANTED, generator=generator) + 0.5)
    return {site: codes @ truth for site, truth in TRUTH.items()}


def _stream(size, stop=10**6, change=lambda step, batch: batch):
    def batches(start):
        for step in range(start, stop):
            yield change(step, _batch(step, size))

    return batches


def _both(config):
    return dict.fromkeys(WIDTHS, config)


def _weights(saes):
    return {(site, name): tensor for site, sae in saes.items() for name, tensor in sae.state_dict().items()}


def _assert_equal(got, expected):
    assert got.keys() == expected.keys()
    different = [key for key in got if not torch.equal(got[key], expected[key])]
    assert not different


@pytest.fixture(scope="module")
def planted():
    return train_sites(_both(PLANTED_LOOK), WIDTHS, _stream(BATCH))


@pytest.fixture(scope="module")
def short():
    return _weights(train_sites(_both(SHORT), WIDTHS, _stream(SHORT.batch_size)))


@pytest.mark.parametrize("site", WIDTHS)
def test_a_planted_dictionary_is_recovered_and_beats_the_untrained_one(planted, site):
    dictionary = to_dictionary(planted[site])
    cosines = (TRUTH[site] @ dictionary.decoder.T).max(dim=1).values
    assert cosines.mean() > 0.9

    held_out = [_batch(10**6 + step, BATCH)[site] for step in range(8)]
    null = untrained(PLANTED_LOOK, torch.cat(held_out[:4]), torch.Generator().manual_seed(0))
    trained, random = measure(dictionary, held_out), measure(null, held_out)
    assert trained.fvu < 0.5 * random.fvu
    assert abs(trained.l0 - PLANTED_LOOK.k) < 0.25
    assert abs(random.l0 - PLANTED_LOOK.k) < 0.25


def test_a_site_trained_alone_equals_the_site_trained_with_others(short):
    for site in WIDTHS:
        alone = train_sites({site: SHORT}, {site: WIDTHS[site]}, _stream(SHORT.batch_size))
        _assert_equal(_weights(alone), {key: tensor for key, tensor in short.items() if key[0] == site})


@pytest.mark.parametrize("architecture", ["batchtopk", "jumprelu"])
def test_the_training_loop_equals_that_of_saelens(architecture):
    """Up to the rounding of its dense gradients and of its Adam, which reads the weights several times."""
    import sae_lens
    from sae_lens.training.multi_sae_trainer import MultiSAETrainer

    from sae.trainer import _centre_and_scale, new_trainer

    config = replace(SHORT, architecture=architecture)
    ours = train_sites(_both(config), WIDTHS, _stream(config.batch_size))

    trainers = {site: new_trainer(config, width, "cpu") for site, width in WIDTHS.items()}
    _centre_and_scale(trainers, enumerate(_stream(config.batch_size)(0)))  # the decoder bias starts at the mean
    kind = {"batchtopk": sae_lens.BatchTopKTrainingSAE, "jumprelu": sae_lens.JumpReLUTrainingSAE}[architecture]
    saes = {site: kind(trainer.sae.cfg) for site, trainer in trainers.items()}
    for site, trainer in trainers.items():
        saes[site].load_state_dict(trainer.sae.state_dict())
    schedule = replace(trainers["a.resid_pre.1"].cfg, n_batches_for_norm_estimate=SAMPLE_BATCHES)
    steps = [*range(SAMPLE_BATCHES), *range(config.steps)]
    theirs = MultiSAETrainer(
        cfg=schedule,
        saes=saes,
        hook_names={site: site for site in WIDTHS},
        data_provider=(_batch(step, config.batch_size) for step in steps),
    ).fit()
    ours, theirs = _weights(ours), _weights(theirs)
    if architecture == "batchtopk":  # the only difference, tested below
        for site in WIDTHS:
            assert ours.pop((site, "topk_threshold")) != theirs.pop((site, "topk_threshold"))
    assert ours.keys() == theirs.keys()
    for key, weight in theirs.items():
        assert torch.allclose(ours[key], weight, atol=1e-5), key


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka"])
def test_a_short_run_has_k_active_features_on_average(architecture):
    """After 30 steps SAELens's running mean of the threshold is still near its initial value, zero."""
    saes = train_sites(_both(replace(SHORT, architecture=architecture, batch_size=256)), WIDTHS, _stream(256))
    for site, sae in saes.items():
        held_out = [_batch(10**6 + step, 256)[site] for step in range(8)]
        assert abs(measure(to_dictionary(sae), held_out).l0 - SHORT.k) < 0.25


class _Stop(Exception):
    pass


def _stop_at(last):
    def change(step, batch):
        if step == last:
            raise _Stop
        return batch

    return change


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(architecture, tmp_path):
    config = replace(SHORT, architecture=architecture)
    whole = train_sites(_both(config), WIDTHS, _stream(config.batch_size))

    starts = []

    def stream(start, change=lambda step, batch: batch):
        starts.append(start)
        return _stream(config.batch_size, change=change)(start)

    for last in (17, 26):  # at the constant learning rate and during its decay
        with pytest.raises(_Stop):
            train_sites(
                _both(config),
                WIDTHS,
                lambda start, last=last: stream(start, _stop_at(last)),
                snapshots=tmp_path,
                snapshot_every=5,
            )
    (tmp_path / ".partial-step-00000030-dead").mkdir()  # left by a killed writer
    torch.manual_seed(99)  # the caller's random state does not matter
    resumed = train_sites(_both(config), WIDTHS, stream, snapshots=tmp_path, snapshot_every=5)

    assert starts[:4] == [0, 0, 15, 25]  # any further batches are read to set thresholds
    _assert_equal(_weights(resumed), _weights(whole))
    for site in WIDTHS:
        assert resumed[site].cfg.to_dict() == whole[site].cfg.to_dict()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000030"]
    again = train_sites(_both(config), WIDTHS, stream, snapshots=tmp_path, snapshot_every=5)
    _assert_equal(_weights(again), _weights(whole))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(short, tmp_path):
    def die(step, batch):
        if step == 23:
            os.kill(os.getpid(), signal.SIGKILL)
        return batch

    torch.set_num_threads(1)  # a forked child has no thread pool
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork in a process with threads
        child = os.fork()
    if child == 0:
        try:
            train_sites(
                _both(SHORT), WIDTHS, _stream(SHORT.batch_size, change=die), snapshots=tmp_path, snapshot_every=5
            )
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000020"]
    resumed = train_sites(_both(SHORT), WIDTHS, _stream(SHORT.batch_size), snapshots=tmp_path, snapshot_every=5)
    _assert_equal(_weights(resumed), short)


def test_the_result_depends_only_on_the_seed_and_the_callers_random_state_is_unchanged(short):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    again = _weights(train_sites(_both(SHORT), WIDTHS, _stream(SHORT.batch_size)))
    assert torch.equal(torch.get_rng_state(), before)
    _assert_equal(again, short)
    other = _weights(train_sites(_both(replace(SHORT, seed=1)), WIDTHS, _stream(SHORT.batch_size)))
    assert not torch.equal(other["a.resid_pre.1", "W_dec"], short["a.resid_pre.1", "W_dec"])


@pytest.mark.parametrize(
    "architecture", [pytest.param(one, marks=[pytest.mark.slow] * (one != "topk")) for one in ARCHITECTURES]
)
def test_steps_shared_by_threads_are_reproducible(architecture):
    """In batches large enough to be shared; torch adds up the gradient of indexing in the order of the threads."""
    config = SAEConfig(architecture=architecture, features=256, k=40, steps=4, batch_size=1024)
    batches = [{"site": tiny.noise(1024, 32, seed=step)} for step in range(config.steps)]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first, *others = (
            _weights(train_sites({"site": config}, {"site": 32}, lambda start: iter(batches[start:]))) for _ in range(3)
        )
    finally:
        torch.set_num_threads(threads)
    for other in others:
        _assert_equal(other, first)


def test_sites_may_differ_in_features_rate_and_architecture():
    configs = {
        "a.resid_pre.1": SHORT,
        "b/resid_pre.2": replace(SHORT, features=40, lr=1e-3, architecture="topk"),
    }
    saes = train_sites(configs, WIDTHS, _stream(SHORT.batch_size))
    alone = train_sites({"b/resid_pre.2": configs["b/resid_pre.2"]}, {"b/resid_pre.2": 12}, _stream(SHORT.batch_size))
    _assert_equal(_weights({"b/resid_pre.2": saes["b/resid_pre.2"]}), _weights(alone))


def test_the_scale_of_the_activations_is_folded_in():
    """Activations 1000 times as large give codes 1000 times as large."""
    config = replace(SHORT, steps=20)
    factor = 1024.0  # a power of two, so there is no rounding
    plain = train_sites(_both(config), WIDTHS, _stream(config.batch_size))
    scaled = train_sites(
        _both(config),
        WIDTHS,
        _stream(config.batch_size, change=lambda step, batch: {site: x * factor for site, x in batch.items()}),
    )
    x = _batch(5, 50)["a.resid_pre.1"]
    torch.testing.assert_close(
        to_dictionary(scaled["a.resid_pre.1"])(x * factor),
        to_dictionary(plain["a.resid_pre.1"])(x) * factor,
        rtol=1e-4,
        atol=1e-3,
    )


def test_half_precision_activations_are_trained_on_in_float32():
    config = replace(SHORT, steps=10)
    half = _stream(config.batch_size, change=lambda step, batch: {site: x.bfloat16() for site, x in batch.items()})
    rounded = _stream(
        config.batch_size, change=lambda step, batch: {site: x.bfloat16().float() for site, x in batch.items()}
    )
    got, expected = train_sites(_both(config), WIDTHS, half), train_sites(_both(config), WIDTHS, rounded)
    _assert_equal(_weights(got), _weights(expected))
    assert got["a.resid_pre.1"].W_dec.dtype == torch.float32


def test_training_reports_only_through_the_callback(capfd):
    reports = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_sites(
            _both(replace(SHORT, steps=25)),
            WIDTHS,
            _stream(SHORT.batch_size),
            progress=lambda step, steps, sites: reports.append((step, steps, sites)),
        )
    assert capfd.readouterr() == ("", "")
    assert [(step, steps) for step, steps, _ in reports] == [(10, 25), (20, 25), (25, 25)]
    assert {site: sorted(values) for site, values in reports[0][2].items()} == {
        site: ["dead", "fvu", "loss"] for site in WIDTHS
    }
    assert reports[-1][2]["a.resid_pre.1"]["fvu"] < reports[0][2]["a.resid_pre.1"]["fvu"]


def _with(site, replacement):
    return lambda step, batch: {**batch, site: replacement(batch[site])} if step == 3 else batch


def _nan(x):
    return x.clone().fill_(float("nan"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda step, batch: {"a.resid_pre.1": batch["a.resid_pre.1"]}, "batch 0 must hold every site; b/resid_pre.2"),
        (_with("b/resid_pre.2", lambda x: x[:-1]), r"batch 3 of b/resid_pre.2 must be \(64, 12\); got \(63, 12\)"),
        (_with("a.resid_pre.1", lambda x: x[:, :8]), r"batch 3 of a.resid_pre.1 must be \(64, 16\); got \(64, 8\)"),
        (_with("a.resid_pre.1", _nan), "must be finite; batch 3 of a.resid_pre.1 is not"),
        (lambda step, batch: {site: x * 0 for site, x in batch.items()}, "must have a norm; those of .* are zero"),
    ],
)
def test_a_bad_batch_is_refused_by_name(change, message):
    with pytest.raises(SAEError, match=message):
        train_sites(_both(SHORT), WIDTHS, _stream(SHORT.batch_size, change=change))


@pytest.mark.parametrize("stop", [0, 3, 29])
def test_a_stream_that_ends_early_is_refused(stop):
    with pytest.raises(SAEError, match=rf"needs 30 batches of 64 tokens; the stream ended after {stop}\. Give more"):
        train_sites(_both(SHORT), WIDTHS, _stream(SHORT.batch_size, stop=stop))


def test_sites_that_cannot_be_trained_in_one_pass_are_refused():
    configs = {"a.resid_pre.1": SHORT, "b/resid_pre.2": replace(SHORT, steps=31)}
    with pytest.raises(SAEError, match=r"agree on steps and batch_size; got a.resid_pre.1: 30 × 64, b/resid_pre.2: 31"):
        train_sites(configs, WIDTHS, _stream(SHORT.batch_size))
    with pytest.raises(SAEError, match=r"each site needs a config and a width"):
        train_sites({"a.resid_pre.1": SHORT}, WIDTHS, _stream(SHORT.batch_size))
    with pytest.raises(SAEError, match=r"features must be at least the width, 16 at a.resid_pre.1; got 15"):
        train_sites(_both(replace(SHORT, features=15)), WIDTHS, _stream(SHORT.batch_size))


def test_the_snapshot_of_another_run_and_a_broken_one_are_refused(tmp_path):
    config = replace(SHORT, steps=5)
    train_sites(_both(config), WIDTHS, _stream(config.batch_size), snapshots=tmp_path)
    with pytest.raises(SAEError, match=r"belongs to other sites, settings or another version. Delete it or"):
        train_sites(_both(replace(config, seed=1)), WIDTHS, _stream(config.batch_size), snapshots=tmp_path)

    weights = next(tmp_path.glob("step-*/site-1/sae_weights.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    with pytest.raises(DamagedSnapshot, match=r"cannot be read .*files are not as they were written"):
        train_sites(_both(config), WIDTHS, _stream(config.batch_size), snapshots=tmp_path)
    weights.write_bytes(whole[:100])
    with pytest.raises(SAEError, match=r"snapshot .*step-00000005 cannot be read .*Delete it to start again\.$"):
        train_sites(_both(config), WIDTHS, _stream(config.batch_size), snapshots=tmp_path)


def test_a_snapshot_that_would_run_code_is_refused(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "exploded"),))

    config = replace(SHORT, steps=5)
    train_sites(_both(config), WIDTHS, _stream(config.batch_size), snapshots=tmp_path / "snapshots")
    state = next((tmp_path / "snapshots").glob("step-*/site-0/trainer_state.pt"))
    torch.save({"optimizer": Bomb()}, state)
    run = state.parent.parent / "run.json"
    run.write_text(json.dumps({**json.loads(run.read_text()), "sums": checksums(run.parent, "run.json")}))
    with pytest.raises(SAEError, match="cannot be read"):
        train_sites(_both(config), WIDTHS, _stream(config.batch_size), snapshots=tmp_path / "snapshots")
    assert not (tmp_path / "exploded").exists()
