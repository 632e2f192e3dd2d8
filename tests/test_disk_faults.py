"""Whichever step of writing fails: the old output is intact, no half-written folder looks whole, and the run ends in one line."""

import errno
import io
import os
import shutil
from pathlib import Path

import pytest

from faults import ERRORS, Disk, content_of, failing_disk, old_output
from stitch.errors import DiskError, StitchError
from stitch.files.durable import replacing
from stitch.files.folders import to_json
from stitch.files.job import Job, run
from stitch.files.left import left_in
from stitch.files.unfinished import work_folder


def make(scratch: Path, output: Path) -> dict:
    """A job that writes as the real ones do."""
    (scratch / "fit").mkdir(exist_ok=True)
    with replacing(scratch / "fit" / "shard") as temporary:
        temporary.write_bytes(b"x" * 20_000)
    output.mkdir()
    shutil.copyfile(scratch / "fit" / "shard", output / "model.safetensors")
    (output / "README.md").write_text("a card")
    (output / "report.json").write_bytes(to_json({"provenance": {"settings": {"seed": 0}}}))
    return {}


def steps_of(tmp_path: Path, request: dict) -> int:
    (tmp_path / "counted").mkdir()
    with failing_disk(Disk(tmp_path / "counted")) as disk:
        run("join", lambda: Job(make=make, request=request), tmp_path / "counted" / "out")
    return disk.steps


@pytest.mark.parametrize("request_", [{"seed": 0}, {}], ids=["resumable", "other"])
@pytest.mark.parametrize("of", ERRORS, ids=errno.errorcode.get)
def test_every_step_of_the_frame_may_fail(of: int, request_: dict, tmp_path: Path):
    steps = steps_of(tmp_path, request_)
    assert steps > 30
    failed = 0
    for number in range(1, steps + 1):
        place = tmp_path / str(number)
        out = place / "out"
        old = old_output(out)
        job = Job(make=make, request=request_)
        said = ""
        try:
            with failing_disk(Disk(place, number, of)):
                run("join", lambda job=job: job, out, overwrite=True)
        except StitchError as error:
            said = str(error)
        if said:
            failed += 1
            assert os.strerror(of) in said and "\n" not in said
            assert content_of(out) == old, number
        else:  # a step that the run does without, such as the note of its stage
            assert (out / "model.safetensors").stat().st_size == 20_000
        left = left_in(work_folder(out))
        assert left is None or request_, number
        assert [path.name for path in place.iterdir() if path != work_folder(out)] == ["out"]
        run("join", lambda job=job: job, out, overwrite=True, resume=bool(request_))  # nothing stands in the way
        assert [path.name for path in place.iterdir()] == ["out"] and (
            out / "model.safetensors"
        ).stat().st_size == 20_000
    assert failed > steps / 2


def test_a_first_output_that_fails_is_not_there(tmp_path: Path):
    for number in range(1, steps_of(tmp_path, {"seed": 0}) + 1):
        out = tmp_path / str(number) / "out"
        out.parent.mkdir()
        with failing_disk(Disk(out.parent, number)):
            try:
                run("join", lambda: Job(make=make, request={"seed": 0}), out)
            except StitchError:
                assert not out.exists(), number
            else:
                assert (out / "stitch.json").exists()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"), "the disk may be full"),
        (ValueError("Error while serializing: I/O error: No space (os error 28)"), os.strerror(errno.ENOSPC)),
    ],
    ids=["torch", "safetensors"],
)
def test_errors_of_libraries_are_those_of_the_disk(error: Exception, said: str, tmp_path: Path):
    def make(scratch: Path, output: Path) -> dict:
        raise error

    with pytest.raises(DiskError, match=f"failed: {said}. What is done is kept: free space and set `resume`"):
        run("join", lambda: Job(make=make, request={"seed": 0}), tmp_path / "out")
    assert left_in(tmp_path / ".out.partial") is not None


def test_the_layer_of_faults_fails_the_step_that_it_is_told(tmp_path: Path):
    def steps() -> None:
        (tmp_path / "folder").mkdir()
        (tmp_path / "text").write_text("x")
        (tmp_path / "text").replace(tmp_path / "renamed")

    for number, names in ((1, []), (2, ["folder"]), (3, ["folder", "text"]), (4, ["folder", "text"])):
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        with failing_disk(Disk(tmp_path, number, errno.EIO)), pytest.raises(OSError, match="Input/output error"):
            steps()
        assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert io.open is open  # as it was
