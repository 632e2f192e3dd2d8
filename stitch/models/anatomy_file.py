"""Anatomies in a user's own YAML file:

my_decoder:                      # `model_type` in config.json
  family: My decoder
  body: model                    # the rest as in `Anatomy`: paths that differ from those of a Llama
  blocks: stack
  heads_out: attention.out
"""

from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path

from stitch.errors import UsageError
from stitch.models.anatomy import Anatomy, register_anatomy

NAMES = {field.name for field in fields(Anatomy)} - {"tested", "stored_as"}


def read_anatomies(file: Path) -> dict[str, Anatomy]:
    """The anatomies that a file describes, by model type. They are registered, for the rest of this process.

    Raises: UsageError for a file that cannot be read, and for names that `Anatomy` does not have.
    """
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(
            f"{file} must be a YAML file; it cannot be read: {' '.join(str(error).split())[:200]}"
        ) from None
    if not isinstance(content, dict) or not content:
        raise UsageError(
            f"{file} must hold a model type and below it the paths of its modules, such as `blocks: layers`."
        )
    found = {str(family): _anatomy(family, paths, file) for family, paths in content.items()}
    for family, anatomy in found.items():
        register_anatomy(family, anatomy)
    return found


def _anatomy(family: object, paths: object, file: Path) -> Anatomy:
    if not isinstance(paths, dict):
        raise UsageError(
            f"{family} in {file} must have paths of modules below it, such as `blocks: layers`; got {paths!r}."
        )
    for name, path in paths.items():
        if name not in NAMES:
            close = get_close_matches(str(name), NAMES, n=1)
            raise UsageError(
                f"{family} in {file} has {name!r}; the names are {', '.join(sorted(NAMES))}"
                + (f": did you mean {close[0]}?" if close else ".")
            )
        if path is not None and not isinstance(path, str):
            raise UsageError(f"`{name}` of {family} in {file} must be a path such as layers; got {path!r}.")
    return Anatomy(**{"family": str(family), **paths})
