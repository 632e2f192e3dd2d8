"""Tables taken from the models without any fit: embeddings, B's states of tokens without context, learned positions."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.activations.observe import residuals
from stitch.models.model import Model
from stitch.text.tokenizers import bos_of

BATCH = 1024


@torch.no_grad()
def embeddings(model: Model) -> Float[Tensor, "vocabulary d"]:
    """The model's input embedding of every token, scaled as the model scales it."""
    return model.embedding(torch.arange(model.config.vocab_size, device=model.device)).float().cpu()


@torch.no_grad()
def context_free(model: Model, site: int) -> Float[Tensor, "vocabulary d"]:
    """The model's residual stream entering block `site` at token t of [BOS, t], for every t."""
    rows = []
    for tokens in torch.arange(model.config.vocab_size, device=model.device).split(BATCH):
        ids = torch.stack([torch.full_like(tokens, bos_of(model.tokenizer)), tokens], 1)
        rows.append(residuals(model, ids, [site])[site][:, 1].float().cpu())
    return torch.cat(rows)


@torch.no_grad()
def positions(*models: Model) -> Float[Tensor, "positions columns"] | None:
    """Learned position embeddings of the models that have them, side by side; None where no model does."""
    tables: list[Tensor] = []
    for model in models:
        if model.anatomy.positions:
            table: Any = model.body.get_submodule(model.anatomy.positions)
            tables.append(table.weight.float().cpu())
    if not tables:
        return None
    shared = min(len(table) for table in tables)
    return torch.cat([table[:shared] for table in tables], 1)
