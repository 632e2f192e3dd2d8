"""Commands that ask the Hub, run against the double while it fails, and what must hold of them whatever happens."""

import logging
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
from safetensors.numpy import save

from hub_double import Fault, HubDouble
from sae.errors import SAEError
from stitch.errors import StitchError
from stitch.hub import patience

OLD = {"config.json": b"{}", "model.safetensors": b"old"}
SILENCE = 0.4  # instead of a minute
EVER = 10_000


def weights(seed: int, values: int = 40_000) -> bytes:
    return save({"w": numpy.random.default_rng(seed).standard_normal(values, dtype=numpy.float32)})


MODEL = {
    "README.md": b"---\nlicense: apache-2.0\n---\n# A model\n",
    "config.json": b'{"model_type": "gpt2"}',
    "model-00001-of-00002.safetensors": weights(1),  # 160 kB, uploaded in three parts
    "model-00002-of-00002.safetensors": weights(2, values=100),
    "model.safetensors.index.json": b'{"weight_map": {}}',
    "tokenizer.json": b"{}",
}
ROWS = b'{"text": "one two"}\n{"text": "three"}\n'
SAE_CONFIG = (
    b'{"architecture": "standard", "d_in": 4, "d_sae": 8, "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": true, '
    b'"normalize_activations": "none", "reshape_activations": "none", "metadata": {"model_name": "x", "hook_name": "y"}}'
)
SAE_WEIGHTS = save(
    {
        name: numpy.random.default_rng(0).standard_normal(shape).astype(numpy.float32)
        for name, shape in {"W_enc": (4, 8), "W_dec": (8, 4), "b_enc": (8,), "b_dec": (4,)}.items()
    }
)

FAULTS = {
    "401, the token has expired": Fault(401, "Invalid credentials in Authorization header"),
    "403, gated": Fault(403, "Access to model x is restricted", "GatedRepo"),
    "403, no permission": Fault(403, "You don't have the required permissions to perform this action"),
    "403, quota exceeded": Fault(403, "Private repository storage limit reached, please upgrade your plan"),
    "404": Fault(404, "Repository not found", "RepoNotFound"),
    "409": Fault(409, "Cannot create repo: another conflicting operation is in progress"),
    "412": Fault(412, "A commit has happened since. Please refresh and try again."),
    "429, Retry-After: 30": Fault(429, "Too many requests", headers={"Retry-After": "30"}),
    "429, Retry-After: 7200": Fault(429, "Too many requests", headers={"Retry-After": "7200"}),
    "500": Fault(500, "Internal error"),
    "503": Fault(503, "Service unavailable"),
    "cut in the middle": Fault(cut="half"),
    "cut before the answer": Fault(cut="after"),
    "silent": Fault(silent=2 * SILENCE),
}


@dataclass(frozen=True)
class Outcome:
    error: str | None  # None: it was done
    waited: float  # seconds, by the clock that does not run
    requests: int


class Clock:
    """Waits without waiting, and knows how long."""

    def __init__(self):
        self.waited = 0.0

    def sleep(self, seconds: float) -> None:
        self.waited += seconds

    def monotonic(self) -> float:
        return REAL_MONOTONIC() + self.waited


REAL_MONOTONIC = time.monotonic


@dataclass(frozen=True)
class Command:
    """Something that asks the Hub: `before` makes what it needs, `run` does it, `check` looks at what came of it."""

    before: Callable[[HubDouble, str], Any]
    run: Callable[[str, Path], Any]
    check: Callable[[HubDouble, str, Any, bool], None]  # the last: whether it was done


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def download(repo: str, _: Path) -> dict[str, bytes]:
    from stitch.models.hub import download

    return contents(download(repo)[0])


def load_sae(repo: str, _: Path) -> dict[str, Any]:
    from stitch.models.published_saes import load

    return load(f"{repo}:layer").state_dict()


def read_text(repo: str, _: Path) -> list:
    from stitch.text.documents import read

    return [text for _, text in read(repo)]


def push(repo: str, folder: Path) -> str:
    from stitch.models.hub import push

    return push(folder, repo)


def whole_model(hub: HubDouble, repo: str, result: Any, done: bool) -> None:
    assert not done or result == MODEL


def whole_sae(hub: HubDouble, repo: str, result: Any, done: bool) -> None:
    assert not done or set(result) == {"W_enc", "W_dec", "b_enc", "b_dec"}


