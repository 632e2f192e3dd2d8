"""Whether a model that is cut and joined to itself is still the same, to the last bit.

This is tried on the model itself before anything else is computed, as a family may do things between its blocks, before the
first or after the last one that a composite would leave out.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from stitch.activations.observe import residuals
from stitch.composite.compose import compose, late_half, late_logits
from stitch.composite.native import with_blocks
from stitch.errors import UsageError
from stitch.modeling.modeling_halves import Stream
from stitch.models.anatomy import anatomy_of
from stitch.models.flow import FAMILY_ERRORS, one_line
from stitch.models.model import Model
from stitch.translation.types import Residual, Term, Translation

WINDOW, CHUNKS, PADDING = 12, (7, 4, 1), 4  # tokens
TOKENS = 4 * 2 * WINDOW  # that a network reads to answer: two texts in four ways
WHOLE = "a whole text"
FEW_IDS = 100  # low ids: multimodal models give some high ones a meaning


def require_renumbered(model: Model) -> None:
    """Raises UsageError where a stock model without one of the blocks is not what is left of the whole model without it.

    Some blocks depend on their number, such as those that leave out positions in every fourth.
    """
    if is_known(model):
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


def is_known(model: Model) -> bool:
    """Whether it is of a family that tests have tried, or a composite of such: these are not tried again."""
    return all(part.anatomy.tested for part in model.parts)


def inexact(model: Model, site: int, own: "Answers | None" = None) -> str | None:
    """In what way the model joined to itself at `site` differs from the model, in words; None where it does not.

    `own` are the model's `answers`, for callers that try many sites.
    """
    if site == model.depth and model.flow["exit"] is None:
        return "no module takes the stream after the last block"
    if len(model.parts) > 1:
        return _cut_inexactly(model, site)
    try:
        joined = compose(model, model, site, site, _identity(model, site))
    except FAMILY_ERRORS as error:
        return f"its halves cannot be made ({one_line(error)})"
    return differs(model, own or answers(model, model.net), joined)


def inexact_before(model: Model, site: int) -> str | None:
    """In what way the stream at `site` differs in a composite whose other part is a plain one, in words; None where it does not.

    What the blocks of `model` after it need is not tried, as they do not run in composites of which it is the first part.
    """
    if site == model.depth and model.flow["exit"] is None:
        return "no module takes the stream after the last block"
    plain = _plain(model, site)
    try:
        joined = compose(model, plain, site, plain.depth, _identity(model, site))
    except FAMILY_ERRORS as error:
        return f"its first half cannot be made ({one_line(error)})"
    stream = Stream(model.flow["argument"] if site < model.depth else 0, None)
    module = model.blocks[site] if site < model.depth else model.final_norm
    whole = _UpTo(model.net, module, stream.of)
    return differs(
        model, answers(model, whole), _UpTo(joined, joined.translation, lambda args, _: args[0][site]), "stream"
    )


class _UpTo(nn.Module):
    """A network whose answer is the stream that `module` in it takes, which is what `stream` finds in its arguments."""

    def __init__(self, net: nn.Module, module: nn.Module, stream: Callable[[tuple, dict], Tensor]):
        super().__init__()
        self.net, self.module, self.stream = net, module, stream

    def forward(self, **given) -> CausalLMOutputWithPast:
        seen: list[Tensor] = []
        handle = self.module.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(self.stream(args, kwargs)), with_kwargs=True
        )
        try:
            self.net(**given)
        finally:
            handle.remove()
        return CausalLMOutputWithPast(logits=seen[-1])  # pyright: ignore[reportArgumentType]


def _plain(model: Model, site: int) -> Model:
    """A Llama of one block that takes the stream of `model` at `site`. It is there to be cut after its block."""
    config = LlamaConfig(
        vocab_size=16, hidden_size=model.width_at(site), intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        head_dim=8,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        net: Any = LlamaForCausalLM(config)
    net = net.to(model.device, model.dtype).eval()
    return Model("plain", net, model.tokenizer, anatomy_of(config), model.folder)


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
def differs(model: Model, before: Answers, other: nn.Module, answer: str = "logits") -> str | None:
    """Where the answers of another network differ from those `before`, in words; None where they have the same bits.

    `answer` says what they are. Ways in which there was no answer before are left out, but for a whole text.
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
            return f"{name} changes its {answer} by {float((wanted - found).abs().max()):.2g}"
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
