"""An n-gram memory and the blocks after it as one model: a composite whose first half is only an embedding, the token table."""

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stitch.composite.compose import late_half, stitch_config
from stitch.errors import UsageError
from stitch.modeling.modeling_composite import StitchForCausalLM
from stitch.modeling.modeling_halves import Half, early_net
from stitch.models.anatomy import blocks_before_last_part
from stitch.models.flow import FAMILY_ERRORS
from stitch.models.model import Model
from stitch.translation.module import embeddings_of, translation_module
from stitch.translation.types import Residual, Term, Token, Translation

TOGETHER = 4096  # rows of the token table that are computed at a time
TRIED = 8  # tokens
NEAR = 0.02  # relative, as rounding of half precision is below it


def build_composite(model: Model, site: int, translation: Translation) -> StitchForCausalLM:
    """Blocks `site`.. of `model`, its final norm and head, with `translation` as their input. In evaluation mode.

    The blocks share the donor's tensors. In a composite, `site` must be in the last part, and only that part remains.
    """
    last, before = model.parts[-1], blocks_before_last_part(model.config)
    by_token = tuple(term for term in translation.terms if term.input == Token())
    others = tuple(term for term in translation.terms if term.input != Token())
    read = dataclasses.replace(translation, terms=(Term(Residual(0), None), *others))
    scale = table_scale(last)
    config = stitch_config(last, last, 0, site - before + (last.kept.start if last.kept else 0), read)
    with torch.device("meta"):
        net = StitchForCausalLM(config)
    early = _empty(last)
    with torch.no_grad():
        embedding = _table(early, last.flow)
        tables = Translation("by token", by_token, torch.zeros(last.width))
        rows, held = translation_module(tables, model, model, site), embeddings_of(model, model)
        for ids in torch.arange(config.vocab_size, device=model.device).split(TOGETHER):
            embedding.weight[ids] = (rows({}, ids[None], torch.ones_like(ids)[None], embeddings=held)[0] / scale).to(
                model.dtype
            )
    net.a, net.b = early, late_half(model, site).net
    net.translation = translation_module(read, model, model, site)
    net.connect()
    net.generation_config = copy.deepcopy(model.net.generation_config)
    net.generation_config.cache_implementation = None  # some families ask for a static cache
    return net.eval()


def _empty(model: Model) -> PreTrainedModel:
    """The model before its first block, with zeros as parameters: for learned positions the translation has a table."""
    early: Any = early_net(model.config, model.flow, 0)
    early.to(model.device, model.dtype).eval()
    for parameter in early.parameters():
        parameter.detach().zero_()
    return early


def _table(early: PreTrainedModel, flow: dict) -> nn.Embedding:
    """The token embedding. Not all base models tell theirs."""
    return early.get_submodule(flow["input"].removeprefix(f"{flow['body']}."))  # pyright: ignore[reportReturnType]


@torch.no_grad()
def table_scale(model: Model) -> float:
    """The number by which a family multiplies the rows of its embedding: 1, or √d in a Gemma.

    Raises: UsageError where the stream that enters the first block is no such product, as behind a norm.
    """
    flow, early = model.flow, _empty(model)
    embedding = _table(early, flow)
    ids = torch.arange(2, 2 + TRIED, device=model.device)[None]
    half = Half(early, flow, 0, 0)
    half.watch({0})

    def entering(rows: Tensor) -> Tensor:
        embedding.weight[ids[0]] = rows.to(embedding.weight)
        half.run(input_ids=ids, use_cache=False)
        return half.seen[0][0].float()

    scale = 0.0
    try:
        scale = float(entering(torch.ones(TRIED, flow["embedded"])).mean())
        rows = torch.randn(TRIED, flow["embedded"], generator=torch.Generator().manual_seed(0)).to(embedding.weight)
        found = entering(rows)
        is_product = found.shape == rows.shape and bool((found - scale * rows).norm() <= NEAR * found.norm())
    except FAMILY_ERRORS:
        is_product = False
    if not (is_product and scale):
        raise UsageError(
            f"the stream that enters the first block must be a row of the embedding times a number to be looked up; that of "
            f"{model.name} ({model.config.model_type}) is not: choose another model."
        )
    return scale
