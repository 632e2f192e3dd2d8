"""Hosts of grafts: fresh ones, and trained models with channels, heads and neurons added."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig

from stitch.circuits.find import ChosenCircuit
from stitch.grafts.allocation import FreeSpace
from stitch.grafts.fresh_host import read_host
from stitch.grafts.needed import needed
from stitch.internals import weights
from stitch.models.model import Model


def host_factory(
    host: str,
    trained: Model | None,
    donors: Sequence[Model],
    circuits: Sequence[ChosenCircuit],
    channels: int | None,
    seed: int,
) -> Callable[[], tuple[Model, FreeSpace]]:
    """Makes the host without a graft and its free space, as often as controls need it."""

    def fresh() -> tuple[Model, FreeSpace]:
        model = read_host(Path(host), donors[0], seed)
        return model, FreeSpace.of(model)

    if trained is None:
        return fresh
    return partial(widened, trained, **needed(donors, circuits, trained, channels))


@torch.no_grad()
def widened(model: Model, *, channels: int, groups: int, neurons: int) -> tuple[Model, FreeSpace]:
    """A copy of the model that computes the same, with at least so many more channels, and key heads and neurons in every block.

    Each added key head has as many query heads as the others. The copy is untied and has biases if its family allows them.
    Returns it with its free space, which is all that was added.
    """
    attention = weights.attention(model, 0)
    old = _Size(model.width, attention.q.shape[1], attention.k.shape[1], weights.mlp(model, 0).up.shape[1])
    centred = weights.norm(model, "final").centred
    added = _Size(channels + centred, 0, groups, neurons)
    config = _wider_config(model.config, old, added, head_size=attention.q.shape[2])
    net = AutoModelForCausalLM.from_config(config, dtype=model.dtype).to(model.device).eval()
    for parameter in net.parameters():
        parameter.zero_()
    wide = replace(model, net=net)
    _copy_embeddings(model, wide, centred)
    _copy_norms(model, wide)
    for block in range(model.depth):
        _copy_attention(model, wide, block, centred)
        _copy_mlp(model, wide, block, centred)
    blocks = range(model.depth)
    taken = dict.fromkeys(blocks, old.groups), dict.fromkeys(blocks, old.neurons)
    return wide, FreeSpace(wide.width, centred, model.name, old.width, *taken)


@dataclass(frozen=True)
class _Size:
    """Numbers of channels, and per block of query heads, key heads and neurons."""

    width: int
    heads: int
    groups: int
    neurons: int


def _wider_config(config: PreTrainedConfig, old: _Size, added: _Size, head_size: int) -> PreTrainedConfig:
    """The config of a model with what is added. Norms' eps shrinks with the width, as mean squares do."""
    wide = copy.deepcopy(config)
    wide.tie_word_embeddings = False
    before, width, neurons = config.hidden_size, old.width + added.width, old.neurons + added.neurons
    if config.model_type == "gpt2":  # the width is the number of heads times their size
        count = max(math.ceil(width / head_size), old.heads + added.groups)
        wide.n_head, wide.n_embd, wide.n_inner = count, count * head_size, neurons
        wide.layer_norm_epsilon *= before / wide.n_embd
        return wide
    wide.num_key_value_heads = old.groups + added.groups
    wide.num_attention_heads = old.heads // old.groups * wide.num_key_value_heads
    wide.head_dim, wide.intermediate_size = head_size, neurons
    wide.hidden_size = math.ceil(width / wide.num_attention_heads) * wide.num_attention_heads
    wide.rms_norm_eps *= before / wide.hidden_size
    if config.model_type == "llama":
        wide.attention_bias = wide.mlp_bias = True
    return wide


def _centred(rows: Tensor, centred: bool) -> Tensor:
    """What is written to the stream, without its mean under LayerNorm: the mean over more channels would be another one."""
    return rows - rows.mean(-1, keepdim=True) if centred else rows


def _copy_embeddings(model: Model, wide: Model, centred: bool) -> None:
    """Copies the embedding, learned positions and the unembedding."""
    width = model.width
    wide.embedding.weight[:, :width] = _centred(model.embedding.weight, centred)
    old_positions, new_positions = weights.positions(model), weights.positions(wide)
    if old_positions is not None and new_positions is not None:
        new_positions[:, :width] = _centred(old_positions, centred)
    weights.unembedding(wide)[:width] = weights.unembedding(model)


def _copy_norms(model: Model, wide: Model) -> None:
    """Copies the norms with gains that make up for the larger width, over which the mean square is smaller."""
    width, shrink = model.width, (model.width / wide.width) ** 0.5
    for spot in weights.norm_spots(range(model.depth)):
        old, new = weights.norm(model, *spot), weights.norm(wide, *spot)
        new.gain.fill_(1.0)
        new.gain[:width] = shrink * old.gain
        if old.bias is not None and new.bias is not None:
            new.bias[:width] = old.bias


def _copy_attention(model: Model, wide: Model, block: int, centred: bool) -> None:
    old, new, width = weights.attention(model, block), weights.attention(wide, block), model.width
    for name in ("q", "k", "v"):
        weight = getattr(old, name)
        getattr(new, name)[:width, : weight.shape[1]] = weight
        if (bias := getattr(old, f"{name}_bias")) is not None:
            getattr(new, f"{name}_bias")[: len(bias)] = bias
    new.o[: len(old.o), :, :width] = _centred(old.o, centred)
    _copy_output_bias(old.o_bias, new.o_bias, centred)


def _copy_mlp(model: Model, wide: Model, block: int, centred: bool) -> None:
    old, new, width = weights.mlp(model, block), weights.mlp(wide, block), model.width
    for name in ("gate", "up"):
        if (weight := getattr(old, name)) is not None:
            getattr(new, name)[:width, : weight.shape[1]] = weight
            if (bias := getattr(old, f"{name}_bias")) is not None:
                getattr(new, f"{name}_bias")[: len(bias)] = bias
    new.down[: len(old.down), :width] = _centred(old.down, centred)
    _copy_output_bias(old.down_bias, new.down_bias, centred)


def _copy_output_bias(old: Tensor | None, new: Tensor | None, centred: bool) -> None:
    if old is not None:
        assert new is not None
        new[: len(old)] = _centred(old, centred)
