"""The files of a tokenizer in a model's folder."""

import shutil
from pathlib import Path

from stitch.files.links import require_inside

TEMPLATES = "additional_chat_templates"  # the folder of chat templates beside the usual one, such as for tools
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "vocab.txt", "chat_template.jinja", f"{TEMPLATES}/*.jinja"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "sentencepiece.model", "spm.model"),
    *("tekken.json", "*.tiktoken"),
)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copies the tokenizer's files, with its chat templates, from one folder to another, those that are there.

    Raises: UsageError where one is a link out of its folder.
    """
    for pattern in TOKENIZER_FILES:
        for file in sorted(source.glob(pattern)):
            require_inside(file, source)
            place = target / file.relative_to(source)
            place.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, place)
