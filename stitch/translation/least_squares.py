"""Everything that is solved from moments: ridges, closed forms, the null of the matching, and the similarity of the streams."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module

import torch
from jaxtyping import Float
from torch import Tensor

from matching.measures import linear_cka, svcca
from stitch.activations.paired import Paired
from stitch.files.heap import give_back
from stitch.progress import Progress, Steps
from stitch.regression.moments import Key, Moments, accumulate
from stitch.regression.ridge import STRENGTHS, Ridge, ridge, shares
from stitch.translation import rows as registry
from stitch.translation.closed_forms import ClosedForm
from stitch.translation.evidence import LEAST_SQUARES_TOKENS, Evidence, Options, variables
from stitch.translation.groups import Sizes, groups, needed
from stitch.translation.inputs import Input, Lift, Stream
from stitch.translation.rows import Row
from stitch.translation.types import Translation, merged


@dataclass(frozen=True)
class _Request:
    """Rows that are solved from moments: ridges by name with the inputs they read, ridges on shuffled targets, closed forms."""

    reads: dict[str, tuple[str, ...]]
    shuffled: list[Row]
    closed: list[Row]

    @classmethod
    def of(cls, inputs: Mapping[str, Input], is_requested: Callable[[Row], bool]) -> "_Request":
        ridges = registry.made_by(registry.RIDGE)
        reads = {
            row.name: tuple(name for name in row.reads if name in inputs)
            for row in ridges
            if row.target == "target" and is_requested(row)
        }
        shuffled = [row for row in ridges if row.target != "target"]
        return cls(reads, shuffled, [row for row in registry.closed_forms() if is_requested(row)])

    @property
    def needed_first(self) -> set[Key]:
        """The products that closed forms and ridges on shuffled targets are solved from. They belong to the first group."""
        found: set[Key] = needed(("x",)) | {("x", row.target) for row in self.shuffled}
        return found.union(*(needed(row.reads) for row in self.closed))


@dataclass(frozen=True)
class LeastSquares:
    """What is solved from moments: ridges by row and the shares of their inputs, closed forms, similarity of the streams."""

    ridges: dict[str, Ridge]
    shares: dict[str, dict[str, float]]
    closed: dict[str, Translation]
    shuffles: list[Translation]
    similarity: dict[str, float]
    mean: Float[Tensor, " d_b"]


def solve(
    evidence: Evidence,
    options: Options,
    sizes: Sizes,
    is_requested: Callable[[Row], bool],
    progress: Progress | None,
) -> tuple[dict[str, Translation], LeastSquares]:
    """Ridges as translations, and everything else that is solved from the same moments.

    Rows are solved in groups, and a group's moments are freed before the next group is read. The first group also has the
    moments of the closed forms and of the ridges on shuffled targets.
    """
    inputs = evidence.inputs
    request = _Request.of(inputs, is_requested)
    widest = max(
        (len(found.dictionary.encoder_bias) for found in inputs.values() if isinstance(found, Lift)), default=0
    )
    sample = evidence.fit.sample(max(LEAST_SQUARES_TOKENS, 8 * widest), options.seed)
    ridges: dict[str, Ridge] = {}
    parts: dict[str, dict[str, float]] = {}
    first: LeastSquares | None = None
    for names, pairs in groups(request.reads, request.needed_first, sizes, sample.tokens):
        moments, moments_held = _moments(evidence, sample, pairs, options, sizes, progress)
        shuffled = request.shuffled if first is None else []
        most = len(STRENGTHS) * (len(names) + len(shuffled))
        step = Steps("least squares (strengths, at most)", most, progress)
        solved = {name: _ridge_of_row(request.reads[name], inputs, moments, moments_held, step) for name in names}
        for row in shuffled:
            solved[row.name] = ridge(moments, moments_held, row.reads, target=row.target, tick=step)
        step.end()
        if first is None:
            first = _closed_forms(evidence, options, request.closed, moments, moments_held)
        ridges |= solved
        parts |= {name: shares(found, moments) for name, found in solved.items()}
        del moments, moments_held
        give_back()
    assert first is not None  # there is at least one group
    translations = {name: from_ridge(name, found, inputs) for name, found in ridges.items()}
    return translations, replace(first, ridges=ridges, shares=parts)


def _moments(
    evidence: Evidence, sample: Paired, pairs: set[Key], options: Options, sizes: Sizes, progress: Progress | None
) -> tuple[Moments, Moments]:
    """The products `pairs` over the tokens of `sample` and over the held-out ones."""
    bounded = {name for name, found in evidence.inputs.items() if not isinstance(found, Stream)}
    read = {name: found for name, found in evidence.inputs.items() if any(name in pair for pair in pairs)}
    fit = variables(sample, read, options, progress)
    held_out = variables(evidence.held_out, read, options, progress, "held-out ")
    return (
        accumulate(fit, pairs, bounded, implicit=sizes.implicit),
        accumulate(held_out, pairs, bounded, implicit=sizes.implicit, sums_of_single=torch.float32),
    )


def _ridge_of_row(
    reads: tuple[str, ...],
    inputs: Mapping[str, Input],
    moments: Moments,
    moments_held: Moments,
    tick: Callable[[], None],
) -> Ridge:
    """The ridge on inputs `reads`. Codes have a λ of their own."""
    lift = next((name for name in reads if isinstance(inputs[name], Lift)), None)
    return ridge(moments, moments_held, reads, apart=lift, tick=tick)


def _closed_forms(
    evidence: Evidence, options: Options, rows: list[Row], moments: Moments, moments_held: Moments
) -> LeastSquares:
    """The rows in closed form, the draws of the shuffled matching, and the similarity of the streams."""
    mean = moments.means["target"]
    covariances = [moments.covariance(*names) for names in (("x", "x"), ("target", "target"), ("x", "target"))]
    similarity = {"cka": linear_cka(*covariances), "svcca": svcca(*covariances)}
    if (features := evidence.features) is None:
        return LeastSquares({}, {}, {}, [], similarity, mean)
    given = ClosedForm(
        evidence.fit.site_a, features.a, features.b, features.matching, moments, moments_held, options.seed
    )
    found = {row.name: function_of(row)(given) for row in rows}
    most = draws_within(options.memory, features.a.encoder.shape[1] * len(mean))
    shuffles = [given.through_features("shuffled-matching", wrong) for wrong in features.matching.shuffles[:most]]
    return LeastSquares({}, {}, found, shuffles, similarity, mean)


def draws_within(memory: int, numbers: int) -> int:
    """How many draws of a null, each of so many numbers in float32, an eighth of the memory holds; at least one."""
    return max(1, memory // 8 // (4 * numbers))


def function_of(row: Row) -> Callable[[ClosedForm], Translation]:
    """The function that the registry names for a closed form."""
    module, _, name = (row.made_by or "").partition(":")
    return getattr(import_module(module), name)


def from_ridge(name: str, found: Ridge, inputs: Mapping[str, Input]) -> Translation:
    """The translation of row `name`. Products with table rows are folded into tables, one per token offset."""
    terms = tuple(inputs[variable].term(weight) for variable, weight in found.weights.items())
    return merged(Translation(name.partition(":")[2], terms, found.bias.float()))
