"""A model behind another tokenizer: the streams of the model itself, which reads the same bytes in its own tokens."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stitch.activations.observe import observe
from stitch.errors import UsageError
from stitch.models.model import Model
from stitch.text.first_bytes import by_first_byte, first_bytes
from stitch.text.rewrite import Rewriter, Rewritten


@dataclass(frozen=True)
class OwnReading:
    """What a model predicts, in its own tokens, on the bytes of some windows of another tokenizer's ids.

    `nats` are −log p of every own token that stands for text, window after window; `rows` its window, and `places` the given
    token by whose end it has ended. `next_byte` are probabilities of the byte after each given token, as far as the model has
    read by then.
    """

    nats: Float[Tensor, " own"]
    rows: Int[Tensor, " own"]
    places: Int[Tensor, " own"]
    next_byte: Float[Tensor, "batch context kinds"]


@dataclass(frozen=True)
class Original:
    """The `original` of a `Model` that reads another tokenizer.

    The stream at a token of the other tokenizer is that at the own token which ends at the same byte, or last before it.
    """

    model: Model
    rewriter: Rewriter

    @property
    def mark(self) -> str:
        """A hash of the other tokenizer's vocabulary and of how it starts a text."""
        given = self.rewriter.given
        vocabulary = json.dumps([sorted(given.tokenizer.get_vocab().items()), given.bos])
        return hashlib.sha256(vocabulary.encode()).hexdigest()

    @property
    def bytes_of(self) -> Float[Tensor, " vocabulary"]:
        """Bytes of text by id of the other tokenizer; 0 for special tokens."""
        return self.rewriter.lengths

    @property
    def first_bytes(self) -> Int[Tensor, " vocabulary"]:
        """The byte that each id of the other tokenizer begins with, or 256."""
        return first_bytes(self.rewriter.given.vocabulary, len(self.rewriter.given.vocabulary))

    def residuals(self, ids: Int[Tensor, "batch context"], sites: Sequence[int]) -> dict[int, Tensor]:
        """Streams [batch, context, width] entering the blocks `sites`, by site."""
        windows = [self.rewriter(window) for window in ids.cpu()]
        own = self.padded(windows).to(self.model.device)
        at = torch.stack([window.at.clamp_min(0) for window in windows]).to(self.model.device)
        found = observe(self.model, {"input_ids": own}, streams=sites).streams
        return {site: stream.take_along_dim(at[..., None], 1) for site, stream in found.items()}

    def padded(self, windows: Sequence[Rewritten]) -> Int[Tensor, "batch own"]:
        """The own ids of some windows, filled up behind their end, where no token before it reads.

        Raises: UsageError when a window has more of them than the model takes.
        """
        longest = max(len(window.ids) for window in windows)
        if longest > self.model.longest:
            raise UsageError(
                f"context must be lower: {self.model.name} takes {self.model.longest:,} tokens, and a window has "
                f"{longest:,} of its own."
            )
        rows = torch.full((len(windows), longest), self.rewriter.own.bos)
        for row, window in zip(rows, windows, strict=True):
            row[: len(window.ids)] = window.ids
        return rows

    def coincides(self, ids: Int[Tensor, "windows context"]) -> Bool[Tensor, "windows context"]:
        """Whether a token ends where one of the model's own does."""
        return torch.stack([self.rewriter(window).coincides for window in ids])

    @torch.no_grad()
    def read(self, ids: Int[Tensor, "batch context"]) -> OwnReading:
        """What the model predicts on the bytes of some windows."""
        windows = [self.rewriter(window) for window in ids.cpu()]
        own = self.padded(windows).to(self.model.device)
        logits = self.model.net(input_ids=own, use_cache=False).logits
        first = first_bytes(self.rewriter.own.vocabulary, logits.shape[-1])
        nats, rows, places, next_byte = [], [], [], []
        for number, window in enumerate(windows):
            predicted = logits[number, : len(window.ids)].float().log_softmax(-1)
            text = window.is_text.nonzero()[:, 0]
            text = text[text > 0].to(predicted.device)
            nats.append(-predicted[text - 1, own[number, text]].cpu())
            rows.append(torch.full((len(text),), number))
            places.append(window.since[text.cpu()].clamp_max(ids.shape[1] - 1))
            next_byte.append(by_first_byte(predicted.exp(), first).cpu()[window.at.clamp_min(0)])
        return OwnReading(torch.cat(nats), torch.cat(rows), torch.cat(places), torch.stack(next_byte))
