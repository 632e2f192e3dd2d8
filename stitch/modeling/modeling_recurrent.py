"""A softmax decoder as a recurrent network: a state of constant size in place of a cache that grows.

This file needs torch, transformers, modeling_features.py and, for composites, modeling_composite.py: they travel with every
checkpoint, which then loads with

    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

Any family works whose attention goes through transformers' attention interface: the stock model is built from its config and its
attention function is the one below. A head sees the first `sinks` keys, the last `window` keys and, of all older ones, the
`slots` keys of highest priority by exact softmax weights; every other key j weighs φ(q)·φ(k_j), and all of them live in fast
weights,

    S = Σ φ(k_j) v_jᵀ,   z = Σ φ(k_j),   o = (Σ_seen e^{q·k_i} v_i + φ(q)ᵀS) / (Σ_seen e^{q·k_i} + φ(q)ᵀz).

Heads may have windows and slots of their own sizes. A key's priority is a function of its key, its value and its position, fixed
when it comes: what loses its slot never has one again, so that whole texts can be computed in parallel.

Features are kept as plain · exp(log); S and z are divided by exp(shift), the running maximum of the keys' logs, so that sums from
1e-30 to 1e30 lose nothing. They are float32, or float64 in such models.
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

from .modeling_composite import StitchConfig, StitchForCausalLM, TranslationModule, config_of, parts_of
from .modeling_features import Features, HeadShape, Hedgehog, Identity, Mean, Priority, Random, Taylor

ATTENTION = "stitch_recurrent"
LARGE_NEGATIVE = -1e30  # in place of −∞ where a difference is taken
MAX_LOG_GROWTH = 60.0  # nats by which logs of keys may grow within a chunk: float32 holds e^-87
ROUND_OFF = 1e-5  # of the sum of the absolute values: a smaller denominator of signed features is round-off


class RecurrentConfig(PreTrainedConfig):
    """`base_config` describes the stock model, or the composite of such.

    `features`: hedgehog, random, taylor2, mean (one feature: old keys weigh alike), none (they are forgotten) or identity, the
    linear attention o = scale · Σ (q·k_j) v_j of in-context gradient descent, without a denominator, window or sinks.
    `dimension`: of φ, per head, for hedgehog and random. `slots`: keys that are kept by priority. `hidden`: units of the MLPs in
    priorities and in the feature maps of hedgehog and mean, which make no state larger. `keys`: for every key head of every block
    how many keys it sees exactly, its window and its slots together; None: all as many. A head with fewer than `window` has
    no slots, and without slots they are its window. `layers`: the blocks that are recurrent; None: all. Others keep all keys.
    `chunk`: tokens that are computed at once; no result depends on it.
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
        self.base_config = copy.deepcopy(base_config)  # transformers writes to it
        self.features, self.window, self.sinks, self.slots = features, window, sinks, slots
        self.dimension, self.hidden = dimension, hidden
        self.keys = keys
        self.layers, self.chunk = layers, chunk
        kwargs = {**kwargs, "tie_word_embeddings": bool(getattr(base_config, "tie_word_embeddings", False))}
        if base_config is not None:
            parts = list(parts_of(base_config))
            kwargs["max_position_embeddings"] = min(part.max_position_embeddings for part in parts)
            kwargs["hidden_size"] = parts[-1].hidden_size
            for name in ("vocab_size", "num_hidden_layers"):
                kwargs[name] = getattr(base_config, name)
            for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
                kwargs.setdefault(name, getattr(base_config, name, None))
        super().__init__(**kwargs)


class RecurrentMemory(nn.Module):
    """What the key heads of a block remember of the past, each as many keys as the config says, and by which features. Without a
    `map` old keys are forgotten.
    """

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
                "identity features have no denominator to share with keys that are kept: set window, sinks and slots to 0."
            )
        if config.features == "none" and not config.window:
            raise ValueError("without features and window nothing is seen: set one of the two.")
        self.map: Any = makers[config.features]() if self.recurrent else None
        self.priority = Priority(shape, config.hidden) if any(self.slots) else None

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, real: Tensor, past: "RecurrentLayer", scaling: float, chunk: int
    ) -> Tensor:
        """Queries [batch, heads, tokens, width], new keys and values [batch, groups, tokens, width], which of them are text (not
        padding) [batch, tokens] → [batch, heads, tokens, width]. `past` is brought up to date.
        """
        dtype = torch.promote_types(q.dtype, torch.float32)  # never less: these are sums of thousands of terms
        with torch.autocast(device_type=q.device.type, enabled=False):
            queries = q.to(dtype).unflatten(1, (self.shape.groups, self.shape.shared))
            past.start(self, k, v, dtype)
            run = _Run(self, queries, k, v, real, past, scaling)
            out = run.outputs(chunk) if self.recurrent else run.over_all_keys()
            return out.flatten(1, 2).to(q.dtype)


