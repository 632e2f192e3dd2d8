"""Attention patterns by name or from a file. Hard patterns are a target for every query, soft ones a matrix of attention."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stitch.errors import UsageError
from stitch.files.specification import MOST_DATA, read_json, shown
from stitch.synthesis.bounds import LONGEST, LONGEST_SOFT, within

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

    Raises: UsageError when it is not a valid pattern, or too long for one.
    """
    within("length", length, 2, LONGEST)
    if what.endswith((".json", ".npy")):
        return _from_file(Path(what), length)
    name, _, number = what.partition(":")
    position = torch.arange(length)
    counted = name in ("offset", "block", "random")
    if counted != bool(number) or (number and not re.fullmatch("[0-9]{1,9}", number)):
        raise UsageError(f"the pattern must be {NAMES}; got {shown(what)}.")
    count = int(number or 0)
    if name == "random":
        _check_soft(length)
        within("K of the pattern random:K", count, 1, length)
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
        case "random":
            generator = torch.Generator().manual_seed(seed)
            q, k = (torch.randn(length, count, generator=generator, dtype=torch.float64) for _ in range(2))
            return Pattern(None, causal_softmax(2 * q @ k.T / count**0.5))
    raise UsageError(f"the pattern must be {NAMES}; got {shown(what)}.")


def causal_softmax(scores: Float[Tensor, "length length"]) -> Float[Tensor, "length length"]:
    return scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf).softmax(1)


def _check_soft(length: int) -> None:
    if length > LONGEST_SOFT:
        raise UsageError(f"length must be {LONGEST_SOFT:,} at most for a matrix of attention; got {length:,}.")


def _from_file(path: Path, length: int) -> Pattern:
    if not path.is_file():
        raise UsageError(f"the pattern must be {NAMES}; there is no {path}.")
    if path.suffix == ".json":
        return checked_pattern(read_json(path, "the pattern", MOST_DATA), length, str(path))
    try:
        found = np.load(
            path, mmap_mode="r", allow_pickle=False
        )  # reads no number before the shape is known to be right
        if not isinstance(found, np.ndarray):
            raise ValueError("it holds several arrays")
    except Exception as error:  # numpy has no common class of errors for what is no such file
        raise UsageError(f"{path} must be a NumPy array; {' '.join(str(error).split()).rstrip('.')}.") from None
    return checked_pattern(found, length, str(path))


def checked_pattern(found: Any, length: int, where: str) -> Pattern:
    """Lists or an array as a pattern. `where` they come from begins the messages of errors.

    Raises: UsageError when they are neither targets nor a matrix of causal attention.
    """
    if not isinstance(found, (list, np.ndarray)):
        raise UsageError(f"{where} must hold a list of numbers or of rows; got {shown(found)}.")
    if isinstance(found, list):
        cells = [cell for row in found for cell in (row if isinstance(row, list) else [row])]
        if wrong := [cell for cell in cells if type(cell) not in (int, float)]:
            raise UsageError(f"{where} must hold a list of numbers or of rows; it has {shown(wrong[0])}.")
        try:
            found = np.array(found)
        except ValueError:  # rows of different lengths
            found = np.empty((0, 0))
    if found.dtype.kind not in "iuf" or found.ndim not in (1, 2) or set(found.shape) != {length}:
        raise UsageError(
            f"{where} must hold {length:,} targets or {length:,} rows of as many numbers; got {found.dtype} "
            f"{found.shape}. Give its size as `length`."
        )
    if found.ndim == 2:
        _check_soft(length)
        return _soft(torch.from_numpy(np.array(found, dtype=np.float64)), where)
    wrong = (found != np.floor(found)) | (found < 0) | (found > np.arange(length))
    if wrong.any():
        query = int(wrong.argmax())
        raise UsageError(
            f"targets must be causal, 0 to the query's own position; that of query {query} in {where} is {found[query]}."
        )
    return Pattern(torch.from_numpy(np.array(found, dtype=np.int64)), None)


def _soft(matrix: Float[Tensor, "length length"], where: str) -> Pattern:
    """A matrix as a pattern; a hard one if all its entries are 0 or 1.

    Raises: UsageError when it is not a matrix of causal attention.
    """
    if not torch.isfinite(matrix).all():
        raise UsageError(f"{where} must be finite; it holds NaN or infinity.")
    if (matrix < 0).any():
        raise UsageError(f"attention must not be negative; {where} holds {float(matrix.min()):.3g}.")
    if (later := float(matrix.triu(1).sum())) > 1e-6:
        raise UsageError(f"{where} must be causal; {later:.3g} of its mass is on later tokens. Mask and normalise it.")
    deviation = (matrix.sum(1) - 1).abs()
    if float(deviation.max()) > 1e-4:
        row = int(deviation.argmax())
        raise UsageError(
            f"rows must sum to 1; row {row} of {where} sums to {float(matrix[row].sum()):.6g}. Normalise it."
        )
    if bool(((matrix == 0) | (matrix == 1)).all()):
        return Pattern(matrix.argmax(1), None)
    return Pattern(None, matrix)
