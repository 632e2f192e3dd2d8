"""Rows of missing tokens as sparse combinations of shared ones, by orthogonal matching pursuit in the donor's embedding.

Source: arXiv 2506.06607, which mergekit implements as tokensurgeon. This is written from the paper's formula.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stitch.conversions.retokenization.at_once import rows_at_once
from stitch.conversions.retokenization.rows import Rows, copied, filled
from stitch.progress import Progress, Steps
from stitch.text.correspondence import Correspondence

TERMS = (8, 64)  # of a sparse combination
AFFORDABLE = 2e13  # FLOPs: a pursuit that takes more is left out
CORRELATIONS = 2**26  # of tokens with atoms, that are held at a time


def affordable(found: Correspondence, width: int) -> list[int]:
    """Those of TERMS with which the pursuit of all missing tokens takes at most AFFORDABLE FLOPs, for a donor of this width."""
    each = 2.0 * len(found.pieces) * found.shared * width
    return [terms for terms in TERMS if terms * each <= AFFORDABLE]


def pursued(
    own: Rows,
    donor: Float[Tensor, "new other"],
    found: Correspondence,
    terms: Sequence[int],
    progress: Progress | None = None,
) -> dict[int, Rows]:
    """Copied rows, and for tokens that the model lacks Σ c_i own_i, where Σ c_i donor_i is nearest to the donor's row.

    By number of terms. `own` are the model's rows by its ids, `donor` those of the model that the new tokenizer belongs to.
    """
    new, here = found.new[: found.shared].to(donor.device), found.own[: found.shared].to(own.device)
    atoms, wanted = donor.float()[new], donor.float()[filled(found).to(donor.device)]
    most = min(max(terms), *atoms.shape)
    chosen, weights = _pursuit(wanted, atoms, most, sorted({min(one, most) for one in terms}), progress)
    rows = {}
    for one in terms:
        taken = min(one, most)
        rows[one] = copied(own, found)
        made = [
            torch.einsum("tk,tkd->td", part.to(own.device), own.float()[here[atom.to(own.device)]])
            for part, atom in zip(weights[taken].split(1024), chosen[:, :taken].split(1024), strict=True)
        ]
        if made:
            rows[one][filled(found).to(own.device)] = torch.cat(made)
    return rows


def _pursuit(
    wanted: Float[Tensor, "tokens d"],
    atoms: Float[Tensor, "atoms d"],
    most: int,
    kept: Sequence[int],
    progress: Progress | None,
) -> tuple[Int[Tensor, "tokens most"], dict[int, Float[Tensor, "tokens _"]]]:
    """The atoms that each row is pursued by, in order, and their coefficients after each of the `kept` numbers of steps.

    A step takes the atom with the largest product with what is left, as the paper does, and refits all coefficients.
    """
    chosen, weights = [], {steps: [] for steps in kept}
    parts = wanted.split(rows_at_once(len(atoms), CORRELATIONS))
    tick = Steps("pursuit of missing rows (terms)", len(parts) * most, progress)
    for part in parts:
        left, taken = part, torch.zeros(len(part), 0, dtype=torch.long, device=part.device)
        for step in range(1, most + 1):
            products = (left @ atoms.T).abs()
            products.scatter_(1, taken, -1.0)
            taken = torch.cat([taken, products.argmax(1, keepdim=True)], 1)
            basis = atoms[taken].double()
            gram = basis @ basis.mT
            gram.diagonal(dim1=1, dim2=2).mul_(1 + 1e-8).add_(1e-12)  # two atoms may be nearly the same
            solved = torch.cholesky_solve(basis @ part.double()[:, :, None], torch.linalg.cholesky(gram))[:, :, 0]
            left = (part - torch.einsum("tk,tkd->td", solved, basis)).float()
            if step in weights:
                weights[step].append(solved.float())
            tick()
        chosen.append(taken)
    if not chosen:
        return torch.zeros(0, most, dtype=torch.long), {steps: torch.zeros(0, steps) for steps in kept}
    return torch.cat(chosen), {steps: torch.cat(parts) for steps, parts in weights.items()}
