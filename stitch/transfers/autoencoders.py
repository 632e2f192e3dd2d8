"""A sparse autoencoder of A rewritten for B's stream."""

import dataclasses
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from sae.types import Dictionary
from stitch.errors import UsageError
from stitch.regression.moments import Moments, accumulate
from stitch.regression.ridge import ridge
from stitch.transfers.maps import Maps


def require_transferable(dictionary: Dictionary) -> None:
    """Raises UsageError for a top-k dictionary, whose choice among features depends on the norms of decoder rows."""
    if dictionary.activation not in ("relu", "jumprelu"):
        raise UsageError(
            f"an SAE to transfer must be ReLU or JumpReLU (batch top-k is saved as that); this one is {dictionary.activation}: "
            "use another."
        )


def transferred(dictionary: Dictionary, maps: Maps) -> Dictionary:
    """The dictionary that reads B's stream mapped back to A's, and writes A's directions mapped to B's.

    Both are folded into its weights: for a stream y of B its codes are those of `dictionary` at `maps.back(y)`, in units in
    which decoder rows have unit norm again, and its reconstruction is `maps.there` of that of `dictionary`.
    Raises: UsageError as `require_transferable`.
    """
    require_transferable(dictionary)
    dtype, device = dictionary.decoder.dtype, dictionary.decoder.device
    encoder = maps.back.matrix @ dictionary.encoder.double().cpu()
    bias = maps.back.bias @ dictionary.encoder.double().cpu() + dictionary.encoder_bias.double().cpu()
    decoder = dictionary.decoder.double().cpu() @ maps.there.matrix
    norms = decoder.norm(dim=1).clamp_min(1e-8)
    threshold = None if dictionary.threshold is None else dictionary.threshold.double().cpu() * norms

    def as_before(x: Tensor) -> Tensor:
        return x.to(device, dtype).contiguous()

    return dataclasses.replace(
        dictionary,
        encoder=as_before(encoder * norms),
        encoder_bias=as_before(bias * norms),
        threshold=None if threshold is None else as_before(threshold),
        decoder=as_before(decoder / norms[:, None]),
        decoder_bias=as_before(maps.there(dictionary.decoder_bias.double().cpu())),
    )


def memory_to_refit(dictionary: Dictionary) -> int:
    """Bytes that `refitted` holds: features × features in float64, of two splits, scaled, and as a factor."""
    return 4 * 8 * len(dictionary.encoder_bias) ** 2


def refitted(
    dictionary: Dictionary, fit: Iterable[Float[Tensor, "_ d"]], held_out: Iterable[Float[Tensor, "_ d"]]
) -> Dictionary:
    """The same codes with the decoder that reconstructs the streams of `fit` best, by ridge with λ chosen on `held_out`.

    The new rows have unit norm and the codes the units that go with it. Takes `memory_to_refit` bytes.
    """
    found = ridge(_codes_and_streams(dictionary, fit), _codes_and_streams(dictionary, held_out), ("z",), "y")
    decoder, before = found.weights["z"], dictionary.decoder.double().cpu()
    norms = decoder.norm(dim=1)
    fires = norms > 1e-8  # a feature that never fired keeps its row
    decoder, norms = torch.where(fires[:, None], decoder, before), torch.where(fires, norms, 1.0)
    scale = norms.to(dictionary.encoder)
    return dataclasses.replace(
        dictionary,
        encoder=dictionary.encoder * scale,
        encoder_bias=dictionary.encoder_bias * scale,
        threshold=None if dictionary.threshold is None else dictionary.threshold * scale,
        decoder=(decoder / norms[:, None]).to(dictionary.decoder),
        decoder_bias=found.bias.to(dictionary.decoder),
    )


def _codes_and_streams(dictionary: Dictionary, streams: Iterable[Float[Tensor, "_ d"]]) -> Moments:
    chunks = ({"z": dictionary.encode(y.to(dictionary.encoder.device)).cpu(), "y": y} for y in streams)
    return accumulate(chunks, [("z", "z"), ("z", "y")], single=["z"])


def without_features(dictionary: Dictionary, kept: Iterable[int]) -> Dictionary:
    """The dictionary whose features outside `kept` never fire."""
    chosen = torch.zeros(len(dictionary.encoder_bias), dtype=torch.bool, device=dictionary.encoder_bias.device)
    chosen[torch.as_tensor(list(kept), dtype=torch.long)] = True
    return dataclasses.replace(
        dictionary,
        encoder=dictionary.encoder * chosen,
        encoder_bias=torch.where(chosen, dictionary.encoder_bias, -1.0),
    )
