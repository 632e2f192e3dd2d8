"""Merges key heads in closed form, by truncated SVDs in the metric of the activations.

Stacked keys K of a group have a second moment C. Query head h has the second moment Q_h and reads the keys of its old head,
selected by P_h. Without rotation, the error of a shared key S K read through T_h is Σ_h ‖Q_h^½ (P_h − T_hᵀ S) C^½‖². Its minimum
over all maps of rank d is a truncated SVD (Eckart & Young 1936, Psychometrika 1): S = Vᵀ C^-½ and T_hᵀ = P_h C^½ V, where V are
the top eigenvectors of C^½ (Σ_h P_hᵀ Q_h P_h) C^½.

RoPE rotates planes by different angles, and products of different planes average out over offsets. The error is then a sum over
frequencies with one complex SVD each (rank 1 of G). Planes that hardly rotate within the context do not average out and are
merged by one real SVD.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from stitch.conversions.heads.merge import Keys, Values
from stitch.internals.attend import rotated

SLOW = 1.5  # radians over the context, up to which planes are merged as if they did not rotate
FLOOR = 1e-12  # relative to the largest eigenvalue: smaller directions count as unused


@dataclass(frozen=True)
class KeyMoments:
    """Mean and covariance of a group's stacked keys and second moments of its query heads, in windows of `context` tokens.

    `head_of[i]` is the index in the group of the old key head that query head i reads.
    """

    mean: Float[Tensor, " stacked"]
    covariance: Float[Tensor, "stacked stacked"]
    queries: Float[Tensor, "heads d d"]
    head_of: tuple[int, ...]
    frequencies: Float[Tensor, " planes"]
    context: int

    @property
    def size(self) -> int:
        return self.queries.shape[1]

    def moment(self) -> Float[Tensor, "stacked stacked"]:
        """Second moment of keys for scores. A softmax ignores what all keys of a row share, so the mean counts only as far as
        rotation makes it differ between keys."""
        share = (1 - mean_rotation(self.frequencies, self.context).abs().square()).clamp_min(0)
        weight = share.sqrt().repeat(2).repeat(len(self.mean) // self.size)
        mean = weight * self.mean
        return self.covariance + mean[:, None] * mean

    def importance(self) -> Float[Tensor, "stacked stacked"]:
        """Σ_h P_hᵀ Q_h P_h. Its diagonal blocks are the summed second moments of the queries that read an old head."""
        old = len(self.mean) // self.size
        blocks = torch.zeros(old, self.size, self.size, dtype=torch.float64)
        for query, head in zip(self.queries, self.head_of, strict=True):
            blocks[head] += query
        return torch.block_diag(*blocks)


def mean_rotation(frequencies: Float[Tensor, " planes"], context: int) -> Complex[Tensor, " planes"]:
    """Mean of e^{iθΔ} over the offsets Δ of a causal window."""
    offsets = torch.arange(context, dtype=torch.float64)
    weights = (context - offsets) / (context - offsets).sum()
    return torch.polar(torch.ones_like(frequencies), offsets[:, None] * frequencies).T @ weights.to(torch.complex128)


def predicted_error(keys: Keys, moments: KeyMoments, offsets: int = 64) -> float:
    """Unexplained share of the scores' variance, assuming that queries, keys and offsets are independent.

    It is the mean over offsets Δ of Σ_h ‖Q_h^½ (R(Δ) P_h − T_hᵀ R(Δ) S) C^½‖², divided by that of the scores themselves.
    """
    root, d = square_roots(moments.moment())[0], moments.size
    at = torch.linspace(0, moments.context - 1, offsets).round().long()
    weights = (moments.context - at).double()
    if not moments.frequencies.any():
        at, weights = at[:1], weights[:1]
    wrong = total = 0.0
    of_shared = rotated((keys.shared @ root).T.expand(len(at), -1, -1).transpose(0, 1), moments.frequencies, at)
    for query, second, head in zip(keys.query, moments.queries, moments.head_of, strict=True):
        own = rotated(
            root[head * d : (head + 1) * d].T.expand(len(at), -1, -1).transpose(0, 1), moments.frequencies, at
        )
        half = square_roots(second)[0]
        right, off = own @ half, (own - of_shared @ query) @ half
        wrong += float((off.square().sum((0, 2)) * weights).sum())
        total += float((right.square().sum((0, 2)) * weights).sum())
    return wrong / max(total, 1e-300)


def by_frequency(moments: KeyMoments, *, slow: float = 0.0) -> Keys:
    """One complex SVD per frequency. Planes that rotate by at most `slow` radians over the context share one real SVD.

    With learned positions all planes do, and no shared key has a smaller `predicted_error`.
    """
    d, planes = moments.size, moments.size // 2
    old = len(moments.mean) // d
    moment, importance = moments.moment(), moments.importance()
    share, spread = torch.zeros(d, old * d, dtype=torch.float64), torch.zeros(old * d, d, dtype=torch.float64)
    merged = moments.frequencies * moments.context <= slow
    for plane in (~merged).nonzero()[:, 0].tolist():
        of = _places(torch.tensor([plane]), old, d)
        one, back = _shared(commuting(moment[of][:, of]), commuting(importance[of][:, of]), 2)
        one, back = _turned_upright(one, back)
        share[[plane, plane + planes]] = share[[plane, plane + planes]].index_copy(1, of, one)
        spread[:, [plane, plane + planes]] = spread[:, [plane, plane + planes]].index_copy(0, of, back)
    if merged.any():
        of = _places(merged.nonzero()[:, 0], old, d)
        rows = _places(merged.nonzero()[:, 0], 1, d)
        one, back = _shared(moment[of][:, of], importance[of][:, of], len(rows))
        share[rows] = share[rows].index_copy(1, of, one)
        spread[:, rows] = spread[:, rows].index_copy(0, of, back)
    return _keys(share, spread, moments)


def commuting(matrix: Float[Tensor, "stacked stacked"]) -> Float[Tensor, "stacked stacked"]:
    """The part of a moment of [re_1 … re_G, im_1 … im_G] that is invariant under rotation: a Hermitian matrix, in real form."""
    half = len(matrix) // 2
    real = (matrix[:half, :half] + matrix[half:, half:]) / 2
    imaginary = (matrix[half:, :half] - matrix[:half, half:]) / 2
    return torch.cat([torch.cat([real, -imaginary], 1), torch.cat([imaginary, real], 1)])


def _places(planes: Tensor, old: int, d: int) -> Tensor:
    """Indices of these planes in stacked keys: the first dimensions of all heads, then the second ones."""
    first = torch.cat([planes + head * d for head in range(old)])
    return torch.cat([first, first + d // 2])


def _turned_upright(share: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
    """Brings the two rows of a plane into the form of one complex row, (a, b; −b, a).

    Eigenvectors of a Hermitian matrix in real form come in pairs of arbitrary phase and orientation.
    """
    half = share.shape[1] // 2
    a, b = share[0, :half], share[0, half:]
    upright = torch.stack([torch.cat([a, b]), torch.cat([-b, a])])
    # spread is dual to share, so its basis changes by the inverse.
    change = upright @ torch.linalg.pinv(share)
    return upright, spread @ torch.linalg.inv(change)


def _shared(moment: Tensor, importance: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(S, C^½ V): the map to shared keys and the map back to the old ones."""
    root, inverse = square_roots(moment)
    _, vectors = torch.linalg.eigh(root @ importance @ root)
    top = vectors[:, -rank:].flip(1)
    return top.T @ inverse, root @ top


