"""A blueprint as the weights of a stock GPT-2 or Llama, under their live norms, positions and activations.

Norms       every stage's factor is measured on the blueprint's specimens and folded into what reads there; LayerNorm's mean is
            kept at 0 by one channel that holds minus the sum of all others
Positions   GPT-2: binary codes of i and of every target, ±1, with their negations. Llama: RoPE planes by linear programming;
            the first token gives up its own key for one in a plane that hardly turns, in between right and wrong
Contents    Llama: in the planes that turn least
ReLU        Llama: SiLU of a steep gate, the value a bias. GPT-2: a steep GELU
"""

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedConfig

from stitch.errors import StitchError, UsageError
from stitch.internals import weights
from stitch.internals.positions import OffsetHead, offset_head
from stitch.models.anatomy import ANATOMIES
from stitch.models.model import Model
from stitch.synthesis.blueprint import Blueprint, LookUp, Neurons, Select, sharp, signs
from stitch.synthesis.tokenizer import tokenizer_of

ARCHITECTURES = ("gpt2", "llama")
STEEP = 40.0  # times a threshold's half unit: SiLU(±20) is 20 and 0 within 1e-7
MARGIN = 10.0  # of the answer's logit over all others, without any error
HEAD = 64  # dimensions of Llama's heads
THETA = 1e8  # rope_theta: half of 32 planes tell positions apart, half hardly turn
STILL = 0.02  # radians over the whole context, at most, in a plane that holds contents
ALIKE = 1e-3  # by which streams at one stage may differ in length


def build(blueprint: Blueprint, arch: str, *, tokenizer: Any = None) -> Model:
    """In fp32, with a tokenizer of the blueprint's tokens unless another is given.

    Raises UsageError where the architecture cannot hold it.
    """
    if arch not in ARCHITECTURES:
        raise UsageError(f"--arch must be one of {', '.join(ARCHITECTURES)}; got {arch}.")
    if blueprint.positions is not None and arch != "gpt2":
        raise UsageError(f"this circuit needs learned positions, which {arch} has none of: pass --arch gpt2.")
    places = _places(blueprint, arch)
    config = _config(blueprint, arch, places)
    with torch.device("meta"):
        net = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    net = _filled(net, config)
    model = Model(
        "synthesis", net.eval(), tokenizer or tokenizer_of(blueprint.tokens), ANATOMIES[arch], Path("synthesis")
    )
    _write(model, blueprint, places)
    return model


def heads_of(blueprint: Blueprint, arch: str) -> list[list[Select | LookUp]]:
    """Per block, the heads as they are numbered in the model that `build` makes."""
    return _places(blueprint, arch).heads


@functools.cache
def plane_head(offset: int, length: int) -> OffsetHead:
    """The head of a Llama that looks `offset` tokens back over `length`."""
    frequencies = THETA ** -(torch.arange(0, HEAD, 2, dtype=torch.float64) / HEAD)
    return offset_head(frequencies, offset, length)


@dataclass(frozen=True)
class _Places:
    """Where things are in the stream and in the blocks: `heads[b]` are those of block b, each copying what one head can."""

    width: int
    heads: list[list[Select | LookUp]]
    head_size: int
    neurons: int
    # Llama: 1 at the first token, and at all others. GPT-2: minus the sum; codes of every position, and of every set of targets.
    first: int | None = None
    later: int | None = None
    absorber: int | None = None
    codes: tuple[tuple[Int64[Tensor, " length"], int], ...] = ()


