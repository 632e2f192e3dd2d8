"""Anatomies in a user's own YAML file:

my_decoder:                      # `model_type` in config.json
  family: My decoder
  blocks: stack                  # the rest as in `Anatomy`; what is left out is found by looking
  heads_out: attention.out
"""

import re
from collections.abc import Iterator
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path

from stitch.errors import UsageError
from stitch.files.specification import faulty, read_yaml, shown
from stitch.models.anatomy import Anatomy, register_anatomy

NAMES = {field.name for field in fields(Anatomy)} - {"tested", "stored_as"}
MAY_BE_NONE = {field.name for field in fields(Anatomy) if field.default is None}
PART = r"([^\W\d]\w*|\d+)"
PATH = re.compile(rf"({PART}(\.{PART})*)?")  # none, where it is not known


def read_anatomies(file: Path) -> dict[str, Anatomy]:
    """The anatomies that a file describes, by model type. They are registered, for the rest of this process.

    Raises: UsageError for a file that cannot be read, and for names that `Anatomy` does not have or that are no paths.
    """
    content = read_yaml(file, "the file of anatomies")
    if not isinstance(content, dict) or not content:
        raise UsageError(
            f"{file} must hold a model type and below it the paths of its modules, such as `blocks: layers`."
        )
    if faults := [fault for family, paths in content.items() for fault in _faults(family, paths)]:
        raise faulty(str(file), faults)
    found = {family: Anatomy(**{"family": family, **paths}) for family, paths in content.items()}
    for family, anatomy in found.items():
        register_anatomy(family, anatomy)
    return found


def _faults(family: str, paths: object) -> Iterator[str]:
    if not family.isprintable() or not family:
        yield f"a model type must be text that can be printed, got {shown(family)}"
    if not isinstance(paths, dict):
        yield f"{family} must have paths of modules below it, such as `blocks: layers`, got {shown(paths)}"
        return
    for name, path in paths.items():
        if name not in NAMES:
            close = get_close_matches(name, NAMES, n=1)
            yield f"{family} has {shown(name)} (" + (
                f"did you mean {close[0]}?)" if close else f"the names are {', '.join(sorted(NAMES))})"
            )
        elif name == "family" or (path is None and name in MAY_BE_NONE):
            if path is not None and not (isinstance(path, str) and path.isprintable()):
                yield f"family of {family} must be text that can be printed, got {shown(path)}"
        elif not isinstance(path, str) or not PATH.fullmatch(path):
            yield f"{name} of {family} must be a path of modules such as layers, got {shown(path)}"
