"""A folder may be replaced only if stitch wrote it and nothing else is in it."""

import json
import os
from pathlib import Path

import pytest

from stitch.errors import StitchError, UsageError
from stitch.files.folders import appear
from stitch.files.job import Job, run
from stitch.files.output import MARKER, check_output, files_in, mark


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def filled(folder: Path) -> None:
    write(folder, "config.json", "sae-a/cfg.json")


def refused(folder: Path, why: str) -> None:
    before = list(folder.rglob("*")) if folder.is_dir() else []
    with pytest.raises(UsageError, match=why):
        appear(folder, filled, "join", overwrite=True)
    assert list(folder.rglob("*")) == before if before else folder.exists()


def test_a_folder_written_by_stitch_is_replaced_completely(tmp_path: Path):
    out = tmp_path / "out"
    appear(out, lambda folder: write(folder, "README.md", "seam-1/report.json") and None, "chain")
    assert json.loads((out / MARKER).read_text())["files"] == ["README.md", "seam-1/report.json", MARKER]
    with pytest.raises(UsageError, match=r"out must not exist; .* does: choose another folder or set `overwrite`"):
        appear(out, filled, "join")
    appear(out, filled, "join", overwrite=True)
    assert files_in(tmp_path) == ["out/config.json", "out/sae-a/cfg.json", f"out/{MARKER}"]


@pytest.mark.parametrize("name", ["thesis.tex", ".git/HEAD", "sae-a/notes.txt"])
def test_a_folder_with_another_file_is_kept(name: str, tmp_path: Path):
    out = tmp_path / "out"
    appear(out, filled, "join")
    write(out, name)
    refused(out, f"also holds {name}, which stitch did not write")


def test_a_folder_without_a_marker_is_kept(tmp_path: Path):
    refused(write(tmp_path / "thesis", "thesis.tex", "report.json"), "also holds thesis.tex")
    refused(write(tmp_path / "model", "config.json", "model.safetensors"), f"holds config.json and no {MARKER}")
    other = write(tmp_path / "other", "data.csv")
    (other / MARKER).write_text('{"written_by": "knitting", "files": ["data.csv"]}')
    refused(other, "holds data.csv")


def test_an_empty_folder_is_replaced(tmp_path: Path):
    (tmp_path / "out").mkdir()
    appear(tmp_path / "out", filled, "join", overwrite=True)


def test_a_link_and_a_file_are_kept(tmp_path: Path):
    appear(tmp_path / "real", filled, "join")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    refused(tmp_path / "link", "is a link")
    (tmp_path / "file").write_text("mine")
    refused(tmp_path / "file", "is a file")
    (tmp_path / "real" / "sae-b").symlink_to(tmp_path)
    refused(tmp_path / "real", "also holds sae-b")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="out must not exist"):
        check_output(tmp_path / "dangling", overwrite=False)


def test_home_root_and_working_directory_are_kept(tmp_path: Path, monkeypatch):
    home = tmp_path / "people" / "me"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    mark(home, "join")
    for folder in (home, home.parent):
        with pytest.raises(UsageError, match="is or holds the home folder"):
            check_output(folder, overwrite=True)
    with pytest.raises(UsageError, match="is the root of a file system"):
        check_output(Path(os.sep), overwrite=True)
    monkeypatch.setenv("HOME", os.sep + "nowhere")
    with pytest.raises(UsageError, match="is or holds the folder that you work in"):
        check_output(tmp_path, overwrite=True)


@pytest.mark.parametrize(
    "names",
    [
        ("report.json", "README.md", "config.json", "model.safetensors", "modeling_composite.py", "sae-a/cfg.json",
         "sae-a/sae_weights.safetensors", "sae-b/provenance.json", "features.json", "seam-1/report.json"),
        ("graft.json", "config.json", "generation_config.json", "model-00001-of-00002.safetensors", "tokenizer.json"),
        ("synthesis.json", "certificate.json", "config.json", "tokenizer_config.json", "special_tokens_map.json"),
        ("tool.json", "readout.safetensors", "config.json", "vocab.json", "merges.txt"),
        ("report.json", "README.md", "sweep.png"),
    ],
)  # fmt: skip
def test_folders_written_before_the_marker_are_recognised(names: tuple[str, ...], tmp_path: Path):
    out = write(tmp_path / "out", *names)
    check_output(out, overwrite=True)
    write(out, "notes.txt")
    refused(out, "notes.txt")


def test_a_failure_at_the_last_moment_keeps_the_old_folder(tmp_path: Path, monkeypatch):
    out = tmp_path / "out"
    appear(out, lambda folder: write(folder, "old") and None, "join")
    replace = os.replace

    def fail(source, target) -> None:
        if Path(target) == out and Path(source).name == "new":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(StitchError, match="No space left"):
        appear(out, filled, "join", overwrite=True)
    assert files_in(tmp_path) == ["out/old", f"out/{MARKER}"]


def test_a_job_checks_first_and_publishes_once(tmp_path: Path):
    steps: list[str] = []

    def plan() -> Job:
        steps.append("plan")

        def make(scratch: Path, output: Path) -> dict:
            steps.append("make")
            write(scratch, "shard")
            write(output, "report.json")
            return {"tokens": 3}

        return Job(make=make, name=str(tmp_path / "by-default"))

    assert run("join", plan, None) == ({"tokens": 3}, tmp_path / "by-default")
    assert files_in(tmp_path) == ["by-default/report.json", f"by-default/{MARKER}"]
    steps.clear()
    with pytest.raises(UsageError, match="out must not exist"):
        run("join", plan, tmp_path / "by-default")
    assert steps == []
    with pytest.raises(UsageError, match="out must not exist"):
        run("join", plan, None)
    assert steps == ["plan"]
    write(tmp_path / "by-default", "thesis.tex")
    with pytest.raises(UsageError, match=r"also holds thesis\.tex"):
        run("join", plan, tmp_path / "by-default", overwrite=True)


def test_files_written_by_others_while_a_job_runs_are_kept(tmp_path: Path):
    out = tmp_path / "out"
    appear(out, filled, "join")

    def make(scratch: Path, output: Path) -> dict:
        write(output, "report.json")
        write(out, "thesis.tex")
        return {}

    with pytest.raises(UsageError, match=r"thesis\.tex"):
        run("join", lambda: Job(make=make), out, overwrite=True)
    assert (out / "thesis.tex").exists() and files_in(tmp_path)[0].startswith("out/")