def _places(blueprint: Blueprint, arch: str) -> _Places:
    d = blueprint.embedding.shape[1]
    neurons = max([len(block.neurons.write) for block in blueprint.blocks if block.neurons is not None] or [1])
    if arch == "llama":
        heads = [_split(block.heads, HEAD) for block in blueprint.blocks]
        count = max(max(map(len, heads)), 1)  # the width must be a multiple of it
        return _Places(-(-(d + 2) // count) * count, heads, HEAD, neurons, first=d, later=d + 1)
    bits = _bits(blueprint.length)
    targets: list[Int64[Tensor, " length"]] = [torch.arange(blueprint.length)]
    for block in blueprint.blocks:
        for head in block.heads:
            if isinstance(head, Select) and not any(torch.equal(head.target, other) for other in targets):
                targets.append(head.target)
    ranks = [head.query.shape[1] for block in blueprint.blocks for head in block.heads if isinstance(head, LookUp)]
    size = max([bits, *ranks]) + 1 & ~1  # even, as heads usually are
    heads = [_split(block.heads, size) for block in blueprint.blocks]
    count = max(max(len(of) for of in heads), 1)
    codes = tuple((target, d + 1 + 2 * bits * number) for number, target in enumerate(targets))
    used = d + 1 + 2 * bits * len(targets)
    size = max(size, -(-used // count) + 1 & ~1)
    return _Places(count * size, heads, size, neurons, absorber=d, codes=codes)


def _split(heads: tuple[Select | LookUp, ...], size: int) -> list[Select | LookUp]:
    """Heads that copy `size` channels at most."""
    parts = []
    for head in heads:
        for source, into in zip(head.source.split(size), head.into.split(size), strict=True):
            parts.append(replace(head, source=source, into=into))
    return parts


def _config(blueprint: Blueprint, arch: str, places: _Places) -> PreTrainedConfig:
    count = max(max(len(of) for of in places.heads), 1)
    common: dict[str, Any] = dict(
        vocab_size=len(blueprint.tokens),
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=None,
        tie_word_embeddings=False,
        dtype="float32",
    )
    if arch == "gpt2":
        return GPT2Config(
            n_embd=places.width,
            n_head=count,
            n_layer=len(blueprint.blocks),
            n_inner=places.neurons,
            n_positions=blueprint.length,
            layer_norm_epsilon=1e-6,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            resid_pdrop=0.0,
            **common,
        )
    return LlamaConfig(
        hidden_size=places.width,
        num_attention_heads=count,
        num_key_value_heads=count,
        head_dim=HEAD,
        num_hidden_layers=len(blueprint.blocks),
        intermediate_size=places.neurons,
        max_position_embeddings=blueprint.length,
        attention_bias=True,
        mlp_bias=True,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        rms_norm_eps=1e-6,
        **common,
    )


def _filled(net: Any, config: PreTrainedConfig) -> Any:
    """With norms' gains 1 and all else 0, buffers as the architecture has them."""
    state = {
        name: torch.ones(value.shape) if _is_gain(name) else torch.zeros(value.shape)
        for name, value in net.state_dict().items()
    }
    net = type(net)(config)
    net.load_state_dict(state)
    return net


def _is_gain(name: str) -> bool:
    return name.endswith(("norm.weight", "layernorm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight"))


@torch.no_grad()
def _write(model: Model, blueprint: Blueprint, places: _Places) -> None:
    write = _Writer(model, blueprint, places)
    write.embedding()
    everywhere = torch.ones_like(blueprint.asked)
    for block, plan in enumerate(blueprint.blocks):
        if places.heads[block]:
            gain = write.gain("attention", block, everywhere)
            for number, head in enumerate(places.heads[block]):
                write.head(block, number, head, gain)
        if plan.neurons is not None:
            write.neurons(block, plan.neurons, write.gain("mlp", block, blueprint.asked))
    write.unembedding(write.gain("final", 0, blueprint.asked))


class _Writer:
    """Fills a blank model, stage by stage: what a stage reads is measured once all before it is written."""

    def __init__(self, model: Model, blueprint: Blueprint, places: _Places) -> None:
        self.model, self.blueprint, self.places = model, blueprint, places
        self.d = blueprint.embedding.shape[1]

    def gain(self, stage: str, block: int, where: Bool[Tensor, "prompts positions"]) -> float:
        """What the norm multiplies streams by, the same `where` it matters. Raises StitchError where it differs."""
        caught: list[Tensor] = []
        module = weights.norm_module(self.model, stage, block)
        hook = module.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0].double()))
        self.model.body(self.blueprint.specimens)
        hook.remove()
        x = caught[0][where]
        norm = weights.norm(self.model, stage, block)
        gains = norm.direction(x).norm(dim=1) / x.norm(dim=1)
        low, high = float(gains.min()), float(gains.max())
        if high > (1 + ALIKE) * low:
            raise StitchError(
                f"streams at {stage} {block} must be equally long; norms multiply by {low:.4g} to {high:.4g}."
            )
        return (low + high) / 2

    def wide(self, reads: Float[Tensor, "d n"]) -> Float[Tensor, "width n"]:
        return torch.cat([reads, reads.new_zeros(self.places.width - self.d, reads.shape[1])])

    def written(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n width"]:
        """Rows of the blueprint's stream as rows of the model's, which LayerNorm leaves where they are."""
        wide = self.wide(rows.T).T.contiguous()
        if self.places.absorber is not None:
            wide[:, self.places.absorber] = -rows.sum(1)
        return wide

    def embedding(self) -> None:
        rows = self.written(self.blueprint.embedding)
        if self.places.first is not None and self.places.later is not None:
            rows[0, self.places.first] = 1.0
            rows[1:, self.places.later] = 1.0
        self.model.embedding.weight.copy_(rows)
        table = weights.positions(self.model)
        if table is not None:
            if self.blueprint.positions is not None:
                table.copy_(self.written(self.blueprint.positions))
            for target, start in self.places.codes:
                code = _code(target, self.blueprint.length)
                table[:, start : start + code.shape[1]] = code.float()

    def head(self, block: int, number: int, head: Select | LookUp, gain: float) -> None:
        ours = weights.attention(self.model, block)
        assert ours.q_bias is not None and ours.k_bias is not None
        if isinstance(head, LookUp):
            self._look_up(block, number, head, gain)
        elif self.places.codes:
            self._select_by_code(block, number, head, gain)
        else:
            self._select_by_plane(block, number, head, gain)
        size = len(head.source)
        ours.v[head.source, number, torch.arange(size)] = 1 / gain
        into = torch.zeros(size, self.d, dtype=torch.float64)
        into[torch.arange(size), head.into] = 1.0
        ours.o[number, :size] = self.written(into).float()

    def _look_up(self, block: int, number: int, head: LookUp, gain: float) -> None:
        ours, rank = weights.attention(self.model, block), head.query.shape[1]
        dimensions = torch.arange(rank)
        if weights.is_rotary(self.model):
            angles = weights.frequencies(self.model) * self.blueprint.length
            still = (angles < STILL).nonzero()[:, 0].flip(0)
            dimensions = torch.cat([still, still + HEAD // 2])[:rank]
            if len(dimensions) < rank:
                raise UsageError(
                    f"heads must compare {rank} numbers over {self.blueprint.length:,} tokens; {2 * len(still)} dimensions turn "
                    "little enough: compile for a shorter context."
                )
        assert ours.q_bias is not None
        ours.q[:, number, dimensions] = (self.wide(head.query) / gain / ours.scale).float()
        ours.q_bias[number, dimensions] = (head.query_bias / ours.scale).float()
        ours.k[:, number, dimensions] = (self.wide(head.key) / gain).float()

    def _select_by_code(self, block: int, number: int, head: Select, gain: float) -> None:
        ours, bits = weights.attention(self.model, block), _bits(self.blueprint.length)
        size = (sharp(2.0, self.blueprint.length) / ours.scale) ** 0.5 / gain
        (start,) = (start for target, start in self.places.codes if torch.equal(target, head.target))
        own = self.places.codes[0][1]
        bit = torch.arange(bits)
        ours.q[start + bit, number, bit] = size
        ours.k[own + bit, number, bit] = size

    def _select_by_plane(self, block: int, number: int, head: Select, gain: float) -> None:
        ours, offset = weights.attention(self.model, block), head.offset
        if offset is None:
            raise UsageError("RoPE sees distances: targets must be a fixed number of tokens back; compile for gpt2.")
        found = plane_head(offset, self.blueprint.length)
        clamped = offset > 1  # one back, the first token sees itself alone
        units = sharp(found.gap / 2 if clamped else found.gap, self.blueprint.length) / ours.scale
        amplitude, phase = (units * found.weights).sqrt(), offset * found.frequencies
        assert ours.q_bias is not None and ours.k_bias is not None
        ours.q_bias[number] = torch.cat([amplitude * phase.cos(), -amplitude * phase.sin()]).float()
        ours.k_bias[number] = torch.cat([amplitude, 0 * amplitude]).float()
        if clamped:
            slowest = HEAD // 2 - 1
            sink = (units * (1 - found.gap / 2)) ** 0.5
            ours.q_bias[number, slowest] = sink
            ours.k[self.places.first, number] = -ours.k_bias[number] / gain
            ours.k[self.places.first, number, slowest] = sink / gain

    def neurons(self, block: int, neurons: Neurons, gain: float) -> None:
        ours, count = weights.mlp(self.model, block), len(neurons.write)
        gated = ours.gate is not None
        read, bias = (ours.gate, ours.gate_bias) if gated else (ours.up, ours.up_bias)
        assert read is not None and bias is not None
        read[:, :count] = (STEEP * self.wide(neurons.read) / gain).float()
        bias[:count] = (-STEEP * neurons.threshold).float()
        if gated:
            assert ours.up_bias is not None
            ours.up_bias[:count] = 1.0
        ours.down[:count] = (self.written(neurons.write) / STEEP).float()

    def unembedding(self, gain: float) -> None:
        size = MARGIN / (1 - self.blueprint.crosstalk) / gain
        weights.unembedding(self.model).copy_(size * self.wide(self.blueprint.unembedding))


def _bits(length: int) -> int:
    return max((length - 1).bit_length(), 1)


def _code(target: Int64[Tensor, " length"], length: int) -> Float[Tensor, "length columns"]:
    """The bits of every target as ±1, and then all with the other sign."""
    code = signs(target, _bits(length))
    return torch.cat([code, -code], 1)
