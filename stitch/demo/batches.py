"""Batches of a training step: windows of text, and windows of random tokens with repeated sequences."""

import torch
from torch import Tensor

from stitch.demo.recipe import CONTEXT, Recipe, Tokens


def batch(step: int, fit: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor | None]:
    """Token ids [batch, CONTEXT] of a step, and a mask of those that count in the loss (None: all)."""
    text = fit[batch_indices(step, len(fit), recipe)]
    if not recipe.repeats:
        return text, None
    ids, known = repeated(recipe.repeats, recipe.tokens, step, recipe.seed)
    text = text[recipe.repeats :]
    return torch.cat([text, ids]), torch.cat([torch.ones_like(text, dtype=torch.bool), known])


def batch_indices(step: int, windows: int, recipe: Recipe) -> Tensor:
    """Indices of a step's windows: a new permutation in every epoch. A function of the step alone, so that resuming is exact."""
    positions = range(step * recipe.batch, (step + 1) * recipe.batch)
    epochs = {position // windows for position in positions}
    order = {
        epoch: torch.randperm(windows, generator=torch.Generator().manual_seed(recipe.seed + epoch)) for epoch in epochs
    }
    return torch.stack([order[position // windows][position % windows] for position in positions])


def repeated(count: int, tokens: Tokens, step: int, seed: int) -> tuple[Tensor, Tensor]:
    """Windows of random tokens in which one sequence of 8 to 64 tokens recurs; and a mask of the tokens that this determines."""
    generator = torch.Generator().manual_seed(seed + 1_000_003 * (step + 1))

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    ids = torch.randint(len(tokens.special), tokens.size, (count, CONTEXT), generator=generator)
    ids[:, 0] = tokens.roles["bos_token_id"]
    known = torch.zeros_like(ids, dtype=torch.bool)
    for row, drawn in enumerate(ids.clone()):
        length = draw(8, 65)
        start = 1 + draw(0, 16)
        first = start
        while (start := start + length + draw(0, 16)) + length <= CONTEXT:
            ids[row, start : start + length] = drawn[first : first + length]
            known[row, start + 1 : start + length] = True
    return ids, known
