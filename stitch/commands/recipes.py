"""`--recipe FILE`: the file's values take the place of a command's defaults."""

from pathlib import Path
from typing import Any

import typer

from stitch.commands.spelling import is_argument, spelling
from stitch.errors import UsageError

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
APART = NOT_IN_RECIPES | {"json"}  # with the spelling of `as_json`


def use_recipe(ctx: typer.Context, value: Path | None) -> Path | None:
    """Makes the values of the file the defaults of the command in `ctx`, before its other options are read."""
    if value is None or ctx.resilient_parsing:
        return value
    from stitch.files.recipe import check_options, read_recipe

    command = " ".join(ctx.command_path.split()[1:])
    try:
        options = check_options(read_recipe(value), known_options(ctx.command), command, value, apart=APART)
    except UsageError as error:
        raise typer.BadParameter(str(error), ctx=ctx) from None
    several = {param.name for param in ctx.command.params if getattr(param, "multiple", False)}
    for name, found in options.items():
        if name == "parts":
            options[name] = str(value)  # the list stands in this file
        elif isinstance(found, list) and name not in several:
            options[name] = ",".join(map(str, found))
    ctx.default_map = {**(ctx.default_map or {}), **options}
    return value


def known_options(command: Any) -> dict[str, str]:
    """The names of a command's options that a recipe may have, by all their spellings: `document` is also `context` where the
    command line calls it --context."""
    params = [param for param in command.params if param.name not in NOT_IN_RECIPES]
    spelt = {spelling(param)[2:].replace("-", "_"): param.name for param in params if not is_argument(param)}
    return {**spelt, **{param.name: param.name for param in params}}
