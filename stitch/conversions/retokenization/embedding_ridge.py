"""Embedding rows that lead to the stream that a token's pieces leave behind the first block."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stitch.conversions.retokenization.passages import Passage
from stitch.conversions.retokenization.rows import Rows
from stitch.conversions.retokenization.streams import OnText
from stitch.progress import Progress, counted
from stitch.text.alignment import beside
from stitch.text.correspondence import Correspondence


def fitted_embedding(
    on: OnText,
    own: Rows,
    start: Rows,
    passages: Sequence[Passage],
    found: Correspondence,
    progress: Progress | None = None,
) -> Rows:
    """`start` with other rows for the tokens of several pieces that occur in the passages.

    The stream behind the first block is taken for an affine function M e + c of the row e that is read, fitted by ridge on the
    model's own tokens. A new row minimises n ‖M e + c − r‖² + s ‖e − e₀‖², where r is the mean stream at the last piece of the
    token's n occurrences, e₀ the row of `start`, and s the mean eigenvalue of MᵀM: one occurrence counts as much as e₀.
    """
    inside = torch.ones(len(on.before), dtype=torch.bool)
    inside[torch.tensor(on.starts[:-1])] = False
    map_, offset = _affine(own.float()[on.before[inside].to(own.device)], on.first[inside.to(on.first.device)])
    places, tokens = occurrences(on, passages, found)
    rows, unique = start.clone(), tokens.unique()
    if not len(unique):
        return rows
    values, vectors = torch.linalg.eigh(map_.T @ map_)
    strength = values.mean()
    for token in counted(unique.tolist(), "rows of the embedding (tokens)", progress):
        streams = on.first[places[tokens == token].to(on.first.device)].double().cpu()
        at = start[token].double().cpu()
        missing = map_.T @ (streams.mean(0) - map_ @ at - offset)
        change = vectors @ ((vectors.T @ missing) / (values + strength / len(streams)))
        rows[token] = (at + change).to(rows)
    return rows


def occurrences(
    on: OnText, passages: Sequence[Passage], found: Correspondence
) -> tuple[Int[Tensor, " occurrences"], Int[Tensor, " occurrences"]]:
    """Where tokens of several pieces occur so that the model's own tokens begin and end with them: the position of the last
    piece, and the new token."""
    several = torch.zeros(found.size, dtype=torch.bool)
    several[torch.tensor([token for token, pieces in found.pieces.items() if len(pieces) > 1], dtype=torch.long)] = True
    places, tokens = [], []
    for passage, start in zip(passages, on.starts, strict=False):
        lies = beside(passage.new, passage.own)
        begins = torch.cat([torch.tensor([True]), lies.coincides[:-1]])
        chosen = lies.coincides & begins & several[passage.new.ids]
        places.append(start + 1 + lies.index[chosen])
        tokens.append(passage.new.ids[chosen])
    return torch.cat(places), torch.cat(tokens)


def _affine(
    inputs: Float[Tensor, "positions d"], outputs: Float[Tensor, "positions d"]
) -> tuple[Float[Tensor, "d d"], Float[Tensor, " d"]]:
    """M and c of outputs ≈ M inputs + c, by ridge with a thousandth of the inputs' mean variance, in float64."""
    x, y = inputs.double().cpu(), outputs.double().cpu()
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    gram = x.T @ x
    gram.diagonal().add_(1e-3 * gram.diagonal().mean())
    map_ = torch.linalg.solve(gram, x.T @ y).T
    return map_, y_mean - map_ @ x_mean
