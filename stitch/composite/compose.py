"""Joins two models in memory. The composite uses the donors' tensors; nothing is copied."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from stitch.errors import UsageError
from stitch.modeling.modeling_composite import StitchConfig, StitchForCausalLM, StitchModel
from stitch.modeling.modeling_halves import Half, early_net, late_net
from stitch.models.anatomy import blocks_before_last_part
from stitch.models.model import Model
from stitch.models.module_inputs import module_inputs
from stitch.models.shared import share
from stitch.translation.module import fill, translation_config
from stitch.translation.types import Translation

# The streams at some sites from that at an earlier one.
Streams = Callable[[Float[Tensor, "batch seq d"], Sequence[int]], dict[int, Tensor]]


def compose(a: Model, b: Model, site_a: int, site_b: int, translation: Translation) -> StitchForCausalLM:
    """Blocks 0..site_a−1 of A, the translation, and blocks site_b.. of B with its final norm and head, in evaluation mode.

    The composite's parameters share memory with those of the donors: training it in place changes the donors too, while moving
    it to another device or changing its dtype does not. Both donors must be on the same device. A may be a composite, which is
    then cut at `site_a`.
    Raises: UsageError for sites out of range, a translation that does not end in B's width, and a composite as B.
    """
    a.check_site(site_a)
    b.check_site(site_b, "layer_b")
    config = stitch_config(a, b, site_a, site_b, translation)
    with torch.device("meta"):
        composite = StitchForCausalLM(config)
    share(composite.a, a.body)
    share(composite.b, b.net)
    composite.tie_weights()
    fill(composite.translation, translation, b.dtype, b.device)
    reader = b if b.original is None else a  # whose tokens are read
    composite.generation_config = copy.deepcopy(reader.net.generation_config)
    composite.generation_config.cache_implementation = None  # some families ask for a static cache
    return composite.eval()


def stitch_config(a: Model, b: Model, site_a: int, site_b: int, translation: Translation) -> StitchConfig:
    """The config of the composite that `compose` makes.

    Raises: UsageError when the translation does not end in B's width, and for a composite as B.
    """
    check_target(b.config, "the second model")
    if len(translation.bias) != b.width:
        raise UsageError(
            f"the translation must end in B's width {b.width}; {translation.name} ends in {len(translation.bias)}: fit it for "
            "this pair."
        )
    config = StitchConfig(
        _early_config(a.config, site_a), _late_config(b.config), site_a, site_b,
        translation_config(translation, b.bos, site_a, a.width, b.config.get_text_config(decoder=True).vocab_size),
        None if isinstance(a.config, StitchConfig) else a.flow, b.flow, shares_embedding=shares_matrix(a, b),
    )  # fmt: skip
    config.architectures = [StitchForCausalLM.__name__]
    set_dtype(config, b.dtype)
    return config


def shares_matrix(a: Model, b: Model) -> bool:
    """Whether A's embedding is the matrix of B's head, as in a tied model that is joined to itself: a composite holds it once.

    Not where A is a composite, where B's logits are not of its own tokens, and in families whose late blocks read token ids or
    positions through an embedding of their own, which is that matrix too.
    """
    if isinstance(a.config, StitchConfig) or isinstance(b.config, StitchConfig) or b.original is not None:
        return False
    embedding = getattr(a.embedding, "weight", None)  # the last part of a composite has none
    if embedding is None or b.flow["input"] not in b.flow["unused"]:
        return False
    return b.head.get_parameter("weight") is embedding


def _early_config(config: PreTrainedConfig, site: int) -> PreTrainedConfig:
    """The config of A's half: that of A, or of a composite that ends at `site`."""
    early = copy.deepcopy(config)
    early._name_or_path = ""
    if not isinstance(early, StitchConfig):
        return early
    return StitchConfig(
        early.a_config, early.b_config, early.site_a, early.site_b, early.translation, early.a_flow, early.b_flow,
        stop_b=early.site_b + site - early.site_a,
    )  # fmt: skip


