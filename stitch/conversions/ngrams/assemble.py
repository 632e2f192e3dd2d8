"""An n-gram memory and the blocks after it as one model: a composite whose first half is only an embedding.

The embedding is the table by the current token. Where the donor's embedding is its head too, the composite keeps that matrix, and
the table is part of the translation (`keeps_embedding`).
"""

import copy
import dataclasses
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stitch.composite.compose import early_half, late_half, shares_matrix, stitch_config
from stitch.errors import UsageError
from stitch.modeling.modeling_composite import StitchConfig, StitchForCausalLM
from stitch.modeling.modeling_halves import Half, early_net
from stitch.models.anatomy import blocks_before_last_part
from stitch.models.flow import FAMILY_ERRORS
from stitch.models.model import Model
from stitch.models.shared import share
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
    shares = keeps_embedding(model)
    read = translation if shares else dataclasses.replace(translation, terms=(Term(Residual(0), None), *others))
    config = stitch_config(last, last, 0, site - before + (last.kept.start if last.kept else 0), read)
    config.shares_embedding = config.tie_word_embeddings = shares
    with torch.device("meta"):
        net = StitchForCausalLM(config)
    net.a = _with_own(model) if shares else _with_table(model, site, by_token)
    net.b, net.translation = late_half(model, site).net, translation_module(read, model, model, site)
    if shares:
        _copy_shared(net.a, net.b, but=model.parts[0].embedding.weight)
    net.tie_weights()
    net.connect()
    net.generation_config = copy.deepcopy(model.net.generation_config)
    net.generation_config.cache_implementation = None  # some families ask for a static cache
    return net.eval()


def keeps_embedding(model: Model) -> bool:
    """Whether the embedding is the matrix of the head, so that the composite keeps it."""
    if isinstance(model.config, StitchConfig):
        embedding = model.parts[0].embedding
        return model.config.shares_embedding and embedding.weight is model.head.get_parameter("weight")
    return shares_matrix(model, model)


def _copy_shared(early: nn.Module, late: nn.Module, but: Tensor) -> None:
    """Gives `early` tensors of its own where they are those of `late`, such as a norm behind the embedding, `but` for that of the
    embedding: a file holds no others once for both."""
    taken = {parameter.data_ptr() for parameter in late.parameters()} - {but.data_ptr()}
    for module in early.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.data_ptr() in taken:
                module._parameters[name] = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)


def _with_own(model: Model) -> PreTrainedModel:
    """The model before its first block, with its own embedding. A tied composite has that as its first half."""
    if not isinstance(model.config, StitchConfig):
        return early_half(model, 0)
    config, net = model.config, cast(Any, model.net)
    with torch.device("meta"):
        early = early_net(config.a_config, config.a_flow, 0)
    share(early, net.a)
    return early.eval()


@torch.no_grad()
def _with_table(model: Model, site: int, by_token: tuple[Term, ...]) -> PreTrainedModel:
    """The last part before its first block, with the sum of the tables `by_token` as its embedding."""
    last = model.parts[-1]
    scale, early = table_scale(last), _empty(last)
    embedding, held = _table(early, last.flow), embeddings_of(model, model)
    rows = translation_module(Translation("by token", by_token, torch.zeros(last.width)), model, model, site)
    for ids in torch.arange(last.vocabulary, device=model.device).split(TOGETHER):
        found = rows({}, ids[None], torch.ones_like(ids)[None], embeddings=held)[0]
        embedding.weight[ids] = (found / scale).to(model.dtype)
    return early


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
