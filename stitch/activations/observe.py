"""The residual stream and the MLP neurons of a model, read by hooks during forward passes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from stitch.errors import StitchError
from stitch.models.model import Model
from stitch.models.module_inputs import module_inputs


@dataclass(frozen=True)
class Observed:
    """Values read in one pass: residual streams [batch, context, width] by site, neurons [batch, context, d_ff] by block.

    Neurons are the input of the MLP's output projection `down`.
    """

    streams: dict[int, Tensor]
    neurons: dict[int, Tensor]


@torch.no_grad()
def observe(
    model: Model, inputs: dict[str, Any], *, streams: Sequence[int] = (), neurons: Sequence[int] = ()
) -> Observed:
    """Residual streams entering the blocks `streams` and neurons of the blocks `neurons`, in one forward pass.

    The pass stops at the last of them. Site `depth` is the stream entering the final norm.
    Raises: StitchError when any of the values is NaN or infinite.
    """
    residual = [*model.blocks, *([model.final_norm] if model.depth in streams else [])]
    modules: dict[tuple[str, int], nn.Module] = {
        **{("stream", site): residual[site] for site in streams},
        **{("neurons", block): model.down(block) for block in neurons},
    }
    found = module_inputs(model.net, modules, argument=model.stream_argument, **inputs)
    return Observed(
        finite({site: found["stream", site] for site in dict.fromkeys(streams)}, model.name),
        finite(
            {block: found["neurons", block] for block in dict.fromkeys(neurons)},
            model.name,
            "among the neurons of block",
        ),
    )


def finite(seen: dict[int, Tensor], name: str, what: str = "at site") -> dict[int, Tensor]:
    """The same values. Raises: StitchError when any is NaN or infinite."""
    for key, values in seen.items():
        # The sum is quick to check: a value that is not finite makes it so too. Large finite values may also do that.
        if not torch.isfinite(values.sum(dtype=torch.float32)) and not torch.isfinite(values).all():
            raise StitchError(
                f"activations must be finite; {name} gives NaN or infinity {what} {key}: "
                "load it in another precision (`dtype` fp32) or check its weights."
            )
    return seen


def residuals(model: Model, ids: Int[Tensor, "batch context"], sites: Sequence[int]) -> dict[int, Tensor]:
    """Residual streams [batch, context, width] entering the blocks `sites`, by site; see `observe`.

    A model that has been given another tokenizer reads the same bytes as it did before (`Model.original`).
    """
    if model.original is not None:
        return model.original.residuals(ids, sites)
    return observe(model, {"input_ids": ids}, streams=sites).streams
