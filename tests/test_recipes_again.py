"""Every command that writes a folder is run again from the card or report of its first run and writes the same bytes."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import cli
from stitch.files.recipe import read_recipe, recipe
from written_commands import SLOW, WRITTEN, make_files

SECONDS = {"report.json"}  # files that tell how long the run took, and what it found in the cache


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    return make_files(tmp_path_factory.mktemp("files"))


def run(*words: object) -> None:
    done = CliRunner().invoke(cli.app, [*map(str, words), "-q"])
    assert done.exit_code == 0, done.output


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def without_seconds(report: bytes) -> dict:
    return {name: value for name, value in json.loads(report).items() if name not in ("seconds", "cache")}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in WRITTEN]
)
def test_a_run_made_again_from_its_folder_has_the_same_bytes(name: str, files: dict[str, Path], tmp_path: Path):
    words = WRITTEN[name].format(**files).split()
    run(*name.split(), *words, "--out", tmp_path / "first")
    run(*name.split(), "--recipe", tmp_path / "first", "--out", tmp_path / "again")
    first, again = (contents(tmp_path / out) for out in ("first", "again"))
    assert first.keys() == again.keys()
    assert {file for file in first if first[file] != again[file]} <= SECONDS
    for file in SECONDS & first.keys():
        assert without_seconds(first[file]) == without_seconds(again[file])
    # Every model has a card that shows its chart. What is carried over is no model.
    assert ("chart.png" in first) == (not name.startswith("transfer"))
    assert (b"](chart.png)" in first.get("README.md", b"")) == ("chart.png" in first)
    # The recipe has what was asked for: without it a default would have taken its place.
    found = read_recipe(tmp_path / "first")
    assert found["command"] == name
    for option in ("tokens", "cost", "faint", "window", "strength", "sae_passes", "dimension", "length"):
        flag = f"--{option.replace('_', '-')}"
        if flag in words:
            assert found[option] == float(words[words.index(flag) + 1])


@pytest.mark.slow
def test_a_circuit_is_found_again_from_its_report(files, tmp_path):
    words = (files["donor"], "--behaviour", "induction", "--prompts", 8, "--keep", 0.5, "--device", "cpu")
    run("circuit", *words, "--out", tmp_path / "first.json")
    run("circuit", "--recipe", tmp_path / "first.json", "--out", tmp_path / "again.json")
    assert read_recipe(tmp_path / "first.json")["keep"] == 0.5
    assert (tmp_path / "first.json").read_bytes() == (tmp_path / "again.json").read_bytes()


def test_every_model_of_a_recipe_is_pinned():
    models = {
        "donor": {"name": "org/a", "kind": "hub", "revision": "abc"},
        "host": {"name": "org/b", "kind": "hub", "revision": "d"},
    }
    settings = {
        "donor": "org/a",
        "host": "org/b",
        "requests": ["org/a=brackets", "demo:gpt2=a=b"],
        "tokenizer": "org/a",
    }
    assert recipe("graft", {"models": models, "settings": settings}) == {
        "command": "graft", "donor": "org/a@abc", "host": "org/b@d", "requests": ["org/a@abc=brackets", "demo:gpt2=a=b"],
        "tokenizer": "org/a@abc",
    }  # fmt: skip
