"""Every command that writes a folder is run again from the card or report of its first run and writes the same bytes."""

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file
from typer.testing import CliRunner

import cli
import planted
import sae
import tiny
import tokenizers_made
from jobs import gpt2_and_qwen3
from stitch.files.recipe import read_recipe, recipe

EVEN = {"transitions": {"0": {"e": "1"}, "1": {"e": "0"}}, "start": "0", "outputs": {"0": "0", "1": "1"}}
HOST = dict(
    model_type="llama", hidden_size=320, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=4, max_position_embeddings=planted.POSITIONS,
)  # fmt: skip
SMALL = "--tokens 4096 --held-out 1024 --context 32 --device cpu --text {text}"
SITES = "--layer 2 --tokens 4096 --context 32 --device cpu --text {text}"

# Words of a command by its name; what stands in braces is a file of the fixture.
COMMANDS = {
    "convert heads": "{llama} --kv-heads 1 " + SMALL,
    "convert ngram": "{llama} --drop 2 --rows 2000 --memory 256M " + SMALL,
    "convert recurrent": "{llama} --window 4 --steps 2 --logit-steps 1 " + SMALL,
    "convert consolidate": "{gpt2} --context {note} --cost 0.05 --tokens 4096 --held-out 4096 --device cpu --text {text}",
    "retokenize": "{gpt2} --tokenizer {letters} --tokens 4096 --documents 8 --context 24 --device cpu --text {text}",
    "graft": "{donor} --behaviour induction --host {host} --circuit {circuit} --prompts 8 --device cpu --graft {donor}=induction",
    "compile automaton": "{even} --length 16 --mode vsa --dimension 16 --seed 3 --device cpu",
    "compile machine": "--window 4 --context 256 --device cpu",
    "compile pattern": "offset:3 --arch llama --length 32 --device cpu",
    "compile induction": "--tokenizer {gpt2} --context 32 --device cpu",
    "compile tool": "{even} --host {gpt2} --faint 0.05 --tokens 1024 --device cpu --text {text}",
    "transfer sae": "{gpt2} {qwen3} {sae} --sae-passes 1 " + SITES,
    "transfer probe": "{gpt2} {qwen3} {probe} " + SITES,
    "transfer vector": "{gpt2} {qwen3} {vectors} --strength 2 " + SITES,
}
SLOW = (
    "convert heads",
    "convert ngram",
    "convert recurrent",
    "convert consolidate",
    "retokenize",
    "graft",
    "compile machine",
    "transfer sae",
)
SECONDS = {"report.json"}  # files that tell how long the run took, and what it found in the cache


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    found = {name: folder / name for name in ("sae", "donor")}
    found |= {"llama": tiny.save(folder / "llama", "llama"), **gpt2_and_qwen3(folder)}
    planted.induction(found["donor"])
    sae.save(sae.train(tiny.noise(512, 32), features=64, k=4, passes=1), found["sae"], {})

    def write(name: str, content: str) -> None:
        found[name.partition(".")[0]] = folder / name
        (folder / name).write_text(content)

    found["letters"] = folder / "letters"
    tokenizers_made.byte_level(300).save_pretrained(found["letters"])
    write("even.json", json.dumps(EVEN))
    write("host.json", json.dumps(HOST))
    write("circuit.json", json.dumps({"heads": {"0": [1], "1": [2]}, "neurons": {}}))
    write("note.txt", "norm head block early late match pair plan. " * 2)
    for name, tensors in (
        ("probe", {"weight": tiny.noise(2, 32), "bias": tiny.noise(2)}),
        ("vectors", {"v": 3 * tiny.noise(32)}),
    ):
        found[name] = folder / f"{name}.safetensors"
        save_file(tensors, found[name])
    return found


def run(*words: object) -> None:
    done = CliRunner().invoke(cli.app, [*map(str, words), "-q"])
    assert done.exit_code == 0, done.output


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def without_seconds(report: bytes) -> dict:
    return {name: value for name, value in json.loads(report).items() if name not in ("seconds", "cache")}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in COMMANDS]
)
def test_a_run_made_again_from_its_folder_has_the_same_bytes(name: str, files: dict[str, Path], tmp_path: Path):
    words = COMMANDS[name].format(**files).split()
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
