"""A sweep on a local Ray cluster of two workers gives the results of a serial sweep, also when a worker is killed."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

import tiny
from jobs import write_text
from stitch.errors import StitchError, UsageError
from stitch.jobs import sweep_tasks
from stitch.jobs.cluster import connected
from stitch.jobs.sweep import sweep


@pytest.fixture(scope="module")
def ray():
    found = pytest.importorskip("ray")
    found.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield found
    found.shutdown()


def test_without_ray_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(StitchError, match=r"pip install '\.\[cluster\]'"), connected("auto"):
        pass


@pytest.mark.slow
def test_an_address_without_a_cluster_is_refused(monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_gcs_rpc_server_connect_timeout_s", "1")
    with pytest.raises(UsageError, match="cluster must be the address"), connected("nowhere"):
        pass


@pytest.mark.slow
def test_results_come_in_order_and_a_workers_error_is_raised_unchanged(ray):
    def task(number: int, wrong: bool) -> int:
        time.sleep(0.2 if number == 0 else 0)
        if wrong:
            raise StitchError("activations must be finite; got NaN.")
        return number * number

    with connected("local") as cluster:
        assert cluster.workers == 2
        assert cluster.run(task, [(number, False) for number in range(5)]) == [0, 1, 4, 9, 16]
        with pytest.raises(StitchError, match="got NaN"):
            cluster.run(task, [(number, number == 3) for number in range(5)])
    assert ray.is_initialized()  # a cluster that this package did not start stays up


@pytest.mark.slow
def test_a_worker_that_always_dies_ends_the_run(ray):
    def die() -> None:
        os._exit(1)

    with connected("local") as cluster, pytest.raises(StitchError, match="worker died 4 times"):
        cluster.run(die, [()])


@pytest.mark.slow
def test_with_a_killed_worker_a_sweep_equals_a_serial_one(ray, tmp_path, monkeypatch):
    monkeypatch.setattr("stitch.jobs.sweep.draw_sweep", lambda report, path: None)
    donors = [
        str(tiny.save(tmp_path / family, family, seed=seed, num_hidden_layers=3))
        for seed, family in enumerate(("gpt2", "qwen3"))
    ]
    asked = dict(text=str(write_text(tmp_path)), tokens=4096, context=32, memory=2**28, device="cpu")
    serial, _ = sweep(*donors, tmp_path / "serial", **asked)
    killed: list[int] = []
    watcher = threading.Thread(target=kill_one, args=(sweep_tasks._score.__name__, killed), daemon=True)
    watcher.start()
    spread, _ = sweep(*donors, tmp_path / "spread", cluster="local", **asked)
    watcher.join(1)
    assert len(killed) == 1
    assert spread == serial


def kill_one(task: str, killed: list[int]) -> None:
    """Kills the first worker seen at `task`, half a second after its start."""
    while not killed:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                title = (folder / "cmdline").read_bytes()
            except OSError:  # the worker has ended
                continue
            if title.startswith(b"ray::") and task.encode() in title:
                time.sleep(0.5)
                os.kill(int(folder.name), signal.SIGKILL)
                killed.append(int(folder.name))
                return
        time.sleep(0.05)
