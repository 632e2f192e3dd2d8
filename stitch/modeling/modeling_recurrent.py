"""A softmax decoder as a recurrent network: a state of constant size replaces the growing key-value cache.

This file imports torch, transformers and the modeling files beside it. They are saved with every checkpoint, which loads with

    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

Any family works whose attention uses transformers' attention interface: the stock model is built from its config, and its
attention function is replaced by the one below. A head sees the first `sinks` keys, the last `window` keys and, of all older
keys, the `slots` keys of highest priority with exact softmax weights. Every other key j has the weight φ(q)·φ(k_j). These keys
are stored in fast weights S and z:

    S = Σ φ(k_j) v_jᵀ,   z = Σ φ(k_j),   o = (Σ_seen e^{q·k_i} v_i + φ(q)ᵀS) / (Σ_seen e^{q·k_i} + φ(q)ᵀz).

Window and slots may have different sizes for each head. A key's priority is a function of key, value and position, and does not
change afterwards: a key that loses its slot never gets one again. So a whole text can be computed in parallel.

Features are stored as plain · exp(log). S and z are divided by exp(shift), where shift is the running maximum of the keys' logs,
so that sums from 1e-30 to 1e30 keep their precision. They are float32, or float64 in a float64 model.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import CausalLMOutputWithPast

from .modeling_composite import StitchConfig, StitchForCausalLM, config_of, copy_sizes, longest_context, parts_of
from .modeling_features import Features, HeadShape, Hedgehog, Identity, Mean, Priority, Random, Taylor
from .modeling_translation import TranslationModule

ATTENTION = "stitch_recurrent"
LARGE_NEGATIVE = -1e30  # replaces −∞ where two such values are subtracted
MAX_LOG_GROWTH = 60.0  # nats that logs of keys may grow within a piece: float32 holds e^-87
ROUND_OFF = 1e-5  # relative to the sum of absolute values: a smaller denominator of signed features is round-off


class RecurrentConfig(PreTrainedConfig):
    """`base_config` is the config of the stock model or of the composite.

    `features`: hedgehog, random, taylor2, mean (one feature: all old keys have the same weight), none (old keys are dropped) or
    identity. Identity is the linear attention o = scale · Σ (q·k_j) v_j of in-context gradient descent; it has no denominator,
    window or sinks.
    `dimension`: size of φ per head, for hedgehog and random.
    `slots`: number of keys that are kept by priority.
    `hidden`: units of the MLPs in priorities and in the feature maps of hedgehog and mean. They do not enlarge the state.
    `keys`: number of exact keys, window and slots together, of each key head of each block. None: the same for all. A head with
    at most `window` keys has no slots. With `slots` 0 all of a head's keys are its window.
    `layers`: indices of the recurrent blocks. None: all. The other blocks keep all keys.
    `chunk`: tokens that are computed at once. It does not change the result.
    """

    model_type = "stitch_recurrent"
    sub_configs = {"base_config": AutoConfig}  # noqa: RUF012  # pyright: ignore

    def __init__(
        self,
        base_config: Any = None,
        features: str = "hedgehog",
        window: int = 0,
        sinks: int = 0,
        slots: int = 0,
        dimension: int | None = None,
        hidden: int = 0,
        keys: list[list[int]] | None = None,
        layers: list[int] | None = None,
        chunk: int = 64,
        **kwargs,
    ):
        base_config = config_of(base_config)
        self.base_config = copy.deepcopy(base_config)  # transformers modifies it
        self.features, self.window, self.sinks, self.slots = features, window, sinks, slots
        self.dimension, self.hidden = dimension, hidden
        self.keys = keys
        self.layers, self.chunk = layers, chunk
        kwargs = {**kwargs, "tie_word_embeddings": bool(getattr(base_config, "tie_word_embeddings", False))}
        if base_config is not None:
            parts = list(parts_of(base_config))
            limits = [longest for part in parts if (longest := longest_context(part)) is not None]
            kwargs["max_position_embeddings"] = min(limits, default=None)
            kwargs["hidden_size"] = parts[-1].hidden_size
            for name in ("vocab_size", "num_hidden_layers"):
                kwargs[name] = getattr(base_config, name)
            for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
                kwargs.setdefault(name, getattr(base_config, name, None))
        super().__init__(**kwargs)


class RecurrentMemory(nn.Module):
    """Feature map, priority and cache sizes of the key heads of one block. Without a `map`, old keys are dropped."""

    def __init__(self, config: RecurrentConfig, shape: HeadShape, layer: int):
        super().__init__()
        self.shape = shape
        self.recurrent = config.layers is None or layer in config.layers
        alike = [config.window + config.slots] * shape.groups
        keys = (alike if config.keys is None else config.keys[layer]) if self.recurrent else [0] * shape.groups
        self.windows = [min(n, config.window) if config.slots else n for n in keys]  # by key head
        self.slots = [n - window for n, window in zip(keys, self.windows, strict=True)]
        self.sinks = config.sinks if self.recurrent else 0
        self.normalised = config.features != "identity"
        makers: dict[str, Callable[[], Any]] = {
            "hedgehog": lambda: Hedgehog(shape, config.dimension or 2 * shape.width, config.hidden),
            "random": lambda: Random(shape, config.dimension or 2 * shape.width),
            "taylor2": lambda: Taylor(shape),
            "mean": lambda: Mean(shape, config.hidden),
            "identity": lambda: Identity(shape),
            "none": lambda: None,
        }
        if config.features not in makers:
            raise ValueError(f"features must be one of {', '.join(makers)}; got {config.features!r}.")
        if config.features == "identity" and (config.window or config.sinks or config.slots):
            raise ValueError(
                "identity features have no denominator, which exact keys need: set window, sinks and slots to 0."
            )
        if config.features == "none" and not config.window:
            raise ValueError("features 'none' need a window of 1 or more; got 0: no key would be seen.")
        self.map: Any = makers[config.features]() if self.recurrent else None
        self.priority = Priority(shape, config.hidden) if any(self.slots) else None

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, real: Tensor, past: "RecurrentLayer", scaling: float, chunk: int
    ) -> Tensor:
        """Attention output of the new tokens [batch, heads, tokens, width]. Updates `past`.

        `q` is [batch, heads, tokens, width]; `k` and `v`, of the new tokens alone, are [batch, groups, tokens, width]. `real`
        [batch, tokens] is False at padding.
        """
        dtype = torch.promote_types(q.dtype, torch.float32)  # sums of thousands of terms need at least float32
        with torch.autocast(device_type=q.device.type, enabled=False):
            queries = q.to(dtype).unflatten(1, (self.shape.groups, self.shape.shared))
            past.start(self, k, v, dtype)
            if self.recurrent:
                out = self._recurrent_outputs(queries, k, v, real, past, scaling, chunk)
            else:
                past.count(real)
                out = attend_to_all(queries, *past.append(k, v, real), scaling)
            return out.flatten(1, 2).to(q.dtype)

    def _recurrent_outputs(
        self, q: Tensor, k: Tensor, v: Tensor, real: Tensor, past: "RecurrentLayer", scaling: float, chunk: int
    ) -> Tensor:
        """Outputs of a recurrent block [batch, groups, shared, tokens, width], computed in pieces of `chunk` tokens.

        Memory then grows with tokens · (window + slots + dimension), not with tokens².
        """
        tokens = k.shape[2]
        position = torch.arange(tokens, device=k.device) + past.tokens
        rank = past.count(real)
        real = past.store_sinks(k, v, real, rank)
        k, v, real = past.slide_windows(k, v, real)
        k, v, root = k.to(q), v.to(q), scaling**0.5
        features = None if self.map is None else self.map.queries(q * root)
        priority = None
        if self.priority is not None:
            priority = self.priority(k[:, :, :tokens] * root, v[:, :, :tokens], position)
        call = NewTokens(q, k, v, real, rank, scaling, features, priority)
        starts = range(0, tokens, chunk)
        return torch.cat([one for a in starts for one in attend_piece(self, call, past, a, min(a + chunk, tokens))], 3)


class PackedHeads:
    """Storage for `sizes[g]` entries of each key head g, one head after the other without gaps: [batch, sum of sizes, …].

    `spread` gives [batch, groups, largest size, …], a head's entries at the end. The entries before them, where a head has
    fewer than the largest size, are copies that must be masked (`empty`).
    """

    def __init__(self, sizes: Sequence[int], device: torch.device):
        self.groups, self.most, self.total = len(sizes), max(sizes), sum(sizes)
        self.sizes = torch.tensor(sizes, device=device)
        self.are_alike = len(set(sizes)) == 1
        self.missing = self.most - self.sizes  # [groups]
        place = torch.arange(self.most, device=device) - self.missing[:, None]
        self.empty = place < 0  # [groups, most]
        self.index = (place + (self.sizes.cumsum(0) - self.sizes)[:, None]).masked_fill(self.empty, 0)
        self.own = (~self.empty).flatten().nonzero().squeeze(1)
        self.head = torch.arange(self.groups, device=device).repeat_interleave(self.sizes)  # of each packed entry

    def spread(self, packed: Tensor) -> Tensor:
        return packed.unflatten(1, (self.groups, self.most)) if self.are_alike else packed[:, self.index]

    def pack(self, spread: Tensor) -> Tensor:
        flat = spread.flatten(1, 2)
        return flat if self.are_alike else flat[:, self.own]

    def skip_missing(self, k: Tensor, v: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values [batch, groups, n, width] and `real` [batch, 1, n], each head's without its `missing` first entries."""
        if self.are_alike:
            return k, v, real
        index = torch.arange(k.shape[2], device=k.device) + self.missing[:, None]
        exists, index = index < k.shape[2], index.clamp_max(k.shape[2] - 1)
        k, v = (x.gather(2, index[None, :, :, None].expand(len(x), -1, -1, x.shape[-1])) for x in (k, v))
        return k, v, real[:, 0, index] & exists


