"""What a translation writes for harvested tokens: the module that ships with every checkpoint, on tokens instead of windows."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stitch.activations import Tokens
from stitch.composite import translation_config, translation_tensors
from stitch.modeling_composite import Seen, TranslationModule
from stitch.translation.types import Codes, Residual, Routed, Translation


class Applied:
    """`translation`, which reads A up to `site` and has no `first`, as a function of tokens; `vocabulary` is that of its ids."""

    def __init__(self, translation: Translation, site: int, vocabulary: int) -> None:
        with torch.device("meta"):
            self._module = TranslationModule(translation_config(translation, None, site, 0, vocabulary))
        tensors = {name: tensor.cpu() for name, tensor in translation_tensors(translation, torch.float32).items()}
        self._module.load_state_dict(tensors, assign=True)
        read = {
            (term.input.site, 0 if isinstance(term.input, Codes) else term.input.back)
            for term in translation.terms
            if isinstance(term.input, (Residual, Routed, Codes))
        }
        self.streams = sorted(read)  # (site, tokens back)
        self.history = self._module.history  # tokens back

    @torch.no_grad()
    def __call__(self, tokens: Tokens) -> Float[Tensor, "_ d_b"]:
        """ŷ of each token. Its streams must have `streams`, its ids `history` before the current one."""
        positions = tokens.positions[None]
        return self._module.written(_Harvested({}, tokens.ids[None, :, 0], positions, positions, tokens))[0]


@dataclass(frozen=True)
class _Harvested(Seen):
    """Tokens as a batch of one. Each has its past with it, instead of before it in a sequence."""

    tokens: Tokens

    def stream_ago(self, site: int, back: int) -> Float[Tensor, "1 _ d_a"]:
        return self.tokens.streams[site, back].float()[None]

    def ids_ago(self, back: int) -> Int[Tensor, "1 _"]:
        return self.tokens.ids[None, :, back].clamp_min(0)

    def reaches(self, back: int) -> Bool[Tensor, "1 _ 1"]:
        return (self.tokens.ids[None, :, back] >= 0).unsqueeze(-1)
