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
from stitch.text.rewrite import Rewriter, Rewritten


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
    def nats(
        self, ids: Int[Tensor, "batch context"]
    ) -> tuple[Float[Tensor, " own"], Int[Tensor, " own"], Int[Tensor, " own"]]:
        """−log p of every own token that stands for text, window after window; its window, and the given token by whose end it
        has ended."""
        windows = [self.rewriter(window) for window in ids.cpu()]
        own = self.padded(windows).to(self.model.device)
        predicted = self.model.net(input_ids=own, use_cache=False).logits[:, :-1].float().log_softmax(-1)
        found = -predicted.gather(2, own[:, 1:, None])[..., 0].cpu()
        nats, rows, places = [], [], []
        for number, window in enumerate(windows):
            text = window.is_text.nonzero()[:, 0]
            text = text[text > 0]
            nats.append(found[number, text - 1])
            rows.append(torch.full_like(text, number))
            places.append(window.since[text].clamp_max(ids.shape[1] - 1))
        return torch.cat(nats), torch.cat(rows), torch.cat(places)