class PackedHeads:
    """Room for `sizes` things of each key head, kept one head after the other, without gaps: [batch, their sum, …].

    To be computed with they are spread out to [batch, groups, the most that a head has, …], a head's own at the end; what stands
    before them, where a head has fewer, is not to be looked at.
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
        self.head = torch.arange(self.groups, device=device).repeat_interleave(self.sizes)  # that each belongs to

    def spread(self, packed: Tensor) -> Tensor:
        return packed.unflatten(1, (self.groups, self.most)) if self.are_alike else packed[:, self.index]

    def pack(self, spread: Tensor) -> Tensor:
        flat = spread.flatten(1, 2)
        return flat if self.are_alike else flat[:, self.own]


class _Run:
    """One call: new tokens after a past, which is brought up to date.

    Index t of a head's `k` is the token that leaves its window when the new token t comes. So the keys that are old for it are
    those up to t, and those in its window are t + 1 … t + window.
    """

    def __init__(
        self,
        memory: RecurrentMemory,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        real: Tensor,
        past: "RecurrentLayer",
        scaling: float,
    ):
        self.memory, self.q, self.past, self.scaling = memory, q, past, scaling
        self.tokens = k.shape[2]
        self.queries: Features | None = None
        self.priority: Tensor | None = None
        self.rank = past.seen[:, None] + real.cumsum(1)  # number of each token in the text, from 1
        sinks = memory.sinks
        if sinks:
            place = self.rank[:, None] == torch.arange(1, sinks + 1, device=k.device)[:, None]
            place = (place & real[:, None])[:, None].to(k)
            past.sink_keys, past.sink_values = past.sink_keys + place @ k, past.sink_values + place @ v
            real = real & (self.rank > sinks)
        past.seen, past.tokens = self.rank[:, -1], past.tokens + self.tokens
        if not memory.recurrent:
            past.keys, past.values = torch.cat([past.keys, k], 2), torch.cat([past.values, v], 2)
            past.real = torch.cat([past.real, real], 1)
            self.k, self.v, self.real = past.keys.to(q), past.values.to(q), past.real[:, None]
            return
        window = past.window
        k, v = torch.cat([window.spread(past.keys), k], 2), torch.cat([window.spread(past.values), v], 2)
        real = torch.cat([past.real, real], 1)
        past.keys, past.values = window.pack(k[:, :, self.tokens :]), window.pack(v[:, :, self.tokens :])
        past.real = real[:, self.tokens :]
        real = real[:, None]
        if not window.are_alike:  # heads with a shorter window begin later
            index = torch.arange(k.shape[2], device=k.device) + window.missing[:, None]
            is_there, index = index < k.shape[2], index.clamp_max(k.shape[2] - 1)
            real = real[:, 0, index] & is_there
            k, v = (x.gather(2, index[None, :, :, None].expand(len(x), -1, -1, x.shape[-1])) for x in (k, v))
        self.k, self.v, self.real = k.to(q), v.to(q), real

    def over_all_keys(self) -> Tensor:
        """Softmax over every key so far: in blocks that are not recurrent."""
        place = torch.arange(self.k.shape[2], device=self.k.device)
        seen = (place <= place[-self.tokens :, None]) & self.real
        scores = (group_matmul(self.q, self.k.mT) * self.scaling).masked_fill(~seen[:, None, None], LARGE_NEGATIVE)
        return group_matmul(scores.softmax(-1), self.v)

    def outputs(self, chunk: int) -> Tensor:
        """In pieces of `chunk` tokens, so that memory grows with tokens · (window + slots + dimension) and not with tokens²."""
        memory, root = self.memory, self.scaling**0.5
        if memory.map is not None:
            self.queries = memory.map.queries(self.q * root)
        if memory.priority is not None:
            position = torch.arange(self.tokens, device=self.k.device) + self.past.tokens - self.tokens
            leaving = slice(0, self.tokens)
            self.priority = memory.priority(self.k[:, :, leaving] * root, self.v[:, :, leaving], position)
        starts = range(0, self.tokens, chunk)
        return torch.cat([one for a in starts for one in self._pieces(a, min(a + chunk, self.tokens))], 3)

    def _pieces(self, a: int, b: int) -> list[Tensor]:
        """The outputs of the tokens a … b − 1, in more than one piece where logs of keys grow by too much."""
        memory, past = self.memory, self.past
        old = self._old(a, b)
        exact, values = self._exact(a, b, old)
        if memory.map is None or self.queries is None:
            self._keep(old)
            best = exact.amax(-1, keepdim=True).clamp_min(LARGE_NEGATIVE)
            weights = (exact - best).exp()
            return [_over(group_matmul(weights, values), weights.sum(-1, keepdim=True))]

        plain_k, log_k = memory.map.keys(old.k * self.scaling**0.5)
        log_k = log_k.masked_fill(~old.gone[:, :, -1, :, None], -math.inf)
        shift = torch.maximum(past.shift, log_k.amax(2)).detach()
        if b - a > 1 and self._grows_too_much(log_k, shift):
            middle = (a + b) // 2
            return [*self._pieces(a, middle), *self._pieces(middle, b)]
        self._keep(old)
        plain_q, log_q = (
            None if self.queries[0] is None else self.queries[0][:, :, :, a:b],
            self.queries[1][:, :, :, a:b],
        )
        fading = (past.shift - shift).exp()
        state, mass = past.state * fading.unsqueeze(-1), past.mass * fading
        # Where no key is lost yet, the shift is that of keys to come.
        begun = old.gone.any(-1) | (past.shift[:, :, :1] > LARGE_NEGATIVE)
        log_q = (log_q + shift[:, :, None, None]).masked_fill(~begun[:, :, None, :, None], -math.inf)
        best = torch.cat([exact, log_q], -1).amax(-1, keepdim=True).clamp_min(LARGE_NEGATIVE).detach()
        right, left = (log_k - shift[:, :, None]).exp(), (log_q - best).exp()
        right = right if plain_k is None else plain_k * right
        left = left if plain_q is None else plain_q * left
        weights = (exact - best).exp()
        inner = group_matmul(left, right.mT) * old.gone[:, :, None]  # keys that are lost within the piece
        top = group_matmul(weights, values) + group_matmul(inner, old.v) + group_matmul(left, state)
        past.state, past.mass = state + right.mT @ old.v, mass + right.sum(2)
        past.shift = shift
        if not memory.normalised:
            return [top]  # identity features have logs of 0
        below = weights.sum(-1, keepdim=True) + inner.sum(-1, keepdim=True) + group_matmul(left, mass[..., None])
        if plain_k is not None:
            terms = weights.sum(-1, keepdim=True) + inner.abs().sum(-1, keepdim=True)
            terms = terms + group_matmul(left.abs(), mass.abs()[..., None])
            if bool((below < ROUND_OFF * terms).any()):
                raise ValueError("a denominator must be above its round-off; one is not: use another feature map.")
        return [_over(top, below)]

    def _old(self, a: int, b: int) -> "OldKeys":
        """The keys that the tokens a … b − 1 have no window for: those in slots, and those that leave the window now."""
        k, v = self.k[:, :, a:b], self.v[:, :, a:b]
        real = self.real[:, :, a:b].expand(k.shape[:3])
        token = torch.arange(b - a, device=k.device)
        come = token[:, None] >= token
        if self.priority is None:
            return OldKeys(k, v, come & real[:, :, None])
        past, slots = self.past, self.past.slots
        in_slots = slots.spread(past.slot_priority).masked_fill(slots.empty, LARGE_NEGATIVE)  # rising
        leaving = self.priority[:, :, a:b].detach().masked_fill(~real, LARGE_NEGATIVE)
        k = torch.cat([slots.spread(past.slot_keys).to(k), k], 2)
        v = torch.cat([slots.spread(past.slot_values).to(v), v], 2)
        priority = torch.cat([in_slots, leaving], 2)
        # How many keys that have come are better than each: of two alike the later. First those in slots, then those that leave.
        place = torch.arange(slots.most, device=k.device).expand_as(in_slots)
        no_better = torch.cat([place + 1, torch.searchsorted(in_slots, leaving.contiguous(), right=True)], 2)
        mine, other = priority[:, :, None], leaving[..., None]
        index = torch.arange(priority.shape[2], device=k.device)
        better = ((other > mine) | ((other == mine) & (index[slots.most :, None] > index))) & real[..., None]
        ahead = slots.most - no_better[:, :, None] + better.cumsum(2)
        there = torch.cat(
            [(in_slots > LARGE_NEGATIVE)[:, :, None].expand(-1, -1, b - a, -1), come & real[:, :, None]], -1
        )
        kept = there & (ahead < slots.sizes[:, None, None])
        last = ahead[:, :, -1].masked_fill(~there[:, :, -1], ahead.shape[-1])
        return OldKeys(k, v, there & ~kept, kept, priority, last)

    def _keep(self, old: "OldKeys") -> None:
        """Fills the slots with the best keys, the best last."""
        if self.priority is None:
            return
        past, slots = self.past, self.past.slots
        best = slots.pack(old.ahead.argsort(2, descending=True)[..., -slots.most :])
        text = torch.arange(len(best), device=best.device)[:, None]
        past.slot_priority = old.priority[text, slots.head, best]
        past.slot_keys = old.k[text, slots.head, best].to(past.slot_keys)
        past.slot_values = old.v[text, slots.head, best].to(past.slot_values)

    def _grows_too_much(self, log_k: Tensor, shift: Tensor) -> bool:
        """Whether a feature's largest key grows by so much within a piece that what was largest before it would vanish."""
        least = log_k.masked_fill(log_k == -math.inf, math.inf).amin(2)
        before = torch.where(self.past.shift > LARGE_NEGATIVE, self.past.shift, least)
        return bool((shift - before > MAX_LOG_GROWTH).any())

    def _exact(self, a: int, b: int, old: "OldKeys") -> tuple[Tensor, Tensor]:
        """Scores and values of the keys in window, sinks and slots, for the tokens a … b − 1; −∞ where a key is not seen."""
        window, sinks = self.past.window, self.memory.sinks
        q = self.q[:, :, :, a:b] * self.scaling
        token = torch.arange(b - a, device=q.device)[:, None]
        place = torch.arange(b - a + window.most, device=q.device) if window.most else token[:0, 0]
        last = token + (window.most if window.are_alike else window.sizes[:, None, None])
        seen = (place > token) & (place <= last) & self.real[:, :, None, a : a + len(place)]
        k, v = self.k[:, :, a : a + len(place)], self.v[:, :, a : a + len(place)]
        if sinks:
            k = torch.cat([k, self.past.sink_keys.to(k)], 2)
            v = torch.cat([v, self.past.sink_values.to(v)], 2)
            reached = self.rank[:, None, a:b, None] > torch.arange(sinks, device=q.device)
            seen = torch.cat([seen, reached.expand(-1, seen.shape[1], -1, -1)], -1)
        if self.priority is not None:
            k, v = torch.cat([k, old.k], 2), torch.cat([v, old.v], 2)
            seen = torch.cat([seen.expand(-1, k.shape[1], -1, -1), old.kept], -1)
        return group_matmul(q, k.mT).masked_fill(~seen[:, :, None], -math.inf), v


