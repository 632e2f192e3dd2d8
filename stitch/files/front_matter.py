"""The metadata at the top of a model card: YAML between two lines of three hyphens."""

import re
from pathlib import Path

CARD = "README.md"
LONGEST = 2**18  # characters; YAML is read at some 50,000 a second
BLOCK = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.MULTILINE | re.DOTALL)


def read_front_matter(card: Path) -> dict:
    """The metadata of the file `card`. Empty where there is no such file, or nothing in it that is YAML with names."""
    import yaml

    try:
        block = BLOCK.match(card.read_text(encoding="utf-8-sig"))
        found = yaml.safe_load(block[1]) if block and len(block[1]) <= LONGEST else None
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def front_matter(metadata: dict) -> list[str]:
    """The lines of a card that hold `metadata` as huggingface_hub writes it, without None and tags that are there twice."""
    from huggingface_hub import ModelCardData

    return ["---", ModelCardData(**metadata).to_yaml(line_break="\n").rstrip("\n"), "---", ""]
