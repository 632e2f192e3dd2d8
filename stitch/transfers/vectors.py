"""Files of directions: steering vectors and linear probes, as safetensors."""

from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from stitch.errors import UsageError
from stitch.transfers.maps import Maps

Vectors = dict[str, Float[Tensor, "*many d"]]


def read_vectors(file: Path, width: int) -> Vectors:
    """Tensors by name, each of the last dimension `width`. Raises: UsageError for another file or width."""
    found = _read(file)
    for name, vector in found.items():
        if vector.ndim not in (1, 2) or vector.shape[-1] != width:
            raise UsageError(
                f"vectors must be [{width}] or [n, {width}] here; {name} of {file} is {list(vector.shape)}."
            )
    return found


def carried(vectors: Vectors, maps: Maps) -> Vectors:
    """The vectors in B's stream. They are differences of streams, so the map's bias does not enter."""
    return {name: (vector.double() @ maps.there.matrix).float() for name, vector in vectors.items()}


def read_probe(file: Path, width: int) -> tuple[Float[Tensor, "classes d"], Float[Tensor, " classes"]]:
    """`weight` [classes, d] and `bias` [classes] of a linear probe; a single row is the score of class 1 against class 0.

    Raises: UsageError for another file, other names or another width.
    """
    found = _read(file)
    if "weight" not in found or not set(found) <= {"weight", "bias"}:
        raise UsageError(
            f"a probe must hold `weight` and perhaps `bias`; {file} holds {', '.join(found) or 'nothing'}."
        )
    weight = found["weight"] if found["weight"].ndim == 2 else found["weight"][None]
    bias = found.get("bias", torch.zeros(len(weight))).flatten()
    if weight.ndim != 2 or weight.shape[1] != width or len(bias) != len(weight):
        raise UsageError(
            f"`weight` must be [classes, {width}] and `bias` [classes]; {file} has {list(weight.shape)} and {list(bias.shape)}."
        )
    return weight, bias


def carried_probe(
    weight: Float[Tensor, "classes d_a"], bias: Float[Tensor, " classes"], maps: Maps
) -> tuple[Float[Tensor, "classes d_b"], Float[Tensor, " classes"]]:
    """The probe that gives B's stream y the scores of the given probe at `maps.back(y)`."""
    wide = weight.double()
    return (wide @ maps.back.matrix.T).float(), (bias.double() + wide @ maps.back.bias).float()


def write(tensors: Vectors, file: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)


def _read(file: Path) -> dict[str, Tensor]:
    try:
        found = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{file} must be a safetensors file; got {' '.join(str(error).split())[:200]}.") from None
    if not found or not all(tensor.isfinite().all() for tensor in found.values()):
        raise UsageError(f"{file} must hold finite tensors.")
    return {name: tensor.float() for name, tensor in found.items()}
