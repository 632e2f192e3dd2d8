"""Tables that cost nothing to fit and nothing to read: what B, and learned positions, know without any context."""

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.activations import residuals
from stitch.models import Model

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
        ids = torch.stack([torch.full_like(tokens, model.bos), tokens], 1)
        rows.append(residuals(model, ids, [site])[site][:, 1].float().cpu())
    return torch.cat(rows)


@torch.no_grad()
def positions(*models: Model) -> Float[Tensor, "positions columns"] | None:
    """Learned position tables of the models that have one, side by side; None where all rotate instead."""
    tables = [
        model.body.get_submodule(model.anatomy.positions).weight.float().cpu()
        for model in models
        if model.anatomy.positions
    ]
    if not tables:
        return None
    shared = min(len(table) for table in tables)
    return torch.cat([table[:shared] for table in tables], 1)
