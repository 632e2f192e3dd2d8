"""What the scripts of the conjectures share: a model with spread windows of the report split, and the line with the verdict."""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from stitch.evaluation.scores import Scores
from stitch.models.loading import load
from stitch.models.model import Model
from stitch.models.sources import resolve
from stitch.text.windows import Windows, report_windows

SEEDS = (0, 1, 2)  # where anything is drawn


@dataclass(frozen=True)
class Subject:
    model: Model
    windows: Windows


def subject(name: str, *, context: int, windows: int) -> Subject:
    """The model `name` in float32, and so many windows of the report split, spread over its documents."""
    model = load(resolve(name).folder, dtype=torch.float32, name=name)
    length = min(context, model.longest)
    return Subject(model, report_windows("docs", windows * length, model.tokenizer, length))


def documents(scores: Scores) -> dict[str, float]:
    return {"documents": scores.documents, "effective": round(scores.effective_documents, 1)}


def tell(conjecture: str, model: str, verdict: str, **found: Any) -> None:
    """Prints the line of a conjecture: its verdict by the rule in the script's head, and the numbers behind it."""
    print(json.dumps({"conjecture": conjecture, "model": model, "verdict": verdict, **found}), flush=True)


def run(description: str | None, defaults: list[str], measure: Callable[[str, argparse.Namespace], None]) -> None:
    """Measures every model that is asked for. --small takes a quarter of the windows: for a trial, not for the page."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=defaults)
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    for name in given.models:
        measure(name, given)
