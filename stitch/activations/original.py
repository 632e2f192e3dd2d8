"""A model behind another tokenizer: the streams of the model itself, which reads the same bytes in its own tokens."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from stitch.activations.in_own_tokens import InOwnTokens
from stitch.activations.observe import observe
from stitch.activations.passes import Passes
from stitch.models.model import Model
from stitch.text.reader import Reader
from stitch.text.rewrite import Rewriter


@dataclass(frozen=True)
class Original(InOwnTokens):
    """The `original` of a `Model` that reads another tokenizer.

    The stream at a token of the other tokenizer is that at the own token which ends at the same byte, or last before it.
    """

    model: Model

    @classmethod
    def of(cls, model: Model, rewriter: Rewriter) -> "Original":
        return cls(model.net, model.longest, rewriter, model)

    @property
    def mark(self) -> str:
        """A hash of the other tokenizer's vocabulary and of how it starts a text."""
        given = self.rewriter.given
        vocabulary = json.dumps([sorted(given.tokenizer.get_vocab().items()), given.bos])
        return hashlib.sha256(vocabulary.encode()).hexdigest()

    def residuals(self, ids: Int[Tensor, "batch context"], sites: Sequence[int]) -> dict[int, Tensor]:
        """Streams [batch, context, width] entering the blocks `sites`, by site."""
        windows = [self.rewriter(window) for window in ids.cpu()]
        passes = Passes.of([window.ids for window in windows], self.model.longest, self.rewriter.own.bos)
        found = observe(self.model, {"input_ids": passes.ids.to(self.model.device)}, streams=sites).streams
        at = [window.at.clamp_min(0) for window in windows]
        return {
            site: torch.stack(
                [whole[place.to(whole.device)] for whole, place in zip(passes.joined(stream), at, strict=True)]
            )
            for site, stream in found.items()
        }


def at_tokens_of(model: Model, other: Model) -> Model:
    """`model` with its streams read at the tokens of `other`. Its network still has rows and logits for its own tokens alone.

    Raises: UsageError for a tokenizer without a token to start a text with.
    """
    given = Reader.of(other.name, other.tokenizer)
    own = Reader.of(model.name, model.tokenizer, len(model.embedding.weight))
    return replace(model, original=Original.of(model, Rewriter(given, own)))
