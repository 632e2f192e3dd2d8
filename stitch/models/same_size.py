"""Whether weights can be those of the model that a config describes, before memory is taken for it.

transformers makes room for whatever a config says, and compares it with the files afterwards.
"""

import math
from collections.abc import Mapping

from torch import nn

from stitch.errors import StitchError
from stitch.files.shards import Stored


def require_same_size(net: nn.Module, stored: Mapping[str, Stored], name: str) -> None:
    """Compares `net`, which is on torch's meta device, with the tensors `stored` of the model `name`.

    Shapes themselves are left to transformers, which turns and joins tensors of some families.
    Raises: StitchError where a tensor of the same name has another size, or where most of the model is not stored.
    """
    for one, tensor in net.state_dict().items():
        if one in stored and math.prod(stored[one].shape) != tensor.numel():
            raise StitchError(
                f"{one} must have shape {tuple(tensor.shape)}, as config.json of {name} says; in {stored[one].path} it has "
                f"{stored[one].shape}: download the model again."
            )
    described = sum(tensor.numel() for tensor in net.parameters())
    held = sum(math.prod(tensor.shape) for tensor in stored.values())
    if described > 2 * held:  # a head that is missing is as large as the embedding
        raise StitchError(
            f"the weights of {name} must be those that config.json describes, {described:,} values; they are {held:,}: "
            "download it again, or choose a whole causal model."
        )
