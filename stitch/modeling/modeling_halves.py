"""Some blocks of a causal language model of any family; the other blocks pass their stream on.

A half is the stock model of its donor's whole config, so nothing is renumbered: each block keeps its index, its place in the
loop, its name in the state dict and its kind of cache. Blocks that do not run are taken out, with the modules that only they
need. This file is saved with every checkpoint and imports only torch and transformers.

`flow` says where a family keeps its stream. Paths start at the causal model.

    class      name of the causal model's class
    body       base model, "" where the causal model is its own
    blocks     module list of the blocks
    exit       module that takes the stream after the last block; None where there is none
    input      token embedding
    head       module that computes the logits
    argument   the block's argument that is the stream: a position or a name
    output     None where a block returns the stream, or [place, length] of the tuple that it returns
    float32    whether the stream is float32 whatever the model's dtype
    depth      number of blocks
    width      of the stream
    embedded   width of the token embedding
    idle       modules that a text does not run through, such as a model's eyes
    unused     embeddings that a late half does not need, as the stream has their result in it
    ids        whether a late half needs token ids, which some blocks read beside the stream
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer
from transformers.configuration_utils import PreTrainedConfig


class Stream:
    """The stream among what a block takes and what it returns."""

    def __init__(self, argument: int | str, output: list[int] | None):
        self.argument, self.output = argument, output

    def of(self, args: tuple, kwargs: dict) -> Tensor:
        return args[self.argument] if isinstance(self.argument, int) else kwargs[self.argument]

    def replaced(self, args: tuple, kwargs: dict, stream: Tensor) -> tuple[tuple, dict]:
        if isinstance(self.argument, int):
            return (*args[: self.argument], stream, *args[self.argument + 1 :]), kwargs
        return args, {**kwargs, self.argument: stream}

    def returned(self, stream: Tensor) -> Any:
        """What a block that changes nothing returns."""
        if self.output is None:
            return stream
        place, length = self.output
        return tuple(stream if index == place else None for index in range(length))


class PassingBlock(nn.Module):
    """In the place of a block that does not run. It has that block's plain attributes, as loops may read them."""

    def __init__(self, block: nn.Module, stream: Stream):
        super().__init__()
        self.__dict__.update({name: value for name, value in block.__dict__.items() if _is_plain(name, value)})
        self.stream = stream

    def forward(self, *args, **kwargs) -> Any:
        return self.stream.returned(self.stream.of(args, kwargs))


def _is_plain(name: str, value: Any) -> bool:
    return not name.startswith("_") and name != "training" and isinstance(value, (bool, int, float, str, type(None)))


class Unused(nn.Module):
    """In the place of a module whose result is not read, such as a norm after the last block of an early half."""

    def forward(self, value: Any = None, *args, **kwargs) -> Any:
        return value


class UnusedEmbedding(nn.Module):
    """In the place of an embedding whose result is not read."""

    def forward(self, ids: Tensor, *args, **kwargs) -> Tensor:
        return ids.new_zeros(())  # 0-dim: adds zero without changing the dtype


def flow_of_cut(config: PreTrainedConfig) -> dict:
    """The flow of a composite's half from an earlier version, whose config describes that half alone.

    The eleven families that there were are alike.
    """
    with torch.device("meta"):
        net = AutoModelForCausalLM.from_config(config)
    body = net.base_model_prefix
    blocks = next(path for path, one in net.named_modules() if isinstance(one, nn.ModuleList))
    names = [name for name, _ in net.get_submodule(body).named_children()]
    after = names[names.index(blocks.removeprefix(f"{body}.")) + 1 :]
    norm = next(name for name in after if "norm" in name or name == "ln_f")
    paths = {id(module): path for path, module in net.named_modules()}
    return {
        "class": type(net).__name__, "body": body, "blocks": blocks, "exit": f"{body}.{norm}",
        "input": paths[id(net.get_input_embeddings())], "head": paths[id(net.get_output_embeddings())],
        "argument": 0, "output": None, "float32": False, "idle": [], "ids": False,
        "depth": config.num_hidden_layers, "width": config.hidden_size, "embedded": config.hidden_size,
        "unused": [path for path, module in net.named_modules() if isinstance(module, nn.Embedding)],
    }  # fmt: skip


def early_net(config: PreTrainedConfig, flow: dict, stop: int) -> PreTrainedModel:
    """The base model of `config` with the blocks before `stop` alone, and nothing after them."""
    net = _whole(config, flow)
    _keep(net, flow, 0, stop)
    if flow["exit"]:
        net.set_submodule(flow["exit"], Unused())
    if not flow["body"]:
        net.set_submodule(flow["head"], Unused())
        return net
    return net.get_submodule(flow["body"])  # pyright: ignore[reportReturnType]