def square_roots(moment: Float[Tensor, "n n"]) -> tuple[Float[Tensor, "n n"], Float[Tensor, "n n"]]:
    """Symmetric square root and its pseudo-inverse, in which eigenvalues below FLOOR times the largest count as 0."""
    values, vectors = torch.linalg.eigh(moment)
    values = values.clamp_min(0)
    root = values.sqrt()
    inverse = torch.where(values > FLOOR * values.max(), root.clamp_min(1e-300).reciprocal(), 0.0)
    return (vectors * root) @ vectors.T, (vectors * inverse) @ vectors.T


def _keys(share: Tensor, spread: Tensor, moments: KeyMoments) -> Keys:
    """Keys scaled to about their old length. Scores depend only on the product with queries, but narrow dtypes on the scale."""
    d = moments.size
    length = torch.einsum("di,ij,dj->d", share, moments.moment(), share).mean().clamp_min(1e-300)
    before = moments.moment().trace() / (len(moments.mean) // d) / d
    factor = (before / length).sqrt()
    query = torch.stack([spread[head * d : (head + 1) * d].T for head in moments.head_of])
    return Keys(factor * share, query / factor)


def aligned(moments: KeyMoments) -> Keys:
    """The optimum without rotation, in coordinates that rotate most like RoPE's planes.

    The generator of the rotation is projected onto the shared subspace. The planes of its skew part are assigned to RoPE's planes
    by least squares on the logarithms of their frequencies (Hungarian algorithm).
    """
    from scipy.optimize import linear_sum_assignment

    d, old = moments.size, len(moments.mean) // moments.size
    root, inverse = square_roots(moments.moment())
    _, vectors = torch.linalg.eigh(root @ moments.importance() @ root)
    top = vectors[:, -d:]
    turn = torch.zeros(d, d, dtype=torch.float64)
    plane = torch.arange(d // 2)
    turn[plane + d // 2, plane], turn[plane, plane + d // 2] = moments.frequencies, -moments.frequencies
    compressed = top.T @ inverse @ torch.block_diag(*[turn] * old) @ root @ top
    values, planes = torch.linalg.eigh(-1j * (compressed - compressed.T).to(torch.complex128) / 2)
    values, planes = values[d // 2 :], planes[:, d // 2 :]  # those with the orientation of RoPE
    distance = (values.clamp_min(1e-12).log()[:, None] - moments.frequencies.clamp_min(1e-12).log()).square()
    rows, places = linear_sum_assignment(distance.numpy())
    basis = torch.zeros(d, d, dtype=torch.float64)
    basis[:, places] = planes[:, rows].real * 2**0.5
    basis[:, places + d // 2] = -planes[:, rows].imag * 2**0.5
    return _keys(basis.T @ top.T @ inverse, root @ top @ torch.linalg.inv(basis.T), moments)


def contracted_values(
    moment: Float[Tensor, "stacked stacked"], output: Float[Tensor, "heads d width"], head_of: tuple[int, ...]
) -> Values:
    """Minimises Σ_h E‖W_hᵀ (P_h − M_hᵀ L) y‖² over L and M_h.

    y are stacked attended values with the second moment `moment`, W_h old and M_h W_h new output weights.
    """
    d, old = output.shape[1], len(moment) // output.shape[1]
    blocks = torch.zeros(old, d, d, dtype=torch.float64)
    for own, head in zip(output, head_of, strict=True):
        blocks[head] += own @ own.T
    share, spread = _shared(moment, torch.block_diag(*blocks), d)
    return Values(
        share,
        torch.stack([spread[head * d : (head + 1) * d].T @ own for own, head in zip(output, head_of, strict=True)]),
    )


def predicted_value_error(
    values: Values,
    moment: Float[Tensor, "stacked stacked"],
    output: Float[Tensor, "heads d width"],
    head_of: tuple[int, ...],
) -> float:
    """Unexplained share of the summed squares of head outputs, assuming that all heads attend alike."""
    root, d = square_roots(moment)[0], output.shape[1]
    wrong = total = 0.0
    for new, own, head in zip(values.output, output, head_of, strict=True):
        right = own.T @ root[head * d : (head + 1) * d]
        wrong += float((right - new.T @ values.shared @ root).square().sum())
        total += float(right.square().sum())
    return wrong / max(total, 1e-300)