@dataclass(frozen=True)
class NewTokens:
    """The new tokens of one call, and the keys that were in a window before it.

    Index t of a head's `k` is the token that leaves its window when new token t arrives. So the keys outside the window of token
    t are those up to t, and the keys inside it are t + 1 … t + window.
    """

    q: Tensor  # [batch, groups, shared, tokens, width]
    k: Tensor  # [batch, groups, window + tokens, width]
    v: Tensor
    real: Tensor  # [batch, groups or 1, window + tokens]: neither padding nor a sink
    rank: Tensor  # [batch, tokens]: number of each token in the text, from 1
    scaling: float
    features: Features | None  # of all queries
    priority: Tensor | None  # [batch, groups, tokens]: of the key that leaves the window at each token


@dataclass(frozen=True)
class OldKeys:
    """The keys outside the window of a piece's last token: those in slots, then those that leave the window within the piece.

    `gone` and `kept` say for each token of the piece which of them are forgotten and which are in a slot. `ahead` counts the keys
    of higher priority at the end of the piece; it is larger than all counts where a key is not text.
    """

    k: Tensor  # [batch, groups, keys, width]
    v: Tensor
    gone: Tensor  # [batch, groups, tokens, keys]
    kept: Any = None  # as `gone`; this field and the following are None where there are no slots
    priority: Any = None  # [batch, groups, keys]
    ahead: Any = None  # [batch, groups, keys]


