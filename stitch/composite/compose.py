"""Joins two models in memory. The composite uses the donors' tensors; nothing is copied."""

import copy
import dataclasses
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from stitch.errors import UsageError
from stitch.modeling.modeling_composite import StitchConfig, StitchForCausalLM, build_late, parts_of
from stitch.models.anatomy import Anatomy, anatomy_of, blocks_before_last_part, dotted, truncated
from stitch.models.model import Model
from stitch.translation.module import fill, translation_config
from stitch.translation.types import Translation


def compose(a: Model, b: Model, site_a: int, site_b: int, translation: Translation) -> StitchForCausalLM:
    """Blocks 0..site_a−1 of A, the translation, and blocks site_b.. of B with its final norm and head, in evaluation mode.

    The composite's parameters share memory with those of the donors: training it in place changes the donors too, while moving
    it to another device or changing its dtype does not. Both donors must be on the same device. A may be a composite, which is
    then cut at `site_a`.
    Raises: UsageError for sites out of range, a translation that does not end in B's width, and a composite as B.
    """
    a.check_site(site_a)
    b.check_site(site_b)
    config = stitch_config(a.config, b.config, site_a, site_b, translation, b.bos)
    set_dtype(config, b.dtype)
    with torch.device("meta"):
        composite = StitchForCausalLM(config)
    share(composite.a, a.body, lambda path: path)
    share(composite.b, b.net, lambda path: donor_path(path, blocks_path(b.anatomy), site_b))
    fill(composite.translation, translation, b.dtype, b.device)
    composite.generation_config = copy.deepcopy(b.net.generation_config)
    composite.generation_config.cache_implementation = None  # some families ask for a static cache
    return composite.eval()


def stitch_config(
    a: PreTrainedConfig, b: PreTrainedConfig, site_a: int, site_b: int, translation: Translation, bos: int | None
) -> StitchConfig:
    """The composite's config, from those of its donors, which are not changed. `bos` is B's BOS id.

    Raises: UsageError when the translation does not end in B's width, and for a composite as B.
    """
    check_target(b, "the second model")
    if len(translation.bias) != b.hidden_size:
        raise UsageError(
            f"the translation must end in B's width {b.hidden_size}; {translation.name} ends in "
            f"{len(translation.bias)}: fit it for this pair."
        )
    early, late = truncated(a, 0, site_a), _late_config(b, site_b)
    early._name_or_path = ""
    seam = {"a_identity": early_seam(a), **_late_seam(anatomy_of(b))}
    width = [*parts_of(a)][-1].hidden_size
    config = StitchConfig(
        early, late, site_a, site_b, seam, translation_config(translation, bos, site_a, width, b.vocab_size)
    )
    config.architectures = [StitchForCausalLM.__name__]
    return config


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


def early_seam(a: PreTrainedConfig) -> list[str]:
    """Modules that the early half leaves out: A's final norm, and of a composite its head, unless its translation reads it."""
    anatomy = anatomy_of(a)
    if not isinstance(a, StitchConfig):
        return [anatomy.final_norm]
    reads_head = any((term.get("fallback") or {}).get("of") == "b" for term in a.translation["terms"])
    return [anatomy.final_norm, *([] if reads_head else [anatomy.head])]


def _late_config(b: PreTrainedConfig, site: int) -> PreTrainedConfig:
    late = truncated(b, site, b.num_hidden_layers)
    late.tie_word_embeddings = False  # the embedding is gone, the head keeps the weights
    late._name_or_path = ""
    return late


def _late_seam(b: Anatomy) -> dict[str, list[str]]:
    absent = [b.embedding, *([b.embedding_dropout] if b.embedding_dropout else [])]
    return {
        "b_identity": [f"{b.body}.{path}" for path in absent],
        "b_zero": [f"{b.body}.{b.positions}"] if b.positions else [],
    }


def late_half(b: Model, site: int) -> PreTrainedModel:
    """Blocks site.. of B with its final norm and head: the module that a composite ends in. It shares B's tensors.

    B may be a composite if `site` lies in its last part.
    """
    b.check_site(site)
    config, net, start = b.config, b.net, 0
    if isinstance(config, StitchConfig):
        site -= blocks_before_last_part(config)
        config, net, start = config.b_config, net.get_submodule("b"), config.site_b
    anatomy = anatomy_of(config)
    with torch.device("meta"):
        late = build_late(_late_config(config, site), _late_seam(anatomy), start + site)
    share(late, net, lambda path: donor_path(path, blocks_path(anatomy), site))
    return late.eval()


def late_model(model: Model, site: int) -> Model | None:
    """The blocks of `model` from `site` on as a model of their own, whose `inputs_embeds` are the stream there.

    None for a composite, whose numbering of blocks has seams.
    """
    return None if isinstance(model.config, StitchConfig) else dataclasses.replace(model, net=late_half(model, site))


def late_logits(
    late: PreTrainedModel,
    hidden: Float[Tensor, "batch seq d"],
    attention_mask: Int[Tensor, "batch seq"] | Bool[Tensor, "batch seq"] | None = None,
    position_ids: Int[Tensor, "rows seq"] | None = None,
) -> Float[Tensor, "batch seq vocabulary"]:
    """Logits from the residual stream entering the first block of `late`, which is a `late_half(b, site)` or a `composite.b`.

    They are bit-equal to those of the composite whose translation gives `hidden`, if it runs the same batch without a cache.
    """
    if late.config.num_hidden_layers == 0:
        attention_mask = None
    return late(
        inputs_embeds=hidden.to(late.dtype), attention_mask=attention_mask, position_ids=position_ids, use_cache=False
    ).logits


def share(part: nn.Module, donor: nn.Module, path_in_donor: Callable[[str], str]) -> None:
    """Gives every module of `part` the tensors of its counterpart in `donor`, whose path is `path_in_donor` of the module's."""
    for path, module in part.named_modules():
        if not (module._parameters or module._buffers):
            continue
        counterpart = donor.get_submodule(path_in_donor(path))
        for name, parameter in module._parameters.items():
            if parameter is not None:
                theirs = counterpart.get_parameter(name)
                # A new Parameter over the same memory, so that `.to()` on the composite does not move the donor.
                module._parameters[name] = nn.Parameter(theirs.detach(), requires_grad=theirs.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = counterpart.get_buffer(name)


def donor_path(path: str, blocks: str, offset: int) -> str:
    """The donor's name for the module or tensor `path` of a half: "model.layers.0.mlp" → "model.layers.4.mlp"."""
    if not path.startswith(f"{blocks}."):
        return path
    index, _, rest = path[len(blocks) + 1 :].partition(".")
    return f"{blocks}.{int(index) + offset}" + (f".{rest}" if rest else "")


def blocks_path(anatomy: Anatomy) -> str:
    return dotted(anatomy.body, anatomy.blocks)