def check_target(config: PreTrainedConfig, name: str) -> None:
    """Raises UsageError when B is a composite: its later parts are fitted to its own earlier ones."""
    if isinstance(config, StitchConfig):
        raise UsageError(
            f"a composite can only come first; {name} is one: put it first, or make its parts those of a chain."
        )


def set_dtype(config: StitchConfig, dtype: torch.dtype) -> None:
    """Sets the dtype of the composite's config and of every config in it."""
    config.dtype = config.b_config.dtype = dtype
    if isinstance(config.a_config, StitchConfig):
        set_dtype(config.a_config, dtype)
    else:
        config.a_config.dtype = dtype


def _late_config(config: PreTrainedConfig) -> PreTrainedConfig:
    late = copy.deepcopy(config)
    late.tie_word_embeddings = late.get_text_config(decoder=True).tie_word_embeddings = False  # the embedding is gone
    late._name_or_path = ""
    return late


def early_half(a: Model, site: int) -> PreTrainedModel:
    """The embedding and the blocks before `site` of A, which may be a composite. It shares A's tensors."""
    a.check_site(site)
    config = _early_config(a.config, site)
    with torch.device("meta"):
        if isinstance(config, StitchConfig):
            early = StitchModel._from_config(config)
            early.end_open()
        else:
            early = early_net(config, a.flow, site)
    share(early, a.body)
    return early.eval()


def late_half(b: Model, site: int) -> Half:
    """Blocks site.. of B with its final norm and head, as a composite ends in. It shares B's tensors.

    B may be a composite if `site` lies in its last part.
    """
    b.check_site(site, "layer_b")
    last = b.parts[-1]
    kept = range(last.depth) if last.kept is None else last.kept
    start = kept.start + site - blocks_before_last_part(b.config)
    with torch.device("meta"):
        net = late_net(_late_config(last.config), last.flow, start, kept.stop)
    share(net, last.net)
    return Half(net.eval(), last.flow, start, kept.stop).open()


def whole_from(model: Model, site: int) -> Half:
    """As `late_half`, but all blocks run, on token ids, and what those before `site` return has no effect on the stream.

    For models whose blocks from `site` on need more of the others than the stream. It must be given the ids. No composite.
    """
    flow = {**model.flow, "unused": [], "ids": True}
    with torch.device("meta"):
        net = late_net(model.config, flow, 0, model.depth)
    share(net, model.net)
    return Half(net.eval(), flow, site, model.depth).open()


def streams_from(model: Model, start: int) -> Streams | None:
    """A function that gives the streams at later sites from that entering block `start`.

    None for a composite, for a family whose blocks read token ids beside the stream, and for a model whose streams are those of
    its own tokens.
    """
    if isinstance(model.config, StitchConfig) or model.original is not None or model.flow["ids"]:
        return None
    half = late_half(model, start)

    def streams(stream: Float[Tensor, "batch seq d"], sites: Sequence[int]) -> dict[int, Tensor]:
        there = {site: half.at(site) for site in sites}
        return module_inputs(half.run, there, argument=model.stream_argument, stream=stream.to(half.net.device))

    return streams


def late_logits(
    late: Half,
    hidden: Float[Tensor, "batch seq d"],
    attention_mask: Int[Tensor, "batch seq"] | Bool[Tensor, "batch seq"] | None = None,
    position_ids: Int[Tensor, "rows seq"] | None = None,
    *,
    ids: Int[Tensor, "batch seq"] | None = None,
) -> Float[Tensor, "batch seq vocabulary"]:
    """Logits from the stream entering the first block of `late`, which is a `late_half(b, site)` or a composite's `late`.

    `ids` are those of the text, which some families need beside the stream. The logits are bit-equal to those of the composite
    whose translation gives `hidden`, if it runs the same batch without a cache.
    """
    context: dict[str, Any] = {"attention_mask": attention_mask, "position_ids": position_ids, "input_ids": ids}
    return late.run(hidden.to(late.dtype), use_cache=False, **context).logits