@dataclass(frozen=True)
class FastWeights:
    """S and z, both divided by exp(shift), the running maximum of the keys' logs."""

    state: Tensor  # [batch, groups, dimension, width]
    mass: Tensor  # [batch, groups, dimension]
    shift: Tensor  # [batch, groups, scales]

    def rescaled(self, shift: Tensor) -> "FastWeights":
        fading = (self.shift - shift).exp()
        return FastWeights(self.state * fading.unsqueeze(-1), self.mass * fading, shift)

    def plus(self, features: Tensor, v: Tensor) -> "FastWeights":
        """After keys with `features` [batch, groups, keys, dimension], divided by exp(shift) like this."""
        return FastWeights(self.state + features.mT @ v, self.mass + features.sum(2), self.shift)


def attend_to_all(q: Tensor, k: Tensor, v: Tensor, real: Tensor, scaling: float) -> Tensor:
    """Causal softmax over all keys so far, for blocks that are not recurrent. The last queries and keys are of the same token."""
    k, v, real = k.to(q), v.to(q), real[:, None]
    place = torch.arange(k.shape[2], device=k.device)
    seen = (place <= place[-q.shape[3] :, None]) & real
    scores = (group_matmul(q, k.mT) * scaling).masked_fill(~seen[:, None, None], LARGE_NEGATIVE)
    return group_matmul(scores.softmax(-1), v)


