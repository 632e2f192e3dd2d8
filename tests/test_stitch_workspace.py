import errno
from pathlib import Path

import pytest

from stitch.errors import StitchError, UsageError
from stitch.files.workspace import short_name, workspace


def interrupted(out: Path, request: dict) -> Path:
    """A workspace with one file in it, as Ctrl-C leaves it."""
    place = []

    def run() -> None:
        with workspace(out, request, resume=False) as work:
            place.append(work)
            (work / "shard").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    return place[0]


def test_success_leaves_no_workspace(tmp_path: Path):
    with workspace(tmp_path / "out", {"seed": 0}, resume=False) as work:
        (work / "shard").write_text("x")
    assert not list(tmp_path.iterdir())


def test_failure_leaves_no_workspace_and_reports_the_reason(tmp_path: Path):
    with pytest.raises(ValueError, match="wrong"), workspace(tmp_path / "out", {}, resume=False):
        raise ValueError("wrong")
    with (
        pytest.raises(StitchError, match=r"No space left on device\. Free space"),
        workspace(tmp_path / "out", {}, False),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_an_interrupt_keeps_the_workspace_for_resume(tmp_path: Path):
    interrupted(tmp_path / "out", {"seed": 0})
    with workspace(tmp_path / "out", {"seed": 0}, resume=True) as work:
        assert (work / "shard").read_text() == "x"


def test_resume_with_other_settings_is_refused_and_the_workspace_kept(tmp_path: Path):
    work = interrupted(tmp_path / "out", {"seed": 0, "k": 8})
    with pytest.raises(UsageError, match="seed differ"), workspace(tmp_path / "out", {"seed": 1, "k": 8}, resume=True):
        pass
    assert work.exists()


def test_without_resume_the_old_workspace_is_deleted(tmp_path: Path):
    interrupted(tmp_path / "out", {})
    with workspace(tmp_path / "out", {}, resume=False) as work:
        assert not (work / "shard").exists()


def test_an_unwritable_folder_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StitchError, match="out must be writable"), workspace(tmp_path / "file" / "out", {}, False):
        pass


@pytest.mark.parametrize(
    "model, name", [("demo:gpt2", "demo-gpt2"), ("org/model", "model"), ("folder/model/", "model")]
)
def test_short_names_are_one_part_of_a_path(model: str, name: str):
    assert short_name(model) == name
