"""An interrupted run's workspace is deleted by nobody but the run itself, or by who asks for just that."""

import errno
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import cli
from stitch.errors import Interrupted, StitchError, UsageError
from stitch.files.folders import appear
from stitch.files.job import Job, run
from stitch.files.left import left_in
from stitch.files.stages import entered
from stitch.files.workspace import short_name, workspace

SEED = {"seed": 0}


def stopped_by(error: BaseException, out: Path, request: dict | None, **options) -> Path:
    """A workspace with one file in it, in whose block `error` was raised."""
    place = []
    try:
        with workspace(out, "join", request, **options) as work:
            place.append(work)
            (work / "shard").write_text("x")
            entered("saes")
            raise error
    except type(error):
        pass
    except StitchError:
        assert isinstance(error, OSError)
    return place[0]


def interrupted(out: Path, request: dict | None = None) -> Path:
    """A workspace as Ctrl-C leaves it."""
    return stopped_by(KeyboardInterrupt(), out, SEED if request is None else request)


def make(scratch: Path, output: Path) -> dict:
    output.mkdir()
    (output / "report.json").write_text(json.dumps({"provenance": {"settings": SEED}}))
    return {}


def test_success_leaves_no_workspace(tmp_path: Path):
    with workspace(tmp_path / "out", "join", SEED) as work:
        (work / "shard").write_text("x")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_gone_on_with_is_removed_after_any_error(tmp_path: Path):
    for error in (ValueError("wrong"), KeyboardInterrupt(), OSError(errno.EIO, "Input/output error")):
        stopped_by(error, tmp_path / "out", None)
        assert not list(tmp_path.iterdir())
    with (
        pytest.raises(StitchError, match=r"No space left on device\. Free space or choose"),
        workspace(tmp_path / "out", "join"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_an_error_that_would_come_again_leaves_no_workspace(tmp_path: Path):
    stopped_by(StitchError("activations must be finite"), tmp_path / "out", SEED)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("out of memory"),
        SystemExit(1),
    ],
)
def test_what_may_not_come_again_keeps_the_workspace_for_resume(error: BaseException, tmp_path: Path):
    stopped_by(error, tmp_path / "out", SEED)
    with workspace(tmp_path / "out", "join", SEED, resume=True) as work:
        assert (work / "shard").read_text() == "x"


def test_an_error_of_a_resumed_run_keeps_what_earlier_runs_made(tmp_path: Path):
    interrupted(tmp_path / "out")
    work = stopped_by(StitchError("the text cannot be read"), tmp_path / "out", SEED, resume=True)
    assert (work / "shard").exists()


def test_after_a_full_disk_the_message_says_that_work_is_kept(tmp_path: Path):
    with (
        pytest.raises(
            StitchError, match=r"No space left on device\. What is done is kept: free space and set `resume`"
        ),
        workspace(tmp_path / "out", "join", SEED),
        workspace(tmp_path / ".out.partial" / "seam", "join", SEED),  # as in a chain
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert left_in(tmp_path / ".out.partial") is not None


def test_an_interrupt_says_which_folder_is_kept(tmp_path: Path):
    with pytest.raises(Interrupted) as found, workspace(tmp_path / "out", "join", SEED):
        raise KeyboardInterrupt
    assert found.value.kept == tmp_path / ".out.partial" and "`resume` goes on" in str(found.value)


def refused(out: Path, why: str, command: str = "join", request: dict | None = None, **options) -> None:
    """The workspace is as it was after this run was refused, in the quick look and in the frame itself."""
    before = {path: path.read_bytes() for path in out.parent.rglob("*") if path.is_file()}

    def forbidden() -> Job:
        raise AssertionError("a model was loaded")

    job = Job(make=make, request=SEED if request is None else request)
    plans: list[Callable[[], Job]] = [lambda: job]
    if "resume" not in options:
        plans.append(forbidden)
    for plan in plans:
        with pytest.raises(UsageError, match=why):
            run(command, plan, out, **options)
    with pytest.raises(UsageError, match=why):
        run(command, lambda: Job(make=make, request=job.request, name=str(out)), None, **options)
    assert {path: path.read_bytes() for path in out.parent.rglob("*") if path.is_file()} == before


def test_without_resume_the_workspace_is_kept_and_described(tmp_path: Path):
    interrupted(tmp_path / "out")
    words = r"\.out\.partial holds an interrupted `stitch join` \(stage saes, begun 0 min ago, \d+ B\): set `resume` to go on or"
    refused(tmp_path / "out", words)
    refused(tmp_path / "out", words, request={"seed": 1})
    refused(tmp_path / "out", words, overwrite=True)
    interrupted(tmp_path / "sub" / "out")


def test_overwrite_replaces_the_output_and_not_the_workspace(tmp_path: Path):
    run("join", lambda: Job(make=make, request=SEED), tmp_path / "out")
    interrupted(tmp_path / "out")
    refused(tmp_path / "out", "holds an interrupted", overwrite=True)
    refused(tmp_path / "out", "out must not exist", resume=True)
    run("join", lambda: Job(make=make, request=SEED), tmp_path / "out", overwrite=True, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_another_request_is_refused_also_with_resume(tmp_path: Path):
    interrupted(tmp_path / "out", {"seed": 0, "k": 8})
    refused(tmp_path / "out", "seed differ: give the same settings", request={"seed": 1, "k": 8}, resume=True)


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"restart": True}])
def test_another_command_is_refused_in_any_case(options: dict, tmp_path: Path):
    interrupted(tmp_path / "out")
    refused(
        tmp_path / "out", "interrupted `stitch join`.*: go on with that command, choose another", "sweep", **options
    )
    refused(tmp_path / "out", "remove it by `stitch workspace clean", "convert heads", request={}, **options)


