"""A network that reads the ids of another tokenizer: it reads the bytes that they stand for in its own tokens."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from stitch.activations.passes import Passes
from stitch.text.first_bytes import by_first_byte, first_bytes
from stitch.text.rewrite import Rewriter
from stitch.text.windows import Windows


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
class InOwnTokens:
    """A network that takes `longest` of its own tokens at once, and what rewrites ids of the other tokenizer as its own."""

    net: nn.Module
    longest: int
    rewriter: Rewriter

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

    def coincides(self, ids: Int[Tensor, "windows context"]) -> Bool[Tensor, "windows context"]:
        """Whether a token ends where one of the network's own does."""
        return torch.stack([self.rewriter(window).coincides for window in ids])

    @torch.no_grad()
    def read(self, ids: Int[Tensor, "batch context"]) -> OwnReading:
        """What the network predicts on the bytes of some windows."""
        windows = [self.rewriter(window) for window in ids.cpu()]
        passes = Passes.of([window.ids for window in windows], self.longest, self.rewriter.own.bos)
        device = next(self.net.parameters()).device
        logits = self.net(input_ids=passes.ids.to(device), use_cache=False).logits
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


def alignment(other: InOwnTokens, fit: Windows, report: Windows) -> dict:
    """How the tokens of both lie beside each other: the share of the given ones that end where an own one does, in the windows
    `fit`; bytes per given token, and own tokens per given one, in the windows `report`."""
    sizes = other.bytes_of[report.ids[:, 1:].flatten().long()]
    own = sum(int(other.rewriter(window).is_text.sum()) for window in report.ids)
    return {
        "coinciding": float(other.coincides(fit.ids)[:, 1:].double().mean()),
        "bytes_per_token": float(sizes.sum() / (sizes > 0).sum()),
        "own_tokens_per_token": own / int((sizes > 0).sum()),
    }