def all_rows(hub: HubDouble, repo: str, result: Any, done: bool) -> None:
    assert not done or result == ["one two", "three"]


def old_or_new(hub: HubDouble, repo: str, result: Any, done: bool) -> None:
    found = hub.files(repo)
    assert found in (OLD, MODEL), sorted(found)
    assert len(hub.commits(repo)) == (1 if found == OLD else 2)
    assert not done or found == MODEL


COMMANDS = {
    "load a model": Command(lambda hub, repo: hub.add(repo, MODEL), download, whole_model),
    "load an SAE": Command(
        lambda hub, repo: hub.add(repo, {"layer/cfg.json": SAE_CONFIG, "layer/sae_weights.safetensors": SAE_WEIGHTS}),
        load_sae,
        whole_sae,
    ),
    "read a dataset": Command(lambda hub, repo: hub.add(repo, {"train.jsonl": ROWS}), read_text, all_rows),
    "push": Command(lambda hub, repo: hub.add(repo, OLD), push, old_or_new),
}


class Trial:
    """Runs commands against `hub`, each with a repository and a cache of its own."""

    def __init__(self, hub: HubDouble, folder: Path, patch: pytest.MonkeyPatch):
        from huggingface_hub import constants

        self.hub, self.folder, self.patch, self.number = hub, folder, patch, 0
        self.clock = Clock()
        self.model = folder / "model"
        for name, content in MODEL.items():
            (self.model / name).parent.mkdir(parents=True, exist_ok=True)
            (self.model / name).write_bytes(content)
        patch.setenv("HF_TOKEN", hub.token)
        patch.setattr(time, "sleep", self.clock.sleep)
        patch.setattr(patience, "time", SimpleNamespace(sleep=self.clock.sleep, monotonic=self.clock.monotonic))
        patch.setattr(patience, "SILENCE", SILENCE)
        for name in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
            patch.setattr(constants, name, SILENCE)
        patch.setattr("huggingface_hub.file_download._ETAG_RETRY_TIMEOUT", SILENCE)
        if "datasets" in sys.modules:
            patch.setattr("datasets.config.HF_ENDPOINT", hub.url)
            patch.setattr("datasets.config.HF_HUB_OFFLINE", False)  # as it was when datasets was imported

    def __call__(self, name: str, fault: Fault | None, at: int = 1, times: int = 1) -> Outcome:
        """Runs the command `name` while requests number `at` and following fail, and asserts what must hold."""
        command, self.number = COMMANDS[name], self.number + 1
        repo = f"user/x{self.number}"
        self.patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(self.folder / f"cache-{self.number}"))
        self.hub.forget(MODEL.values())
        command.before(self.hub, repo)
        self.clock.waited, result, error, failure = 0.0, None, None, None
        with recorded_logs() as logged:
            # A server that repeats the token in what it says.
            self.hub.fail(fault and replace(fault, message=f"{fault.message} {self.hub.token}"), at, times)
            try:
                result = command.run(repo, self.model)
            except (StitchError, SAEError) as caught:
                error, failure = str(caught), caught
            requests = self.hub.asked
            self.hub.fail(None)
        if failure is not None:
            assert "\n" not in str(failure) and len(str(failure)) < 400, failure
            assert failure.exit_code in (1, 2)
            logged += traceback.format_exception(failure)
        leaks = [line for line in logged if self.hub.token in line]
        assert not leaks, leaks
        command.check(self.hub, repo, result, error is None)
        if error is not None:  # what failed has left nothing that would be taken for the whole
            forget_listings()
            command.check(self.hub, repo, command.run(repo, self.model), True)
        return Outcome(error and re.sub(r"user/x\d+(:layer)?", "REPO", error), self.clock.waited, requests)


def forget_listings() -> None:
    """Of datasets: its client remembers in a process that there was no such file."""
    if "datasets" in sys.modules:
        from huggingface_hub import HfFileSystem

        HfFileSystem.clear_instance_cache()


@contextmanager
def recorded_logs() -> Iterator[list[str]]:
    lines: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler = Handler()
    loggers = [logging.getLogger(), logging.getLogger("huggingface_hub")]
    for one in loggers:
        one.addHandler(handler)
    try:
        yield lines
    finally:
        for one in loggers:
            one.removeHandler(handler)
