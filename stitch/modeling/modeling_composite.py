"""A causal language model made of two models: the early blocks of A, a translation, the late blocks of B.

This file imports only torch and transformers. It is saved with every checkpoint, which then loads with

    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

Any pair of decoder families works: each half is the stock model of its family, of which some blocks run (`modeling_halves.py`).
So masks, rotary embeddings, layer types and soft caps are those of the family. A may itself be a composite, cut within its last
part: a chain of any length consists of two halves, the first of which is a chain with one part fewer.
"""

import copy
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, GenerationMixin, PreTrainedModel
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticCache,
)
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .modeling_halves import Half, Unused, early_net, flow_of_cut, late_net


class StitchConfig(PreTrainedConfig):
    """Blocks 0..site_a−1 of A and blocks site_b..stop_b−1 of B. `a_config` and `b_config` are those of the whole donors.

    If A is a composite, `a_config` is a `StitchConfig` too, and sites of A count all its blocks. `stop_b` is None where B runs
    to its end. `a_flow` and `b_flow` say where the donors keep their streams (see `modeling_halves.py`); that of a composite is
    None.
    `translation` is the config of `TranslationModule`.
    `train_seam_only`: `from_pretrained` freezes both halves, so that training changes the translation alone.
    `hidden_size` and `num_attention_heads` are those of the last part, whose states the model returns.
    `max_position_embeddings` is the longest context that all parts accept.

    Composites of earlier versions have `seam` in place of flows: there `a_config` and `b_config` describe the halves alone, whose
    blocks are counted from 0.
    """

    model_type = "stitch"
    sub_configs = {"a_config": AutoConfig, "b_config": AutoConfig}  # noqa: RUF012  # pyright: ignore

    def __init__(
        self,
        a_config: Any = None,
        b_config: Any = None,
        site_a: int = 0,
        site_b: int = 0,
        translation: Any = None,
        a_flow: Any = None,
        b_flow: Any = None,
        stop_b: int | None = None,
        train_seam_only: bool = False,
        **kwargs,
    ):
        a_config, b_config = config_of(a_config), config_of(b_config)
        self.a_config, self.b_config = a_config, b_config
        self.site_a, self.site_b, self.stop_b = site_a, site_b, stop_b
        if a_config is not None and b_config is not None and b_flow is None:  # of an earlier version
            b_flow = flow_of_cut(b_config)
            a_flow = None if isinstance(a_config, StitchConfig) else flow_of_cut(a_config)
            self.site_b, self.stop_b = 0, None
        self.a_flow, self.b_flow = a_flow, b_flow
        self.translation = translation
        self.train_seam_only = train_seam_only
        # `generate` needs the number of cache layers, one per block, and B's vocabulary and special tokens.
        kwargs = {**kwargs, "tie_word_embeddings": False}
        for derived in ("per_layer_config", "seam"):
            kwargs.pop(derived, None)
        windows: list = []
        if a_config is not None and b_config is not None:
            last = b_config.get_text_config(decoder=True)
            windows = (
                sliding_windows(a_config)[: self.site_a] + sliding_windows(b_config)[self.site_b : self.last_block]
            )
            kwargs["vocab_size"] = last.vocab_size
            for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
                kwargs.setdefault(name, getattr(last, name, None))
            kwargs["hidden_size"] = b_flow["width"]
            kwargs["num_attention_heads"] = getattr(last, "num_attention_heads", 1)
            limits = [
                longest for part in (*parts_of(a_config), b_config) if (longest := longest_context(part)) is not None
            ]
            kwargs["max_position_embeddings"] = min(limits, default=None)
            if (cap := getattr(last, "final_logit_softcapping", None)) is not None:
                kwargs["final_logit_softcapping"] = cap  # for trainers that apply the head themselves
        self.num_hidden_layers = kwargs["num_hidden_layers"] = len(windows)
        if any(window is not None for window in windows):
            kwargs["per_layer_config"] = {block: {"sliding_window": window} for block, window in enumerate(windows)}
        super().__init__(**kwargs)

    @property
    def last_block(self) -> int:
        """The number of the block of B before which this model ends."""
        return self.b_flow["depth"] if self.stop_b is None else self.stop_b

    def to_dict(self) -> dict[str, Any]:
        _tell_peft(self)  # PEFT calls this method just before it looks for the layers to train
        return super().to_dict()


def config_of(given: Any) -> Any:
    """The config object for a dict from config.json. Anything else is returned unchanged."""
    if not isinstance(given, dict):
        return given
    if given.get("model_type") == StitchConfig.model_type:  # AutoConfig does not know it when only this file is loaded
        return StitchConfig(**given)
    return AutoConfig.for_model(**given)


