"""Hosts for grafts: fresh models from a config file, and trained models widened to make room."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from stitch.errors import UsageError
from stitch.grafts.allocation import FreeSpace
from stitch.internals import weights
from stitch.models.anatomy import ANATOMIES
from stitch.models.model import Model

FORCED = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")  # the donor's, since the tokenizer is


def read_host(path: Path, donor: Model, seed: int) -> Model:
    """A freshly initialised model of the architecture in a JSON file, with the donor's vocabulary.

    Raises: UsageError for a file that is no config, a family without anatomy, or tied embeddings: a donor's embedding and
    unembedding are not the same matrix once its final norm's gain is folded in.
    """
    try:
        wanted = json.loads(path.read_text(encoding="utf-8"))
        family = wanted.pop("model_type")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UsageError(
            f'--host must be JSON such as {{"model_type": "llama", "hidden_size": 320, …}}; {path}: {type(error).__name__}, '
            f"{error}."
        ) from error
    if family not in weights.FAMILIES:
        raise UsageError(f"the host of a graft must be of one of {', '.join(weights.FAMILIES)}; got {family}.")
    if wanted.get("tie_word_embeddings"):
        raise UsageError(
            "the host's embeddings must not be tied: the donor's unembedding would overwrite its embedding; set "
            '"tie_word_embeddings": false.'
        )
    own = {name: getattr(donor.config, name, None) for name in FORCED}
    own["vocab_size"] = len(donor.embedding.weight)
    if any(name in wanted and wanted[name] != own[name] for name in FORCED):
        raise UsageError(f"the host has the donor's tokenizer; leave {', '.join(FORCED)} out of {path}.")
    wanted["tie_word_embeddings"] = False
    try:
        config = AutoConfig.for_model(family, **wanted, **own)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    except Exception as error:  # whatever the family checks
        raise UsageError(
            f"{path} must make a model; transformers says: {' '.join(str(error).split())[:200]}"
        ) from error
    host = Model(path.stem, net, donor.tokenizer, ANATOMIES[family], path.parent)
    weights.check(host, "the host of a graft")
    return host


@torch.no_grad()
def widened(model: Model, *, channels: int, groups: int, neurons: int) -> tuple[Model, FreeSpace]:
    """`model` with at least so many more channels, and in every block key heads (each with as many query heads as the others) and
    neurons; and the room that this is. Untied, with biases where the family can have them."""
    own = weights.attention(model, 0)
    heads, own_groups, size = own.q.shape[1], own.k.shape[1], own.q.shape[2]
    width, inner = model.width, weights.mlp(model, 0).up.shape[1]
    centred = weights.norm(model, "final").centred
    config = _wider(model.config, width + channels + centred, heads, own_groups, size, groups, inner + neurons)
    net = AutoModelForCausalLM.from_config(config, dtype=model.dtype).to(model.device).eval()
    for parameter in net.parameters():
        parameter.zero_()
    wide = replace(model, net=net)
    total = wide.width
    shrink = (width / total) ** 0.5

    def centre(rows: Tensor) -> Tensor:
        return rows - rows.mean(-1, keepdim=True) if centred else rows

    wide.embedding.weight[:, :width] = centre(model.embedding.weight)
    old_positions, new_positions = weights.positions(model), weights.positions(wide)
    if old_positions is not None and new_positions is not None:
        new_positions[:, :width] = centre(old_positions)
    spots = [(stage, block) for block in range(model.depth) for stage in ("attention", "mlp")] + [("final", 0)]
    for spot in spots:
        old, new = weights.norm(model, *spot), weights.norm(wide, *spot)
        new.gain.fill_(1.0)
        new.gain[:width] = shrink * old.gain
        if old.bias is not None and new.bias is not None:
            new.bias[:width] = old.bias
    for block in range(model.depth):
        old, new = weights.attention(model, block), weights.attention(wide, block)
        for name, count in (("q", heads), ("k", own_groups), ("v", own_groups)):
            getattr(new, name)[:width, :count] = getattr(old, name)
            if (bias := getattr(old, f"{name}_bias")) is not None:
                getattr(new, f"{name}_bias")[:count] = bias
        new.o[:heads, :, :width] = centre(old.o)
        old, new = weights.mlp(model, block), weights.mlp(wide, block)
        for name in ("gate", "up"):
            if (weight := getattr(old, name)) is not None:
                getattr(new, name)[:width, :inner] = weight
                if (bias := getattr(old, f"{name}_bias")) is not None:
                    getattr(new, f"{name}_bias")[:inner] = bias
        new.down[:inner, :width] = centre(old.down)
        for part in (weights.attention, weights.mlp):
            old_bias, new_bias = (
                getattr(part(one, block), "o_bias" if part is weights.attention else "down_bias")
                for one in (model, wide)
            )
            if old_bias is not None:
                new_bias[:width] = centre(old_bias)
    weights.unembedding(wide)[:width] = weights.unembedding(model)
    blocks = range(model.depth)
    space = FreeSpace(
        total, centred, model.name, width, dict.fromkeys(blocks, own_groups), dict.fromkeys(blocks, inner)
    )
    return wide, space


def _wider(
    config: PreTrainedConfig, width: int, heads: int, own_groups: int, size: int, groups: int, inner: int
) -> PreTrainedConfig:
    wide = copy.deepcopy(config)
    wide.tie_word_embeddings = False
    before = config.hidden_size
    if config.model_type == "gpt2":  # the width is that of its heads together
        count = max(math.ceil(width / size), heads + groups)
        wide.n_head, wide.n_embd, wide.n_inner = count, count * size, inner
        wide.layer_norm_epsilon *= before / wide.n_embd
        return wide
    wide.num_key_value_heads = own_groups + groups
    wide.num_attention_heads = heads // own_groups * wide.num_key_value_heads
    wide.head_dim, wide.intermediate_size = size, inner
    wide.hidden_size = math.ceil(width / wide.num_attention_heads) * wide.num_attention_heads
    wide.rms_norm_eps *= before / wide.hidden_size
    if config.model_type == "llama":
        wide.attention_bias = wide.mlp_bias = True
    return wide
