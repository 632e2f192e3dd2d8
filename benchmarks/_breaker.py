"""Breaker tokens (arXiv 2601.00065): rows for a donor's head that are unremarkable there and salient where they are carried over.

Written from the paper's abstract.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stitch.conversions.retokenization.omp import pursued
from stitch.conversions.retokenization.rows import clipped
from stitch.conversions.retokenization.scoring import Head, logits
from stitch.text.correspondence import Correspondence

STRENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0)  # root mean square of what is added to the token's logit in the donor
INERT = 1e-3  # mean probability of the token in the donor, at most; it is never the likeliest


@dataclass(frozen=True)
class Against:
    """Streams, and what a row has to beat on each: the best logit of a head, and the logarithm of the summed exponentials."""

    streams: Tensor
    best: Tensor
    total: Tensor

    @classmethod
    def of(cls, streams: Tensor, head: Head) -> "Against":
        found = logits(streams, head, None)
        return cls(streams, found.amax(1), found.logsumexp(1))

    def said(self, row: Tensor) -> tuple[float, float]:
        """How often the row is the likeliest, and its mean probability."""
        mine = logits(self.streams, row[None], None)[:, 0]
        return float((mine > self.best).float().mean()), float(torch.sigmoid(mine - self.total).mean())


def breaker(
    own: Head, donor: Head, found: Correspondence, terms: int, base: Tensor, theirs: Tensor, tokens: Sequence[int]
) -> tuple[int, Tensor]:
    """That of `tokens`, and its row for the donor's head, which the base says most often after a pursuit that is clipped.

    `base` and `theirs` are what the heads of the two models read. To the token's row Σ c_i donor_i is added over the shared rows
    next to it; c maximises the step along the base's mean stream at a given mean square of what it adds to the donor's logit.
    """
    atoms, here = donor[found.new[: found.shared]], own[found.own[: found.shared]]
    second, longest = theirs.T @ theirs / len(theirs), donor.norm(dim=1).max()
    at_base, at_donor = Against.of(base, here), Against.of(theirs, donor)
    best: tuple[float, int, Tensor] | None = None
    for token in tokens:
        chosen = (atoms @ donor[token]).abs().topk(min(terms, len(atoms))).indices
        gram = atoms[chosen] @ second @ atoms[chosen].T
        gram.diagonal().add_(1e-3 * gram.diagonal().mean())
        aim = torch.linalg.solve(gram, here[chosen] @ base.mean(0))
        step = atoms[chosen].T @ (aim / (aim @ gram @ aim).sqrt())
        for strength in STRENGTHS:
            row = donor[token] + strength * step
            top, probability = at_donor.said(row)
            if top or probability > INERT or row.norm() > longest:
                continue
            one = replace(found, pieces={token: found.pieces[token]})
            made = pursued(own, planted(donor, {token: row}), one, [terms])[terms]
            success, _ = at_base.said(clipped(made, own, one)[0][token])
            if best is None or success > best[0]:
                best = (success, token, row)
    if best is None:
        raise ValueError("no row is inert in the donor.")
    return best[1:]


def planted(head: Head, rows: dict[int, Tensor]) -> Head:
    changed = head.clone()
    for token, row in rows.items():
        changed[token] = row
    return changed
