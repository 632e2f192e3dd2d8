"""Fits the rows of the registry: ridge regressions and closed forms from shared moments, then routes, then n-gram tables."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from matching.measures import linear_cka, svcca
from sae.types import Dictionary
from stitch.activations.paired import Paired, Tokens
from stitch.features.matching import Matching
from stitch.files.heap import give_back
from stitch.progress import Progress, Steps
from stitch.regression.moments import Key, Moments, accumulate
from stitch.regression.ridge import STRENGTHS, Ridge, ridge, shares
from stitch.translation import rows as registry
from stitch.translation.closed_forms import ClosedForm
from stitch.translation.groups import Sizes, groups, needed
from stitch.translation.inputs import ByToken, Input, Lift, Stream, reach, streams
from stitch.translation.module import Applied
from stitch.translation.routes import classes_at_random, classes_by_state, fit_routes, how_many, over_vocabulary, routed
from stitch.translation.rows import Row
from stitch.translation.tables import Residuals, contexts_within, fit_tables
from stitch.translation.types import Translation, merged

# Tokens that least squares reads. It has a few thousand columns: more tokens lower its error by less than 1 % at the same cost
# again. Tables of n-grams read all tokens.
LEAST_SQUARES_TOKENS = 2**17

Wants = Callable[[str], bool]


def everything(row: str) -> bool:
    """Accepts every row."""
    return True


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What translations are fitted from. λ and shrinkage are chosen on `held_out`; the report split is not among them.

    `inputs` are what a ridge may read, by name; "x" is among them. `first` is B's state for BOS at position 0, and `vocabulary`
    the number of token ids. Without `features` no closed form is fitted.
    """

    fit: Paired
    held_out: Paired
    inputs: Mapping[str, Input]
    first: Float[Tensor, " d_b"]
    vocabulary: int
    features: "MatchedFeatures | None" = None


@dataclass(frozen=True)
class MatchedFeatures:
    """The SAEs of A and B and the matching of their features, for closed forms and the null of the matching."""

    a: Dictionary
    b: Dictionary
    matching: Matching


@dataclass(frozen=True, kw_only=True)
class Options:
    """How translations are fitted.

    `ngrams`: rows of the n-gram tables, 0 for none. `routes`: classes of tokens with a matrix of their own, 0 for none, None
    for the number that `how_many` gives. `chunk`: tokens read at a time. `memory`: in bytes; moments take at most half of it.
    """

    ngrams: int
    routes: int | None
    seed: int
    chunk: int
    memory: int


@dataclass(frozen=True)
class Fitted:
    """Translations and nulls by row name. `shuffles` are the draws of `null:shuffled-matching`, which are reported as one row; as
    many as an eighth of the memory holds.

    `similarity` compares the two streams before any translation, by linear CKA and SVCCA; both are 1 for rotated copies.
    """

    translations: dict[str, Translation]
    nulls: dict[str, Translation]
    shuffles: list[Translation]
    ridges: dict[str, Ridge]
    shares: dict[str, dict[str, float]]  # of the variance of each ridge's output, by input
    similarity: dict[str, float]
    mean: Float[Tensor, " d_b"]
    left_out: tuple[str, ...]  # rows that were not fitted, as `memory` does not hold their moments
    look_ups: dict = field(default_factory=dict)  # tokens with rows and without, see `TokenTables.described`