def parts_of(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """Configs of the stock models in a composite, in the order they run. For any other model, its own config."""
    if isinstance(config, StitchConfig):
        yield from parts_of(config.a_config)
        yield config.b_config
    else:
        yield config


def copy_sizes(source: Any, target: Any) -> None:
    """Writes the size of the vocabulary, and of the look-ups of a composite, from one config to another of the same model."""
    target.vocab_size = source.vocab_size
    if isinstance(source, StitchConfig):
        target.translation = source.translation
        copy_sizes(source.a_config, target.a_config)
        copy_sizes(source.b_config, target.b_config)


def _tell_peft(config: StitchConfig) -> None:
    """Where PEFT is imported: enters the layers that LoRA trains by default, which are those of the parts' families.

    PEFT finds them in a table by the type of the model, and does not know this one.
    """
    peft: Any = sys.modules.get("peft.utils.constants")
    table = getattr(peft, "TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING", None)
    if table is None or config.a_config is None or config.b_config is None:
        return
    parts = [*parts_of(config.a_config)] if config.site_a else []
    parts += [config.b_config] if config.site_b < config.last_block else []
    if names := sorted({name for part in parts for name in table.get(part.model_type, [])}):
        table[config.model_type] = names


def longest_context(config: PreTrainedConfig) -> int | None:
    """The longest context of a stock model in tokens, None where its config gives no limit."""
    return getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)


def sliding_windows(config: PreTrainedConfig) -> list[int | None]:
    """For each block the number of tokens that its attention sees, the current one included. None: all."""
    if isinstance(config, StitchConfig):
        late = sliding_windows(config.b_config)[config.site_b : config.last_block]
        return sliding_windows(config.a_config)[: config.site_a] + late
    config = config.get_text_config(decoder=True)
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if types is None:
        types = ["sliding_attention"] * config.num_hidden_layers
    return [window if kind == "sliding_attention" else None for kind in types]


