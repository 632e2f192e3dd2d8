"""Sweeps keep activations and use those of earlier runs, with the same bytes; joins find what sweeps have kept."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

import stitch
import tiny
from jobs import settings, write_text
from stitch.api.sweeps import Sweep
from stitch.files.store import Store
from stitch.jobs import sweep as job
from stitch.jobs.join import stitch as join

ASKED = dict(tokens=4096, context=32, memory="256M", device="cpu", quiet=True)


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("pair")
    models = {
        "gpt2": tiny.save(root / "gpt2", "gpt2", num_hidden_layers=2),
        "qwen3": tiny.save(root / "qwen3", "qwen3", seed=1, hidden_size=48, num_hidden_layers=2),
    }
    return {**{name: str(place) for name, place in models.items()}, "text": str(write_text(root))}


@pytest.fixture(scope="module")
def run(pair, tmp_path_factory) -> Callable[..., Sweep]:
    """Sweeps of this module share a cache."""
    root = tmp_path_factory.mktemp("sweeps")

    def swept(out: str, *models: str, **more) -> Sweep:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("STITCH_CACHE", str(root / "cache"))
            named = [pair[model] for model in models]
            return stitch.sweep(*named, text=pair["text"], out=root / out, **{**ASKED, **more})

    return swept


@pytest.fixture(scope="module")
def first(run) -> Sweep:
    return run("first", "gpt2", "qwen3")


def files(result: Sweep) -> dict[str, bytes]:
    found = {file.name: file.read_bytes() for file in result.folder.iterdir()}
    return {name: content for name, content in found.items() if name != "report.json"}


@pytest.mark.slow
def test_a_second_sweep_runs_no_text_through_the_models_and_gives_the_same_bytes(run, first, monkeypatch):
    plain = run("plain", "gpt2", "qwen3", cache_size=0)

    def forbidden(*arguments):
        raise AssertionError("activations were computed again")

    monkeypatch.setattr("stitch.activations.harvest.residuals", forbidden)
    again = run("again", "gpt2", "qwen3")
    assert first.report["cache"] == {
        "reused": {},
        "made": {"activations": 18},
    }  # three splits, three sites of each model
    assert again.report["cache"] == {"reused": {"activations": 18}, "made": {}} and plain.report["cache"] == {}
    assert "From the cache: 18 of 18 files of activations." in repr(again) and "From the cache" not in repr(first)
    assert files(plain) == files(first) == files(again)
    assert {**again.report, "cache": {}} == plain.report


def test_a_sweep_of_blocks_finds_what_a_sweep_of_pairs_has_kept(run, first):
    found = run("depth", "gpt2", depth=True, lengths=[1])
    assert found.report["cache"] == {"reused": {"activations": 9}, "made": {}}
    assert "From the cache: 9 of 9 files of activations." in repr(found)


@pytest.mark.slow
def test_a_join_finds_what_a_sweep_of_the_same_text_has_kept(pair, first, tmp_path):
    used = Store(first.folder.parent / "cache" / "store")
    asked = settings(pair["gpt2"], pair["qwen3"], pair["text"], layer=2, layer_b=1, brief=True, reference_steps=0)
    join(asked, tmp_path / "joined", store=used)
    assert used.reused["activations"] == 9 and "activations" not in used.missed


@pytest.mark.parametrize("models, more", [(("gpt2", "qwen3"), {}), (("gpt2",), {"depth": True, "lengths": [1]})])
def test_a_dry_run_counts_what_the_cache_has(models, more, pair, first, monkeypatch):
    monkeypatch.setattr("stitch.estimates.machine.LONG", 0.0)
    named = [pair[model] for model in models]

    def planned() -> dict:
        return stitch.estimate(stitch.sweep, *named, text=pair["text"], **more, **ASKED).report

    monkeypatch.setenv("STITCH_CACHE", str(first.folder.parent / "elsewhere"))
    before = planned()
    monkeypatch.setenv("STITCH_CACHE", str(first.folder.parent / "cache"))
    after = planned()
    files = {"of": 9 * len(models), "there": 9 * len(models)}
    assert after["cached"] == {"files of activations": files}
    assert before["cached"] == {"files of activations": {**files, "there": 0}}
    flops = [
        next(one["flops"] for one in report["stages"] if one["name"] == "activations") for report in (before, after)
    ]
    assert flops[0] > 0 == flops[1]


def test_on_a_cluster_nothing_is_kept(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "require_extra", lambda *given: None)
    monkeypatch.setattr(job, "connected", lambda *given, **more: nullcontext("workers"))
    monkeypatch.setattr(job, "harvest_on", lambda *given: None)

    def scored(workers, settings, cells, fit, held_out, reference, progress):
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "score_on", scored)
    store = Store(tmp_path / "store")
    with pytest.raises(KeyboardInterrupt):
        job.sweep(
            pair["gpt2"], pair["qwen3"], tmp_path / "out", text=pair["text"], tokens=4096, context=32, memory=2**28,
            device="cpu", cluster="auto", store=store,
        )  # fmt: skip
    assert [*Path(tmp_path / ".out.partial").rglob("*.safetensors")] and store.entries() == []