def attend_piece(memory: RecurrentMemory, call: NewTokens, past: "RecurrentLayer", a: int, b: int) -> list[Tensor]:
    """The outputs of the tokens a … b − 1, in several pieces if logs of keys grow too much. Updates slots and fast weights."""
    old = keys_outside_windows(call, past, a, b)
    exact, values = exact_scores(call, past, old, a, b)
    if memory.map is None or call.features is None:
        past.fill_slots(old)
        best = exact.amax(-1, keepdim=True).clamp_min(LARGE_NEGATIVE)
        weights = (exact - best).exp()
        return [_ratio(group_matmul(weights, values), weights.sum(-1, keepdim=True))]

    plain_k, log_k = memory.map.keys(old.k * call.scaling**0.5)
    log_k = log_k.masked_fill(~old.gone[:, :, -1, :, None], -math.inf)
    shift = torch.maximum(past.shift, log_k.amax(2)).detach()
    if b - a > 1 and _grows_too_much(log_k, past.shift, shift):
        middle = (a + b) // 2
        return [*attend_piece(memory, call, past, a, middle), *attend_piece(memory, call, past, middle, b)]
    past.fill_slots(old)
    plain_q, log_q = call.features
    of_queries = None if plain_q is None else plain_q[:, :, :, a:b], log_q[:, :, :, a:b]
    out, fast = mix(exact, values, old, of_queries, (plain_k, log_k), past.fast_weights(), shift, memory.normalised)
    past.state, past.mass, past.shift = fast.state, fast.mass, fast.shift
    return [out]


def mix(
    exact: Tensor,
    values: Tensor,
    old: OldKeys,
    of_queries: Features,
    of_keys: Features,
    past: FastWeights,
    shift: Tensor,
    normalised: bool,
) -> tuple[Tensor, FastWeights]:
    """Outputs from exact scores and fast weights together, and the fast weights after the piece. `shift` is that of the latter.

    Raises ValueError where a denominator is below its round-off, which only signed features allow.
    """
    (plain_q, log_q), (plain_k, log_k) = of_queries, of_keys
    before = past.rescaled(shift)
    # As long as no key is forgotten, the shift is that of later keys: the query's features must count nothing.
    begun = old.gone.any(-1) | (past.shift[:, :, :1] > LARGE_NEGATIVE)
    log_q = (log_q + shift[:, :, None, None]).masked_fill(~begun[:, :, None, :, None], -math.inf)
    best = torch.cat([exact, log_q], -1).amax(-1, keepdim=True).clamp_min(LARGE_NEGATIVE).detach()
    right, left = (log_k - shift[:, :, None]).exp(), (log_q - best).exp()
    right = right if plain_k is None else plain_k * right
    left = left if plain_q is None else plain_q * left
    weights = (exact - best).exp()
    inner = group_matmul(left, right.mT) * old.gone[:, :, None]  # keys that are forgotten within the piece
    top = group_matmul(weights, values) + group_matmul(inner, old.v) + group_matmul(left, before.state)
    after = before.plus(right, old.v)
    if not normalised:
        return top, after  # identity features have logs of 0
    mass = before.mass[..., None]
    below = weights.sum(-1, keepdim=True) + inner.sum(-1, keepdim=True) + group_matmul(left, mass)
    if plain_k is not None:
        terms = weights.sum(-1, keepdim=True) + inner.abs().sum(-1, keepdim=True)
        terms = terms + group_matmul(left.abs(), mass.abs())
        if bool((below < ROUND_OFF * terms).any()):
            raise ValueError("a denominator must be above its round-off; one is not: use another feature map.")
    return _ratio(top, below), after


def keys_outside_windows(call: NewTokens, past: "RecurrentLayer", a: int, b: int) -> OldKeys:
    """The keys that the tokens a … b − 1 do not have in their windows: those in slots, and those that leave the window now."""
    k, v = call.k[:, :, a:b], call.v[:, :, a:b]
    real = call.real[:, :, a:b].expand(k.shape[:3])
    token = torch.arange(b - a, device=k.device)
    has_left = token[:, None] >= token
    if call.priority is None:
        return OldKeys(k, v, has_left & real[:, :, None])
    slots = past.slots
    in_slots = slots.spread(past.slot_priority).masked_fill(slots.empty, LARGE_NEGATIVE)  # ascending
    leaving = call.priority[:, :, a:b].detach().masked_fill(~real, LARGE_NEGATIVE)
    ahead = count_ahead(in_slots, leaving, real)
    filled = (in_slots > LARGE_NEGATIVE)[:, :, None].expand(-1, -1, b - a, -1)
    exists = torch.cat([filled, has_left & real[:, :, None]], -1)
    kept = exists & (ahead < slots.sizes[:, None, None])
    return OldKeys(
        torch.cat([slots.spread(past.slot_keys).to(k), k], 2),
        torch.cat([slots.spread(past.slot_values).to(v), v], 2),
        gone=exists & ~kept,
        kept=kept,
        priority=torch.cat([in_slots, leaving], 2),
        ahead=ahead[:, :, -1].masked_fill(~exists[:, :, -1], ahead.shape[-1]),
    )


