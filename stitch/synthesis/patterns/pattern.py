"""Attention patterns by name or from a file. Hard patterns are a target for every query, soft ones a matrix of attention."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stitch.errors import StitchError, UsageError
from stitch.synthesis.json_file import read_json

NAMES = "previous, self, first, parent, offset:K, block:K, random:R, or a .json or .npy file"


@dataclass(frozen=True)
class Pattern:
    """Either `targets`, one for each query, or `matrix`, whose rows sum to 1 up to the diagonal."""

    targets: Int64[Tensor, " length"] | None
    matrix: Float[Tensor, "length length"] | None


def read_pattern(what: str, length: int, seed: int = 0) -> Pattern:
    """The pattern that `what` describes.

    `offset:K` attends K tokens back, `block:K` to the first token of every block of K, `parent` to token i // 2. `random:R` is
    the softmax of random scores of rank R. A file holds `length` targets, or a matrix with `length` rows.

    Raises: UsageError when it is not a valid pattern, StitchError when the file cannot be read.
    """
    name, _, number = what.partition(":")
    position = torch.arange(length)
    if what.endswith((".json", ".npy")):
        return _from_file(Path(what), length)
    if number and not number.isdigit():
        raise UsageError(f"the pattern must be {NAMES}; got {what}.")
    count = int(number or 0)
    match name:
        case "previous":
            return Pattern((position - 1).clamp_min(0), None)
        case "self":
            return Pattern(position, None)
        case "first":
            return Pattern(0 * position, None)
        case "parent":
            return Pattern(position // 2, None)
        case "offset":
            return Pattern((position - count).clamp_min(0), None)
        case "block" if count:
            return Pattern(position - position % count, None)
        case "random" if count:
            generator = torch.Generator().manual_seed(seed)
            q, k = (torch.randn(length, count, generator=generator, dtype=torch.float64) for _ in range(2))
            return Pattern(None, causal_softmax(2 * q @ k.T / count**0.5))
    raise UsageError(f"the pattern must be {NAMES}; got {what}.")


def causal_softmax(scores: Float[Tensor, "length length"]) -> Float[Tensor, "length length"]:
    return scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf).softmax(1)


def _from_file(path: Path, length: int) -> Pattern:
    if not path.is_file():
        raise UsageError(f"the pattern must be {NAMES}; there is no {path}.")
    try:
        found = _array(path) if path.suffix == ".npy" else np.array(read_json(path, "the pattern"))
    except (ValueError, OSError, EOFError) as error:
        raise StitchError(f"{path} must hold a list of numbers or of rows; {error}.") from error
    if found.dtype.kind not in "iuf" or found.ndim not in (1, 2) or set(found.shape) != {length}:
        raise UsageError(
            f"{path} must hold {length:,} targets or {length:,} rows of as many numbers; got {found.dtype} "
            f"{found.shape}. Give its size as `length`."
        )
    if found.ndim == 1:
        targets = torch.from_numpy(found.astype(np.int64))
        wrong = (targets < 0) | (targets > torch.arange(length))
        if wrong.any():
            query = int(wrong.nonzero()[0])
            raise UsageError(
                f"targets must be causal, 0 to the query's own position; that of query {query} is {int(targets[query])}."
            )
        return Pattern(targets, None)
    return _soft(torch.from_numpy(found).double())


def _array(path: Path) -> np.ndarray:
    """The array in a .npy file. Mapped first, as memory would be taken for whatever size its header claims."""
    found = np.load(path, allow_pickle=False, mmap_mode="r")
    if not isinstance(found, np.ndarray):
        raise ValueError("got an archive of several arrays")
    return np.array(found)


def _soft(matrix: Float[Tensor, "length length"]) -> Pattern:
    """A matrix as a pattern; a hard one if all its entries are 0 or 1.

    Raises: UsageError when it is not a matrix of causal attention.
    """
    if not torch.isfinite(matrix).all():
        raise UsageError("the pattern must be finite; it holds NaN or infinity.")
    if (matrix < 0).any():
        raise UsageError(f"attention must not be negative; the pattern holds {float(matrix.min()):.3g}.")
    if (later := float(matrix.triu(1).sum())) > 1e-6:
        raise UsageError(
            f"the pattern must be causal; {later:.3g} of its mass is on later tokens. Mask and normalise it."
        )
    deviation = (matrix.sum(1) - 1).abs()
    if float(deviation.max()) > 1e-4:
        row = int(deviation.argmax())
        raise UsageError(f"rows must sum to 1; row {row} sums to {float(matrix[row].sum()):.6g}. Normalise it.")
    if bool(((matrix == 0) | (matrix == 1)).all()):
        return Pattern(matrix.argmax(1), None)
    return Pattern(None, matrix)