def late_net(config: PreTrainedConfig, flow: dict, start: int, stop: int, *, ends: bool = True) -> PreTrainedModel:
    """The causal model of `config` with blocks `start`..`stop`−1 alone. Its embeddings are not read.

    Without `ends` it is followed by another model, and what stands after its blocks is not read either.
    """
    net = _whole(config, flow)
    _keep(net, flow, start, stop)
    for path in flow["unused"]:
        net.set_submodule(path, UnusedEmbedding())
    if not ends and flow["exit"]:
        net.set_submodule(flow["exit"], Unused())
    return net


def _whole(config: PreTrainedConfig, flow: dict) -> PreTrainedModel:
    """The causal model of `config`, of the class that `flow` names where transformers has it: some families have several."""
    known = getattr(transformers, flow["class"], None)
    own = type(config).__module__.startswith("transformers.")  # code of others may have classes of the same names
    if not own or known is None or not isinstance(config, known.config_class):
        return AutoModelForCausalLM.from_config(config)
    return known._from_config(config)


# Buffers in blocks that the model around them sets, once for all. Checkpoints of halves have them: there nobody sets them.
SET_FROM_OUTSIDE = ("mup_vector",)


def _keep(net: nn.Module, flow: dict, start: int, stop: int) -> None:
    blocks: Any = net.get_submodule(flow["blocks"])
    for path in flow["idle"]:
        net.set_submodule(path, Unused())
    for module in blocks.modules():
        module._non_persistent_buffers_set.difference_update(SET_FROM_OUTSIDE)
    stream = Stream(flow["argument"], flow["output"])
    for index in range(len(blocks)):
        if not start <= index < stop:
            blocks[index] = PassingBlock(blocks[index], stream)


class Half:
    """Runs blocks `start`..`stop`−1 of `net`, in which the others are `PassingBlock`s.

    The stream leaves at the input of block `stop` (of the module after the last block, where there are no more), and enters at
    that of block `start`. It holds no tensors but those of the last pass.
    """

    def __init__(self, net: PreTrainedModel, flow: dict, start: int, stop: int):
        self.net, self.flow, self.start, self.stop = net, flow, start, stop
        # An early half is the base model, and paths of `flow` start at the causal model.
        inside = f"{flow['body']}." if flow["body"] and not _has(net, flow["blocks"]) else ""
        self.blocks: Any = net.get_submodule(flow["blocks"].removeprefix(inside))
        exit = (flow["exit"] or "").removeprefix(inside)
        self.exit = (
            net.get_submodule(exit) if exit and _has(net, exit) else None
        )  # it may be the head, of a net without one
        self.depth = len(self.blocks)
        self.stream = Stream(flow["argument"], flow["output"])
        self.entered: Tensor | None = None
        self.returns_stream = False
        self.last: Any = None
        self.seen: dict[int, Tensor] = {}
        with torch.device("cpu"):  # a half is often made where new tensors go to the meta device
            self.kinds: list[Any] = DynamicCache(config=net.config).layers
        self.alike = [self._alike(block) for block in range(self.depth)]
        self.base: Any = net if inside or not flow["body"] else net.get_submodule(flow["body"])
        self.taken = (_Arguments(net), _Arguments(self.base))
        if not flow["body"]:
            self._hook(net.get_submodule(flow["head"]), _Last(self))

    def _alike(self, block: int) -> int | None:
        """A block that runs and whose cache layer is of the same kind, which tells masks as much; None where there is none."""

        def kind(layer: Any) -> tuple:
            return type(layer), getattr(layer, "sliding_window", None)

        kept = range(self.start, self.stop)
        if block in kept:
            return block
        return next((other for other in kept if kind(self.kinds[other]) == kind(self.kinds[block])), None)

    def at(self, site: int) -> nn.Module:
        """The module that takes the stream at `site`. Raises: ValueError where the family has none after its last block."""
        module = self.blocks[site] if site < self.depth else self.exit
        if module is None:
            raise ValueError(f"nothing takes the stream after the last block of a {self.net.config.model_type} model.")
        return module

    def watch(self, sites: set[int]) -> None:
        """Keeps the streams at `sites` in every pass, in `seen`."""
        self.returns_stream = self.depth in sites and self.exit is None  # nothing is left after the last block
        for site in sites:
            if site < self.depth or self.exit is not None:
                self._hook(self.at(site), _Watch(self, site))

    def open(self) -> "Half":
        """Lets the `stream` that `run` is given take the place of the one that would enter block `start`."""
        self._hook(self.at(self.start), _Enter(self))
        return self

    def _hook(self, module: nn.Module, hook: "_Watch | _Enter | _Last") -> None:
        """Registers a hook where no other pass has left one of the same kind for another `Half`."""
        hooks = module._forward_pre_hooks
        for key, old in list(hooks.items()):
            if type(old) is type(hook):
                del hooks[key]
        module.register_forward_pre_hook(hook, with_kwargs=True)

    def stream_at(self, site: int) -> Stream:
        return self.stream if site < self.depth else Stream(0, None)

    @property
    def dtype(self) -> torch.dtype:
        """Of the stream."""
        return torch.float32 if self.flow["float32"] else self._own_dtype

    @property
    def _own_dtype(self) -> torch.dtype:
        """That of the weights. A half of no blocks may have none."""
        config: Any = self.net.config
        found = next((one.dtype for one in self.net.parameters() if one.is_floating_point()), None)
        return found or config.dtype or torch.get_default_dtype()

    def run(
        self,
        stream: Tensor | None = None,
        *,
        base: bool = False,
        cache: Cache | None = None,
        seen: int = 0,
        offset: int = 0,
        **given,
    ) -> Any:
        """The output of `net`, or with `base` of its base model. Arguments that the family does not know are left out.

        `stream` enters at `start`; token ids are passed on where the family needs them. `cache` has this half's layers from
        `offset` on, and `seen` tokens in it.
        """
        self.seen.clear()
        self.entered, self.last = stream, None
        if stream is not None and not self.flow["ids"]:
            shape = *stream.shape[:2], self.flow["embedded"]
            given |= {
                "input_ids": None,
                "inputs_embeds": torch.zeros(shape, dtype=self._own_dtype, device=stream.device),
            }
        if cache is not None:
            given["past_key_values"] = HalfCache(cache, self, offset, seen)
        net: Any = self.base if base else self.net
        taken = self.taken[base]
        output: Any = net(**{name: value for name, value in given.items() if taken.has(name)})
        if (base or self.returns_stream) and not self.flow["body"]:
            output.last_hidden_state = self.last
        if self.returns_stream:
            self.seen[self.depth] = output.last_hidden_state
        return output


