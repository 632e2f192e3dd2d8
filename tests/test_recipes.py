"""Recipes: options in a file, and a run made again from its own card."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

import cli
import stitch
from jobs import gpt2_and_qwen3
from stitch.commands.recipes import APART, known_options
from stitch.commands.reference import command_table
from stitch.commands.spelling import is_argument, spelling
from stitch.errors import UsageError
from stitch.files.recipe import NOT_IN_RECIPES, card_section, check_options, read_recipe, recipe

SMALL = dict(
    layer=2, tokens=4096, context=32, features=64, k=8, reference_steps=0, device="cpu", memory="256M", brief=True
)


def run(*words: object):
    return CliRunner().invoke(cli.app, [*map(str, words)])


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return gpt2_and_qwen3(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def made(pair, tmp_path_factory):
    """A composite made from a recipe in a file."""
    folder = tmp_path_factory.mktemp("made")
    options = {"model-a": str(pair["gpt2"]), "model_b": str(pair["qwen3"]), "text": str(pair["text"]), **SMALL}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(options))
    done = run("join", "--recipe", folder / "recipe.yaml", "--out", folder / "first", "-q")
    assert done.exit_code == 0, done.output
    return folder


def test_a_run_made_again_from_its_card_has_the_same_bytes(made):
    done = run("join", "--recipe", made / "first", "--out", made / "again", "-q")
    assert done.exit_code == 0, done.output
    first, again = files(made / "first"), files(made / "again")
    assert first.keys() == again.keys()
    assert [name for name in first if first[name] != again[name]] == ["report.json"]
    reports = [json.loads(found.pop("report.json")) for found in (first, again)]
    for report in reports:
        del report["seconds"], report["cache"]
    settings = [report["provenance"].pop("settings") for report in reports]
    assert settings[0] == settings[1] and reports[0] == reports[1]
    assert read_recipe(made / "first" / "report.json") == read_recipe(made / "first" / "README.md")


@pytest.mark.slow
def test_a_function_makes_it_again_from_its_folder(made):
    again = stitch.join(**stitch.read_recipe(made / "first", stitch.join), quiet=True)
    assert (again.folder / "model.safetensors").read_bytes() == (made / "first" / "model.safetensors").read_bytes()


def test_a_recipe_is_read_into_arguments_in_the_forms_of_python(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("command: graft\ndonor: a\ngraft: [b=induction]\nfeatures: 1=sae\nprompts: 64\nchannels: null\n")
    found = stitch.read_recipe(file, stitch.graft)
    assert found == {"donor": "a", "requests": [("b", "induction")], "features": {1: "sae"}, "count": 64}
    file.write_text("context: note.txt\nheld-out: 10")
    assert stitch.read_recipe(file, stitch.convert.consolidate) == {"document": "note.txt", "held_out": 10}
    file.write_text("context: [note.txt, other.txt]")
    assert stitch.read_recipe(file, stitch.convert.consolidate) == {"document": ["note.txt", "other.txt"]}
    file.write_text("model: a\nfeatures: hybrid")
    assert stitch.read_recipe(file, stitch.convert.recurrent) == {"model": "a", "features": "hybrid"}
    file.write_text("leyer: 3\nquiet: true")
    said = "unknown option 'leyer' of `stitch join` .did you mean layer.*; it says what to make, .* has quiet"
    with pytest.raises(UsageError, match=said):
        stitch.read_recipe(file, stitch.join)
    for command, function in (
        ("sweep", stitch.join), ("convert heads", stitch.convert.ngram), ("transfer sae", stitch.transfer.probe),
    ):  # fmt: skip
        file.write_text(f"command: {command}\nmodel_a: a")
        with pytest.raises(UsageError, match=f"is a recipe for `stitch {command}`"):
            stitch.read_recipe(file, function)


@pytest.mark.slow
def test_what_is_given_goes_before_the_file(made):
    changed = run("join", "--recipe", made / "first" / "report.json", "--out", made / "other", "-q", "--seed", 7)
    assert changed.exit_code == 0, changed.output
    assert read_recipe(made / "other") == {**read_recipe(made / "first"), "seed": 7}


def test_an_unknown_option_is_refused_with_the_nearest(tmp_path):
    (tmp_path / "wrong.yaml").write_text("leyer: 3")
    done = run("join", "--recipe", tmp_path / "wrong.yaml")
    assert done.exit_code == 2 and "unknown option 'leyer'" in done.output and "did you mean layer?" in done.output
    (tmp_path / "other.yaml").write_text("command: sweep\nmodel_a: demo:gpt2")
    assert "recipe for `stitch sweep`" in run("join", "--recipe", tmp_path / "other.yaml").output
    with pytest.raises(UsageError, match="unknown option 'trust_remote_code'"):
        check_options({"trust_remote_code": True}, {"layer": "layer"}, "join", tmp_path)


@pytest.mark.parametrize(
    "value, said",
    [
        ("layer: true", "layer must be a whole number, got True"),
        ("layer: 2.0", "layer must be a whole number, got 2.0"),
        ("native: 1", "native must be true or false, got 1"),
        ("seam-bytes: '3'", "seam_bytes must be a number, got '3'"),
        ("text: {a: b}", "text must be text, a number or a list of these, got"),
        ("layer: 3.5\nk: no", "layer must be a whole number, got 3.5; k must be a whole number, got False"),
    ],
)
def test_values_of_another_kind_are_refused_and_not_converted(value, said, tmp_path):
    (tmp_path / "r.yaml").write_text(f"model_a: demo:gpt2\nmodel_b: demo:llama\n{value}\n")
    done = run("join", "--recipe", tmp_path / "r.yaml")
    assert done.exit_code == 2 and said in done.output, done.output


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("r.yaml", "a: [", "must be YAML"),
        ("r.yaml", "- 1", "option: value"),
        ("r.yaml", "", "option: value"),
        ("r.yaml", "1: 2", "a key must be text; got '1'"),
        ("r.yaml", "seed: 1\nseed: 2", "line 2, column 1: has 'seed' twice"),
        ("r.yaml", "text: 2020-01-01", "`timestamp` is not read here; write text in quotation marks"),
        ("r.json", "[]", "option: value"),
        ("README.md", "# A card", "option: value"),
        ("r.yaml", None, "there is no"),
    ],
)
def test_what_is_no_recipe_is_refused(name, content, said, tmp_path):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=said):
        read_recipe(tmp_path / name)


def test_models_are_pinned_and_remote_code_is_not_carried():
    models = {
        "a": {"name": "org/a", "kind": "hub", "revision": "abc"},
        "b": {"name": "org/b@v1", "kind": "hub", "revision": "def"},
        "c": {"name": "demo:gpt2", "kind": "demo", "revision": None},
    }
    settings = {
        "model_a": "org/a", "model_b": "org/b@v1", "trust_remote_code": True, "features": None, "layer": 3,
        "text": "org/a",  # a dataset may have the name of a model
        "parts": [{"model": "org/a", "from": 0, "to": None}, {"model": "demo:gpt2"}],
    }  # fmt: skip
    found = recipe("join", {"models": models, "settings": settings})
    assert found == {
        "command": "join", "model_a": "org/a@abc", "model_b": "org/b@v1", "layer": 3, "text": "org/a",
        "parts": [{"model": "org/a@abc", "from": 0}, {"model": "demo:gpt2"}],
    }  # fmt: skip


@pytest.mark.parametrize(
    "text", ["a ```yaml\n## Recipe\n``` b", "x\n```\n<script>alert(1)</script>", "````", "`" * 200]
)
def test_a_card_keeps_whatever_stands_in_an_option_and_shows_it_as_code(text, tmp_path):
    from markdown_it import MarkdownIt

    found = {"command": "join", "text": text, "layer": 3}
    card = "\n".join(["# Card", *card_section(found), "after it"])
    (tmp_path / "README.md").write_text(card)
    assert read_recipe(tmp_path) == found
    blocks = [
        token.type for token in MarkdownIt().parse(card) if token.level == 0 and not token.type.endswith("_close")
    ]
    assert blocks == ["heading_open", "heading_open", "paragraph_open", "fence", "paragraph_open"]


@pytest.mark.slow
def test_a_chain_is_made_again_from_its_card(pair, tmp_path):
    parts = [{"model": str(pair["gpt2"]), "to": 2}, {"model": str(pair["qwen3"]), "from": 2}]
    options = {name: value for name, value in SMALL.items() if name not in ("layer", "brief")}
    options |= {"parts": parts, "text": str(pair["text"])}
    (tmp_path / "chain.yaml").write_text(yaml.safe_dump(options))
    for place, out in (("chain.yaml", "first"), ("first", "again")):
        done = run("chain", "--recipe", tmp_path / place, "--out", tmp_path / out, "-q")
        assert done.exit_code == 0, done.output
    weights = [(tmp_path / out / "model.safetensors").read_bytes() for out in ("first", "again")]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_a_sweep_of_blocks_is_made_again_from_its_card(pair, tmp_path, monkeypatch):
    monkeypatch.setenv("STITCH_CACHE", str(tmp_path / "cache"))  # nothing that another test left behind
    common = ("--text", pair["text"], "--tokens", 4096, "--context", 32, "--device", "cpu", "-q")
    first = run("sweep", pair["gpt2"], "--depth", "--lengths", "1,2", *common, "--out", tmp_path / "first")
    assert first.exit_code == 0, first.output
    again = run("sweep", "--recipe", tmp_path / "first", "--out", tmp_path / "again", "-q")
    assert again.exit_code == 0, again.output
    reports = [json.loads((tmp_path / out / "report.json").read_text()) for out in ("first", "again")]
    assert [one.pop("cache")["made"] == {} for one in reports] == [False, True]
    assert reports[0] == reports[1]


def test_every_setting_of_a_join_is_an_option_of_the_command():
    from dataclasses import fields

    from stitch.config import Settings
    from stitch.files.recipe import LEFT_OUT

    known = known_options(get_command(cli.app).commands["join"])  # pyright: ignore[reportAttributeAccessIssue]
    assert {field.name for field in fields(Settings)} - set(LEFT_OUT) <= known.keys()


def command_named(path: str) -> Any:
    found: Any = get_command(cli.app)
    for word in path.split():
        found = found.commands[word]
    return found


WITH_RECIPES = [page.path for page in command_table() if "recipe" in {one.name for one in page.parameters}]


@pytest.mark.parametrize("path", WITH_RECIPES)
def test_every_option_has_both_spellings_in_a_recipe_and_none_means_two_options(path, tmp_path):
    command = command_named(path)
    known = known_options(command)
    for param in command.params:
        spellings = (
            {param.name, param.name.replace("_", "-")} if is_argument(param) else {param.name, spelling(param)[2:]}
        )
        for spelt in spellings:
            if param.name in NOT_IN_RECIPES:
                with pytest.raises(UsageError, match=f"not how to run, and has {spelt}: give it with the command"):
                    check_options({spelt: 1}, known, path, tmp_path, apart=APART)
            else:
                assert check_options({spelt: 1}, known, path, tmp_path, apart=APART) == {param.name: 1}, spelt


@pytest.mark.slow
def test_an_option_whose_names_differ_is_read_under_either(pair, tmp_path):
    (tmp_path / "note.txt").write_text("norm head block early late match pair plan. " * 2)
    options = {"model": str(pair["gpt2"]), "tokens": 4096, "held-out": 4096, "device": "cpu", "text": str(pair["text"])}
    for name in ("context", "document"):  # --context on the command line, `document` in Python
        (tmp_path / "r.yaml").write_text(yaml.safe_dump({**options, name: str(tmp_path / "note.txt")}))
        done = run(
            "convert", "consolidate", "--recipe", tmp_path / "r.yaml", "--out", tmp_path / "out", "--dry-run", "--json"
        )
        assert done.exit_code == 0, done.output  # without a document it ends with 2


@pytest.mark.parametrize(
    "recipe, said",
    [
        ("layer_b: 3\nlayer-b: 4", "has one option twice, as layer_b and as layer-b: leave one out"),
        ("layer-c: 3", "unknown option 'layer-c' of `stitch join` (did you mean layer_b?)"),
        (
            "leyer: 3\nlayer-c: 3\njson: true\nk: no\nseed: 1.5",
            "unknown option 'leyer' of `stitch join` (did you mean layer?); it has the unknown option 'layer-c' of `stitch join` "
            "(did you mean layer_b?); it says what to make, not how to run, and has json: give it with the command; "
            "k must be a whole number, got False; seed must be a whole number, got 1.5.",
        ),
        ("trust-remote-code: true", "says what to make, not how to run"),
        ("json: true", "says what to make, not how to run"),
        ("cache_size: 1G", "says what to make, not how to run"),
    ],
)
def test_what_a_recipe_cannot_have_is_refused(recipe, said, tmp_path):
    (tmp_path / "r.yaml").write_text(recipe)
    done = run("join", "--recipe", tmp_path / "r.yaml")
    assert done.exit_code == 2 and said in done.output
