"""`stitch.read_recipe`: what a recipe says, as arguments of the function that makes it."""

from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

from stitch.api.given import PathLike

# What the command line calls otherwise: a recipe may have either name.
SPELT = {"prompts": "count", "graft": "requests", "context": "document"}
GROUPS = ("convert", "compile", "transfer")


def read_recipe(place: PathLike, function: Callable[..., Any]) -> dict[str, Any]:
    """The keyword arguments of `function`, such as `stitch.join`, that a recipe has, as `--recipe` reads it.

    `place` is a YAML file, a model card, a report.json, or a folder that a command wrote.
    Raises: UsageError for a file that holds no recipe, or that of another function, and for all options in it that `function`
    does not have, or that say how to run.

    >>> import stitch
    >>> from pathlib import Path
    >>> _ = Path("recipe.yaml").write_text("model_a: demo:gpt2, model_b: demo:llama, layer: 3".replace(", ", chr(10)))
    >>> stitch.read_recipe("recipe.yaml", stitch.join)
    {'model_a': 'demo:gpt2', 'model_b': 'demo:llama', 'layer': 3}
    """
    from stitch.files.recipe import NOT_IN_RECIPES, check_options, donor_and_behaviour, read_recipe, sae_by_block

    room, name = function.__module__.rpartition(".")[2], function.__name__
    command = f"{room} {name}" if room in GROUPS else {"evaluate": "eval"}.get(name, name)
    known = {one: one for one in signature(function).parameters if one not in NOT_IN_RECIPES}
    known |= {spelt: one for spelt, one in SPELT.items() if one in known and spelt not in known}
    found = check_options(read_recipe(Path(place)), known, command, Path(place), apart=NOT_IN_RECIPES)
    if found.get("requests"):
        found["requests"] = [donor_and_behaviour(one) for one in _several(found["requests"])]
    if name in ("circuit", "graft") and found.get("features"):  # by block; elsewhere a number, or a kind
        found["features"] = sae_by_block(_several(found["features"]))
    return {one: value for one, value in found.items() if value is not None}


def _several(value: Any) -> list:
    return value if isinstance(value, list) else [value]
