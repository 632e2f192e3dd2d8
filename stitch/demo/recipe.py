"""Recipes of the embedded models: architecture, schedule and data of their training (`python -m stitch.demo.make` runs them).

Two small causal language models of different architecture, width and depth share one tokenizer; a third has a tokenizer of
another kind. They were trained on the fit split of the docstring corpus, on one CPU core each. Half of every batch of the two
two-layer models was random tokens with repeated sequences, so that they learned induction.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal

CONTEXT = 256
Kind = Literal["byte-level", "metaspace"]


@dataclass(frozen=True)
class Tokens:
    """The tokens of a kind of tokenizer: how many there are, and the special ones, which have the first ids."""

    size: int
    bos: str
    eos: str
    pad: str

    @property
    def special(self) -> list[str]:
        """The special tokens by id. One token may have two roles."""
        return list(dict.fromkeys([self.bos, self.eos, self.pad]))

    @property
    def roles(self) -> dict[str, int]:
        """The ids of the special tokens, by their names in the config of a model."""
        named = {"bos_token_id": self.bos, "eos_token_id": self.eos, "pad_token_id": self.pad}
        return {name: self.special.index(token) for name, token in named.items()}


TOKENS: dict[Kind, Tokens] = {
    "byte-level": Tokens(4096, bos="<|endoftext|>", eos="<|endoftext|>", pad="<|pad|>"),
    "metaspace": Tokens(2048, bos="<s>", eos="</s>", pad="<pad>"),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one model is trained: Muon for matrices inside blocks, AdamW for all other parameters.

    shape      parameters of the config of the model `family`.
    rates      points (step, share of the peak rate), interpolated linearly and constant before the first, after `warmup` steps.
    batch      windows of CONTEXT tokens per step.
    repeats    windows of a batch that are random tokens with repeated sequences, instead of text.
    tokenizer  kind of the tokenizer; models of one kind share it.
    """

    family: str
    shape: dict
    steps: int
    rates: tuple[tuple[int, float], ...]
    batch: int = 16
    warmup: int = 60
    rate_matrices: float = 0.02
    rate_others: float = 0.003
    seed: int = 0
    repeats: int = 0
    tokenizer: Kind = "byte-level"

    @property
    def tokens(self) -> Tokens:
        return TOKENS[self.tokenizer]

    def hash(self) -> str:
        content = asdict(self)
        for name in ("repeats", "tokenizer"):  # keeps the hash of models that were trained before these fields existed
            if content[name] == getattr(Recipe, name):
                del content[name]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


RECIPES = {
    "gpt2": Recipe(
        family="gpt2",
        steps=1775,
        rates=((1200, 1.0), (1750, 650 / 1200), (1775, 0.0)),
        shape=dict(
            n_layer=6, n_embd=160, n_head=5, n_positions=CONTEXT, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
        ),
    ),
    "llama": Recipe(
        family="llama",
        steps=1950,
        rates=((999, 1.0), (1000, 900 / 950), (1500, 400 / 950), (1750, 400 / 950 * 400 / 650), (1950, 0.0)),
        shape=dict(
            num_hidden_layers=8,
            hidden_size=192,
            num_attention_heads=6,
            num_key_value_heads=2,
            intermediate_size=512,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
        ),
    ),
    "neox": Recipe(
        family="gpt_neox",
        tokenizer="metaspace",
        steps=1700,
        rates=((900, 1.0), (1700, 0.0)),
        shape=dict(
            num_hidden_layers=6,
            hidden_size=176,
            num_attention_heads=4,
            intermediate_size=704,
            max_position_embeddings=CONTEXT,
            rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5),
        ),
    ),
    "induction": Recipe(
        family="gpt2",
        steps=1500,
        rates=((1000, 1.0), (1500, 0.0)),
        repeats=8,
        shape=dict(
            n_layer=2, n_embd=128, n_head=4, n_positions=CONTEXT, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
        ),
    ),
    "induction-llama": Recipe(
        family="llama",
        steps=1500,
        rates=((1000, 1.0), (1500, 0.0)),
        repeats=8,
        shape=dict(
            num_hidden_layers=2,
            hidden_size=128,
            num_attention_heads=4,
            num_key_value_heads=4,
            intermediate_size=256,
            max_position_embeddings=CONTEXT,
            attention_bias=True,
            tie_word_embeddings=True,
        ),
    ),
}
