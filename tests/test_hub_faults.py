"""The Hub fails: what passes is asked again, the rest is one line without the token, and nothing is half done."""

import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

import hub_faults
from hub_double import Fault, HubDouble, hub  # noqa: F401 (a fixture)
from hub_faults import COMMANDS, EVER, FAULTS, MODEL, OLD, Trial
from stitch.errors import StitchError
from stitch.hub.patience import ATTEMPTS, patiently

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

TOLD = {
    "401, the token has expired": "the Hub refused the token: make a new one",
    "403, gated": "REPO is gated, and the account of this token has no access: accept its terms",
    "403, no permission": "the token has no permission for that on REPO",
    "403, quota exceeded": "the Hub has no room for REPO",
    "404": "REPO is neither a local folder nor on the Hub",
    "409": "somebody else is changing REPO",
    "412": "somebody else is changing REPO",
    "429, Retry-After: 30": "the Hub still answers 429 for REPO",
    "429, Retry-After: 7200": "the Hub answered 429 for REPO and asks to wait 7,200 seconds",
    "500": "the Hub answered 500 for REPO",
    "503": "the Hub answered 503 for REPO",
    "cut in the middle": "the connection to the Hub broke off at REPO",
    "cut before the answer": "the connection to the Hub broke off at REPO",
    "silent": "the Hub did not answer in time for REPO",
}
LASTING = {name for name in FAULTS if name.startswith(("401", "403", "404")) or name.endswith("7200")}


@pytest.fixture
def trial(hub, tmp_path, monkeypatch):  # noqa: F811
    return Trial(hub, tmp_path, monkeypatch)


@pytest.mark.parametrize("fault", sorted(set(FAULTS) - {"silent"}))
@pytest.mark.parametrize("command", ["load a model", "push"])
def test_a_fault_that_lasts_is_one_line_and_a_fault_that_passes_is_survived(trial, command, fault):
    requests = trial(command, None).requests
    for at in (1, requests // 2, requests - 1):
        lasting = trial(command, FAULTS[fault], at, EVER)
        assert lasting.error is not None and lasting.error.startswith(TOLD[fault])
        if fault not in LASTING:
            assert trial(command, FAULTS[fault], at).error is None


@pytest.mark.parametrize("at", [1, 3])
def test_a_silent_hub_is_given_up(trial, at):
    assert trial("push", FAULTS["silent"], at).error is None
    assert (trial("load a model", FAULTS["silent"], 1, EVER).error or "").startswith(TOLD["silent"])


def test_an_answer_that_is_lost_after_the_commit_is_not_a_second_commit(trial):
    """At every request of a push; `old_or_new` counts the commits."""
    requests = trial("push", None).requests
    assert all(trial("push", FAULTS["cut before the answer"], at).error is None for at in range(1, requests + 1))


def test_weights_that_somebody_else_pushes_meanwhile_do_not_stay_beside_ours(trial, monkeypatch):
    from huggingface_hub import HfApi

    preupload, theirs, repo = HfApi.preupload_lfs_files, [], "user/shared"

    def meanwhile(self, *arguments, **named):
        if not theirs:
            theirs.append(trial.hub.add(repo, {**OLD, "model-theirs.safetensors": b"theirs"}))
        return preupload(self, *arguments, **named)

    monkeypatch.setattr(HfApi, "preupload_lfs_files", meanwhile)
    trial.hub.add(repo, OLD)
    hub_faults.push(repo, trial.model)
    assert trial.hub.files(repo) == MODEL and len(trial.hub.commits(repo)) == 3


def test_retry_after_is_waited_for(trial):
    assert trial("push", FAULTS["429, Retry-After: 30"]).waited == 30
    assert trial("push", FAULTS["429, Retry-After: 30"], 1, EVER).waited == 30 * (ATTEMPTS - 1)
    limits = Fault(429, "Too many requests", headers={"RateLimit": '"api";r=0;t=17'})
    assert trial("push", limits).waited == 17


def test_published_saes_and_datasets_are_asked_for_again(hub, tmp_path, monkeypatch):  # noqa: F811
    import datasets  # noqa: F401 (its settings are changed)

    trial = Trial(hub, tmp_path, monkeypatch)
    for command in ("load an SAE", "read a dataset"):
        for at in (1, 2):
            assert trial(command, FAULTS["503"], at).error is None
            assert (trial(command, FAULTS["503"], at, EVER).error or "").startswith(TOLD["503"])
        assert (trial(command, FAULTS["401, the token has expired"], 2, EVER).error or "").startswith(
            "the Hub refused the token"
        )


def test_what_is_no_fault_of_the_hub_is_not_tried_again():
    calls = []

    def attempt() -> None:
        calls.append(1)
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        patiently(attempt)
    assert len(calls) == 1


def test_a_join_that_cannot_be_pushed_is_refused_before_it_begins(hub):  # noqa: F811
    import stitch

    for repo, told in (
        ("user/name", "there is none: run `hf auth login`"),
        ("name", "a repository is named user/name"),
    ):
        with pytest.raises(StitchError, match=told):
            stitch.join("no/model", "no/model", 1, push=repo)
    assert hub.requests == []


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_a_command_ends_with_one_line_and_without_the_token(tmp_path, debug):
    for name, content in MODEL.items():
        (tmp_path / name).write_bytes(content)
    with HubDouble(tmp_path / "double") as double:
        double.fail(Fault(401, f"User Access Token {double.token} is expired"), 1, EVER)
        done = subprocess.run(
            [sys.executable, "-m", "cli", "push", tmp_path, "user/name", *debug],
            env={**os.environ, "PYTHONPATH": str(ROOT), **double.environment(tmp_path / "cache")},
            capture_output=True, text=True, cwd=tmp_path,
        )  # fmt: skip
        assert double.token not in done.stdout + done.stderr
        assert not any(double.token.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert done.returncode == 1 and done.stdout == ""
    assert "the Hub refused the token: make a new one" in done.stderr
    assert ("Traceback" in done.stderr) == bool(debug) and (debug or done.stderr.count("\n") == 1)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_fault_at_every_request(hub, tmp_path, monkeypatch, command):  # noqa: F811
    """Prints the outcomes; those in docs/files.md are from here."""
    import datasets  # noqa: F401 (its settings are changed)

    trial = Trial(hub, tmp_path, monkeypatch)
    requests = trial(command, None).requests
    trial(command, None)
    for name, fault in FAULTS.items():
        for times in (1, EVER):
            outcomes, waits = defaultdict(list), [0.0]
            for at in range(1, requests + 1, 4 if fault.silent else 1):
                found = trial(command, fault, at, times)
                outcomes[found.error].append(at)
                waits.append(found.waited)
            often = "once" if times == 1 else "from then on"
            print(f"\n{command}; {name}, {often}; waits at most {max(waits):.0f} s", end="")
            for error, requested in outcomes.items():
                print(f"\n    {error or 'done'}: {len(requested)}", end="")
            if times == 1 and name not in LASTING and command != "read a dataset":
                assert list(outcomes) == [None]