def test_a_copy_that_is_saved_there_is_refused(tmp_path: Path):
    work = interrupted(tmp_path / "out")
    with pytest.raises(UsageError, match="holds an interrupted `stitch join`"):
        appear(tmp_path / "out", lambda folder: None, "save")
    assert (work / "shard").exists()


def test_restart_begins_again(tmp_path: Path):
    interrupted(tmp_path / "out")
    with workspace(tmp_path / "out", "join", {"seed": 1}, restart=True) as work:
        assert not (work / "shard").exists()
        assert left_in(work).request == {"seed": 1}
    with pytest.raises(UsageError, match="`resume` and `restart` do not go together"):
        run("join", lambda: Job(make=make), tmp_path / "out", resume=True, restart=True)


def test_a_workspace_of_an_earlier_version_is_kept_as_well(tmp_path: Path):
    work = tmp_path / ".out.partial"
    work.mkdir()
    (work / "request.json").write_text(json.dumps(SEED))
    (work / "shard").write_text("x")
    refused(tmp_path / "out", r"holds an interrupted run \(begun")
    with workspace(tmp_path / "out", "join", SEED, resume=True):
        assert (work / "shard").exists()


def test_what_a_killed_command_left_that_cannot_go_on_is_no_obstacle(tmp_path: Path):
    work = tmp_path / ".out.partial"
    work.mkdir()
    (work / "run.json").write_text('{"command": "convert heads", "began": 0, "stage": ""}')
    (work / "request.json").write_text("{}")
    (work / "shard").write_text("x")
    run("convert heads", lambda: Job(make=make), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_was_moved_away_is_put_back_when_a_run_fails(tmp_path: Path):
    out = tmp_path / "out"
    run("convert heads", lambda: Job(make=make), out)

    def killed_between_two_renames(scratch: Path, output: Path) -> dict:
        out.rename(scratch / "replaced")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("convert heads", lambda: Job(make=killed_between_two_renames), out, overwrite=True)
    assert (out / "report.json").exists() and [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    "words, option",
    [
        (("join", "a", "b", "--layer", "3"), "set --resume to go on or --restart to begin again."),
        (("a", "b", "--layre", "3"), ""),
        (("join", "a", "b", "--layer", "3", "--overwrite"), "set --resume"),
        (("sweep", "a", "b"), "go on with that command, choose another --out, or remove it by `stitch workspace clean"),
        (("convert", "heads", "a", "--kv-heads", "1"), "choose another --out"),
    ],
)
def test_a_mistyped_command_deletes_no_interrupted_run(words: tuple[str, ...], option: str, tmp_path: Path):
    work = interrupted(tmp_path / "out")
    done = CliRunner().invoke(cli.app, [*words, "--out", str(tmp_path / "out")])
    assert done.exit_code == 2 and option in done.stderr and (work / "shard").exists()


def test_an_unwritable_folder_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StitchError, match="out must be writable"), workspace(tmp_path / "file" / "out", "join", {}):
        pass


@pytest.mark.parametrize(
    "model, name", [("demo:gpt2", "demo-gpt2"), ("org/model", "model"), ("folder/model/", "model")]
)
def test_short_names_are_one_part_of_a_path(model: str, name: str):
    assert short_name(model) == name
