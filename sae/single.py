"""`sae.train`: one SAE on activations in memory."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from sae.config import SAEConfig
from sae.errors import SAEError
from sae.schedule import batch_size_for, default_features, steps_for

if TYPE_CHECKING:
    import sae_lens


def train(
    activations: Any,
    *,
    features: int | None = None,
    k: int = 32,
    architecture: str = "batchtopk",
    passes: float = 2.0,
    batch_size: int | None = None,
    lr: float | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[int, int, dict], None] | None = None,
) -> "sae_lens.SAE":
    """Trains an SAE on `activations` [tokens, width], a torch or numpy array of any float dtype, and returns SAELens's SAE.

    It is an SAE for inference, what `sae.save` and its `save_model` write and SAELens loads: batchtopk and matryoshka are
    JumpReLU by then, whose codes of a token do not depend on the others.

    `features` is by default 8 per dimension, or half the number of tokens if that is less, but never fewer than the width; `k`
    are active per token. Tokens are shuffled anew in each of `passes` passes; `batch_size` is 256, or 1,024 from 65,536 tokens
    on. `lr` None is the scaling law of Gao et al. 2024, arXiv 2406.04093. The input's normalisation is folded into the weights,
    so that the SAE reads activations as they are. The same arguments give the same SAE. `progress` is called as by `train_sites`.

    Raises: SAEError for another shape, fewer tokens than one batch, values that are not finite, or a config out of range.

    >>> import torch, sae
    >>> x = torch.randn(2048, 16, generator=torch.Generator().manual_seed(0))
    >>> trained = sae.train(x, features=64, k=4)
    >>> trained.encode(x).shape, trained.decode(trained.encode(x)).shape
    (torch.Size([2048, 64]), torch.Size([2048, 16]))
    """
    import torch

    from sae.convert import for_inference
    from sae.trainer import train_sites

    x = torch.as_tensor(activations)
    if x.ndim != 2 or not x.is_floating_point():
        raise SAEError(f"activations must be floats [tokens, width]; got {x.dtype} of shape {tuple(x.shape)}.")
    tokens, width = x.shape
    size = batch_size_for(tokens) if batch_size is None else batch_size
    if size < 1 or passes <= 0:
        raise SAEError(f"`batch_size` and `passes` must be positive; got {size} and {passes}.")
    if tokens < size:
        raise SAEError(
            f"activations must fill a batch of {size} tokens; got {tokens}. Give more or lower `batch_size`."
        )
    features = default_features(width, tokens) if features is None else features
    config = SAEConfig(
        architecture=architecture, features=features, k=k, lr=lr, seed=seed,
        steps=steps_for(tokens, passes, size), batch_size=size,
    )  # fmt: skip
    per_pass = tokens // size

    def batches(start: int) -> Iterator[dict[str, torch.Tensor]]:
        order = torch.empty(0)
        for step in range(start, config.steps):
            number, place = divmod(step, per_pass)
            if place == 0 or step == start:
                order = torch.randperm(tokens, generator=torch.Generator().manual_seed(seed + number))
            yield {"x": x[order[place * size : (place + 1) * size]]}

    return for_inference(train_sites({"x": config}, {"x": width}, batches, device=device, progress=progress)["x"])
