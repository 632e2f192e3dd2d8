"""Code of donors that are no part of transformers: which bring it, and how a composite's folder gives it back.

The composite's own code is this package's; only its donors' is taken from the folder, where the user allows it.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from stitch.modeling.modeling_composite import CLASSES, code_of_donor


def brings_code(config: PreTrainedConfig) -> bool:
    """Whether the stock model that `config` describes has code that its config names, and that ran, or that its author has
    declared by `register_for_auto_class`. A class that transformers was only told of is named nowhere, and stays where it is."""
    own: Any = type(config)
    return is_foreign(own) and bool(getattr(config, "auto_map", None) or own._auto_class)


def is_foreign(one: type) -> bool:
    return not one.__module__.startswith(("transformers.", "stitch."))


def names_of_code(config: Mapping[str, Any]) -> Iterator[str]:
    """The classes of donors that config.json of a composite, or of a model that was made from one, needs."""
    for side in ("a_config", "b_config", "base_config"):
        if isinstance(part := config.get(side), dict):
            yield from names_of_code(part)
            yield from filter(None, code_of_donor(part.get("auto_map")))


def take_code(folder: Path, config: Mapping[str, Any]) -> None:
    """Runs the code of the donors in `folder`, and lets composites find its classes. Its config.json was read as `config`.

    A class that another composite has brought is the same one, as its name has a hash of its code.
    """
    missing = set(names_of_code(config)) - CLASSES.keys()
    if missing:
        found: Any = get_class_from_dynamic_module("modeling_donors.CLASSES", folder, local_files_only=True)
        CLASSES.update({name: found[name] for name in missing})
