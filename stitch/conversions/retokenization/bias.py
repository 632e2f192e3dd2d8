"""A bias per token that makes the model's mean probabilities those of the text, in the head or folded into its rows."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stitch.conversions.retokenization.at_once import rows_at_once
from stitch.conversions.retokenization.scoring import Head, logits, passes_over
from stitch.progress import Progress, Steps

ROUNDS = 4
MOST = 4096  # positions that are used


def with_bias(
    stream: Float[Tensor, "positions d"],
    targets: Int[Tensor, " positions"],
    head: Head,
    cap: float | None,
    progress: Progress | None = None,
) -> Head:
    """The head with b added to its scores, so that Σ_t p_t(v) is the count of v, in a few rounds of log(count / Σ p).

    Counts are smoothed by the probabilities before the first round, so that tokens which do not occur keep together what
    Good & Turing's estimate leaves them: as many as there are tokens that occur once. A head with a bias column gets b there.
    In another b · u is added to the rows, where u · h is nearest to 1 in least squares on `stream`.
    """
    stream, targets = stream[:MOST], targets[:MOST]
    columns, d = head.shape[1], stream.shape[1]
    direction = torch.zeros(columns, device=head.device)
    if columns > d:
        direction[d] = 1.0
    else:
        direction = constant_direction(stream).to(head)
    counts = torch.bincount(targets.cpu(), minlength=len(head)).double()
    smoothed, changed = None, head
    step = Steps("bias (parts of the text)", ROUNDS * passes_over(len(stream), len(head)), progress)
    for _ in range(ROUNDS):
        said = mass(stream, changed, cap, step)
        if smoothed is None:
            smoothed = _smoothed(counts, said)
        bias = (smoothed / said.clamp_min(1e-30)).log().clamp(-10, 10)
        changed = changed + bias.to(head)[:, None] * direction
    return changed


def constant_direction(stream: Float[Tensor, "positions d"]) -> Float[Tensor, " d"]:
    """u that minimises Σ (u · h − 1)² + λ ‖u‖², with λ a thousandth of the mean square of a column."""
    inputs = stream.double().cpu()
    gram = inputs.T @ inputs
    gram.diagonal().add_(1e-3 * gram.diagonal().mean())
    return torch.linalg.solve(gram, inputs.sum(0))


def mass(
    stream: Float[Tensor, "positions d"], head: Head, cap: float | None, tick: Callable[[], None] = lambda: None
) -> Float[Tensor, " vocabulary"]:
    """Σ of probabilities over positions, a few at a time. Scores are turned into exponentials in place: they are large."""
    total = torch.zeros(len(head), dtype=torch.float64)
    for part in stream.split(rows_at_once(len(head))):
        found = logits(part, head, cap)
        found.sub_(found.amax(-1, keepdim=True)).exp_()
        total += (found.sum(-1).reciprocal() @ found).double().cpu()
        tick()
    return total


def _smoothed(counts: Float[Tensor, " vocabulary"], mass: Float[Tensor, " vocabulary"]) -> Float[Tensor, " vocabulary"]:
    """Counts mixed with `mass` so that tokens which do not occur have together as many as there are tokens that occur once."""
    once = float((counts == 1).sum())
    unseen = float(mass[counts == 0].sum())
    share = min(0.5, once / max(unseen, 1e-30))  # of the model's own probabilities in the mixture
    return (1 - share) * counts + share * mass
