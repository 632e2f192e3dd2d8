"""One key head for several, in closed form: truncated SVDs in the metric of the activations.

Stacked keys K of a group have a second moment C; query head h reads the keys of its own old head, with second moment Q_h. The
error of a shared key S K read through T_h is, without rotation, Σ_h ‖Q_h^½ (P_h − T_hᵀ S) C^½‖², P_h picking the head's own
keys. Its minimum over all maps of rank d is a truncated SVD (Eckart & Young 1936, Psychometrika 1): S = Vᵀ C^-½ and T_hᵀ =
P_h C^½ V, V the top eigenvectors of C^½ (Σ_h P_hᵀ Q_h P_h) C^½.

RoPE turns planes by different angles, whose products average out over offsets: the error is then a sum over frequencies, and
each has a complex SVD of its own (rank 1 of G). Planes that hardly turn within the context do not average out: those are
merged by one real SVD.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from stitch.conversions.heads.merge import Keys, Values
from stitch.internals.attend import rotated

SLOW = 1.5  # radians over the context, up to which planes are merged as if they did not turn
FLOOR = 1e-12  # of the largest eigenvalue: below it a direction counts as unused


@dataclass(frozen=True)
class KeyMoments:
    """Of one group, from windows of `context` tokens: mean and covariance of stacked keys, second moments of its query heads.

    `head_of[i]` is the place in the group of the old key head that query head i reads.
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
        """Second moment of keys as scores see it: a softmax is blind to what all keys of a row share, so the mean counts only
        as far as rotation makes it differ between them."""
        share = (1 - mean_rotation(self.frequencies, self.context).abs().square()).clamp_min(0)
        weight = share.sqrt().repeat(2).repeat(len(self.mean) // self.size)
        mean = weight * self.mean
        return self.covariance + mean[:, None] * mean

    def importance(self) -> Float[Tensor, "stacked stacked"]:
        """Σ_h P_hᵀ Q_h P_h: block diagonal, the second moment of all queries that read an old head."""
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
    """Share of the scores' variance that a shared key gets wrong, if queries, keys and offsets were independent: the mean over
    offsets Δ of Σ_h ‖Q_h^½ (R(Δ) P_h − T_hᵀ R(Δ) S) C^½‖², beside that of the scores themselves."""
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
    """A complex SVD per frequency; planes that turn by at most `slow` radians over the context share one real SVD, as all
    do where positions are learned: then no shared key has a smaller `predicted_error`."""
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
    """The part of a moment of [re_1 … re_G, im_1 … im_G] that all rotations leave alone: a Hermitian matrix, as a real one."""
    half = len(matrix) // 2
    real = (matrix[:half, :half] + matrix[half:, half:]) / 2
    imaginary = (matrix[half:, :half] - matrix[:half, half:]) / 2
    return torch.cat([torch.cat([real, -imaginary], 1), torch.cat([imaginary, real], 1)])


def _places(planes: Tensor, old: int, d: int) -> Tensor:
    """Indices into stacked keys of these planes: all first dimensions, head by head, then all second ones."""
    first = torch.cat([planes + head * d for head in range(old)])
    return torch.cat([first, first + d // 2])


def _turned_upright(share: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
    """The plane's two rows made one complex row: (a, b; −b, a). The eigenvectors of a Hermitian matrix come in pairs of any
    phase and orientation."""
    half = share.shape[1] // 2
    a, b = share[0, :half], share[0, half:]
    upright = torch.stack([torch.cat([a, b]), torch.cat([-b, a])])
    # spread is orthogonal-dual to share: the same change of basis, inverted.
    change = upright @ torch.linalg.pinv(share)
    return upright, spread @ torch.linalg.inv(change)


def _shared(moment: Tensor, importance: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(S, C^½ V): the shared keys and how the old ones are read off them."""
    root, inverse = square_roots(moment)
    _, vectors = torch.linalg.eigh(root @ importance @ root)
    top = vectors[:, -rank:].flip(1)
    return top.T @ inverse, root @ top


def square_roots(moment: Float[Tensor, "n n"]) -> tuple[Float[Tensor, "n n"], Float[Tensor, "n n"]]:
    """Symmetric square root and its pseudo-inverse; directions below `FLOOR` of the largest are left out of the latter."""
    values, vectors = torch.linalg.eigh(moment)
    values = values.clamp_min(0)
    root = values.sqrt()
    inverse = torch.where(values > FLOOR * values.max(), root.clamp_min(1e-300).reciprocal(), 0.0)
    return (vectors * root) @ vectors.T, (vectors * inverse) @ vectors.T


def _keys(share: Tensor, spread: Tensor, moments: KeyMoments) -> Keys:
    """Scaled so that keys keep about their length: only the product of keys and queries counts, but dtypes are narrow."""
    d = moments.size
    length = torch.einsum("di,ij,dj->d", share, moments.moment(), share).mean().clamp_min(1e-300)
    usual = moments.moment().trace() / (len(moments.mean) // d) / d
    factor = (usual / length).sqrt()
    query = torch.stack([spread[head * d : (head + 1) * d].T for head in moments.head_of])
    return Keys(factor * share, query / factor)


def aligned(moments: KeyMoments) -> Keys:
    """The optimum without rotation, in the coordinates that turn most like RoPE's planes.

    The generator of the rotation is compressed onto the shared subspace; the planes of its skew part turn at frequencies of
    their own, and are matched to those that there are, by least squares of their logarithms (Hungarian).
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
    values, planes = values[d // 2 :], planes[:, d // 2 :]  # those that turn the right way round
    distance = (values.clamp_min(1e-12).log()[:, None] - moments.frequencies.clamp_min(1e-12).log()).square()
    rows, places = linear_sum_assignment(distance.numpy())
    basis = torch.zeros(d, d, dtype=torch.float64)
    basis[:, places] = planes[:, rows].real * 2**0.5
    basis[:, places + d // 2] = -planes[:, rows].imag * 2**0.5
    return _keys(basis.T @ top.T @ inverse, root @ top @ torch.linalg.inv(basis.T), moments)


def contracted_values(
    moment: Float[Tensor, "stacked stacked"], output: Float[Tensor, "heads d width"], head_of: tuple[int, ...]
) -> Values:
    """Minimises Σ_h E‖W_hᵀ (P_h − M_hᵀ L) y‖² over L and M_h: y the stacked values that heads attend to, of second moment
    `moment`, W_h the output weights, of which M_h W_h are the new ones."""
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
    """Share of what heads write that shared values get wrong, if all of them attended to alike: of the sum of squares, head
    by head."""
    root, d = square_roots(moment)[0], output.shape[1]
    wrong = total = 0.0
    for new, own, head in zip(values.output, output, head_of, strict=True):
        right = own.T @ root[head * d : (head + 1) * d]
        wrong += float((right - new.T @ values.shared @ root).square().sum())
        total += float(right.square().sum())
    return wrong / max(total, 1e-300)