@dataclass(frozen=True)
class OldKeys:
    """Keys that have left the window, or do so within a piece, for each of its tokens: which are lost, and which keep a slot.

    `ahead`: how many are better than each at the end, more than all for what is no text.
    """

    k: Tensor  # [batch, groups, keys, width]
    v: Tensor
    gone: Tensor  # [batch, groups, tokens, keys]
    kept: Any = None  # the same; without slots there is none, nor what follows
    priority: Any = None  # [batch, groups, keys]
    ahead: Any = None


def group_matmul(x: Tensor, y: Tensor) -> Tensor:
    """[batch, groups, shared, rows, m] times [batch, groups, m, columns], which a group's heads share, without copies of it."""
    return (x.flatten(2, 3) @ y).unflatten(2, x.shape[2:4])


def _over(top: Tensor, below: Tensor) -> Tensor:
    """Nothing is below where nothing is seen: at padding."""
    return top / below.masked_fill(below == 0, 1.0)


class RecurrentLayer(CacheLayerMixin):
    """What a `RecurrentMemory` holds: the last keys and values as the model has them, the first and the best ones, fast weights.

    Places that are not filled yet are there from the start, so that its size is the same at every length. A block that is not
    recurrent keeps all keys.
    """

    is_croppable = is_compileable = supports_early_init = False
    parts = (
        *("keys", "values", "real", "sink_keys", "sink_values", "slot_keys", "slot_values", "slot_priority"),
        *("seen", "state", "mass", "shift"),
    )

    def __init__(self):
        super().__init__()
        self.tokens = 0
        self.window: Any = None  # `PackedHeads` for the keys in windows and in slots
        self.slots: Any = None
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

    def tensors(self) -> dict[str, Tensor]:
        return {name: part for name in self.parts if (part := getattr(self, name)) is not None}

    def _each(self, change: Callable[[Tensor], Tensor]) -> None:
        for name, tensor in self.tensors().items():
            setattr(self, name, change(tensor))

    def lazy_initialization(self, key_states, value_states) -> None:
        raise TypeError("a recurrent cache starts with its first attention; it cannot be made ready before.")

    def update(self, key_states, value_states, *args, **kwargs):
        raise TypeError("keys reach a recurrent cache through the attention function alone.")

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
    """What a seam of a composite looks back at: the last `back` tokens, zeros before the first."""

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
    """A layer per block, then one per seam that looks back, so many tokens each."""

    def __init__(self, blocks: int, histories: Sequence[int] = ()):
        layers = [RecurrentLayer() for _ in range(blocks)]
        super().__init__(layers=[*layers, *(HistoryLayer(back) for back in histories)])

    def bytes(self) -> int:
        """Of one sequence."""
        tensors = [tensor for layer in self.layers for tensor in layer.tensors().values()]  # pyright: ignore
        return sum(tensor.nbytes // len(tensor) for tensor in tensors)


@dataclass(frozen=True)
class AttentionContext:
    """What the attention function needs of one forward pass beside what stock attention gives it."""

    memories: nn.ModuleList
    layers: Sequence[Any]  # of the cache
    real: Tensor
    chunk: int

    def attend(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
        index: Any = module.memory_index
        memory: Any = self.memories[index]
        return memory.attend(q, k, v, self.real, self.layers[index], scaling, self.chunk)


def recurrent_attention(
    module: nn.Module, query, key, value, attention_mask, scaling=None, dropout=0.0, recurrent=None, **kwargs
):
    """As transformers calls an attention function; `recurrent` has travelled through the stock model's keyword arguments."""
    if recurrent is None:
        raise ValueError("recurrent attention runs inside RecurrentForCausalLM; got a call from elsewhere.")
    for name in ("softcap", "position_bias", "s_aux"):
        if kwargs.get(name) is not None:
            raise ValueError(f"recurrent attention knows no {name}: this family cannot be converted.")
    if not getattr(module, "is_causal", True) or kwargs.get("is_causal") is False:
        raise ValueError("recurrent attention is causal; this model's is not.")
    if dropout:
        raise ValueError("recurrent attention has no dropout: set the config's attention dropout to 0.")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return recurrent.attend(module, query, key, value, scaling).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, recurrent_attention)


def attentions(net: nn.Module) -> list[Any]:
    """The attention modules of a stock decoder, or of the parts of a composite, in the order of the blocks."""
    return [m for m in net.modules() if type(m).__name__.endswith("Attention") and hasattr(m, "layer_idx")]


def shape_of(config: Any) -> HeadShape:
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    return HeadShape(groups, heads // groups, getattr(config, "head_dim", None) or config.hidden_size // heads)


class RecurrentForCausalLM(PreTrainedModel, GenerationMixin):
    """A stock causal model, or a composite, whose attention is recurrent. `forward` takes whole texts in chunks (parallel form)
    or token after token with `past_key_values` (recurrent form), and any mixture.
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
        base = copy.deepcopy(config.base_config)  # its attention changes below
        make = StitchForCausalLM._from_config if isinstance(base, StitchConfig) else AutoModelForCausalLM.from_config
        self.base: Any = make(base)
        found = attentions(self.base)
        self.memories = nn.ModuleList([RecurrentMemory(config, shape_of(m.config), i) for i, m in enumerate(found)])
        for index, module in enumerate(found):
            module.memory_index = index
            module.config._attn_implementation = ATTENTION
        self.post_init()

    def _init_weights(self, module) -> None:
        """Feature maps have their zeros; the stock model has initialised itself."""

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # `forward` makes its own

    def set_attn_implementation(self, attn_implementation, *args, **kwargs) -> None:
        raise ValueError(f"a recurrent model has an attention of its own; got {attn_implementation!r}.")

    @property
    def histories(self) -> list[int]:
        """How far back each seam of a composite looks, those that do."""
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
        """As in any causal model of transformers; `chunk` replaces the config's."""
        given: Any = inputs_embeds if input_ids is None else input_ids
        blocks = len(self.memories)
        cache = RecurrentCache(blocks, self.histories) if past_key_values is None else past_key_values
        if not isinstance(cache, RecurrentCache):
            raise ValueError(f"the cache must be a RecurrentCache; got a {type(cache).__name__}: leave it out.")
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
    """Which of the new tokens are text [batch, tokens]."""
    if attention_mask is None:
        return torch.ones(given.shape[:2], dtype=torch.bool, device=given.device)
    if attention_mask.ndim != 2:
        raise ValueError(
            f"attention_mask must be [batch, tokens], causal attention is given; got {attention_mask.ndim} axes."
        )
    return attention_mask[:, -given.shape[1] :].bool().to(given.device)


# Without this, save_pretrained would not put this file beside the weights.
RecurrentConfig.register_for_auto_class()
RecurrentForCausalLM.register_for_auto_class("AutoModelForCausalLM")
