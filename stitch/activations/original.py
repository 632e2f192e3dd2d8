"""A model behind another tokenizer: the streams of the model itself, which reads the same bytes in its own tokens."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stitch.activations.observe import observe
from stitch.activations.passes import Passes
from stitch.models.model import Model
from stitch.text.first_bytes import by_first_byte, first_bytes
from stitch.text.rewrite import Rewriter


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
    favourites: list[list[bytes | None]]


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

    @property
    def pieces(self) -> list[bytes | None]:
        """The bytes that each id of the other tokenizer stands for."""
        return self.rewriter.given.vocabulary.pieces

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

    def coincides(self, ids: Int[Tensor, "windows context"]) -> Bool[Tensor, "windows context"]:
        """Whether a token ends where one of the model's own does."""
        return torch.stack([self.rewriter(window).coincides for window in ids])

    @torch.no_grad()
    def read(self, ids: Int[Tensor, "batch context"]) -> OwnReading:
        """What the model predicts on the bytes of some windows."""
        windows = [self.rewriter(window) for window in ids.cpu()]
        passes = Passes.of([window.ids for window in windows], self.model.longest, self.rewriter.own.bos)
        logits = self.model.net(input_ids=passes.ids.to(self.model.device), use_cache=False).logits
        first = first_bytes(self.rewriter.own.vocabulary, logits.shape[-1])
        pieces = self.rewriter.own.vocabulary.pieces
        nats, rows, places, next_byte, favourites = [], [], [], [], []
        for number, (window, own) in enumerate(zip(windows, passes.joined(logits), strict=True)):
            predicted = own.float().log_softmax(-1)
            text = window.is_text.nonzero()[:, 0]
            text = text[text > 0].to(predicted.device)
            nats.append(-predicted[text - 1, window.ids.to(text.device)[text]].cpu())
            rows.append(torch.full((len(text),), number))
            places.append(window.since[text.cpu()].clamp_max(ids.shape[1] - 1))
            at = window.at.clamp_min(0)
            next_byte.append(by_first_byte(predicted.exp(), first).cpu()[at])
            likeliest = predicted.argmax(1).cpu()[at].tolist()
            favourites.append([pieces[token] if token < len(pieces) else None for token in likeliest])
        return OwnReading(torch.cat(nats), torch.cat(rows), torch.cat(places), torch.stack(next_byte), favourites)
