"""Tables taken from the models without any fit: embeddings, B's states of tokens without context, learned positions.

Tables by token have rows for given ids, those that occur in a text: what they cost follows the text and not the vocabulary.
"""

import copy
from typing import Any

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor
from transformers.cache_utils import DynamicCache

from stitch.activations.harvest import TOKENS_AT_ONCE
from stitch.activations.observe import residuals
from stitch.modeling.modeling_composite import StitchConfig
from stitch.models.flow import FAMILY_ERRORS
from stitch.models.model import Model
from stitch.models.module_inputs import module_inputs
from stitch.progress import Progress
from stitch.text.tokenizers import bos_of

PROBED = 4  # tokens whose states are computed in both ways


def occurring(*texts: Int[Tensor, "_ _"]) -> Int64[Tensor, " ids"]:
    """The ids that occur in these texts, sorted."""
    return torch.cat([ids.unique() for ids in texts]).unique().long()


@torch.no_grad()
def embeddings(model: Model, ids: Int64[Tensor, " ids"]) -> Float[Tensor, "ids d"]:
    """The model's input embeddings of these tokens, scaled as the model scales them."""
    return _kept(model.embedding(ids.to(model.device)).float())


@torch.no_grad()
def context_free(
    model: Model, site: int, ids: Int64[Tensor, " ids"], progress: Progress | None = None
) -> Float[Tensor, "ids d"]:
    """The model's residual stream entering block `site` at token t of [BOS, t], for every t in `ids`.

    BOS is computed once and its cache repeated for every token. It is computed anew with every token where that would change the
    states, for composites, whose cache also holds what seams read, and for models behind another tokenizer.
    """
    both = ids.to(model.device)
    is_repeatable = site and model.original is None and not isinstance(model.config, StitchConfig)
    cache = _cache_of_bos(model, site, both[:PROBED]) if is_repeatable else None
    batch = TOKENS_AT_ONCE.get(model.device.type, TOKENS_AT_ONCE["cpu"]) // (1 if cache is not None else 2)
    rows, done = [], 0
    if progress:
        progress("states (tokens)", done, len(ids))
    for tokens in both.split(batch):
        found = _after_bos(model, site, tokens) if cache is None else _after_cached_bos(model, site, tokens, cache)
        rows.append(_kept(found.float()))
        done += len(tokens)
        if progress:
            progress("states (tokens)", done, len(ids))
    return torch.cat(rows)


def _after_bos(model: Model, site: int, tokens: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
    ids = torch.stack([torch.full_like(tokens, bos_of(model.tokenizer)), tokens], 1)
    return residuals(model, ids, [site])[site][:, 1]


def _after_cached_bos(model: Model, site: int, tokens: Int64[Tensor, " n"], cache: Any) -> Float[Tensor, "n d"]:
    repeated = copy.deepcopy(cache)
    repeated.batch_repeat_interleave(len(tokens))
    return _stream(model, site, tokens[:, None], repeated)[:, 0]


def _stream(model: Model, site: int, ids: Int64[Tensor, "n seq"], cache: Any) -> Float[Tensor, "n seq d"]:
    """The stream entering block `site`, computed with a cache, to which the blocks before it are added."""
    module = model.blocks[site] if site < model.depth else model.final_norm
    given = {"input_ids": ids, "past_key_values": cache}
    return module_inputs(model.net, {site: module}, argument=model.stream_argument, use_cache=True, **given)[site]


def _cache_of_bos(model: Model, site: int, probed: Int64[Tensor, " n"]) -> Any:
    """A cache that contains BOS; None where states computed from it differ, or the states of the family cannot be repeated."""
    cache = DynamicCache(config=model.config)
    try:
        _stream(model, site, torch.full((1, 1), bos_of(model.tokenizer), device=model.device), cache)
        return cache if _agrees(model, site, probed, cache) else None
    except FAMILY_ERRORS:
        return None


def _agrees(model: Model, site: int, tokens: Int64[Tensor, " n"], cache: Any) -> bool:
    """Whether states computed from the cache are those computed with BOS before every token."""
    found = _after_cached_bos(model, site, tokens, cache).float()
    wanted = _after_bos(model, site, tokens).float()
    rounding = torch.finfo(model.dtype).eps ** 0.5
    return bool((found - wanted).norm() <= rounding * wanted.norm())


def _kept(rows: Tensor) -> Tensor:
    """Rows where tables are kept: on a CUDA device, otherwise on the CPU, as other devices have no float64."""
    return rows if rows.is_cuda else rows.cpu()


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


def position_columns(*models: Model) -> int:
    """The number of columns of `positions`; 0 where no model has learned ones."""
    found = positions(*models)
    return 0 if found is None else found.shape[1]
