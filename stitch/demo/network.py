"""Initial networks of the embedded models, from their recipes."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from stitch.demo.recipe import CONTEXT, Recipe
from stitch.grafts import heads
from stitch.internals import weights
from stitch.internals.positions import code_frequencies, offset_head, position_codes
from stitch.models.anatomy import ANATOMIES
from stitch.models.model import Model


def build(recipe: Recipe) -> PreTrainedModel:
    """The network before its first step; a function of the recipe alone."""
    torch.manual_seed(recipe.seed)
    config = AutoConfig.for_model(
        recipe.family,
        vocab_size=recipe.tokens.size,
        use_cache=False,
        **recipe.tokens.roles,
        **recipe.shape,
    )
    net = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if recipe.repeats:
        start_with_previous_token_head(net)
    return net


@torch.no_grad()
def start_with_previous_token_head(net: PreTrainedModel) -> None:
    """Initialises head 0.0 as one that attends to the previous token, which random attention takes long to learn.

    Training may change it.
    """
    model = Model("initial", net, None, ANATOMIES[net.config.model_type], Path())
    attention, table = weights.attention(model, 0), weights.positions(model)
    frequencies = weights.frequencies(model) if table is None else code_frequencies(12, CONTEXT)
    width, size = attention.q.shape[0], attention.q.shape[2]
    zeros = torch.zeros(width, size, dtype=torch.float64)
    zero_head = heads.Head(zeros, zeros[0], zeros, zeros[0], zeros, zeros[0], zeros.T)
    head = heads.looking_back(
        zero_head, offset_head(frequencies, 1, CONTEXT), size, attention.scale, coded=table is not None, steady=True
    )
    if table is None:
        assert attention.q_bias is not None and attention.k_bias is not None
        attention.q_bias[0], attention.k_bias[0] = head.q_bias, head.k_bias
        attention.q[:, 0] = attention.k[:, 0] = 0
        return
    assert head.q_codes is not None and head.k_codes is not None
    model.embedding.weight.mul_(5)  # larger, so that the first steps of the optimiser do not rotate position codes
    directions = torch.linalg.qr(torch.randn(width, len(head.q_codes), dtype=torch.float64)).Q.T
    spread = model.embedding.weight.std() * width**0.5
    table.copy_(spread * position_codes(frequencies, CONTEXT) @ directions)
    norm = (width / 2) ** 0.5  # of a code after LayerNorm, as embeddings of positions and tokens have the same norm
    attention.q[:, 0] = directions.T @ head.q_codes / norm
    attention.k[:, 0] = directions.T @ head.k_codes / norm
