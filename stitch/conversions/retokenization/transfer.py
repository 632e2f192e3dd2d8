"""How probability of the model's own tokens becomes probability of new ones: a sparse matrix, from spellings and text."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.conversions.retokenization.at_once import rows_at_once
from stitch.conversions.retokenization.scoring import Head, logits
from stitch.conversions.retokenization.streams import OnText
from stitch.progress import Progress, counted
from stitch.text.correspondence import Correspondence
from stitch.text.reader import Reader

KEPT = 0.01  # least share of a token's probability that stays with its first new token


@dataclass(frozen=True)
class Probabilities:
    """Mean probabilities that the model gives on a text: of every own token `everywhere`, and of a piece `after` another.

    The second are over positions where the model has read the first piece, for all neighbours in the pieces of some new token.
    Where that piece does not occur they are over all positions.
    """

    everywhere: Float[Tensor, " own"]
    after: dict[tuple[int, int], float]


def probabilities_of(
    on: OnText, head: Head, cap: float | None, found: Correspondence, progress: Progress | None = None
) -> Probabilities:
    after: dict[int, list[int]] = {}
    for one, other in dict.fromkeys(pair for pieces in found.pieces.values() for pair in pairwise(pieces)):
        after.setdefault(one, []).append(other)
    wanted = {piece: torch.tensor(others, device=on.final.device) for piece, others in after.items()}
    sums = {piece: torch.zeros(len(others), dtype=torch.float64) for piece, others in wanted.items()}
    counts = dict.fromkeys(wanted, 0)
    everywhere = torch.zeros(len(head), dtype=torch.float64)
    some = rows_at_once(len(head))
    parts = list(zip(on.final.split(some), on.before.split(some), strict=True))
    for stream, before in counted(parts, "what the model says next (parts)", progress):
        probabilities = logits(stream, head, cap).softmax(-1)
        everywhere += probabilities.sum(0, dtype=torch.float64).cpu()
        for piece in before.unique().tolist():
            if piece in wanted:
                places = (before == piece).nonzero()[:, 0].to(stream.device)
                sums[piece] += probabilities[places[:, None], wanted[piece]].sum(0, dtype=torch.float64).cpu()
                counts[piece] += len(places)
    everywhere /= len(on.before)
    means = {
        piece: sums[piece] / counts[piece] if counts[piece] else everywhere[others.cpu()]
        for piece, others in wanted.items()
    }
    pairs = {
        (piece, other): float(mean)
        for piece, others in after.items()
        for other, mean in zip(others, means[piece], strict=True)
    }
    return Probabilities(everywhere, pairs)


def transfer_matrix(
    own: Reader, new: Reader, found: Correspondence, following: dict[tuple[int, int], float], rows: int
) -> Float[Tensor, "own new"]:
    """T, sparse, so that p T are probabilities of the next new token, where p are those of the model's next token.

    A token of the model passes its probability to the new token that its spelling begins with, but for the shares of longer new
    tokens that begin with it: the probability of the pieces that follow. Special tokens pass it to those of the same role.
    `rows` are those of the model's head; tokens that it has none of are left out.
    """
    entries: dict[tuple[int, int], float] = {}
    moved = torch.zeros(rows, dtype=torch.float64)
    for token, pieces in found.pieces.items():
        if len(pieces) > 1 and max(pieces) < rows:
            share = 1.0
            for pair in pairwise(pieces):
                share *= following[pair]
            entries[pieces[0], token] = share
            moved[pieces[0]] += share
    factor = ((1 - KEPT) / moved.clamp_min(1e-30)).clamp_max(1.0)
    entries = {(piece, token): share * float(factor[piece]) for (piece, token), share in entries.items()}
    spelt = [(index, piece) for index, piece in enumerate(own.vocabulary.pieces[:rows]) if piece]
    for (index, _), tokens in zip(spelt, new.spell([piece for _, piece in spelt]), strict=True):
        if tokens:
            entries[index, tokens[0]] = entries.get((index, tokens[0]), 0.0) + 1 - float(moved[index] * factor[index])
    for index, token in zip(found.own[found.shared :].tolist(), found.new[found.shared :].tolist(), strict=True):
        if index < rows:
            entries[index, token] = 1.0
    places = torch.tensor(list(entries), dtype=torch.long).T
    values = torch.tensor(list(entries.values()), dtype=torch.float32)
    return torch.sparse_coo_tensor(places, values, (rows, found.size), check_invariants=True).coalesce()
