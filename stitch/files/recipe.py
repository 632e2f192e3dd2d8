"""Recipes: every option of a command as YAML, as it stands in a report, in a model card, or in a file of its own."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from stitch.errors import UsageError
from stitch.files.specification import MOST_BYTES, MOST_REPORT, faulty, json_of, read_text, shown, yaml_of

QUOTES = "'\""
# How to run, not what. Recipes also come from others, who have no say in running a model's code or in where work is sent.
NOT_IN_RECIPES = {
    "recipe",
    "dry_run",
    "cache_size",
    "cluster",
    "trust_remote_code",
    "help",
    "quiet",
    "debug",
    "as_json",
    "overwrite",
    "resume",
    "restart",
}
# Whether to run code of others is for the person to say who runs the recipe.
LEFT_OUT = ("trust_remote_code",)
MODELS = (
    "model_a",
    "model_b",
    "model",
    "donor",
    "host",
    "tokenizer",
    "donor_model",
)  # options, and keys of a chain's part, that name a model


def recipe(command: str, provenance: dict, *, without: Sequence[str] = ()) -> dict:
    """The recipe of a run, from the provenance in its report: its settings by name, but for those that have no value.

    Models on the Hub are named with their revision. `without` are settings that are no options of the command.
    """
    pinned = {
        found["name"]: f"{found['name']}@{found['revision']}"
        for found in provenance["models"].values()
        if found["kind"] == "hub" and "@" not in found["name"]
    }

    def resolved(options: dict) -> dict:
        found = {name: value for name, value in options.items() if value is not None}
        return found | {name: pinned.get(found[name], found[name]) for name in MODELS if name in found}

    settings = {name: value for name, value in provenance["settings"].items() if name not in (*LEFT_OUT, *without)}
    if "parts" in settings:
        settings["parts"] = [resolved(part) for part in settings["parts"]]
    if settings.get("requests"):  # each is DONOR=BEHAVIOUR
        split = [one.partition("=") for one in settings["requests"]]
        settings["requests"] = [f"{pinned.get(donor, donor)}={behaviour}" for donor, _, behaviour in split]
    return {"command": command, **resolved(settings)}


def to_yaml(found: dict) -> str:
    import yaml

    return yaml.safe_dump(found, sort_keys=False, allow_unicode=True, width=120)


def card_section(found: dict, report: str = "report.json") -> list[str]:
    """The lines of a model card that hold a recipe. `report` is the file beside it that has the versions."""
    text = to_yaml(found)
    # Longer than any run of backticks inside, which would close it.
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return [
        *("## Recipe", ""),
        f"`stitch {found['command']} --recipe README.md --out again` makes this again; with the versions in `{report}` it has "
        "the same bytes.",
        *("", f"{fence}yaml", *text.splitlines(), fence, ""),
    ]


def read_recipe(place: Path) -> dict:
    """The recipe in a YAML file, in a model card, in a report.json, or in a folder that has one of the last two.

    Raises: UsageError for a file that cannot be read or holds no recipe.
    """
    if place.is_dir():
        place = next((file for file in (place / "README.md", place / "report.json") if file.is_file()), place)
    text = read_text(place, "a recipe", MOST_REPORT if place.suffix == ".json" else MOST_BYTES)
    if place.suffix == ".md":
        section = in_card(text)
        found = yaml_of(section, f"the recipe in {place}") if section else None
    elif place.suffix == ".json":
        report = json_of(text, str(place))
        found = report.get("recipe") if isinstance(report, dict) else None
    else:
        found = yaml_of(text, str(place))
    if not isinstance(found, dict):
        raise UsageError(
            f"a recipe must be lines `option: value`, or be embedded in a card or report; {place} has none."
        )
    return found


def in_card(card: str) -> str | None:
    """The YAML below the heading `## Recipe` of a model card."""
    _, _, below = f"\n{card}".partition("\n## Recipe\n")
    found = re.search(r"^(`{3,})yaml\n(.*?)^\1$", below, re.MULTILINE | re.DOTALL)
    return found[2] if found else None


def check_options(
    found: dict,
    known: Mapping[str, str],
    command: str,
    place: Path,
    *,
    apart: Collection[str] = (),
    misfits: Callable[[dict[str, Any]], list[str]] = lambda options: [],
) -> dict[str, Any]:
    """The options of a recipe for `command`, by their names in Python.

    `known` are these names by every spelling that a recipe may use, with _ where the command line has -. `apart` are options of
    the command that no recipe may have. `misfits` says what is wrong with values.
    Raises: UsageError for another command's recipe, and for all that is wrong in it: options that are unknown, `apart`, or there
    in two spellings, and values that are misfits.
    """
    from difflib import get_close_matches

    given = dict(found)
    if (made_for := given.pop("command", command)) != command:
        raise UsageError(
            f"{place} is a recipe for `stitch {shown(made_for).strip(QUOTES)}`; this is `stitch {command}`."
        )
    options: dict[str, Any] = {}
    spelt: dict[str, str] = {}
    faults = []
    for key, value in given.items():
        spelling = key.replace("-", "_")
        if spelling in apart:
            faults.append(f"it says what to make, not how to run, and has {key}: give it with the command")
        elif spelling not in known:
            close = get_close_matches(spelling, known, n=1, cutoff=0.5)
            hint = f" (did you mean {close[0]}?)" if close else ""
            faults.append(f"it has the unknown option {shown(key)} of `stitch {command}`{hint}")
        elif (name := known[spelling]) in options:
            faults.append(f"it has one option twice, as {spelt[name]} and as {key}: leave one out")
        else:
            options[name], spelt[name] = value, key
    if faults := [*faults, *misfits(options)]:
        raise faulty(str(place), faults)
    return options


def sae_by_block(sources: list[str] | None) -> dict[int, str]:
    """From BLOCK=SAE, given any number of times."""
    found = {}
    for one in sources or []:
        block, _, source = one.partition("=")
        if not block.isdecimal() or not source or int(block) in found:
            raise UsageError(f"features must be BLOCK=SAE, once per block; got {one}.")
        found[int(block)] = source
    return found


def donor_and_behaviour(text: str) -> tuple[str, str]:
    """From DONOR=BEHAVIOUR."""
    donor, _, behaviour = text.partition("=")
    if not behaviour:
        raise UsageError(f"`requests` must be DONOR=BEHAVIOUR; got {text}.")
    return donor, behaviour
