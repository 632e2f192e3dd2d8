"""The files of a tokenizer in a model's folder."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from stitch.errors import StitchError
from stitch.files.links import require_inside

TEMPLATES = "additional_chat_templates"  # the folder of chat templates beside the usual one, such as for tools
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "vocab.txt", "chat_template.jinja", f"{TEMPLATES}/*.jinja"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "sentencepiece.model", "spm.model"),
    *("tekken.json", "*.tiktoken"),
)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copies the tokenizer's files, with its chat templates and its code, from one folder to another, those that are there.

    Raises: UsageError where one is a link out of its folder; StitchError where code would take the place of other code.
    """
    for pattern in TOKENIZER_FILES:
        for file in sorted(source.glob(pattern)):
            _copy(file, source, target)
    for file in dict.fromkeys(_code(source)):
        if (target / file.name).exists() and (target / file.name).read_bytes() != file.read_bytes():
            raise StitchError(f"code of the tokenizer must not be named as code of the model; both have {file.name}.")
        _copy(file, source, target)


def _copy(file: Path, source: Path, target: Path) -> None:
    require_inside(file, source)
    place = target / file.relative_to(source)
    place.parent.mkdir(exist_ok=True)
    shutil.copyfile(file, place)


def _code(folder: Path) -> Iterator[Path]:
    """The files of a tokenizer's own class. Nothing in them is run."""
    try:
        named = json.loads((folder / "tokenizer_config.json").read_text())["auto_map"]["AutoTokenizer"]
    except (OSError, ValueError, LookupError, TypeError):
        return
    from transformers.dynamic_module_utils import get_relative_import_files

    for name in named if isinstance(named, list) else [named]:
        if isinstance(name, str) and re.fullmatch(r"\w+\.\w+", name):  # others are code of another repository
            first = folder / f"{name.partition('.')[0]}.py"
            with suppress(OSError):  # what is not whole cannot have run
                yield from [first, *map(Path, get_relative_import_files(first))]
