"""A model's weights by attention head and by neuron, in one form for all families: matrices that multiply row vectors.

All tensors are views of the model's parameters, so writing to them changes the model.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stitch.errors import StitchError, UsageError
from stitch.internals.transcoders import FeatureMlp
from stitch.models.donor_code import is_foreign
from stitch.models.model import Model

FAMILIES = ("gpt2", "llama", "mistral", "qwen2")
ONE_KEY_HEAD = "gpt_bigcode"  # a GPT-2 with one key head; its heads can be read, but no new one can be written
LAYER_NORM = ("gpt2", ONE_KEY_HEAD)
GELU = {"gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast"}  # within 5e-4 of each other
SILU = {"silu", "swish"}

Spot = tuple[str, int]
"""A norm by its stage and block: ("attention", block), ("mlp", block), or ("final", 0) before the head."""


@dataclass(frozen=True)
class Attention:
    """Scores are `scale` times the product of rotated queries and keys; query head h uses key head h // (heads // groups).

    With gains, queries and keys are first divided by √(mean square + `eps`) and multiplied by the gains.
    """

    q: Float[Tensor, "d heads d_head"]
    k: Float[Tensor, "d groups d_head"]
    v: Float[Tensor, "d groups d_head"]
    o: Float[Tensor, "heads d_head d"]
    q_bias: Float[Tensor, "heads d_head"] | None
    k_bias: Float[Tensor, "groups d_head"] | None
    v_bias: Float[Tensor, "groups d_head"] | None
    o_bias: Float[Tensor, " d"] | None
    scale: float
    q_gain: Float[Tensor, " d_head"] | None = None
    k_gain: Float[Tensor, " d_head"] | None = None
    eps: float = 0.0

    @property
    def shared(self) -> int:
        """Query heads per key head."""
        return self.q.shape[1] // self.k.shape[1]

    def to(self, dtype: torch.dtype) -> "Attention":
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return replace(self, **{name: value.to(dtype) for name, value in values.items() if isinstance(value, Tensor)})


@dataclass(frozen=True)
class Mlp:
    """act(x up + up_bias) down + down_bias, or with a gate act(x gate + gate_bias) · (x up + up_bias) down + down_bias.

    Features have `threshold`s: act is the identity above them and 0 below.
    """

    gate: Float[Tensor, "d neurons"] | None
    gate_bias: Float[Tensor, " neurons"] | None
    up: Float[Tensor, "d neurons"]
    up_bias: Float[Tensor, " neurons"] | None
    down: Float[Tensor, "neurons d"]
    down_bias: Float[Tensor, " d"] | None
    threshold: Float[Tensor, " neurons"] | None = None


@dataclass(frozen=True)
class Norm:
    """x / √(mean square + eps) · gain + bias for a row vector x, which has its mean subtracted first where `centred`."""

    gain: Float[Tensor, " d"]
    bias: Float[Tensor, " d"] | None
    eps: float
    centred: bool

    def direction(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """`x` normalised, without gain and bias."""
        x = x - x.mean(-1, keepdim=True) if self.centred else x
        return x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt()


def check(model: Model, role: str, families: tuple[str, ...] = (*FAMILIES, ONE_KEY_HEAD)) -> None:
    """Raises UsageError unless the model's weights can be read and written here; StitchError when they are not finite.

    `role` is the model's name in messages, such as "the donor of a graft".
    """
    config = model.config
    if config.model_type not in families:
        why = {"qwen3": " (its queries and keys are normalised)", "gemma2": " (its scores are softcapped)"}
        raise UsageError(
            f"{role} must be of one of {', '.join(families)}; {model.name} is "
            f"{config.model_type}{why.get(config.model_type, '')}: choose another."
        )
    if is_foreign(type(config)):
        raise UsageError(
            f"{role} must have the code of transformers; {model.name} is a {config.model_type} with code of its own: "
            "choose another."
        )
    if not getattr(config, "multi_query", True):
        raise UsageError(
            f"{role} must share one key head if it is a GPTBigCode; {model.name} does not: choose another."
        )
    if getattr(config, "scale_attn_by_inverse_layer_idx", False):
        raise UsageError(f"{role} must scale attention alike in all blocks; {model.name} does not: choose another.")
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True) and window < config.max_position_embeddings:
        raise UsageError(f"{role} must attend to its whole context; {model.name} sees {window} tokens: choose another.")
    for name, value in model.net.named_parameters():
        if not torch.isfinite(value).all():
            raise StitchError(f"the weights of {model.name} must be finite; {name} is not: download it again.")


def is_rotary(model: Model) -> bool:
    return model.anatomy.positions is None


def frequencies(model: Model) -> Float[Tensor, " planes"]:
    """RoPE's frequency of every plane, in radians per position; plane f is dimensions f and f + d_head / 2. Zeros with learned
    positions."""
    if not is_rotary(model):
        return torch.zeros(attention(model, 0).q.shape[2] // 2, dtype=torch.float64)
    return model.body.rotary_emb.inv_freq.detach().cpu().double()  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]


def positions(model: Model) -> Float[Tensor, "positions d"] | None:
    """The table of learned positions, or None with RoPE."""
    path = model.anatomy.positions
    return None if path is None else _view(model.body.get_submodule(path).weight)


def unembedding(model: Model) -> Float[Tensor, "d vocabulary"]:
    return _view(model.head.weight).T


def norm_spots(blocks: Iterable[int]) -> list[Spot]:
    """The norms of these blocks in the order in which the model computes them, and the final norm."""
    return [(stage, block) for block in blocks for stage in ("attention", "mlp")] + [("final", 0)]


def norm_module(model: Model, stage: str, block: int = 0) -> nn.Module:
    """The norm before the attention or MLP of a block, or before the head."""
    if stage == "final":
        return model.final_norm
    is_gpt = model.config.model_type in LAYER_NORM
    names = ("ln_1", "ln_2") if is_gpt else ("input_layernorm", "post_attention_layernorm")
    return model.blocks[block].get_submodule(names[stage == "mlp"])


def norm(model: Model, stage: str, block: int = 0) -> Norm:
    module: Any = norm_module(model, stage, block)
    centred = model.config.model_type in LAYER_NORM
    eps = module.eps if centred else module.variance_epsilon
    return Norm(_view(module.weight), _view(getattr(module, "bias", None)), eps, centred)


def attention(model: Model, block: int) -> Attention:
    if model.config.model_type in LAYER_NORM:
        module: Any = model.blocks[block].attn
        heads = model.heads(block)
        size, weight, bias = module.head_dim, _matrix(module.c_attn), _view(module.c_attn.bias)
        groups = (bias.shape[0] // size - heads) // 2
        parts = (heads, groups, groups)
        q, k, v = weight.unflatten(1, (-1, size)).split(parts, 1)
        q_bias, k_bias, v_bias = bias.unflatten(0, (-1, size)).split(parts)
        o, o_bias = _matrix(module.c_proj).unflatten(0, (heads, -1)), _view(module.c_proj.bias)
        return Attention(q, k, v, o, q_bias, k_bias, v_bias, o_bias, module.scaling)
    module = model.blocks[block].self_attn
    scaling = model.body.rotary_emb.attention_scaling**2  # pyright: ignore[reportAttributeAccessIssue, reportOperatorIssue]
    size = (-1, module.head_dim)
    reads = [module.q_proj, module.k_proj, module.v_proj]
    q, k, v = (_view(read.weight).unflatten(0, size).permute(2, 0, 1) for read in reads)
    q_bias, k_bias, v_bias = (None if read.bias is None else _view(read.bias).unflatten(0, size) for read in reads)
    o = _view(module.o_proj.weight).unflatten(1, size).permute(1, 2, 0)
    scale, o_bias = module.scaling * scaling, _view(module.o_proj.bias)
    if not hasattr(module, "q_norm"):
        return Attention(q, k, v, o, q_bias, k_bias, v_bias, o_bias, scale)
    gains = _view(module.q_norm.weight), _view(module.k_norm.weight)
    return Attention(q, k, v, o, q_bias, k_bias, v_bias, o_bias, scale, *gains, module.q_norm.variance_epsilon)


def mlp(model: Model, block: int) -> Mlp:
    module: Any = model.blocks[block].mlp
    if isinstance(module, FeatureMlp):
        read, write = module.encoder, module.decoder
        return Mlp(
            None, None, _matrix(read), _view(read.bias), _matrix(write), _view(write.bias), _view(module.threshold)
        )  # fmt: skip
    if model.config.model_type in LAYER_NORM:
        up, down = module.c_fc, module.c_proj
        return Mlp(None, None, _matrix(up), _view(up.bias), _matrix(down), _view(down.bias))
    gate, up, down = module.gate_proj, module.up_proj, module.down_proj
    return Mlp(
        _view(gate.weight).T, _view(gate.bias), _view(up.weight).T, _view(up.bias), _view(down.weight).T, _view(down.bias)
    )  # fmt: skip


def activation(model: Model, block: int = 0) -> Literal["gelu", "silu", "jumprelu"]:
    """The activation function of the block's neurons, or "jumprelu" for features. Raises UsageError for any other."""
    if isinstance(model.blocks[block].mlp, FeatureMlp):
        return "jumprelu"
    config = model.config
    name = getattr(config, "activation_function", None) or config.hidden_act
    if name not in GELU | SILU:
        raise UsageError(
            f"neurons must be GELU or SiLU to be grafted; those of {model.name} are {name}: choose another model."
        )
    return "gelu" if name in GELU else "silu"


def _matrix(module: nn.Module) -> Float[Tensor, "d_in d_out"]:
    """A projection's weight for row vectors. GPT-2's Conv1D stores it that way, a Linear stores its transpose."""
    weight = _view(module.weight)
    return weight.T if isinstance(module, nn.Linear) else weight


def _view(parameter: Any) -> Any:
    return None if parameter is None else parameter.detach()