def count_ahead(in_slots: Tensor, leaving: Tensor, real: Tensor) -> Tensor:
    """For each token of a piece and each old key, how many keys so far have higher priority; of two equal keys the later counts.

    Priorities: `in_slots` [batch, groups, slots], ascending, `leaving` [batch, groups, tokens] → [batch, groups, tokens, keys].
    """
    slots = in_slots.shape[2]
    priority = torch.cat([in_slots, leaving], 2)
    # First the keys in slots that are ahead, then those that leave the window.
    place = torch.arange(slots, device=in_slots.device).expand_as(in_slots)
    not_ahead = torch.cat([place + 1, torch.searchsorted(in_slots, leaving.contiguous(), right=True)], 2)
    mine, other = priority[:, :, None], leaving[..., None]
    index = torch.arange(priority.shape[2], device=in_slots.device)
    better = ((other > mine) | ((other == mine) & (index[slots:, None] > index))) & real[..., None]
    return slots - not_ahead[:, :, None] + better.cumsum(2)


def exact_scores(call: NewTokens, past: "RecurrentLayer", old: OldKeys, a: int, b: int) -> tuple[Tensor, Tensor]:
    """Scores and values of the keys in window, sinks and slots, for the tokens a … b − 1; −∞ where a token does not see a key."""
    window = past.window
    q = call.q[:, :, :, a:b] * call.scaling
    token = torch.arange(b - a, device=q.device)[:, None]
    place = torch.arange(b - a + window.most, device=q.device) if window.most else token[:0, 0]
    last = token + (window.most if window.are_alike else window.sizes[:, None, None])
    seen = (place > token) & (place <= last) & call.real[:, :, None, a : a + len(place)]
    k, v = call.k[:, :, a : a + len(place)], call.v[:, :, a : a + len(place)]
    if past.sink_keys is not None:
        k = torch.cat([k, past.sink_keys.to(k)], 2)
        v = torch.cat([v, past.sink_values.to(v)], 2)
        reached = call.rank[:, None, a:b, None] > torch.arange(past.sink_keys.shape[2], device=q.device)
        seen = torch.cat([seen, reached.expand(-1, seen.shape[1], -1, -1)], -1)
    if call.priority is not None:
        k, v = torch.cat([k, old.k], 2), torch.cat([v, old.v], 2)
        seen = torch.cat([seen.expand(-1, k.shape[1], -1, -1), old.kept], -1)
    return group_matmul(q, k.mT).masked_fill(~seen[:, :, None], -math.inf), v


def _grows_too_much(log_k: Tensor, before: Tensor, after: Tensor) -> bool:
    """Whether a feature's shift grows so much within a piece that its largest key before the piece would underflow."""
    least = log_k.masked_fill(log_k == -math.inf, math.inf).amin(2)
    start = torch.where(before > LARGE_NEGATIVE, before, least)
    return bool((after - start > MAX_LOG_GROWTH).any())


def group_matmul(x: Tensor, y: Tensor) -> Tensor:
    """[batch, groups, shared, rows, m] times [batch, groups, m, columns]. The heads of a group share `y` without copies of it."""
    return (x.flatten(2, 3) @ y).unflatten(2, x.shape[2:4])


def _ratio(top: Tensor, below: Tensor) -> Tensor:
    """top / below; 0 at padding, where no key is seen and both are 0."""
    return top / below.masked_fill(below == 0, 1.0)


