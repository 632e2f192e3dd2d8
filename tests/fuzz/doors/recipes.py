"""Recipes (`--recipe`): a YAML file, a model card, a report.json; read, and made the defaults of a command."""

import functools
import json
import math
from pathlib import Path
from typing import Any

import typer
import yaml

from fuzz.documents import changed, json_files, spoilt, strictly, written, yaml_files
from fuzz.door import Door
from stitch.errors import UsageError

USAGE: Any = typer.BadParameter.__mro__[2]  # the class of all errors of the command line's parser
COMMANDS = ("join", "compile automaton", "sweep")
DOCUMENTS = (
    {
        "command": "join",
        "model_a": "demo:gpt2",
        "model_b": "demo:llama",
        "layer": 3,
        "tokens": 4096,
        "brief": True,
        "seed": 0,
    },
    {
        "command": "join",
        "model_a": "a",
        "model_b": "b",
        "layer": "auto",
        "seam-bytes": 10.0,
        "memory": "4G",
        "text": "docs",
    },
    {"command": "compile automaton", "spec": "(ab)*", "arch": "llama", "length": 16, "normalise": False, "seed": 3},
    {"command": "sweep", "model_a": "a", "depth": True, "lengths": [1, 2, 3], "tokens": 1000},
)
NAMES = (
    "command",
    "layer",
    "tokens",
    "trust_remote_code",
    "out",
    "seed",
    "native",
    "resume",
    "k",
    "dtype",
    "parts",
    "cluster",
)


@functools.cache
def top() -> Any:
    import cli

    return typer.main.get_command(cli.app)


def call(path: Path) -> Any:
    """What a command gets where its recipe is this file, after the command line has read it."""
    from stitch.files.recipe import read_recipe

    found = read_recipe(path)
    name = found.get("command") if found.get("command") in COMMANDS else "join"
    command, context = top(), typer.Context(top(), info_name="stitch")
    for word in name.split():
        command = command.commands[word]
        above, context = context, typer.Context(command, info_name=word, parent=context)
    words = ["--recipe", str(path), "--out", "new"]
    try:
        with command.make_context(name.split()[-1], words, parent=above) as context:
            return name, context.params
    except USAGE as error:
        missing = (
            f" ({path.name})" if type(error).__name__ == "MissingParameter" else ""
        )  # it may also be given in words
        raise UsageError(error.format_message() + missing) from None


def sound_of(found: Any, result: Any) -> bool:
    """Every option arrives with its own value and type, and nothing that says how to run."""
    name, params = result
    if not isinstance(found, dict) or found.get("command", name) != name:
        return False
    for key, value in found.items():
        spelt = key.replace("-", "_")
        if spelt in ("command", "out") or value is None:  # the folder is given beside the recipe, and goes before
            continue
        if spelt in (
            "trust_remote_code",
            "out_json",
            "resume",
            "restart",
            "overwrite",
            "cluster",
            "recipe",
            "quiet",
            "debug",
        ):
            return False
        if spelt not in params:
            continue  # a spelling of the command line, such as json or seam-bytes of another name
        got = params[spelt]
        if isinstance(got, bool):
            same = value is got
        elif isinstance(got, (int, float)):
            same = type(value) in (int, float) and value == got and math.isfinite(value)
        elif isinstance(got, (list, tuple)):
            same = list(map(str, got)) == (value if isinstance(value, list) else [value])
        else:
            parts = value if isinstance(value, list) else [value]
            same = str(got) in (",".join(map(str, parts)), str(Path(str(value)))) and not any(
                isinstance(one, (bool, dict, list)) or one is None for one in parts
            )
            same = same or spelt == "parts"
        if not same:
            return False
    return True


def yaml_sound(content: bytes, result: Any) -> bool:
    return sound_of(yaml.safe_load(content), result)


def card_sound(content: bytes, result: Any) -> bool:
    text = (
        content.decode("utf-8-sig").replace("\r\n", "\n").split("## Recipe\n")[1].split("```yaml\n")[1].split("```")[0]
    )
    return sound_of(yaml.safe_load(text), result)


def report_sound(content: bytes, result: Any) -> bool:
    return sound_of(strictly(content)["recipe"], result)


def card(text: str) -> str:
    return f"# A composite\n\n## Recipe\n\n`stitch` makes this again.\n\n```yaml\n{text}\n```\n\n## More\n"


WRONG = (
    b"command: join\nmodel_a: a\nmodel_b: b\nlayer: true",
    b"command: join\nmodel_a: a\nmodel_b: b\nlayer: 2.0",
    b"command: join\nmodel_a: {a: b}\nmodel_b: b\nlayer: 2",
    b"command: join\nmodel_a: a\nmodel_b: b\nlayer: 2\nlayer: 3",
    b'command: "\x1b[31m"',
)
KEPT = json.dumps(DOCUMENTS[0])

DOORS = [
    Door(
        "recipe.yaml",
        yaml_files(DOCUMENTS, NAMES),
        call,
        yaml_sound,
        file="recipe.yaml",
        ready=top,
        kept=(KEPT.encode(), *WRONG),
    ),
    Door(
        name="recipe in README.md",
        file="README.md",
        cases=spoilt(changed(DOCUMENTS, yaml=True, names=NAMES).map(written).map(card)),
        call=call,
        sound=card_sound,
        ready=top,
        kept=(card(KEPT).encode(), b"## Recipe\n" * 90_000),
    ),
    Door(
        name="recipe in report.json",
        file="report.json",
        cases=json_files([{"verdict": "x", "recipe": one} for one in DOCUMENTS], NAMES),
        call=call,
        sound=report_sound,
        ready=top,
        kept=(json.dumps({"recipe": DOCUMENTS[0]}).encode(),),
    ),
]