def translate(
    evidence: Evidence, options: Options, wants: Wants = everything, progress: Progress | None = None
) -> Fitted:
    """Fits every row that `wants` accepts.

    Rows whose moments do not fit into memory together are fitted in groups, one after another. Codes whose products with
    themselves do not fit are solved for by conjugate gradients instead. Rows for which that is impossible, because the codes are
    dense or the row needs the products, are named in `left_out`.
    """
    first_chunk = next(_variables(evidence.held_out, evidence.inputs, options, None))
    sizes = Sizes.of(evidence.inputs, first_chunk, options.memory // 2)
    impossible = _impossible(sizes)

    def is_requested(row: Row) -> bool:
        return row.name not in impossible and registry.leads_to(row, wants)

    solved, least_squares = _least_squares(evidence, options, sizes, is_requested, progress)
    _add_routes(solved, evidence, options, is_requested, progress)
    _add_tables(solved, evidence, options, wants, progress)

    found = {**least_squares.closed, **solved}
    # The identity has no state for BOS, so that a model joined to itself gives the same bits as the model.
    placed = {
        name: translation if name == "translation:identity" else translation.starting_with(evidence.first)
        for name, translation in found.items()
        if wants(name)
    }
    of_kind = {kind: {name: one for name, one in placed.items() if registry.row(name).kind == kind} for kind in KINDS}
    return Fitted(
        of_kind["translation"],
        of_kind["null"],
        [translation.starting_with(evidence.first) for translation in least_squares.shuffles],
        least_squares.ridges,
        least_squares.shares,
        least_squares.similarity,
        least_squares.mean.float(),
        tuple(sorted(filter(wants, impossible))),
    )


KINDS = ("translation", "null")


def inputs_read(wants: Wants) -> set[str]:
    """Names of the inputs that the ridges of accepted rows may read."""
    return {name for row in registry.made_by(registry.RIDGE) if registry.leads_to(row, wants) for name in row.reads}


def from_ridge(name: str, found: Ridge, inputs: Mapping[str, Input]) -> Translation:
    """The translation of row `name`. Products with table rows are folded into tables, one per token offset."""
    terms = tuple(inputs[variable].term(weight) for variable, weight in found.weights.items())
    return merged(Translation(_short(name), terms, found.bias.float()))


def _short(name: str) -> str:
    return name.partition(":")[2]


def _impossible(sizes: Sizes) -> set[str]:
    """Names of the rows that need products too large for the memory."""

    def is_impossible(row: Row) -> bool:
        read = set(row.reads)
        return bool(read & sizes.impossible) or (row.needs_products and bool(read & sizes.implicit))

    return {row.name for row in registry.ROWS if row.made_by and is_impossible(row)}


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
class _LeastSquares:
    """What is solved from moments: ridges by row and the shares of their inputs, closed forms, similarity of the streams."""

    ridges: dict[str, Ridge]
    shares: dict[str, dict[str, float]]
    closed: dict[str, Translation]
    shuffles: list[Translation]
    similarity: dict[str, float]
    mean: Float[Tensor, " d_b"]


def _least_squares(
    evidence: Evidence,
    options: Options,
    sizes: Sizes,
    is_requested: Callable[[Row], bool],
    progress: Progress | None,
) -> tuple[dict[str, Translation], _LeastSquares]:
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
    first: _LeastSquares | None = None
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
    fit = _variables(sample, read, options, progress)
    held_out = _variables(evidence.held_out, read, options, progress, "held-out ")
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
) -> _LeastSquares:
    """The rows in closed form, the draws of the shuffled matching, and the similarity of the streams."""
    mean = moments.means["target"]
    covariances = [moments.covariance(*names) for names in (("x", "x"), ("target", "target"), ("x", "target"))]
    similarity = {"cka": linear_cka(*covariances), "svcca": svcca(*covariances)}
    if (features := evidence.features) is None:
        return _LeastSquares({}, {}, {}, [], similarity, mean)
    given = ClosedForm(
        evidence.fit.site_a, features.a, features.b, features.matching, moments, moments_held, options.seed
    )
    found = {row.name: function_of(row)(given) for row in rows}
    most = draws_within(options.memory, features.a.encoder.shape[1] * len(mean))
    shuffles = [given.through_features("shuffled-matching", wrong) for wrong in features.matching.shuffles[:most]]
    return _LeastSquares({}, {}, found, shuffles, similarity, mean)


