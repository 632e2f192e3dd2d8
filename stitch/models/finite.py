"""NaN and infinity among a model's weights, found once they are loaded: later every number that they touch would be NaN."""

from collections.abc import Mapping

import torch
from torch import nn

from stitch.errors import StitchError
from stitch.files.shards import Stored


@torch.no_grad()
def require_finite(net: nn.Module, stored: Mapping[str, Stored], name: str) -> None:
    """Raises: StitchError that names the first weight with NaN or infinity, and its file where it has that name there."""
    for one, weight in net.named_parameters():
        # Least and greatest value are NaN where one is, and are found at 11 GB/s; `isfinite` makes a tensor as large.
        if weight.is_floating_point() and weight.numel() and not all(end.isfinite() for end in weight.aminmax()):
            place = stored[one].path if one in stored else name
            raise StitchError(
                f"weights must be finite; {one} in {place} holds NaN or infinity as {str(weight.dtype).removeprefix('torch.')}: "
                "give another `dtype`, or download it again."
            )
