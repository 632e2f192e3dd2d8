"""The questions of next-words.yaml, which lie beside it and are found from any working directory."""

from pathlib import Path

import datasets


def questions(**_: object) -> datasets.DatasetDict:
    """By split, as lm-eval wants them."""
    file = Path(__file__).with_name("next-words.jsonl")
    return datasets.load_dataset("json", data_files={"test": str(file)})
