"""Scores of a decoder's late blocks with different inputs in place of the early blocks."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from stitch.activations.observe import residuals
from stitch.composite.compose import late_half, late_logits
from stitch.conversions.ngrams.backfit import relative_weights
from stitch.conversions.ngrams.reading import stream
from stitch.evaluation.scores import Batch, Logits
from stitch.modeling.modeling_halves import Half
from stitch.models.anatomy import blocks_before_last_part
from stitch.models.model import Model
from stitch.progress import Progress
from stitch.text.windows import Windows
from stitch.translation.module import Applied, embeddings_of, unfolded_module
from stitch.translation.types import Translation


@dataclass(frozen=True)
class LateBlocks:
    """Blocks `site`.. of a model, without the blocks before them."""

    model: Model
    site: int

    @cached_property
    def half(self) -> Half:
        return late_half(self.model, self.site)

    def reading(self, translation: Translation) -> Logits:
        """Logits when the input is looked up by `translation`."""
        module = unfolded_module(translation, self.model, self.model, self.site)
        embeddings = embeddings_of(self.model, self.model)

        def logits(batch: Batch) -> Tensor:
            ids = batch.ids.to(self.model.device)
            positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
            return late_logits(self.half, module({}, ids, positions, embeddings=embeddings), ids=ids)

        return logits

    def passthrough(self) -> Logits:
        """Logits when the input is that of the first dropped block, so that blocks are dropped without a replacement."""
        start = blocks_before_last_part(self.model.config)

        def logits(batch: Batch) -> Tensor:
            ids = batch.ids.to(self.model.device)
            return late_logits(self.half, residuals(self.model, ids, [start])[start], ids=ids)

        return logits


@torch.no_grad()
def explained_variance(
    translations: dict[str, Translation],
    model: Model,
    windows: Windows,
    site: int,
    mean: Tensor,
    progress: Progress | None = None,
) -> dict[str, float]:
    """R² of each translation with terms, over all tokens except the windows' first.

    R² = 1 − Σ ‖y − ŷ‖²/‖y‖² divided by the same sum for the constant ŷ = `mean`.
    """
    reach = max([0, *(max((_back(term) for term in one.terms), default=0) for one in translations.values())])
    bare = {
        name: dataclasses.replace(one, first=None) for name, one in translations.items() if one.terms
    }  # `first` is for BOS, which is not among the tokens
    applied = {name: Applied(one, site, model.vocabulary, embeddings_of(model, model)) for name, one in bare.items()}
    left, total = dict.fromkeys(applied, 0.0), 0.0
    for tokens in stream(model, windows, site, reach, progress, "explained variance"):
        weights, y = relative_weights(tokens.target), tokens.target.double()
        total += float(weights @ (y - mean).square().sum(1))
        for name, apply in applied.items():
            left[name] += float(weights @ (y - apply(tokens)).square().sum(1))
    return {name: 1 - value / total for name, value in left.items()}


def _back(term) -> int:
    return getattr(term.input, "back", getattr(term.input, "order", 1) - 1)