def draws_within(memory: int, numbers: int) -> int:
    """How many draws of a null, each of so many numbers in float32, an eighth of the memory holds; at least one."""
    return max(1, memory // 8 // (4 * numbers))


def function_of(row: Row) -> Callable[[ClosedForm], Translation]:
    """The function that the registry names for a closed form."""
    module, _, name = (row.made_by or "").partition(":")
    return getattr(import_module(module), name)


def _add_routes(
    solved: dict[str, Translation],
    evidence: Evidence,
    options: Options,
    is_requested: Callable[[Row], bool],
    progress: Progress | None,
) -> None:
    """Adds the rows with a matrix per class of tokens."""
    inputs, fit = evidence.inputs, evidence.fit
    for row in registry.made_by(registry.ROUTES):
        if row.base not in solved or not is_requested(row):
            continue
        read = [found for one in row.reads if isinstance(found := inputs.get(one), Stream)]
        distinct = len(fit.a.windows.ids.unique())
        width = sum(fit.a.width(stream.site) for stream in read)
        number = how_many(options.routes, width, distinct, options.memory, len(evidence.first))
        if number > 1:
            step = Steps(f"classes of tokens for {row.short} (clusterings)", 1, progress)
            classes = _classes(row, evidence, number, options.seed)
            step()
            give_back()
            left = _left_by(solved[row.base], evidence, options.chunk, progress, row.short)
            solved[row.name] = routed(row.short, solved[row.base], fit_routes(streams(read), classes, *left, progress))
            give_back()


def _add_tables(
    solved: dict[str, Translation], evidence: Evidence, options: Options, wants: Wants, progress: Progress | None
) -> None:
    """Adds the rows with tables of another row's residuals, by token and n-gram."""
    for row in registry.made_by(registry.TABLES):
        if row.base in solved and wants(row.name):
            base = solved[row.base]
            left = _left_by(base, evidence, options.chunk, progress, row.short)
            ids = evidence.fit.a.windows.ids
            most = contexts_within(options.memory, len(evidence.first))
            terms = fit_tables(ids, *left, evidence.vocabulary, options.ngrams, most) if options.ngrams else []
            solved[row.name] = merged(replace(base, name=row.short, terms=(*base.terms, *terms)))
            give_back()


def _left_by(
    translation: Translation, evidence: Evidence, chunk: int, progress: Progress | None, row: str
) -> tuple[Residuals, Residuals]:
    """A translation's residuals y − ŷ, on the tokens to fit on and on the held-out ones. `row` is what they are read for."""
    applied = Applied(translation, evidence.fit.site_a, evidence.vocabulary)
    return (
        partial(_residuals, evidence.fit, applied, chunk, progress, f"residuals for {row} (tokens)"),
        partial(_residuals, evidence.held_out, applied, chunk, progress, f"held-out residuals for {row} (tokens)"),
    )


def _residuals(
    paired: Paired, applied: Applied, chunk: int, progress: Progress | None, task: str
) -> Iterator[tuple[Tokens, Tensor]]:
    """Tokens with as many preceding ids as n-grams need, and the residual y − ŷ of each."""
    done, total = 0, paired.tokens
    for tokens in paired.with_history(applied.streams, max(2, applied.history), chunk):
        yield tokens, tokens.target.float() - applied(tokens)
        done += len(tokens.target)
        if progress:
            progress(task, done, total)


def _classes(row: Row, evidence: Evidence, number: int, seed: int) -> Int64[Tensor, " vocabulary"]:
    """A class for every token id: by B's context-free state of the token; for the null, at random."""
    state = evidence.inputs["state"]
    assert isinstance(state, ByToken)
    if row.kind == "null":
        found = classes_at_random(len(state.table), number, seed)
    else:
        numbers = state.numbers(evidence.fit.a.windows.ids.flatten().long())
        found = classes_by_state(state.table.cpu(), numbers, number, seed)
    return over_vocabulary(found, state.keys, evidence.vocabulary)


def _variables(
    paired: Paired, inputs: Mapping[str, Input], options: Options, progress: Progress | None, which: str = ""
) -> Iterator[dict]:
    """The columns of all inputs, the target, and the target shuffled among the tokens of the chunk; chunk by chunk.

    Progress says `which` moments they are read for.
    """
    generator = torch.Generator().manual_seed(options.seed)
    done, total = 0, paired.tokens
    for tokens in paired.with_history(streams(inputs.values()), reach(inputs.values()), options.chunk):
        y = tokens.target
        columns = {name: found.columns(tokens) for name, found in inputs.items()}
        yield {**columns, "target": y, "shuffled": y[torch.randperm(len(y), generator=generator)]}
        done += len(y)
        if progress:
            progress(f"{which}moments (tokens)", done, total)
