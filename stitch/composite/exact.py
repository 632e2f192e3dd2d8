"""Whether a model that is cut and joined to itself is still the same, to the last bit.

This is tried on the model itself before anything else is computed, as a family may do things between its blocks, before the
first or after the last one that a composite would leave out.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from stitch.activations.observe import residuals
from stitch.composite.compose import compose, late_half, late_logits
from stitch.composite.native import with_blocks
from stitch.errors import UsageError
from stitch.models.flow import FAMILY_ERRORS, one_line
from stitch.models.model import Model
from stitch.translation.types import Residual, Term, Translation

WINDOW, CHUNKS, PADDING = 12, (7, 4, 1), 4  # tokens
WHOLE = "a whole text"
FEW_IDS = 100  # low ids: multimodal models give some high ones a meaning


def require_exact(model: Model, site: int) -> None:
    """Raises UsageError where the model joined to itself at `site` has other logits than before.

    Families that tests have tried, and composites of them, are not tried again.
    """
    if not _is_known(model) and (different := inexact(model, site)):
        raise UsageError(
            f"a model must stay the same when it is cut and joined to itself; {model.name} ({model.config.model_type}) does not "
            f"at layer {site}: {different}. Choose another layer or another model."
        )


def require_renumbered(model: Model) -> None:
    """Raises UsageError where a stock model without one of the blocks is not what is left of the whole model without it.

    Some blocks depend on their number, such as those that leave out positions in every fourth.
    """
    if _is_known(model):
        return
    middle = model.depth // 2
    try:
        left = with_blocks(model, [block for block in range(model.depth) if block != middle]).net
        different = differs(
            model, answers(model, compose(model, model, middle, middle + 1, _identity(model, middle))), left
        )
    except FAMILY_ERRORS as error:
        different = one_line(error)
    if different:
        raise UsageError(
            f"the blocks of {model.name} ({model.config.model_type}) cannot be renumbered: {different}. Join it without `native`."
        )


def _is_known(model: Model) -> bool:
    return all(part.anatomy.tested for part in model.parts)


def inexact(model: Model, site: int, own: "Answers | None" = None) -> str | None:
    """In what way the model joined to itself at `site` differs from the model, in words; None where it does not.

    `own` are the model's `answers`, for callers that try many sites.
    """
    if site == model.depth and model.flow["exit"] is None:
        return "no module takes the stream after the last block"
    if len(model.parts) > 1:
        return _cut_inexactly(model, site)
    return differs(model, own or answers(model, model.net), compose(model, model, site, site, _identity(model, site)))


@torch.no_grad()
def _cut_inexactly(model: Model, site: int) -> str | None:
    """As `inexact`, for a composite, which cannot be the second of two models: for a whole text, without a cache."""
    ids = _ids(model)
    try:
        wanted = model.net(input_ids=ids, use_cache=False).logits
        found = late_logits(late_half(model, site), residuals(model, ids, [site])[site], ids=ids)
    except FAMILY_ERRORS as error:
        return f"{WHOLE} fails ({one_line(error)})"
    return (
        None
        if torch.equal(wanted, found)
        else f"{WHOLE} changes its logits by {float((wanted - found).abs().max()):.2g}"
    )


Answers = dict[str, Tensor | str]
"""Logits of a network by the way in which it read the texts, or in words why it could not."""


@torch.no_grad()
def answers(model: Model, net: nn.Module) -> Answers:
    """The logits of `net` for the texts of `model`, in four ways: a whole text, the same in pieces with a cache, two texts of
    which one is padded on the left, and these in pieces."""
    return {name: _answer(way, net) for name, way in _ways(model).items()}


@torch.no_grad()
def differs(model: Model, before: Answers, other: nn.Module) -> str | None:
    """Where the answers of another network differ from those `before`, in words; None where they have the same bits.

    Ways in which there was no answer before are left out, but for a whole text.
    """
    for name, way in _ways(model).items():
        wanted = before[name]
        if isinstance(wanted, str):
            if name == WHOLE:
                return f"{name} fails in the model itself ({wanted})"
            continue
        found = _answer(way, other)
        if isinstance(found, str):
            return f"{name} fails ({found})"
        if not torch.equal(wanted, found):
            return f"{name} changes its logits by {float((wanted - found).abs().max()):.2g}"
    return None


def _answer(way: Callable[[nn.Module], Tensor], net: nn.Module) -> Tensor | str:
    try:
        return way(net)
    except FAMILY_ERRORS as error:
        return one_line(error)


def _ids(model: Model) -> Tensor:
    few = min(FEW_IDS, model.embedding.num_embeddings)
    return torch.randint(2, few, (2, WINDOW), generator=torch.Generator().manual_seed(0)).to(model.device)


def _ways(model: Model) -> dict[str, Callable[[nn.Module], Tensor]]:
    ids = _ids(model)
    mask = torch.ones_like(ids)
    mask[0, :PADDING] = 0
    return {
        WHOLE: lambda net: net(input_ids=ids, use_cache=False).logits,
        "a cache": lambda net: _in_chunks(net, ids, model),
        "padding": lambda net: net(input_ids=ids, attention_mask=mask, use_cache=False).logits[mask.bool()],
        "padding and a cache": lambda net: _in_chunks(net, ids, model, mask)[mask.bool()],
    }


def _in_chunks(net: nn.Module, ids: Tensor, model: Model, mask: Tensor | None = None) -> Tensor:
    cache, logits, done = DynamicCache(config=model.config), [], 0
    for chunk in ids.split(CHUNKS, 1):
        done += chunk.shape[1]
        seen = {} if mask is None else {"attention_mask": mask[:, :done]}
        logits.append(net(input_ids=chunk, past_key_values=cache, use_cache=True, **seen).logits)
    return torch.cat(logits, 1)


def _identity(model: Model, site: int) -> Translation:
    return Translation("identity", (Term(Residual(site), None),), torch.zeros(model.width))