class RecurrentLayer(CacheLayerMixin):
    """The cache of one `RecurrentMemory`: last keys and values in the model's dtype, sinks, slots and fast weights.

    All entries exist from the start, so that the size is the same at every length. A block that is not recurrent keeps all keys.
    """

    is_croppable = is_compileable = supports_early_init = False
    parts = (
        *("keys", "values", "real", "sink_keys", "sink_values", "slot_keys", "slot_values", "slot_priority"),
        *("seen", "state", "mass", "shift"),
    )

    def __init__(self):
        super().__init__()
        self.tokens = 0
        self.window: Any = None  # `PackedHeads` for the keys in windows
        self.slots: Any = None  # `PackedHeads` for those in slots
        self.keys: Any
        self.values: Any
        self.real: Any = None
        self.sink_keys: Any = None
        self.sink_values: Any = None
        self.slot_keys: Any = None
        self.slot_values: Any = None
        self.slot_priority: Any = None
        self.seen: Any = None
        self.state: Any = None
        self.mass: Any = None
        self.shift: Any = None

    def start(self, memory: RecurrentMemory, k: Tensor, v: Tensor, dtype: torch.dtype) -> None:
        if self.is_initialized:
            return
        batch, groups, _, width = k.shape
        self.device, self.dtype, self.is_initialized = k.device, k.dtype, True
        self.window = PackedHeads(memory.windows, k.device)
        size = (batch, self.window.total) if memory.recurrent else (batch, groups, 0)
        self.keys, self.values = k.new_zeros(*size, width), v.new_zeros(*size, v.shape[-1])
        self.real = torch.zeros(batch, self.window.most, dtype=torch.bool, device=k.device)
        self.seen = torch.zeros(batch, dtype=torch.long, device=k.device)
        if memory.sinks:
            self.sink_keys = k.new_zeros(batch, groups, memory.sinks, width)
            self.sink_values = v.new_zeros(batch, groups, memory.sinks, v.shape[-1])
        if memory.priority is not None:
            self.slots = PackedHeads(memory.slots, k.device)
            self.slot_keys = k.new_zeros(batch, self.slots.total, width)
            self.slot_values = v.new_zeros(batch, self.slots.total, v.shape[-1])
            self.slot_priority = torch.full((batch, self.slots.total), LARGE_NEGATIVE, dtype=dtype, device=k.device)
        if memory.map is not None:
            size = (batch, groups, memory.map.dimension)
            self.state = torch.zeros(*size, v.shape[-1], dtype=dtype, device=k.device)
            self.mass = torch.zeros(size, dtype=dtype, device=k.device)
            self.shift = torch.full((batch, groups, memory.map.scales), LARGE_NEGATIVE, dtype=dtype, device=k.device)

    def count(self, real: Tensor) -> Tensor:
        """Number of each new token in its text, from 1 [batch, tokens]."""
        rank = self.seen[:, None] + real.cumsum(1)
        self.seen, self.tokens = rank[:, -1], self.tokens + real.shape[1]
        return rank

    def append(self, k: Tensor, v: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For a block that is not recurrent: all keys, values and `real` so far."""
        self.keys, self.values = torch.cat([self.keys, k], 2), torch.cat([self.values, v], 2)
        self.real = torch.cat([self.real, real], 1)
        return self.keys, self.values, self.real

    def store_sinks(self, k: Tensor, v: Tensor, real: Tensor, rank: Tensor) -> Tensor:
        """Stores the new tokens that are among the first of their text; returns `real` without them."""
        if self.sink_keys is None:
            return real
        sinks = self.sink_keys.shape[2]
        place = rank[:, None] == torch.arange(1, sinks + 1, device=k.device)[:, None]
        place = (place & real[:, None])[:, None].to(k)
        self.sink_keys, self.sink_values = self.sink_keys + place @ k, self.sink_values + place @ v
        return real & (rank > sinks)

    def slide_windows(self, k: Tensor, v: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Moves the windows over the new tokens. Returns the keys, values and `real` of `NewTokens`."""
        window, tokens = self.window, k.shape[2]
        k, v = torch.cat([window.spread(self.keys), k], 2), torch.cat([window.spread(self.values), v], 2)
        real = torch.cat([self.real, real], 1)
        self.keys, self.values = window.pack(k[:, :, tokens:]), window.pack(v[:, :, tokens:])
        self.real = real[:, tokens:]
        return window.skip_missing(k, v, real[:, None])

    def fill_slots(self, old: OldKeys) -> None:
        """Stores the keys of highest priority, the highest last."""
        if old.ahead is None:
            return
        best = self.slots.pack(old.ahead.argsort(2, descending=True)[..., -self.slots.most :])
        text = torch.arange(len(best), device=best.device)[:, None]
        self.slot_priority = old.priority[text, self.slots.head, best]
        self.slot_keys = old.k[text, self.slots.head, best].to(self.slot_keys)
        self.slot_values = old.v[text, self.slots.head, best].to(self.slot_values)

    def fast_weights(self) -> FastWeights:
        return FastWeights(self.state, self.mass, self.shift)

    def tensors(self) -> dict[str, Tensor]:
        return {name: part for name in self.parts if (part := getattr(self, name)) is not None}

    def _each(self, change: Callable[[Tensor], Tensor]) -> None:
        for name, tensor in self.tensors().items():
            setattr(self, name, change(tensor))

    def lazy_initialization(self, key_states, value_states) -> None:
        raise TypeError(
            "a recurrent cache is initialised by its first attention call; it cannot be initialised before."
        )

    def update(self, key_states, value_states, *args, **kwargs):
        raise TypeError(
            "a recurrent cache is updated only by the recurrent attention function; got a call of update()."
        )

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.tokens + query_length, 0

    def get_seq_length(self) -> int:
        return self.tokens

    def get_max_length(self) -> int:
        return -1

    def offload(self):
        self._each(lambda tensor: tensor.to("cpu"))

    def prefetch(self):
        self._each(lambda tensor: tensor.to(self.device))

    def reset(self) -> None:
        self.__init__()

    def reorder_cache(self, beam_idx) -> None:
        self._each(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._each(lambda tensor: tensor.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices) -> None:
        self._each(lambda tensor: tensor[indices])


class HistoryLayer(DynamicLayer):
    """The last `back` tokens that a seam of a composite reads; zeros before the first token."""

    is_croppable = False

    def __init__(self, back: int):
        super().__init__()
        self.back = back

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.keys, self.values = (
            new.new_zeros(*new.shape[:2], self.back, new.shape[3]) for new in (key_states, value_states)
        )

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        keys, values = super().update(key_states, value_states)
        self.keys, self.values = keys[:, :, -self.back :].clone(), values[:, :, -self.back :].clone()
        return keys, values

    def tensors(self) -> dict[str, Tensor]:
        return {name: part for name in ("keys", "values") if isinstance(part := getattr(self, name), Tensor)}


class RecurrentCache(Cache):
    """One layer per block, then one per seam that reads earlier tokens. `histories` are the numbers of these tokens."""

    def __init__(self, blocks: int, histories: Sequence[int] = ()):
        layers = [RecurrentLayer() for _ in range(blocks)]
        super().__init__(layers=[*layers, *(HistoryLayer(back) for back in histories)])

    def bytes(self) -> int:
        """Bytes of the cache of one sequence."""
        tensors = [tensor for layer in self.layers for tensor in layer.tensors().values()]  # pyright: ignore
        return sum(tensor.nbytes // len(tensor) for tensor in tensors)


@dataclass(frozen=True)
class AttentionContext:
    """Arguments of the attention function, for one forward pass, that stock attention does not pass."""

    memories: nn.ModuleList
    layers: Sequence[Any]  # of the cache
    real: Tensor  # [batch, tokens]: False at padding
    chunk: int

    def attend(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
        index: Any = module.memory_index
        memory: Any = self.memories[index]
        return memory.attend(q, k, v, self.real, self.layers[index], scaling, self.chunk)


def recurrent_attention(
    module: nn.Module, query, key, value, attention_mask, scaling=None, dropout=0.0, recurrent=None, **kwargs
):
    """An attention function of transformers. `recurrent` is an `AttentionContext`, passed on by the stock model as a keyword."""
    if recurrent is None:
        raise ValueError(
            "recurrent attention runs inside RecurrentForCausalLM; got a call without its context: call that model."
        )
    for name in ("softcap", "position_bias", "s_aux"):
        if kwargs.get(name) is not None:
            raise ValueError(f"recurrent attention does not support {name}; got one: this family cannot be converted.")
    if not getattr(module, "is_causal", True) or kwargs.get("is_causal") is False:
        raise ValueError("recurrent attention must be causal; this model's is not: it cannot be converted.")
    if dropout:
        raise ValueError(f"recurrent attention has no dropout; got {dropout}: set the config's attention dropout to 0.")
    widths = [heads.shape[-1] for heads in (query, key, value)]
    wanted = recurrent.memories[module.memory_index].shape.width
    if any(width != wanted for width in widths):
        raise ValueError(
            f"queries, keys and values must have the {wanted} dimensions of the config; got {', '.join(map(str, widths))}: this "
            "family cannot be converted."
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return recurrent.attend(module, query, key, value, scaling).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, recurrent_attention)


def attentions(net: nn.Module) -> list[Any]:
    """The attention modules of a stock decoder or of all parts of a composite, in block order."""
    return [m for m in net.modules() if type(m).__name__.endswith("Attention") and hasattr(m, "layer_idx")]


def shape_of(config: Any) -> HeadShape:
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    return HeadShape(groups, heads // groups, getattr(config, "head_dim", None) or config.hidden_size // heads)


class RecurrentForCausalLM(PreTrainedModel, GenerationMixin):
    """A stock causal model or a composite with recurrent attention.

    `forward` takes whole texts, computed in chunks (parallel form), single tokens with `past_key_values` (recurrent form), or
    pieces of any length.
    """

    config_class = RecurrentConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _no_split_modules = ["RecurrentMemory"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _keep_in_fp32_modules_strict = [r"memories\.", *(StitchForCausalLM._keep_in_fp32_modules_strict or ())]  # noqa: RUF012
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: RecurrentConfig):
        super().__init__(config)
        base = copy.deepcopy(config.base_config)  # its attention implementation is changed below
        make = StitchForCausalLM._from_config if isinstance(base, StitchConfig) else AutoModelForCausalLM.from_config
        self.base: Any = make(base)
        found = attentions(self.base)
        # Checkpoints store these weights under `memories`.
        self.memories = nn.ModuleList([RecurrentMemory(config, shape_of(m.config), i) for i, m in enumerate(found)])
        for index, module in enumerate(found):
            module.memory_index = index
            module.config._attn_implementation = ATTENTION
        self.post_init()

    def _init_weights(self, module) -> None:
        """Does nothing: feature maps start at zero, and the stock model has initialised itself."""

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # `forward` makes a RecurrentCache

    def set_attn_implementation(self, attn_implementation, *args, **kwargs) -> None:
        raise ValueError(f"a recurrent model has an attention of its own; got {attn_implementation!r}: leave it out.")

    @property
    def histories(self) -> list[int]:
        """For each seam of a composite that reads earlier tokens, how many of them."""
        return [
            found.history for found in self.base.modules() if isinstance(found, TranslationModule) and found.history
        ]

    def get_input_embeddings(self):
        return self.base.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.base.set_input_embeddings(value)

    def get_output_embeddings(self):
        return self.base.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings):
        self.base.set_output_embeddings(new_embeddings)

    def resize_token_embeddings(self, *args, **kwargs):
        """Like any model of transformers. The look-ups of a composite take the new ids as well."""
        embedding = self.base.resize_token_embeddings(*args, **kwargs)
        copy_sizes(self.base.config, self.config.base_config)
        self.config.vocab_size = self.base.config.vocab_size
        return embedding

    def init_continuous_batching(self, *args, **kwargs):
        """Raises ValueError: a paged cache stores keys; here a state replaces them."""
        raise ValueError(
            "a recurrent model has no continuous batching, as it keeps a state: call generate on a padded batch."
        )

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        chunk: int | None = None,
        **kwargs,
    ):
        """Like any causal model of transformers. `chunk` replaces the config's value."""
        given: Any = inputs_embeds if input_ids is None else input_ids
        blocks = len(self.memories)
        cache = RecurrentCache(blocks, self.histories) if past_key_values is None else past_key_values
        if not isinstance(cache, RecurrentCache):
            raise ValueError(f"past_key_values must be a RecurrentCache; got a {type(cache).__name__}: leave it out.")
        if position_ids is None:
            position_ids = (torch.arange(given.shape[1], device=given.device) + cache.get_seq_length()).unsqueeze(0)
        if seams := cache.layers[blocks:]:
            kwargs["histories"] = seams
        out = self.base(
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            labels=labels,
            use_cache=False,
            logits_to_keep=logits_to_keep,
            return_dict=True,
            recurrent=AttentionContext(
                self.memories, cache.layers, _text(attention_mask, given), chunk or self.config.chunk
            ),  # pyright: ignore
            **kwargs,
        )
        if use_cache is None:
            use_cache = getattr(self.config, "use_cache", True) and not self.training
        output = CausalLMOutputWithPast(
            loss=out.loss,
            logits=out.logits,
            past_key_values=cache if use_cache else None,
            hidden_states=out.hidden_states,
        )
        return output.to_tuple() if return_dict is False else output


def _text(attention_mask: Tensor | None, given: Tensor) -> Tensor:
    """Which of the new tokens are not padding [batch, tokens]."""
    if attention_mask is None:
        return torch.ones(given.shape[:2], dtype=torch.bool, device=given.device)
    if attention_mask.ndim != 2:
        raise ValueError(
            f"attention_mask must be [batch, tokens]; got {attention_mask.ndim} axes: causal attention is applied anyway."
        )
    return attention_mask[:, -given.shape[1] :].bool().to(given.device)


# This makes save_pretrained copy this file into the checkpoint.
RecurrentConfig.register_for_auto_class()
RecurrentForCausalLM.register_for_auto_class("AutoModelForCausalLM")
