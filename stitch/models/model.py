"""A loaded model with its tokenizer and anatomy."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from stitch.errors import UsageError
from stitch.modeling.modeling_composite import StitchConfig, Stitched, longest_context, parts_of
from stitch.modeling.modeling_translation import TranslationModule
from stitch.models.anatomy import Anatomy, anatomy_of, blocks_before_last_part
from stitch.models.flow import flow_of

UNBOUNDED = 2**20  # tokens


class ReadsItself(Protocol):
    """A model in its first tokenizer, which reads the bytes that ids of another stand for (`stitch.activations.original`)."""

    @property
    def model(self) -> "Model": ...

    @property
    def mark(self) -> str: ...

    def residuals(self, ids: Tensor, sites: Sequence[int]) -> dict[int, Tensor]: ...

    def coincides(self, ids: Tensor) -> Tensor: ...

    @property
    def bytes_of(self) -> Tensor: ...


@dataclass(frozen=True)
class Model:
    """A causal language model and access to its modules. `folder` holds its safetensors, config and tokenizer files.

    A part of a composite has only the blocks in `kept` of its family's stock model, and counts them from 0. `original` is the
    model in its first tokenizer, where it has been given another one: its streams are read in place of the model's own.
    `altered` marks a model whose weights are not those in `folder`, so that nothing of it is taken for the folder's.
    """

    name: str
    net: PreTrainedModel
    tokenizer: Any
    anatomy: Anatomy
    folder: Path
    kept: range | None = None
    original: "ReadsItself | None" = field(default=None, compare=False)
    altered: str = field(default="", compare=False)

    @property
    def config(self) -> PreTrainedConfig:
        return self.net.config

    @property
    def width(self) -> int:
        """Width of the residual stream; for a composite, of its last part."""
        return self.width_at(self.depth)

    def width_at(self, site: int) -> int:
        """Width of the residual stream entering block `site`: the parts of a composite may differ."""
        config = self.config
        while isinstance(config, StitchConfig):
            if site >= config.site_a:
                return config.b_flow["width"]
            if config.a_flow is not None:
                return config.a_flow["width"]
            config = config.a_config
        return config.get_text_config(decoder=True).hidden_size

    @property
    def vocabulary(self) -> int:
        """Number of token ids; a model that also sees has it in the config of its text part."""
        return self.config.get_text_config(decoder=True).vocab_size

    @property
    def longest(self) -> int:
        """The longest context, in tokens, that all parts of the model accept; UNBOUNDED where none has a limit."""
        limits = (longest_context(part) for part in parts_of(self.config))
        return min((limit for limit in limits if limit is not None), default=UNBOUNDED)

    @property
    def depth(self) -> int:
        """Number of blocks; sites are 0..depth."""
        if self.kept is not None:
            return len(self.kept)
        return self.config.get_text_config(decoder=True).num_hidden_layers

    @cached_property
    def flow(self) -> dict:
        """Where the stream is (see `modeling_halves.py`); of a composite, that of its last part."""
        return self.config.b_flow if isinstance(self.config, StitchConfig) else flow_of(self.net)

    @property
    def device(self) -> torch.device:
        return self.net.device

    @property
    def dtype(self) -> torch.dtype:
        return self.net.dtype

    @cached_property
    def body(self) -> nn.Module:
        return self.net.get_submodule(self.anatomy.body)

    @cached_property
    def embedding(self) -> nn.Embedding:
        """The token embedding. Some families (Gemma) scale its output; `weight` is unscaled."""
        return self.body.get_submodule(self.anatomy.embedding)  # pyright: ignore[reportReturnType]

    @property
    def stream_argument(self) -> int | str:
        """The argument of its blocks that is the stream. All families that are known by name pass it first."""
        return 0 if self.anatomy.tested else self.flow["argument"]

    @cached_property
    def blocks(self) -> nn.ModuleList:
        if len(self.parts) > 1:
            return nn.ModuleList([block for part in self.parts for block in part.blocks])
        blocks: Any = self.body.get_submodule(self.anatomy.blocks)
        return blocks if self.kept is None else blocks[self.kept.start : self.kept.stop]

    @property
    def parts(self) -> list["Model"]:
        """The models that a composite consists of, in the order they run, sharing its modules; of another model, itself.

        Only the first part has an embedding, and only the last has a final norm and a head.
        """
        return self._of_composite or [self]

    @cached_property
    def _of_composite(self) -> list["Model"]:
        """The parts of a composite; empty for another model, which must not be cached here: it would refer to itself."""
        net = self.net
        if not isinstance(net, Stitched):
            return []
        config: Any = net.config
        early = replace(self, net=net.a, anatomy=replace(anatomy_of(net.a.config, config.a_flow), body=""))
        if config.a_flow is not None:
            early = early.with_flow(config.a_flow, range(config.site_a))
        late = replace(self, net=net.b, anatomy=anatomy_of(net.b.config, config.b_flow))
        return [*early.parts, late.with_flow(config.b_flow, range(config.site_b, config.last_block))]

    def with_flow(self, flow: dict, kept: range | None = None) -> "Model":
        """The same model, or some of its blocks, whose flow is known: in a part of a model it cannot be found by looking."""
        part = replace(self, kept=kept)
        part.__dict__["flow"] = flow
        return part

    def in_part(self, block: int) -> tuple["Model", int]:
        """The part that contains `block`, and the block's index in it. Raises: IndexError when there is no such block."""
        for part in self.parts:
            if block < part.depth:
                return part, block
            block -= part.depth
        raise IndexError(block)

    @property
    def seams(self) -> list[tuple[int, TranslationModule]]:
        """The translations of a composite in the order they run, each with the index of the block it leads to."""
        found, net = [], self.net
        while isinstance(net, Stitched):
            found.insert(0, (net.config.site_a, net.translation))
            net = net.a
        return found

    def down(self, block: int) -> nn.Module:
        """The output projection of the MLP of `block`: a Linear, or GPT-2's Conv1D, whose weight is transposed."""
        return self._within(block, "down")

    def heads_out(self, block: int) -> nn.Module:
        """The output projection of the attention of `block`; its input is the concatenated heads."""
        return self._within(block, "heads_out")

    def _within(self, block: int, name: str) -> nn.Module:
        part, own = self.in_part(block)
        path = getattr(part.anatomy, name)
        if not path:
            raise UsageError(
                f"`{name}` of {part.anatomy.family} models is not known: register an anatomy for them, or use another model."
            )
        return part.blocks[own].get_submodule(path)

    def heads(self, block: int) -> int:
        """Number of attention heads (query heads) of `block`."""
        return self.in_part(block)[0].config.num_attention_heads

    @property
    def last_site(self) -> int:
        """The last site where the stream can be read and replaced: after the last block, if a module takes it there."""
        last = self.parts[-1]
        return self.depth if last.anatomy.tested or last.flow["exit"] is not None else self.depth - 1

    @cached_property
    def final_norm(self) -> nn.Module:
        """The module that takes the stream after the last block, which in some families is the head or a part of it.

        Raises: UsageError where there is none.
        """
        last = self.parts[-1]
        if last.anatomy.tested:
            return self.body.get_submodule(self.anatomy.final_norm)
        if self.last_site < self.depth:
            raise UsageError(
                f"no module takes the stream after the last block of {self.name}: choose an earlier layer."
            )
        return last.net.get_submodule(last.flow["exit"])

    @cached_property
    def head(self) -> nn.Module:
        return self.net.get_submodule(self.anatomy.head)

    @property
    def bos(self) -> int | None:
        """The id of the token that starts a text: BOS, or EOS in families without BOS."""
        bos = self.tokenizer.bos_token_id
        return bos if bos is not None else self.tokenizer.eos_token_id

    def check_site(self, site: int, name: str = "layer") -> int:
        """Returns `site`, which messages call `name`. Raises: UsageError unless it is in 0..depth; for a composite, between its
        last seam and depth."""
        least = blocks_before_last_part(self.config)
        if not least <= site <= self.depth:
            why = f" (a composite is cut after its last seam, which is at {least})" if least else ""
            raise UsageError(f"{name} must be in {least}..{self.depth} for {self.name}{why}; got {site}.")
        return site
