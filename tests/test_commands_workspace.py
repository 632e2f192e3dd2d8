"""`stitch workspace`: what interrupted runs left is found again and removed, but nothing else is."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import cli
from stitch.files.left import read_json, write_json
from stitch.files.owner import owned
from stitch.files.registered import FORGOTTEN, registered
from stitch.files.stages import entered
from stitch.files.workspace import workspace


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("STITCH_CACHE", str(folder))
    return folder


def invoke(*words: str | Path):
    return CliRunner().invoke(cli.app, ["workspace", *map(str, words)])


def listed(*places: Path) -> list[dict]:
    return json.loads(invoke("list", "--json", *places).stdout)


def interrupted(out: Path, command: str = "join", days: float = 0, request: dict | None = None) -> Path:
    def steps() -> Iterator[Path]:
        with workspace(out, command, {"seed": 0} if request is None else request) as work:
            yield work

    run = steps()
    work = next(run)
    (work / "shard").write_bytes(b"x" * 5000)
    entered("saes")
    with pytest.raises(KeyboardInterrupt):
        run.throw(KeyboardInterrupt())
    if days and (said := read_json(work / "run.json")):
        write_json(work / "run.json", {**said, "began": time.time() - days * 24 * 3600})
    return work


def test_workspaces_are_listed_with_command_stage_age_and_size(tmp_path: Path):
    interrupted(tmp_path / "a", "sweep", days=12)
    interrupted(tmp_path / "b")
    with workspace(tmp_path / "c", "chain", {"seed": 0}):
        first, second, third = listed()
        shown = invoke("list").stdout
        assert "processes work in 1" in invoke("size").stdout
    assert (first["command"], first["pid"], first["out"]) == ("chain", os.getpid(), str(tmp_path / "c"))
    assert (second["command"], second["pid"], second["stage"]) == ("join", None, "saes")
    assert third["folder"] == str(tmp_path / ".a.partial") and 5000 < third["bytes"] < 6000
    assert third["began"] == pytest.approx(time.time() - 12 * 24 * 3600, abs=60)
    for word in ("stitch sweep", "12 days", "interrupted", f"runs, process {os.getpid()}", "KiB"):
        assert word in shown
    assert f"\n{tmp_path / '.a.partial'}\n" in shown
    assert invoke("size").stdout.startswith("2 workspaces, ")  # that of the run which ended well is gone


def test_a_folder_that_was_deleted_or_moved_is_not_listed_and_works_where_it_is(tmp_path: Path, cache: Path):
    deleted, moved = interrupted(tmp_path / "a"), interrupted(tmp_path / "b")
    shutil.rmtree(deleted)
    (tmp_path / "elsewhere").mkdir()
    moved.rename(tmp_path / "elsewhere" / ".b.partial")
    assert listed() == [] and not list((cache / "workspaces").iterdir())
    assert [one["out"] for one in listed(tmp_path / "elsewhere")] == [str(tmp_path / "elsewhere" / "b")]
    with workspace(tmp_path / "elsewhere" / "b", "join", {"seed": 0}, resume=True) as work:
        assert (work / "shard").exists()
        assert len(listed()) == 1  # registered again


def test_a_disk_that_is_not_there_is_remembered_for_a_while(tmp_path: Path, cache: Path):
    interrupted(tmp_path / "disk" / "out")
    (tmp_path / "disk").rename(tmp_path / "unplugged")
    assert listed() == []
    (tmp_path / "unplugged").rename(tmp_path / "disk")
    assert len(listed()) == 1
    (tmp_path / "disk").rename(tmp_path / "unplugged")
    for note in (cache / "workspaces").iterdir():
        os.utime(note, (0, time.time() - FORGOTTEN - 1))
    assert listed() == [] and not list((cache / "workspaces").iterdir())


def test_without_the_cache_they_are_found_beside_the_outputs(tmp_path: Path, cache: Path):
    work = interrupted(tmp_path / "a")
    shutil.rmtree(cache)
    assert listed() == [] and len(listed(tmp_path)) == len(listed(work)) == 1
    (cache / "workspaces").mkdir(parents=True)
    (cache / "workspaces" / "x.json").write_text("damaged")
    assert listed() == []


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path: Path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("STITCH_CACHE", str(tmp_path / "file"))
    assert interrupted(tmp_path / "a").exists() and registered() == []


def test_a_workspace_inside_another_is_not_listed(tmp_path: Path):
    with workspace(tmp_path / "out", "chain", {"seed": 0}) as work, workspace(work / "seam-1", "join", {"seed": 0}):
        assert [one["command"] for one in listed()] == ["chain"]


def test_clean_removes_what_is_chosen(tmp_path: Path):
    old, new, other = interrupted(tmp_path / "a", days=40), interrupted(tmp_path / "b"), interrupted(tmp_path / "c")
    assert "1 workspace removed" in invoke("clean", "--older-than", "30").stdout
    assert (old.exists(), new.exists(), other.exists()) == (False, True, True)
    assert invoke("clean", new).exit_code == 0 and not new.exists() and other.exists()
    assert invoke("clean", "--all").exit_code == 0 and not other.exists() and listed() == []
    for words in ((), ("--all", "--older-than", "3"), (other, "--all")):
        done = invoke("clean", *words)
        assert done.exit_code == 2 and "--all or --older-than" in done.stderr


def test_clean_leaves_what_runs_and_what_is_no_workspace(tmp_path: Path):
    work = interrupted(tmp_path / "a")
    with owned(work):
        done = invoke("clean", work)
        assert done.exit_code == 2 and f"process {os.getpid()} on" in done.stderr
        assert "0 workspaces removed" in invoke("clean", "--all").stdout and (work / "shard").exists()
    for folder in (tmp_path / "thesis", tmp_path / ".thesis.partial"):
        folder.mkdir()
        (folder / "thesis.tex").touch()
        done = invoke("clean", folder)
        assert done.exit_code == 2 and "that a run left" in done.stderr and (folder / "thesis.tex").exists()
    assert len(listed(tmp_path)) == 1


def test_clean_puts_back_what_a_run_had_moved_away(tmp_path: Path):
    work = interrupted(tmp_path / "a")
    (work / "replaced").mkdir()
    (work / "replaced" / "report.json").touch()
    assert invoke("clean", work).exit_code == 0
    assert (tmp_path / "a" / "report.json").exists() and not work.exists()
