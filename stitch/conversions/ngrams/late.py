"""What the late blocks of a decoder are worth with this or that in place of the early ones."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stitch.activations.observe import residuals
from stitch.composite.compose import late_half, late_logits
from stitch.conversions.ngrams.backfit import relative_weights
from stitch.conversions.ngrams.reading import stream
from stitch.evaluation.scores import Batch, Logits
from stitch.models.anatomy import blocks_before_last_part
from stitch.models.model import Model
from stitch.text.windows import Windows
from stitch.translation.module import Applied, translation_module
from stitch.translation.types import Translation


@dataclass(frozen=True)
class LateBlocks:
    """Blocks `site`.. of a model, fed by something else than its blocks before."""

    model: Model
    site: int

    @cached_property
    def half(self) -> PreTrainedModel:
        return late_half(self.model, self.site)

    def reading(self, translation: Translation) -> Logits:
        """Fed by look-ups."""
        module = translation_module(translation, self.model, self.model, self.site)

        def logits(batch: Batch) -> Tensor:
            ids = batch.ids.to(self.model.device)
            return late_logits(self.half, module({}, ids, torch.arange(ids.shape[1], device=ids.device).expand_as(ids)))

        return logits

    def passthrough(self) -> Logits:
        """Fed by what the first of the dropped blocks would read: the blocks are gone and that is all."""
        start = blocks_before_last_part(self.model.config)

        def logits(batch: Batch) -> Tensor:
            return late_logits(self.half, residuals(self.model, batch.ids.to(self.model.device), [start])[start])

        return logits


@torch.no_grad()
def explained_variance(
    translations: dict[str, Translation], model: Model, windows: Windows, site: int, mean: Tensor
) -> dict[str, float]:
    """R² of each that has terms: 1 − Σ‖y − ŷ‖²/‖y‖² over that of the constant `mean`, over all tokens but the windows' first."""
    reach = max([0, *(max((_back(term) for term in one.terms), default=0) for one in translations.values())])
    bare = {
        name: dataclasses.replace(one, first=None) for name, one in translations.items() if one.terms
    }  # BOS is not among the tokens
    applied = {name: Applied(one, site, model.config.vocab_size) for name, one in bare.items()}
    left, total = dict.fromkeys(applied, 0.0), 0.0
    for tokens in stream(model, windows, site, reach):
        weights, y = relative_weights(tokens.target), tokens.target.double()
        total += float(weights @ (y - mean).square().sum(1))
        for name, apply in applied.items():
            left[name] += float(weights @ (y - apply(tokens)).square().sum(1))
    return {name: 1 - value / total for name, value in left.items()}


def _back(term) -> int:
    return getattr(term.input, "back", getattr(term.input, "order", 1) - 1)