class TranslationModule(nn.Module):
    """y = bias + Σ terms, in float32 for any dtype of the model. `first` replaces y if BOS is at position 0.

    config: {"width": d_out, "first": bool, "bos_token_id": int | None, "terms": [
        {"kind": "residual", "site": 3, "back": 0, "width": dA, "identity": bool} |
        {"kind": "routed", "site": 3, "back": 0, "width": dA, "classes": C, "entries": V} |
        {"kind": "codes", "site": 3, "width": dA, "features": F, "activation": "relu" | "jumprelu" | "topk" | "rbf", "k": 32} |
        {"kind": "token", "back": 0, "entries": E, "keyed": bool, "fallback": {"of": "a" | "b", "width": d, "share": s} | None} |
        {"kind": "position", "entries": P} |
        {"kind": "ngram", "order": 2, "entries": E, "vocabulary": V}]}

    A table may also have "rank": R, "basis": bool (see `TableTerm`), and may be in the model's dtype. An identity term returns
    its input, truncated or zero-padded to d_out. Positions before the text's first token contribute nothing. A token table that
    is not keyed has a row for every id.
    """

    def __init__(self, config: dict):
        super().__init__()
        width = config["width"]
        self.bos_token_id = config.get("bos_token_id")
        self.bias = nn.Parameter(torch.zeros(width))
        self.first = nn.Parameter(torch.zeros(width)) if config.get("first") else None
        terms: list[Any] = [_TERMS[term["kind"]](term, width) for term in config["terms"]]
        self.terms = nn.ModuleList(terms)
        # Computed once, as decoding needs them at every token: the sites of A that the terms read, how many tokens back they
        # read, and the sites whose streams at earlier tokens they read.
        self.sites = {term.site for term in terms if isinstance(term, (ResidualTerm, CodesTerm))}
        self.history = max((term.back for term in terms), default=0)
        self.past_sites = sorted({term.site for term in terms if isinstance(term, ResidualTerm) and term.back})
        self.embeddings_read = {term.of for term in terms if isinstance(term, TokenTerm) and term.of is not None}

    @property
    def reads_tokens(self) -> bool:
        return self.first is not None or any(
            isinstance(term, (TokenTerm, NgramTerm, RoutedTerm)) for term in self.terms
        )

    def forward(
        self,
        streams: dict[int, Tensor],
        ids: Tensor | None,
        positions: Tensor,
        position_ids: Tensor | None = None,
        embeddings: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """Streams of A by site [batch, past + seq, dA] and ids [batch, past + seq] → [batch, seq, d_out].

        `positions` [batch|1, seq] count from the text's first token and are negative at padding. `position_ids` are those of the
        models; None: the same. Streams and ids may begin with earlier tokens; the last `seq` are the current ones.
        `embeddings` [vocabulary, d] are those named in `embeddings_read`.
        """
        position_ids = positions if position_ids is None else position_ids
        inputs = TranslationInputs(streams, ids, positions, position_ids, embeddings=embeddings or {})
        with torch.autocast(device_type=self.bias.device.type, enabled=False):
            y = self.written(inputs)
            if y.ndim == 1:  # no term but the bias
                rows = next(iter(streams.values()))[..., 0] if ids is None else ids
                y = y.expand(len(rows), positions.shape[1], -1)
            if self.first is not None:
                assert ids is not None
                is_first = (positions == 0) & (inputs.ids_ago(0) == self.bos_token_id)
                y = torch.where(is_first.unsqueeze(-1), self.first.float(), y)
            return y

    def written(self, inputs: "TranslationInputs") -> Tensor:
        """The bias plus all terms."""
        y = self.bias.float()
        for term in self.terms:
            y = y + term(inputs)
        return y

    def take_tokens(self, vocabulary: int, config: dict) -> dict:
        """Makes the look-ups take all ids below `vocabulary`. Returns the config of this module, which was `config`, after that.

        New ids have no n-grams; in tables that have a row for every id they get the mean row, and of classes the most frequent.
        """
        terms: list[Any] = [
            term.take_tokens(vocabulary, entry) if isinstance(term, (TokenTerm, RoutedTerm, NgramTerm)) else entry
            for term, entry in zip(self.terms, config["terms"], strict=True)
        ]
        return {**config, "terms": terms}


@dataclass(frozen=True)
class TranslationInputs:
    """Streams, ids, positions and embeddings that the terms of a translation read."""

    streams: dict[int, Tensor]
    ids: Tensor | None
    positions: Tensor
    position_ids: Tensor
    embeddings: dict[str, Tensor] = field(default_factory=dict, kw_only=True)
    _ids_ago: dict[int, Tensor] = field(init=False, default_factory=dict)  # cached: several terms need the same
    _reaches: dict[int, Tensor] = field(init=False, default_factory=dict)

    def stream_ago(self, site: int, back: int) -> Tensor:
        """The stream `back` tokens ago [batch, seq, dA]. Zero before the text's second token, as its first token is a sink."""
        x = self._ago(self.streams[site], back).float()
        return x if back == 0 else x * self.reaches(back + 1)

    def ids_ago(self, back: int) -> Tensor:
        """Ids `back` tokens ago [batch, seq]. They are part of the text where `reaches(back)`."""
        assert self.ids is not None
        if back not in self._ids_ago:
            self._ids_ago[back] = self._ago(self.ids, back)
        return self._ids_ago[back]

    def reaches(self, back: int) -> Tensor:
        """Whether the text had begun `back` tokens ago [batch|1, seq, 1]."""
        if back not in self._reaches:
            self._reaches[back] = (self.positions >= back).unsqueeze(-1)
        return self._reaches[back]

    def _ago(self, sequence: Tensor, back: int) -> Tensor:
        length = self.positions.shape[1]
        missing = back + length - sequence.shape[1]
        if missing > 0:
            sequence = torch.cat([sequence[:, :1].expand(-1, missing, *sequence.shape[2:]), sequence], 1)
        stop = sequence.shape[1] - back
        return sequence[:, stop - length : stop]


class ResidualTerm(nn.Module):
    """x @ weight, where x is the residual stream entering block `site` of A, `back` tokens ago. Without weight: x."""

    def __init__(self, term: dict, width: int):
        super().__init__()
        self.site, self.back, self.width = term["site"], term.get("back", 0), width
        self.weight = None if term.get("identity") else nn.Parameter(torch.zeros(term["width"], width))

    def forward(self, inputs: TranslationInputs) -> Tensor:
        x = inputs.stream_ago(self.site, self.back)
        return _resize(x, self.width) if self.weight is None else x @ self.weight.float()


class RoutedTerm(ResidualTerm):
    """x @ weight[c], where c is the class of the current token."""

    def __init__(self, term: dict, width: int):
        super().__init__({**term, "identity": True}, width)
        self.classes: Tensor
        self.register_buffer("classes", torch.zeros(term["entries"], dtype=torch.int64))
        self.weight = nn.Parameter(torch.zeros(term["classes"], term["width"], width))

    def forward(self, inputs: TranslationInputs) -> Tensor:
        assert self.weight is not None
        classes = self.classes.index_select(0, inputs.ids_ago(0).flatten())
        return by_class(inputs.stream_ago(self.site, self.back), classes, self.weight)

    def take_tokens(self, vocabulary: int, term: dict) -> dict:
        missing = vocabulary - term["entries"]
        if missing <= 0:
            return term
        self.classes = torch.cat([self.classes, self.classes.mode().values.expand(missing)])
        return {**term, "entries": vocabulary}


FEW_ROWS = (
    32  # rows, as in decoding: copying their matrices is faster than sorting by class, which synchronises with a GPU
)


def by_class(x: Tensor, classes: Tensor, weight: Tensor) -> Tensor:
    """Rows of x [..., d_in], each multiplied by the matrix of its class. weight is [classes, d_in, d_out]."""
    flat, of = x.flatten(0, -2), classes.flatten()
    if len(flat) <= FEW_ROWS:
        own = weight.index_select(0, of)  # five times as fast as weight[of]
        return torch.bmm(flat[:, None], own.float()).view(*x.shape[:-1], weight.shape[2])
    order = of.argsort(stable=True)
    counts = of.bincount(minlength=len(weight)).tolist()
    parts = [part @ matrix.float() for part, matrix in zip(flat[order].split(counts), weight, strict=True) if len(part)]
    return torch.cat(parts)[order.argsort()].view(*x.shape[:-1], weight.shape[2])


class CodesTerm(nn.Module):
    """z @ weight, where z are latents of a sparse autoencoder on the residual stream entering block `site` of A."""

    back = 0

    def __init__(self, term: dict, width: int):
        super().__init__()
        features = term["features"]
        self.site, self.width, self.activation, self.k = term["site"], width, term["activation"], term.get("k") or 0
        self.encoder = nn.Parameter(torch.zeros(term["width"], features))
        self.encoder_bias = nn.Parameter(torch.zeros(features))
        has_threshold = self.activation in ("jumprelu", "rbf")
        self.threshold = nn.Parameter(torch.zeros(features)) if has_threshold else None
        self.weight = None if term.get("identity") else nn.Parameter(torch.zeros(features, width))

    def forward(self, inputs: TranslationInputs) -> Tensor:
        z = self.encode(inputs.stream_ago(self.site, 0))
        return _resize(z, self.width) if self.weight is None else z @ self.weight.float()

    def encode(self, x: Tensor) -> Tensor:
        pre = x @ self.encoder.float() + self.encoder_bias.float()
        if self.activation == "rbf":
            assert self.threshold is not None
            return (pre - x.square().sum(-1, keepdim=True) * self.threshold.float()).exp()
        if self.threshold is not None:
            return pre * (pre > self.threshold.float())
        if self.activation == "relu":
            return pre.relu()
        kept = pre.topk(self.k, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter(-1, kept.indices, kept.values.relu())


class TableTerm(nn.Module):
    """A table: `table`, or in fewer bytes 8-bit `codes` with a scale per row, times `basis` where there is one."""

    def __init__(self, term: dict, width: int):
        super().__init__()
        entries, rank = term["entries"], term.get("rank")
        self.table = nn.Parameter(torch.zeros(entries, width)) if rank is None else None
        self.codes: Tensor | None
        self.register_buffer("codes", None if rank is None else torch.zeros(entries, rank, dtype=torch.int8))
        self.scales = None if rank is None else nn.Parameter(torch.zeros(entries))
        self.basis = nn.Parameter(torch.zeros(rank, width)) if rank is not None and term["basis"] else None

    def rows(self, place: Tensor) -> Tensor:
        """Rows of the table by number, in float32."""
        if self.table is not None:
            return nn.functional.embedding(place, self.table).float()
        assert self.codes is not None and self.scales is not None
        found = self.codes[place].float() * self.scales[place].float().unsqueeze(-1)
        return found if self.basis is None else found @ self.basis.float()

    def add_rows(self, count: int) -> None:
        """Adds `count` rows, each of them the mean of the present ones."""
        if self.table is not None:
            self.table = _longer(self.table, self.table.float().mean(0, keepdim=True), count)
            return
        assert self.codes is not None and self.scales is not None
        mean = (self.codes.float() * self.scales.float().unsqueeze(-1)).mean(0, keepdim=True)
        scale = mean.abs().amax(1).clamp_min(1e-12) / 127
        self.codes = torch.cat([self.codes, (mean / scale).round().to(torch.int8).expand(count, -1)])
        self.scales = _longer(self.scales, scale, count)


def _longer(parameter: nn.Parameter, row: Tensor, count: int) -> nn.Parameter:
    """The parameter with `count` copies of `row` at its end."""
    added = row.to(parameter.dtype).expand(count, *parameter.shape[1:])
    return nn.Parameter(torch.cat([parameter.detach(), added]), requires_grad=parameter.requires_grad)


class TokenTerm(TableTerm):
    """The row of `table` for the id of the token `back` tokens ago.

    With `keys`, which are sorted, only these ids have a row. Others have their embedding @ `fallback`, whose last row is a
    constant; without it nothing.
    """

    def __init__(self, term: dict, width: int):
        super().__init__(term, width)
        self.back = term.get("back", 0)
        self.keys: Tensor | None
        self.register_buffer("keys", torch.zeros(term["entries"], dtype=torch.int64) if term.get("keyed") else None)
        fallback = term.get("fallback") or {}
        self.of = fallback.get("of")  # the embedding that the fall-back reads
        self.fallback = nn.Parameter(torch.zeros(fallback["width"] + 1, width)) if fallback else None

    def forward(self, inputs: TranslationInputs) -> Tensor:
        ids = inputs.ids_ago(self.back)
        found = self.rows(ids) if self.keys is None else self._keyed(ids.contiguous(), self.keys, inputs)
        return found if self.back == 0 else found * inputs.reaches(self.back)

    def take_tokens(self, vocabulary: int, term: dict) -> dict:
        missing = vocabulary - term["entries"]
        if self.keys is not None or missing <= 0:
            return term
        self.add_rows(missing)
        return {**term, "entries": vocabulary}

    def _keyed(self, ids: Tensor, keys: Tensor, inputs: TranslationInputs) -> Tensor:
        place = torch.searchsorted(keys, ids).clamp_max(len(keys) - 1)
        known = keys.take(place) == ids
        found = self.rows(place)
        if self.fallback is None or self.of is None:
            return found * known.unsqueeze(-1)
        weight, embedding = self.fallback.float(), inputs.embeddings[self.of]
        if ids.numel() <= FEW_ROWS:  # choosing the ids without a row would synchronise with a GPU
            others = nn.functional.embedding(ids, embedding).float() @ weight[:-1] + weight[-1]
            return torch.where(known.unsqueeze(-1), found, others)
        others = nn.functional.embedding(ids[~known], embedding).float() @ weight[:-1] + weight[-1]
        return found.masked_scatter(~known.unsqueeze(-1), others)


class PositionTerm(TableTerm):
    """The row of `table` for the position id."""

    back = 0

    def forward(self, inputs: TranslationInputs) -> Tensor:
        return self.rows(inputs.position_ids)


class NgramTerm(TableTerm):
    """The row of `table` for an n-gram in `keys`, zero for other n-grams. The key of ids … b, a (a the latest) is … + b·V + a."""

    def __init__(self, term: dict, width: int):
        super().__init__(term, width)
        self.back, self.vocabulary = term["order"] - 1, term["vocabulary"]
        self.keys: Tensor
        self.register_buffer("keys", torch.zeros(term["entries"], dtype=torch.int64))

    def forward(self, inputs: TranslationInputs) -> Tensor:
        key = ngram_keys([inputs.ids_ago(back) for back in range(self.back + 1)], self.vocabulary)
        place = torch.searchsorted(self.keys, key).clamp_max(len(self.keys) - 1)
        known = (self.keys.take(place) == key).unsqueeze(-1) & inputs.reaches(self.back)
        return self.rows(place) * known

    def take_tokens(self, vocabulary: int, term: dict) -> dict:
        if vocabulary <= self.vocabulary:
            return term
        if vocabulary ** (self.back + 1) >= 2**63:
            raise ValueError(f"n-grams of {self.back + 1} ids must fit 64 bits; got a vocabulary of {vocabulary:,}.")
        ids, rest = [], self.keys
        for _ in range(self.back + 1):
            ids.append(rest % self.vocabulary)
            rest = rest // self.vocabulary
        self.keys, self.vocabulary = ngram_keys(ids, vocabulary), vocabulary  # the order of the keys stays the same
        return {**term, "vocabulary": vocabulary}


def ngram_keys(ids: list[Tensor], vocabulary: int) -> Tensor:
    """One int64 per n-gram. `ids` are those of the latest token, the one before it, and so on."""
    key = ids[-1].long()
    for column in reversed(ids[:-1]):
        key = key * vocabulary + column
    return key.contiguous()


_TERMS = {
    "residual": ResidualTerm,
    "routed": RoutedTerm,
    "codes": CodesTerm,
    "token": TokenTerm,
    "position": PositionTerm,
    "ngram": NgramTerm,
}


def _resize(x: Tensor, width: int) -> Tensor:
    return x[..., :width] if x.shape[-1] >= width else nn.functional.pad(x, (0, width - x.shape[-1]))


class CacheView(Cache):
    """The layers `indices` of another cache, as layers 0, 1, … of a half. Nothing is copied."""

    def __init__(self, whole: Cache, indices: list[int]):
        super().__init__(layers=[whole.layers[index] for index in indices])
        self.whole, self.indices = whole, indices

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        return self.whole.update(key_states, value_states, self.indices[layer_idx], *args, **kwargs)


class Stitched(PreTrainedModel):
    """Base of composites: A's half, the translation, B's half.

    Their cache has one layer per block, then one per seam whose translation reads earlier tokens, in the order of the seams. If
    the halves store their past themselves, only the latter layers are passed, as `histories`, and no cache.
    """

    config_class = StitchConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["TranslationModule"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _keep_in_fp32_modules_strict = [  # noqa: RUF012
        r"translation\.(?:bias|first)$",
        r"translation\.terms\.\d+\.(?:weight|encoder|encoder_bias|threshold|fallback|scales|basis)$",
    ]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    a: Any
    b: Any

    def __init__(self, config: StitchConfig):
        super().__init__(config)
        if isinstance(config.a_config, StitchConfig):
            self.a = StitchModel._from_config(config.a_config)
            self.a.end_open()
        else:
            self.a = early_net(config.a_config, config.a_flow, config.site_a)
        self.translation = TranslationModule(config.translation)
        self.b = late_net(config.b_config, config.b_flow, config.site_b, config.last_block)
        self.connect()
        self.post_init()

    def connect(self) -> None:
        """Finds the streams of both halves, also after one of them has been replaced."""
        config: Any = self.config
        self.early = None if isinstance(self.a, Stitched) else Half(self.a, config.a_flow, 0, config.site_a)
        self.late = Half(self.b, config.b_flow, config.site_b, config.last_block).open()
        (self.a if self.early is None else self.early).watch(self.translation.sites | {config.site_a})

    def end_open(self) -> None:
        """Takes out what stands after the last block, as another model follows. A head stays where the translation reads it."""
        flow = self.config.b_flow
        if flow["exit"]:
            self.b.set_submodule(flow["exit"], Unused())
        if "b" not in self.translation.embeddings_read:
            self.b.set_submodule(flow["head"], Unused())
        self.connect()

    def watch(self, sites: set[int]) -> None:
        """Keeps the streams at `sites` of this model, which count all its blocks; see `streams`."""
        before = self.config.site_a
        if earlier := {site for site in sites if site < before}:
            (self.a if self.early is None else self.early).watch(earlier)
        self.late.watch({site - before + self.config.site_b for site in sites if site > before})

    def streams(self, sites: set[int]) -> dict[int, Tensor]:
        """The streams at `sites` in the last pass. At a seam this is the translation's output."""
        before, found = self.config.site_a, {}
        if earlier := {site for site in sites if site < before}:
            found |= (
                self.a.streams(earlier) if self.early is None else {site: self.early.seen[site] for site in earlier}
            )
        for site in sites - found.keys():
            found[site] = self.late.entered if site == before else self.late.seen[site - before + self.config.site_b]
        return found

    @classmethod
    def from_pretrained(cls, *args, **kwargs) -> Any:
        """Like any model of transformers. `train_seam_only` of the config, which may be given here, freezes both halves."""
        loaded: Any = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if model.config.train_seam_only:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_("translation" in name.split("."))
        return loaded

    @property
    def histories(self) -> int:
        """Number of cache layers beyond those of the blocks."""
        return getattr(self.a, "histories", 0) + (self.translation.history > 0)

    def get_input_embeddings(self):
        return self.a.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.a.set_input_embeddings(value)

    def resize_token_embeddings(self, new_num_tokens=None, pad_to_multiple_of=None, mean_resizing=True):
        """Like any model of transformers. Look-ups by token take the new ids as well; removed ids keep their rows there."""
        embedding = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        if new_num_tokens is not None or pad_to_multiple_of is not None:
            self._resize_seams(embedding.weight.shape[0])
        return embedding

    def _resize_seams(self, vocabulary: int) -> None:
        """Resizes what `resize_token_embeddings` does not reach: look-ups, heads that only a translation reads, and configs."""
        if isinstance(self.a, Stitched):
            self.a._resize_seams(vocabulary)
        self.config.translation = self.translation.take_tokens(vocabulary, self.config.translation)
        head = self.b.get_output_embeddings()
        if isinstance(head, nn.Linear):
            self.b.set_output_embeddings(self.b._get_resized_lm_head(head, vocabulary))
        self.b.vocab_size = vocabulary  # some families compute the loss with it
        for config in (self.a.config, self.b.config, self.config):  # those of the halves are the objects in this one
            config.vocab_size = vocabulary

    def _start(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        past_key_values: Cache | None,
        use_cache: bool | None,
    ) -> tuple[Cache | None, bool, int]:
        """Checks what a user gave. Returns the cache, whether it is used, and how many tokens it has."""
        if (input_ids is None) == (inputs_embeds is None):
            given = "neither" if input_ids is None else "both"
            raise ValueError(f"exactly one of input_ids and inputs_embeds must be given; got {given}.")
        if input_ids is None and any(
            module.reads_tokens for module in self.modules() if isinstance(module, TranslationModule)
        ):
            raise ValueError("this translation needs token ids; got inputs_embeds: pass input_ids instead.")
        _refuse_static(past_key_values)
        if use_cache is None:
            use_cache = getattr(self.config, "use_cache", True) and not self.training
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if past_key_values is None:
            return None, False, 0
        self._prepare(past_key_values)
        new: Any = inputs_embeds if input_ids is None else input_ids
        return past_key_values, bool(use_cache), _count(past_key_values, new.shape[1])

    def _prepare(self, cache: Cache) -> None:
        """Gives an empty cache the kinds of layers that the donors have, where these are not only keys and values."""
        kinds = self.layer_kinds()
        plain = all(type(kind) in (DynamicLayer, DynamicSlidingWindowLayer) for kind in kinds)
        if plain or getattr(cache, "is_prepared", False):
            return
        cache.layers = [*copy.deepcopy(kinds), *cache.layers[len(kinds) :]]
        cache.layer_class_to_replicate, cache.is_prepared = None, True  # pyright: ignore[reportAttributeAccessIssue]

    def layer_kinds(self) -> list:
        """Empty cache layers, one per block."""
        early = self.a.layer_kinds() if self.early is None else self.early.kinds
        return early[: self.config.site_a] + self.late.kinds[self.late.start : self.late.stop]

    def _up_to_late(
        self,
        input_ids: Tensor | None,
        attention_mask,
        cache: Cache | None,
        *,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        seen: int = 0,
        histories: list | None = None,
        **shared,
    ) -> tuple[Any, dict]:
        """The output of A's half, and the arguments of B's half: the translated stream, the mask, the cache.

        The families find positions by themselves where none are given.
        """
        site, blocks = self.config.site_a, self.config.num_hidden_layers
        if cache is not None:
            _grow(cache, blocks, self.histories)
            histories = cache.layers[blocks:]
        shared |= {"attention_mask": attention_mask, "position_ids": position_ids, "seen": seen}
        given = {"input_ids": input_ids, "inputs_embeds": inputs_embeds}
        if self.early is not None:
            early = self.early.run(cache=cache, **given, **shared)
        elif cache is not None:
            view = CacheView(cache, [*range(site), *range(blocks, blocks + self.a.histories)])
            early = self.a(past_key_values=view, **given, **shared)
        else:
            early = self.a(histories=histories, **given, **shared)
        sites = self.translation.sites | {site}
        streams = self.a.streams(sites) if self.early is None else {site: self.early.seen[site] for site in sites}
        streams, ids = self._with_history(streams, input_ids, histories)
        if position_ids is None:
            new: Any = inputs_embeds if input_ids is None else input_ids
            position_ids = (torch.arange(new.shape[1], device=new.device) + seen).unsqueeze(0)
        positions = _text_positions(attention_mask, position_ids)
        translated = self.translation(streams, ids, positions, position_ids, self._embeddings())
        late = {"stream": translated.to(self.late.dtype), "input_ids": input_ids, "cache": cache, "offset": site}
        return early, {**late, **shared}

    def _embeddings(self) -> dict[str, Tensor]:
        """The embeddings that the translation reads: A's, or B's, which is its head's matrix."""
        holders: dict[str, Any] = {"a": self.a.get_input_embeddings, "b": self.b.get_output_embeddings}
        return {of: holders[of]().weight for of in self.translation.embeddings_read}

    def _with_history(
        self, streams: dict[int, Tensor], ids: Tensor | None, histories: list | None
    ) -> tuple[dict[int, Tensor], Tensor | None]:
        """Streams and ids with the earlier tokens from `histories` in front, as many as the translation reads.

        They are stored in an additional layer of the cache, so that reordering, repeating and cropping apply to them as well.
        """
        if not histories or not self.translation.history:
            return streams, ids
        if ids is None:  # no term reads them
            ids = torch.zeros(streams[self.config.site_a].shape[:2], dtype=torch.long, device=self.device)
        past = self.translation.past_sites
        widths = [streams[site].shape[-1] for site in past]
        # float32 represents every id below 2²⁴ exactly.
        empty = ids.new_zeros(*ids.shape, 0, dtype=torch.float32)
        joined = torch.cat([streams[site].float() for site in past], -1) if past else empty
        own = histories[self.histories - 1]
        all_ids, all_streams = own.update(ids.float()[:, None, :, None], joined[:, None])
        seen = ids.shape[1] + self.translation.history
        longer = dict(zip(past, all_streams[:, 0, -seen:].split(widths, -1), strict=True)) if past else {}
        return {**streams, **longer}, all_ids[:, 0, -seen:, 0].long()


class StitchModel(Stitched):
    """A composite as the early half of another. Its last hidden state is the residual stream at the cut, not normalised."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs,
    ):
        """`hidden_states` are the inputs of the blocks, by site. At a seam this is the translation's output."""
        early, for_late = self._up_to_late(input_ids, attention_mask, past_key_values, **kwargs)
        late = self.late.run(**for_late, base=True)
        return BaseModelOutputWithPast(
            last_hidden_state=late.last_hidden_state,
            past_key_values=past_key_values,
            hidden_states=(*early.hidden_states[:-1], *late.hidden_states)
            if kwargs.get("output_hidden_states")
            else None,
            attentions=(*early.attentions, *late.attentions) if kwargs.get("output_attentions") else None,
        )


class StitchBaseModel(StitchModel):
    """A whole composite without its head, as `AutoModel` loads it. `last_hidden_state` has passed B's final norm."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> Any:
        """Like any base model of transformers. `hidden_states` are the inputs of the blocks, then `last_hidden_state`."""
        cache, use_cache, seen = self._start(input_ids, inputs_embeds, past_key_values, use_cache)
        output = super().forward(
            input_ids,
            attention_mask,
            cache,
            inputs_embeds=inputs_embeds,
            position_ids=position_ids,
            seen=seen,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        output.past_key_values = cache if use_cache else None
        return output.to_tuple() if return_dict is False else output


class StitchForCausalLM(Stitched, GenerationMixin):
    """A composite with B's final norm and head."""

    @property
    def base_model(self) -> StitchBaseModel:
        """The same modules without the head, for trainers that apply the head themselves."""
        body = StitchBaseModel.__new__(StitchBaseModel)
        body.__dict__ = {name: value for name, value in self.__dict__.items() if name != "forward"}
        return body

    def get_output_embeddings(self):
        return self.b.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings):
        self.b.set_output_embeddings(new_embeddings)

    def prepare_inputs_for_generation(self, *args, **kwargs):
        _refuse_static(kwargs.get("past_key_values"))
        return super().prepare_inputs_for_generation(*args, **kwargs)  # pyright: ignore

    def init_continuous_batching(self, *args, **kwargs):
        """Raises ValueError: a paged cache has one size of keys for all blocks; those of the parts differ."""
        raise ValueError(
            "a stitched model has no continuous batching, as its parts differ: call generate on a padded batch."
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
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ):
        """Like any causal model of transformers. `hidden_states` are those of A's half, then those of B's half."""
        past_key_values, use_cache, seen = self._start(input_ids, inputs_embeds, past_key_values, use_cache)
        early, for_late = self._up_to_late(
            input_ids,
            attention_mask,
            past_key_values,
            inputs_embeds=inputs_embeds,
            position_ids=position_ids,
            seen=seen,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            **kwargs,
        )
        late = self.late.run(labels=labels, logits_to_keep=logits_to_keep, **for_late)
        output = CausalLMOutputWithPast(
            loss=late.loss,
            logits=late.logits,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=(*early.hidden_states, *late.hidden_states) if output_hidden_states else None,
            attentions=(*early.attentions, *late.attentions) if kwargs.get("output_attentions") else None,
        )
        return output.to_tuple() if return_dict is False else output


def _count(cache: Cache, new: int) -> int:
    """How many tokens a cache has, `new` ones not included. Linear attention does not count them, so they are noted here."""
    for layer in cache.layers:
        if isinstance(layer, CacheLayerMixin):
            return layer.get_seq_length()
    seen = getattr(cache, "tokens", 0)
    cache.tokens = seen + new  # pyright: ignore[reportAttributeAccessIssue]
    return seen


def _grow(cache: Cache, blocks: int, histories: int) -> None:
    """Adds missing layers: some caches create layers at first use, views need them before, and no cache has any for histories."""
    while cache.layer_class_to_replicate is not None and len(cache.layers) < blocks:
        cache.layers.append(cache.layer_class_to_replicate())
    while len(cache.layers) < blocks + histories:
        cache.layers.append(DynamicLayer())


def _text_positions(attention_mask, position_ids: Tensor) -> Tensor:
    """Positions counted from the first real token, −1 at padding. Without a 2-D mask: `position_ids`."""
    if not isinstance(attention_mask, Tensor) or attention_mask.ndim != 2:
        return position_ids
    real = attention_mask.long()
    positions = (real.cumsum(-1) - 1).masked_fill(real == 0, -1)
    return positions[:, -position_ids.shape[1] :]


def _refuse_static(cache) -> None:
    if isinstance(cache, StaticCache):
        raise ValueError("a stitched model needs a dynamic cache; got a static one: leave cache_implementation out.")


# This makes save_pretrained copy this file into the checkpoint.
StitchConfig.register_for_auto_class()
StitchBaseModel.register_for_auto_class("AutoModel")
StitchForCausalLM.register_for_auto_class("AutoModelForCausalLM")
