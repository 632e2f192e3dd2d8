"""Trains an embedded model from its recipe. It can be interrupted, and continues from its last snapshot to the same weights."""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stitch.demo.batches import batch
from stitch.demo.network import build
from stitch.demo.recipe import CONTEXT, RECIPES, Recipe
from stitch.demo.tokenizer import load_tokenizer, train_tokenizer
from stitch.text.corpus import cached_documents
from stitch.text.document import Document
from stitch.text.documents import select
from stitch.text.windows import pack

SNAPSHOT_EVERY, LOG_EVERY = 250, 50  # steps
SWEEP_WINDOWS = 128  # windows of the sweep split on which the held-out loss is measured

Optimisers = list[torch.optim.Optimizer]


def train(
    recipe: Recipe, work: Path, log: Callable[[str], object] = print, corpus: list[Document] | None = None
) -> tuple[PreTrainedModel, list[dict]]:
    """Trains from the newest snapshot in `work`, or from the start, to the last step. Returns the model and the loss curve.

    The text is the fit split of `corpus` (None: the docstring corpus).

    Raises: FloatingPointError when the loss is not finite.
    """
    work.mkdir(parents=True, exist_ok=True)
    fit, sweep = _windows(recipe, work, cached_documents() if corpus is None else corpus)
    log(f"{fit.numel():,} training tokens, {len(fit) // recipe.batch} steps an epoch")
    model = build(recipe)
    optimizers, snapshot = optimisers(model, recipe), work / "snapshot.pt"
    curve, start = _resume(snapshot, model, optimizers)
    compiled = torch.compile(model)  # a fifth faster on a CPU
    losses, began = [], time.perf_counter()
    for step in range(start, recipe.steps):
        _set_rates(optimizers, step, recipe)
        losses.append(_step(compiled, model, optimizers, *batch(step, fit, recipe)))
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(f"the loss must be finite; it is {losses[-1]} at step {step}.")
        done = step + 1
        pause = done % SNAPSHOT_EVERY == 0 or done == recipe.steps
        if not pause and done % LOG_EVERY:
            continue
        speed = len(losses) * recipe.batch * CONTEXT / (time.perf_counter() - began)
        entry = {"step": done, "train": round(sum(losses) / len(losses), 4)}
        if pause:
            entry["sweep"] = round(held_out(model, sweep), 4)
            _save(snapshot, model, optimizers, [*curve, entry], done)
        curve.append(entry)
        log(f"{entry} {speed:,.0f} tokens/s")
        losses, began = [], time.perf_counter()
    return model, curve


def optimisers(model: nn.Module, recipe: Recipe) -> Optimisers:
    """Muon for matrices inside blocks, AdamW for all other parameters."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        inside_a_block = ".h." in name or ".layers." in name
        (matrices if inside_a_block and parameter.ndim == 2 else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=recipe.rate_matrices, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(others, lr=recipe.rate_others, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate_at(step: int, recipe: Recipe) -> float:
    """The learning rate of a step, as a share of the peak rate."""
    steps, shares = zip(*recipe.rates, strict=True)
    return min((step + 1) / recipe.warmup, float(np.interp(step, steps, shares)))


def loss_of(model: Callable[..., Any], ids: Tensor, known: Tensor | None = None) -> Tensor:
    """Mean cross-entropy in nats of all tokens except the first, or of those in the mask `known`."""
    logits, answers = model(input_ids=ids).logits[:, :-1], ids[:, 1:]
    if known is not None:
        answers = answers.where(known[:, 1:], -100)
    return nn.functional.cross_entropy(logits.flatten(0, 1), answers.flatten())


@torch.no_grad()
def held_out(model: nn.Module, ids: Tensor, batch: int = 16) -> float:
    """The mean loss over windows."""
    losses = [(loss_of(model, part).item(), len(part)) for part in ids.split(batch)]
    return sum(loss * size for loss, size in losses) / sum(size for _, size in losses)


def _windows(recipe: Recipe, work: Path, corpus: list[Document]) -> tuple[Tensor, Tensor]:
    """Windows of the fit and the sweep split. The tokenizer is that of the first embedded model of its kind, or a new one."""
    if not (work / "tokenizer").exists():
        first = next(name for name, other in RECIPES.items() if other.tokenizer == recipe.tokenizer)
        embedded = Path(__file__).parent / first
        if (embedded / "tokenizer.json").exists():
            load_tokenizer(embedded).save_pretrained(work / "tokenizer")
        else:
            texts = [text for _, text in select(corpus, "fit")]
            train_tokenizer(texts, recipe.tokenizer).save_pretrained(work / "tokenizer")
    tokenizer = load_tokenizer(work / "tokenizer")
    fit = pack(select(corpus, "fit"), tokenizer, CONTEXT).ids.long()
    return fit, pack(select(corpus, "sweep"), tokenizer, CONTEXT).ids.long()[:SWEEP_WINDOWS]


def _set_rates(optimizers: Optimisers, step: int, recipe: Recipe) -> None:
    for optimizer, peak in zip(optimizers, (recipe.rate_matrices, recipe.rate_others), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = peak * rate_at(step, recipe)


def _step(
    compiled: Callable[..., Any], model: nn.Module, optimizers: Optimisers, ids: Tensor, known: Tensor | None
) -> float:
    loss = loss_of(compiled, ids, known)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def _resume(snapshot: Path, model: nn.Module, optimizers: Optimisers) -> tuple[list[dict], int]:
    """Loads a snapshot into model and optimisers; returns its loss curve and its number of steps."""
    if not snapshot.exists():
        return [], 0
    saved = torch.load(snapshot, weights_only=True)
    model.load_state_dict(saved["model"])
    for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    return saved["curve"], saved["step"]


def _save(path: Path, model: nn.Module, optimizers: Optimisers, curve: list, step: int) -> None:
    state = {
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "curve": curve,
        "step": step,
    }
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)
