"""A loaded model with its tokenizer and anatomy."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from stitch.errors import UsageError
from stitch.modeling.modeling_composite import StitchConfig, Stitched, TranslationModule, parts_of
from stitch.models.anatomy import Anatomy, anatomy_of, blocks_before_last_part


@dataclass(frozen=True)
class Model:
    """A causal language model and access to its modules. `folder` holds its safetensors, config and tokenizer files."""

    name: str
    net: PreTrainedModel
    tokenizer: Any
    anatomy: Anatomy
    folder: Path

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
            early = config.a_config
            config = early if site < early.num_hidden_layers else config.b_config
        return config.hidden_size

    @property
    def longest(self) -> int:
        """The longest context, in tokens, that all parts of the model accept."""
        return min(part.max_position_embeddings for part in parts_of(self.config))

    @property
    def depth(self) -> int:
        """Number of blocks; sites are 0..depth."""
        return self.config.num_hidden_layers

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.weight.dtype

    @cached_property
    def body(self) -> nn.Module:
        return self.net.get_submodule(self.anatomy.body)

    @cached_property
    def embedding(self) -> nn.Embedding:
        """The token embedding. Some families (Gemma) scale its output; `weight` is unscaled."""
        return self.body.get_submodule(self.anatomy.embedding)  # pyright: ignore[reportReturnType]

    @cached_property
    def blocks(self) -> nn.ModuleList:
        lists: list[Any] = [
            self.body.get_submodule(path) for path in (*self.anatomy.earlier_blocks, self.anatomy.blocks)
        ]
        return lists[0] if len(lists) == 1 else nn.ModuleList([block for blocks in lists for block in blocks])

    @property
    def parts(self) -> list["Model"]:
        """The models that a composite consists of, in the order they run, sharing its modules; of another model, itself.

        Only the first part has an embedding, and only the last has a final norm and a head.
        """
        return self._of_composite or [self]

    @cached_property
    def _of_composite(self) -> list["Model"]:
        """The parts of a composite; empty for another model, which must not be cached here: it would refer to itself."""
        if not isinstance(self.net, Stitched):
            return []
        early = replace(self, net=self.net.a, anatomy=replace(anatomy_of(self.net.a.config), body=""))
        return [*early.parts, replace(self, net=self.net.b, anatomy=anatomy_of(self.net.b.config))]

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
            found.insert(0, (net.a.config.num_hidden_layers, net.translation))
            net = net.a
        return found

    def down(self, block: int) -> nn.Module:
        """The output projection of the MLP of `block`: a Linear, or GPT-2's Conv1D, whose weight is transposed."""
        part, own = self.in_part(block)
        return part.blocks[own].get_submodule(part.anatomy.down)

    def heads_out(self, block: int) -> nn.Module:
        """The output projection of the attention of `block`; its input is the concatenated heads."""
        part, own = self.in_part(block)
        return part.blocks[own].get_submodule(part.anatomy.heads_out)

    def heads(self, block: int) -> int:
        """Number of attention heads (query heads) of `block`."""
        return self.in_part(block)[0].config.num_attention_heads

    @cached_property
    def final_norm(self) -> nn.Module:
        return self.body.get_submodule(self.anatomy.final_norm)

    @cached_property
    def head(self) -> nn.Module:
        return self.net.get_submodule(self.anatomy.head)

    @property
    def bos(self) -> int | None:
        """The id of the token that starts a text: BOS, or EOS in families without BOS."""
        bos = self.tokenizer.bos_token_id
        return bos if bos is not None else self.tokenizer.eos_token_id

    def check_site(self, site: int) -> int:
        """Returns `site`. Raises: UsageError unless it is in 0..depth; for a composite, between its last seam and depth."""
        least = blocks_before_last_part(self.config)
        if not least <= site <= self.depth:
            why = f" (a composite is cut after its last seam, which is at {least})" if least else ""
            raise UsageError(f"layer must be in {least}..{self.depth} for {self.name}{why}; got {site}.")
        return site
