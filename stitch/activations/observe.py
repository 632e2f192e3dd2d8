"""The residual stream, MLP inputs and MLP outputs of a model, read during forward passes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn

from stitch.errors import StitchError
from stitch.models.model import Model
from stitch.models.module_inputs import module_inputs


@dataclass(frozen=True)
class Observed:
    """What one pass saw: residual streams [batch, context, width] by site, neurons [batch, context, d_ff] by block.

    Neurons are what the MLP's down projection reads, so W_down and its bias turn them into the MLP's output.
    """

    streams: dict[int, Tensor]
    neurons: dict[int, Tensor]


@torch.no_grad()
def observe(
    model: Model, inputs: dict[str, Tensor], *, streams: Sequence[int] = (), neurons: Sequence[int] = ()
) -> Observed:
    """Residual streams entering the blocks `streams` and neurons of the blocks `neurons`, in one pass that ends at the last.

    `inputs` are `input_ids`, or `inputs_embeds` for a `late_half`. Site `depth` is the stream entering the final norm.
    Raises StitchError when anything seen holds NaN or infinity.
    """
    residual = [*model.blocks, model.final_norm]
    modules: dict[tuple[str, int], nn.Module] = {
        **{("stream", site): residual[site] for site in streams},
        **{("neurons", block): model.down(block) for block in neurons},
    }
    found = module_inputs(model.net, modules, **inputs)
    seen = Observed(
        {site: found["stream", site] for site in dict.fromkeys(streams)},
        {block: found["neurons", block] for block in dict.fromkeys(neurons)},
    )
    for what, store in (("at site", seen.streams), ("among the neurons of block", seen.neurons)):
        for key, values in store.items():
            # What is not finite makes no finite sum; a sum that is not may be of large values.
            if not torch.isfinite(values.sum(dtype=torch.float32)) and not torch.isfinite(values).all():
                raise StitchError(
                    f"activations must be finite; {model.name} gives NaN or infinity {what} {key}: "
                    "load it in another precision (--dtype fp32) or check its weights."
                )
    return seen


def residuals(model: Model, ids: Int[Tensor, "batch context"], sites: Sequence[int]) -> dict[int, Tensor]:
    """Residual stream [batch, context, width] entering block `site`, for every site; see `observe`."""
    return observe(model, {"input_ids": ids}, streams=sites).streams