@dataclass
class _Watch:
    """Forward pre-hook. An object, not a function, so that a copy of the model has its own."""

    half: Half
    site: int

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.half.seen[self.site] = self.half.stream_at(self.site).of(args, kwargs)


@dataclass
class _Enter:
    """Forward pre-hook."""

    half: Half

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        assert self.half.entered is not None, "the half was run with a stream"
        return self.half.stream_at(self.half.start).replaced(args, kwargs, self.half.entered)


@dataclass
class _Last:
    """Forward pre-hook of a head: keeps what it reads, which a family without a base model does not return."""

    half: Half

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.half.last = next(iter((*args, *kwargs.values())))


def _has(net: nn.Module, path: str) -> bool:
    try:
        net.get_submodule(path)
    except AttributeError:
        return False
    return True


class _Arguments:
    """The names of the arguments that a model takes."""

    # Some families do not have these, although they take others that are not named.
    not_everywhere = frozenset({
        "position_ids", "past_key_values", "use_cache", "attention_mask", "labels", "logits_to_keep", "inputs_embeds"
    })  # fmt: skip

    def __init__(self, net: nn.Module):
        parameters = inspect.signature(net.forward).parameters.values()
        kinds = {one.kind for one in parameters}
        self.names = {one.name for one in parameters}
        self.more = inspect.Parameter.VAR_KEYWORD in kinds
        self.any = kinds == {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}  # it passes all on

    def has(self, name: str) -> bool:
        return name in self.names or self.any or (self.more and name not in self.not_everywhere)


class HalfCache(Cache):
    """Some layers of another cache, at the places where a half's blocks look for them. Nothing is copied.

    Blocks that do not run have the layer of a block of the same kind, from which masks of that kind are made. Where no block of
    the kind runs, they have an empty one that knows how many tokens were `seen`.
    """

    def __init__(self, whole: Cache, half: Half, offset: int, seen: int):
        layers: list[Any] = []
        for alike, kind in zip(half.alike, half.kinds, strict=True):
            if alike is not None:
                layers.append(whole.layers[alike - half.start + offset])
            else:
                layers.append(_Elsewhere(seen, kind) if isinstance(kind, CacheLayerMixin) else kind)
        super().__init__(layers=layers)
        self.whole, self.shift = whole, offset - half.start

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        return self.whole.update(key_states, value_states, layer_idx + self.shift, *args, **kwargs)


class _Elsewhere(DynamicLayer):
    """The layer of a block that does not run: it has no states, but the length of the text."""

    def __init__(self, seen: int, kind: CacheLayerMixin):
        super().__init__()
        self.length, self.is_sliding = seen, getattr(kind, "is_sliding", False)

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0
