"""The settings of cache policies (`_cache_peers.py`), chosen on text that no result is reported on.

A policy starts from its paper's setting, scaled down to tens of keys. One option changes at a time, as long as the loss falls.
All settings have the same number of bytes, rounded down to whole keys.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from _attention_matching import Matched, entries_of_bytes
from _cache_peers import NEIGHBOURS, CachePeer, HeavyHitters, Snapshots, Streaming, keys_of_bytes, largest
from jaxtyping import Float
from torch import Tensor

from stitch.conversions.recurrence.forms import memories
from stitch.modeling.modeling_recurrent import RecurrentForCausalLM

PEERS = ("streaming", "h2o", "snapkv", "adakv", "duo", "matching")
IN_CACHE, OWN = "in the cache", "own"  # positions
# Of each option, the first value is where a policy starts.
SINKS = (4, 0, 1, 8)
RECENT = (1 / 2, 1 / 4, 3 / 4, 7 / 8)  # of the keys
LAST, STEP = (8, 4, 16, 32), (8, 4, 2)  # tokens
STAYS, ASKED, STRENGTH = (1 / 4, 1 / 8, 0, 1 / 2), (32, 64, 128), (1e-2, 1e-1, 1e-3)  # of Attention Matching

Loss = Callable[[CachePeer], float]
Setting = dict[str, Any]


@dataclass(frozen=True)
class Tuned:
    peer: CachePeer
    setting: Setting
    tried: list[Setting]  # all that fit, each with its `loss`


def tuned(
    net: RecurrentForCausalLM, size: int, context: int, loss: Loss, names: Collection[str] = PEERS
) -> Iterator[tuple[str, Tuned]]:
    """The policies `names` with at most `size` bytes of keys, values and biases, each in its setting of least loss.

    One of DuoAttention's full heads has `context` keys.
    """
    for name in names:
        keys = entries_of_bytes(net, size) if name == "matching" else keys_of_bytes(net, size)
        gains = gains_of_heads(net, keys, context, loss) if name == "duo" else None

        def built(setting: Setting, name: str = name, gains: Tensor | None = gains, keys: int = keys) -> CachePeer:
            return policy(name, net, keys, context, gains, setting)

        setting, tried = least(lambda setting, built=built: loss(built(setting)), options(name, net, keys, context))
        yield name, Tuned(built(setting), setting, tried)


def options(name: str, net: RecurrentForCausalLM, keys: int, context: int) -> dict[str, Sequence[Any]]:
    """What is tried of every part of a policy's setting. Learned positions cannot move."""
    rotary = any(hasattr(module, "inv_freq") for module in net.base.modules())
    positions = {"positions": (IN_CACHE, OWN) if rotary else (OWN,)}
    match name:
        case "streaming":
            return {"sinks": SINKS, **positions}
        case "h2o":
            return {"recent": RECENT, **positions}
        case "matching":
            return {"recent": STAYS, "step": STEP, "asked": ASKED, "strength": STRENGTH}
        case "duo":
            return {"full": range(keys * heads_of(net) // context + 1), "sinks": SINKS, **positions}
        case _:
            return {"last": LAST, "step": STEP, "smoothed": (True, False), **positions}


def policy(
    name: str,
    net: RecurrentForCausalLM,
    keys: int,
    context: int,
    gains: Float[Tensor, " heads"] | None,
    setting: Setting,
) -> CachePeer:
    """A policy in a setting. `gains` are by which DuoAttention's heads are full. Raises ValueError where its keys are too few."""
    if name == "matching":
        return Matched(net, [[keys] * memory.shape.groups for memory in memories(net)], **setting)
    own = setting["positions"] == OWN
    if name == "h2o":
        return HeavyHitters(net, keys, setting["recent"], own)
    if name in ("snapkv", "adakv"):
        neighbours = NEIGHBOURS if setting["smoothed"] else 1
        return Snapshots(net, keys, setting["last"], setting["step"], name == "adakv", neighbours, own)
    sinks, gains = setting["sinks"], torch.zeros(heads_of(net)) if gains is None else gains
    windows = windows_by_gain(gains, setting.get("full", 0), keys, context, sinks)
    return Streaming(net, by_block(net, windows), sinks, own)


def least(loss: Callable[[Setting], float], options: Mapping[str, Sequence[Any]]) -> tuple[Setting, list[Setting]]:
    """The setting of least loss, and all that were tried. From the first values on, one option changes at a time until none
    lowers the loss. Settings for which `loss` raises ValueError do not fit.
    """
    tried: dict[tuple, float] = {}

    def at(setting: Setting) -> float:
        key = tuple(setting.values())
        if key not in tried:
            try:
                tried[key] = loss(setting)
            except ValueError:
                tried[key] = torch.inf
        return tried[key]

    best: Setting = {name: values[0] for name, values in options.items()}
    while True:
        before = best
        for name, values in options.items():
            best = min([best, *({**best, name: value} for value in values)], key=at)
        if best == before:
            break
    fit = [{**dict(zip(options, key, strict=True)), "loss": found} for key, found in tried.items() if found < torch.inf]
    return best, fit


def gains_of_heads(net: RecurrentForCausalLM, keys: int, context: int, loss: Loss) -> Float[Tensor, " heads"]:
    """By how much the loss of StreamingLLM falls when one key head has the whole context, block by block.

    DuoAttention trains gates instead.
    """
    sinks, own, found = SINKS[0], options("streaming", net, keys, context)["positions"][0] == OWN, []
    for full in [torch.zeros(heads_of(net), dtype=torch.bool), *torch.eye(heads_of(net), dtype=torch.bool)]:
        windows = torch.where(full, context - sinks, keys - sinks)
        found.append(loss(Streaming(net, by_block(net, windows), sinks, own)))
    return found[0] - torch.tensor(found[1:], dtype=torch.float64)


def windows_by_gain(
    gains: Float[Tensor, " heads"], full: int, keys: int, context: int, sinks: int
) -> Float[Tensor, " heads"]:
    """Windows of DuoAttention: the `full` heads of largest gain have the whole context, the others equal parts of the rest.

    All hold `keys` keys on average, sinks included, or slightly fewer, as heads have the same width.
    """
    whole, others = context - sinks, len(gains) - full
    rest = (keys - sinks) * len(gains) - full * whole
    if not others or rest < others:
        raise ValueError(f"keys must leave the other heads one key each; {full} full heads leave {rest} for {others}.")
    return torch.where(largest(gains, full), whole, rest // others)


def by_block(net: RecurrentForCausalLM, windows: Tensor) -> list[list[int]]:
    return [block.tolist() for block in windows.split([memory.shape.groups for memory in memories(net)])]


def heads_of(net: RecurrentForCausalLM) -> int:
    return sum(memory.shape.groups for memory in memories(net))
