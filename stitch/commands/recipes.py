"""`--recipe FILE`: the file's values take the place of a command's defaults."""

import inspect
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer

from stitch.commands.spelling import is_argument, spelling
from stitch.errors import UsageError
from stitch.files.recipe import NOT_IN_RECIPES
from stitch.files.specification import shown

APART = NOT_IN_RECIPES | {"json"}  # with the spelling of `as_json`


def use_recipe(ctx: typer.Context, value: Path | None) -> Path | None:
    """Makes the values of the file the defaults of the command in `ctx`, before its other options are read."""
    if value is None or ctx.resilient_parsing:
        return value
    from stitch.files.recipe import check_options, read_recipe

    command = " ".join(ctx.command_path.split()[1:])
    try:
        options = check_options(
            read_recipe(value), known_options(ctx.command), command, value, apart=APART,
            misfits=lambda options: misfits(options, ctx.command),
        )  # fmt: skip
    except UsageError as error:
        raise typer.BadParameter(str(error), ctx=ctx) from None
    several = {param.name for param in ctx.command.params if getattr(param, "multiple", False)}
    for name, found in options.items():
        if name == "parts":
            options[name] = str(value)  # the list stands in this file
        elif name in several:
            options[name] = found if isinstance(found, list) else [found]
        elif isinstance(found, list):
            options[name] = ",".join(map(str, found))
    ctx.default_map = {
        **(ctx.default_map or {}),
        **{name: found for name, found in options.items() if found is not None},
    }
    return value


def misfits(options: dict[str, Any], command: Any) -> list[str]:
    """The options whose values are of another kind than the command's, each with what it must be. null is none given."""
    kinds = get_type_hints(inspect.unwrap(command.callback))
    needed = {
        name: wanted(kinds[name], found) for name, found in options.items() if found is not None and name != "parts"
    }
    return [f"{name} must be {need}, got {shown(options[name])}" for name, need in needed.items() if need]


def wanted(kind: Any, found: Any) -> str | None:
    """What an option of this kind must be, where `found` is something else."""
    kinds = get_args(kind) or (kind,)
    if bool in kinds:
        return None if isinstance(found, bool) else "true or false"
    if int in kinds:
        return None if type(found) is int else "a whole number"
    if float in kinds:
        return None if type(found) in (int, float) else "a number"
    several = found if isinstance(found, list) else [found]
    return (
        None
        if several and all(type(one) in (int, float, str) for one in several)
        else "text, a number or a list of these"
    )


def known_options(command: Any) -> dict[str, str]:
    """The names of a command's options that a recipe may have, by all their spellings: `document` is also `context` where the
    command line calls it --context."""
    params = [param for param in command.params if param.name not in NOT_IN_RECIPES]
    spelt = {spelling(param)[2:].replace("-", "_"): param.name for param in params if not is_argument(param)}
    return {**spelt, **{param.name: param.name for param in params}}
