"""A causal language model made of two models: the early blocks of A, a translation, the late blocks of B.

This file imports torch, transformers and the three files beside it. They are saved with every checkpoint, which then loads with

    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

Any pair of decoder families works: each half is the stock model of its family, of which some blocks run (`modeling_halves.py`).
So masks, rotary embeddings, layer types and soft caps are those of the family. A may itself be a composite, cut within its last
part: a chain of any length consists of two halves, the first of which is a chain with one part fewer.
"""

import copy
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticCache,
)
from transformers.configuration_utils import PreTrainedConfig
from transformers.dynamic_module_utils import custom_object_save
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .modeling_donors import CLASSES
from .modeling_halves import Half, Unused, early_net, flow_of_cut, late_net
from .modeling_translation import TranslationModule


class StitchConfig(PreTrainedConfig):
    """Blocks 0..site_a−1 of A and blocks site_b..stop_b−1 of B. `a_config` and `b_config` are those of the whole donors.

    If A is a composite, `a_config` is a `StitchConfig` too, and sites of A count all its blocks. `stop_b` is None where B runs
    to its end. `a_flow` and `b_flow` say where the donors keep their streams (see `modeling_halves.py`); that of a composite is
    None.
    `translation` is the config of `TranslationModule`.
    `train_seam_only`: `from_pretrained` freezes both halves, so that training changes the translation alone.
    `shares_embedding`: A's embedding and B's head are one matrix. A is a stock model then.
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
        shares_embedding: bool = False,
        **kwargs,
    ):
        a_config, b_config = config_of(a_config), config_of(b_config)
        self.a_config, self.b_config = a_config, b_config
        self.site_a, self.site_b, self.stop_b = site_a, site_b, stop_b
        if a_config is not None and b_config is not None and b_flow is None:  # of an earlier version
            if getattr(b_config, "scale_attn_by_inverse_layer_idx", False) and site_b:
                raise ValueError(
                    "attention scaled by the number of the block is not read from composites of earlier versions."
                )
            b_flow = flow_of_cut(b_config)
            a_flow = None if isinstance(a_config, StitchConfig) else flow_of_cut(a_config)
            self.site_b, self.stop_b = 0, None
        self.a_flow, self.b_flow = a_flow, b_flow
        self.translation = translation
        self.train_seam_only, self.shares_embedding = train_seam_only, shares_embedding
        # `generate` needs the number of cache layers, one per block, and B's vocabulary and special tokens.
        kwargs = {**kwargs, "tie_word_embeddings": shares_embedding}
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
    own, net = code_of_donor(given.get("auto_map"))
    if own in CLASSES and net in CLASSES:
        config: Any = CLASSES[own]
        AutoModelForCausalLM.register(config, CLASSES[net], exist_ok=True)  # pyright: ignore[reportArgumentType]
        return config(**given)
    if own and not _is_registered(given.get("model_type")):
        raise ValueError(
            f"a part of this model ({given.get('model_type')}) brings code of its own: read it, and set trust_remote_code=True."
        )
    return AutoConfig.for_model(**given)


def code_of_donor(named: Any) -> tuple[str, str]:
    """The names in `CLASSES` of a part's config and model, from its `auto_map`. Empty for a family of transformers."""
    found = (
        [named.get(auto) for auto in ("AutoConfig", "AutoModelForCausalLM")] if isinstance(named, dict) else ["", ""]
    )
    own, net = (name if isinstance(name, str) and name.startswith("donor_") else "" for name in found)
    return own, net


def _is_registered(model_type: Any) -> bool:
    """Whether a user has registered a class of their own for the family."""
    return model_type in CONFIG_MAPPING and not CONFIG_MAPPING[model_type].__module__.startswith("transformers.")


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
        if config.shares_embedding:
            flow: Any = config.a_flow
            embedding = flow["input"].removeprefix(f"{flow['body']}.")
            self._tied_weights_keys = {f"b.{config.b_flow['head']}.weight": f"a.{embedding}.weight"}
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

    def save_pretrained(self, save_directory, *args, **kwargs):
        """Like any model of transformers. Code of donors is copied too, where this file lies in another place than it."""
        super().save_pretrained(save_directory, *args, **kwargs)
        for part in parts_of(self.config):
            name, _ = code_of_donor(getattr(part, "auto_map", None))
            if CLASSES.get(name) is type(part):
                beside = type(part).__module__.rpartition(".")[0]
                custom_object_save(type("Donors", (), {"__module__": f"{beside}.modeling_donors"}), save_directory)

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
            self.tie_weights()
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
            config.get_text_config(decoder=True).vocab_size = vocabulary

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
