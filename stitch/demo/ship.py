"""Writes a trained model in the form in which the package embeds it."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import PreTrainedModel

from stitch.demo.recipe import CONTEXT, RECIPES, Recipe
from stitch.demo.tokenizer import load_tokenizer
from stitch.evaluation.scores import evaluate, whole_model
from stitch.files.front_matter import front_matter
from stitch.text.corpus import cached_documents
from stitch.text.documents import select
from stitch.text.windows import pack


def ship(name: str, recipe: Recipe, model: PreTrainedModel, curve: list[dict], tokenizer: Path, out: Path) -> dict:
    """Writes safetensors in bf16, the tokenizer, and a card with recipe, loss curve and score; returns the card.

    The score is the cross-entropy in nats after rounding to bf16, on the whole report split, which training never uses.
    """
    shipped: PreTrainedModel = model.to(torch.bfloat16).float()  # pyright: ignore[reportArgumentType, reportCallIssue]
    shipped.config.use_cache = True
    shipped.generation_config.use_cache = True
    text = pack(select(cached_documents(), "report"), load_tokenizer(tokenizer), CONTEXT)
    score = evaluate({name: whole_model(shipped)}, text, vocabulary=recipe.tokens.size)[name].row(name)
    out.mkdir(parents=True, exist_ok=True)
    shipped.to(torch.bfloat16).save_pretrained(out)  # pyright: ignore[reportArgumentType, reportCallIssue]
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / file, out / file)
    card = {
        "name": f"demo:{name}",
        "parameters": sum(parameter.numel() for parameter in shipped.parameters()),
        "recipe": asdict(recipe),
        "recipe_hash": recipe.hash(),
        "report": {"tokens": text.tokens, "ce": score["ce"], "low": score["ce_low"], "high": score["ce_high"]},
        "curve": curve,
    }
    (out / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    return card


def readme(name: str) -> str:
    """The README beside an embedded model: its licence, and what it was trained on."""
    metadata = {
        "license": "apache-2.0",
        "language": "en",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["stitch"],
    }
    repeats = RECIPES[name].repeats
    text = "docstrings of Python's standard library and of the packages that stitch-lm needs"
    lines = [
        *front_matter(metadata),
        f"# demo:{name}",
        "",
        "A small model that is embedded in stitch-lm so that its commands run without a download. "
        f"It was trained from scratch on {text}" + (", and on random tokens with repeats." if repeats else "."),
        "",
        "The weights are part of stitch-lm and have its licence, Apache-2.0. The text is not part of it: each package has a "
        "licence of its own. `card.json` holds the recipe, the loss curve and the score.",
        "",
    ]
    return "\n".join(lines)
