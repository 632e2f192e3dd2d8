"""A model that writes: texts sampled from it at temperature 1, from the token that starts a text to one that ends it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64, Int64
from torch import Tensor
from transformers import DynamicCache

from stitch.errors import StitchError, UsageError
from stitch.modeling.modeling_composite import longest_context, parts_of
from stitch.models.identity import identity_of_net, weights_hash
from stitch.models.model import UNBOUNDED, Model

TEMPERATURE = 1.0  # the model's own distribution
AT_ONCE = 32  # texts written together, at most
CACHE = 2**30  # bytes of keys and values of the texts written together, about
DROPPED = 2  # texts that have ended stay in the batch until those still being written are one in so many


@dataclass(frozen=True)
class Writer:
    """A causal language model and its tokenizer. Text number n follows from the model, `seed` and n.

    A text starts with BOS, or with EOS in families without BOS, as the windows do in which it will be read. It ends at EOS, at
    another such start, or at its longest. No other special token is drawn: as text it would not be the same token.
    """

    name: str
    net: Any
    tokenizer: Any
    folder: Path
    seed: int

    @classmethod
    def of(cls, model: Model, seed: int) -> "Writer":
        """Of a model behind another tokenizer the model itself writes, in its own tokens."""
        own = model if model.original is None else model.original.model
        return cls(own.name, own.net, own.tokenizer, own.folder, seed)

    @property
    def identity(self) -> str:
        """A hash of all that decides what is written under a seed."""
        return identity_of_net(self.folder, self.net)

    @property
    def longest(self) -> int:
        """The longest context that all parts of the model take, in tokens."""
        limits = (longest_context(part) for part in parts_of(self.net.config))
        return min((limit for limit in limits if limit is not None), default=UNBOUNDED)

    def described(self) -> dict:
        """What a report says of the writing."""
        return {
            "model": self.name,
            "weights_sha256": weights_hash(self.folder),
            "seed": self.seed,
            "temperature": TEMPERATURE,
        }

    def at_once(self, longest: int) -> int:
        """How many texts of at most `longest` tokens are written together, by the memory that their keys and values take."""
        config = self.net.config.get_text_config(decoder=True)
        per_token = 2 * config.num_hidden_layers * config.hidden_size * self.net.dtype.itemsize
        return max(1, min(AT_ONCE, CACHE // (longest * per_token)))

    def write(self, numbers: Sequence[int], longest: int) -> list[list[int]]:
        """Token ids of the texts with these numbers, each at most `longest` tokens with the one that starts it, which is left out
        as the one at its end is.

        Raises: StitchError where the model's probabilities are not finite.
        """
        draws = torch.stack([_draws(self.seed, number, longest - 1) for number in numbers])
        return sample(self, draws, self._ends(), self._barred())

    def text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    @property
    def start(self) -> int:
        """Raises: UsageError where the tokenizer has neither BOS nor EOS."""
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return token
        raise UsageError(
            f"the tokenizer of {self.name} must have a BOS or an EOS token to start texts with; it has neither."
        )

    def _ends(self) -> set[int]:
        told = getattr(getattr(self.net, "generation_config", None), "eos_token_id", None)
        listed = told if isinstance(told, (list, tuple)) else [told]
        return {end for end in (self.start, self.tokenizer.eos_token_id, *listed) if end is not None}

    def _barred(self) -> list[int]:
        """Special tokens but those that end a text. Rows beyond the tokenizer's are barred where the logits are known."""
        added = self.tokenizer.added_tokens_decoder
        special = {*self.tokenizer.all_special_ids, *(id for id, token in added.items() if token.special)}
        return sorted(special - self._ends())


def _draws(seed: int, number: int, count: int) -> Float64[Tensor, " count"]:
    """Uniform numbers in [0, 1) for the tokens of one text."""
    digest = hashlib.sha256(f"{seed} {number}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.rand(count, generator=generator, dtype=torch.float64)


@torch.no_grad()
def sample(
    writer: Writer, draws: Float64[Tensor, "texts tokens"], ends: set[int], barred: Sequence[int]
) -> list[list[int]]:
    """Token ids of texts, drawn by inverting the distribution function at `draws`, up to one of `ends` or the last draw."""
    net, known = writer.net, len(writer.tokenizer)
    found: list[list[int]] = [[] for _ in draws]
    rows = list(range(len(draws)))  # of the batch: the text that is written there
    writing = set(rows)
    ids = torch.full((len(draws), 1), writer.start, device=net.device)
    cache: Any = None
    for step in range(draws.shape[1]):
        if cache is None:
            output = net(input_ids=ids, use_cache=True)
        else:
            output = net(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True)
        cache = getattr(output, "past_key_values", None)  # models without one read the whole text at every token
        logits = output.logits[:, -1, :known].double().cpu()
        logits[:, [id for id in barred if id < logits.shape[1]]] = -torch.inf
        drawn = _inverse(logits, draws[rows, step], writer.name).tolist()
        for row, token in zip(rows, drawn, strict=True):
            if token in ends:
                writing.discard(row)
            elif row in writing:
                found[row].append(token)
        if not writing:
            break
        ids = torch.cat([ids, torch.tensor(drawn, device=net.device)[:, None]], 1)
        if DROPPED * len(writing) <= len(rows) and type(cache) in (DynamicCache, type(None)):
            kept = torch.tensor([place for place, row in enumerate(rows) if row in writing], device=net.device)
            ids, rows = ids[kept], [rows[place] for place in kept.tolist()]
            if cache is not None:
                cache.batch_select_indices(kept)
    return found


def _inverse(
    logits: Float64[Tensor, "texts vocabulary"], draws: Float64[Tensor, " texts"], name: str
) -> Int64[Tensor, " texts"]:
    """The first token up to which the probabilities add up to more than the draw."""
    sums = logits.softmax(-1).cumsum(-1)
    if not sums[:, -1].isfinite().all():
        raise StitchError(
            f"the probabilities of {name} must be finite to write text; they are not: give another `text`."
        )
    return torch.searchsorted(sums, (draws * sums[:, -1])[:, None], right=True)[:, 0]
