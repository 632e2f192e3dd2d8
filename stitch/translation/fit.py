"""Fits the rows of the registry: ridge regressions and closed forms from one pass over the tokens, then routes and tables."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from matching.measures import linear_cka, svcca
from sae.types import Dictionary
from stitch.activations.paired import Paired, Tokens
from stitch.features.matching import Matching
from stitch.progress import Progress
from stitch.regression.moments import Key, Moments, accumulate
from stitch.regression.ridge import Ridge, ridge, shares
from stitch.translation import rows as registry
from stitch.translation.closed_forms import ClosedForm
from stitch.translation.groups import Sizes, groups, needed
from stitch.translation.inputs import ByToken, Input, Lift, Stream, reach, streams
from stitch.translation.module import Applied
from stitch.translation.routes import classes_at_random, classes_by_state, fit_routes, how_many, routed
from stitch.translation.rows import Row
from stitch.translation.tables import Residuals, fit_tables
from stitch.translation.types import Translation, merged

# Least squares has a few thousand columns. More tokens than these lower its error by less than a hundredth and cost the same
# again. Tables of n-grams read all tokens.
LEAST_SQUARES_TOKENS = 2**17

Wants = Callable[[str], bool]


def everything(row: str) -> bool:
    """Wants every row."""
    return True


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What translations are fitted from. λ and shrinkage are chosen on `held_out`; nothing here sees the report split.

    `inputs` are what a ridge may read, by name ("x" among them). `first` is B's state for BOS at position 0. `vocabulary`
    is the number of token ids.
    """

    fit: Paired
    held_out: Paired
    inputs: Mapping[str, Input]
    a: Dictionary
    b: Dictionary
    matching: Matching
    first: Float[Tensor, " d_b"]
    vocabulary: int


@dataclass(frozen=True, kw_only=True)
class Options:
    """`ngrams`: rows of the n-gram tables (0: none). `routes`: classes of tokens with a matrix of their own (0: none; None:
    see `how_many`). `chunk`: tokens read at a time. `memory`: bytes; moments take at most half of it at a time."""

    ngrams: int
    routes: int | None
    seed: int
    chunk: int
    memory: int


@dataclass(frozen=True)
class Fitted:
    """Translations by row name; `shuffles` are the draws of `null:shuffled-matching`, reported as one row.

    `similarity` says how alike the two streams are before any translation: linear CKA and SVCCA, both 1 for rotated copies.
    """

    translations: dict[str, Translation]
    nulls: dict[str, Translation]
    shuffles: list[Translation]
    ridges: dict[str, Ridge]
    shares: dict[str, dict[str, float]]  # of the variance of each ridge's output, by input
    similarity: dict[str, float]
    mean: Float[Tensor, " d_b"]
    left_out: tuple[str, ...]  # rows whose moments the memory does not hold


def translate(
    evidence: Evidence, options: Options, wants: Wants = everything, progress: Progress | None = None
) -> Fitted:
    """Fits every row that `wants` approves of.

    Rows whose moments do not fit into the memory together are fitted one group after another. Lifts whose products alone
    would not fit are solved for by conjugate gradients. Rows that cannot be fitted that way, because their lift is dense or they
    need the products themselves, are left out and named in the result.
    """
    first_chunk = next(_variables(evidence.held_out, evidence.inputs, options, None))
    sizes = Sizes.of(evidence.inputs, first_chunk, options.memory // 2)
    impossible = _impossible(sizes)

    def leads_to_wanted(row: Row) -> bool:
        return row.name not in impossible and _leads_to(row, wants)

    solved, least_squares = _least_squares(evidence, options, sizes, leads_to_wanted, progress)
    _add_routes(solved, evidence, options, leads_to_wanted)
    _add_tables(solved, evidence, options, wants)

    found = {**least_squares.closed, **solved}
    # The identity stays bare, so that a model stitched to itself is itself bit for bit.
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
    """Names of what the ridges that `wants` approves of may read."""
    return {name for row in registry.made_by(registry.RIDGE) if _leads_to(row, wants) for name in row.reads}


def from_ridge(name: str, found: Ridge, inputs: Mapping[str, Input]) -> Translation:
    """The translation of row `name`: weights on tables become tables, one per token offset."""
    terms = tuple(inputs[variable].term(weight) for variable, weight in found.weights.items())
    return merged(Translation(_short(name), terms, found.bias.float()))


def _short(name: str) -> str:
    return name.partition(":")[2]


def _leads_to(row: Row, wants: Wants) -> bool:
    """Whether a row is wanted, or one that starts from it."""
    return wants(row.name) or any(_leads_to(one, wants) for one in registry.ROWS if one.base == row.name)


def _impossible(sizes: Sizes) -> set[str]:
    """Rows that need products which the memory does not hold."""

    def is_impossible(row: Row) -> bool:
        read = set(row.reads)
        return bool(read & sizes.impossible) or (row.needs_products and bool(read & sizes.implicit))

    return {row.name for row in registry.ROWS if row.made_by and is_impossible(row)}


@dataclass
class _LeastSquares:
    """What the moments gave: ridges by row, what each input brings to them, closed forms, and how alike the streams are."""

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
    leads_to_wanted: Callable[[Row], bool],
    progress: Progress | None,
) -> tuple[dict[str, Translation], _LeastSquares]:
    """Ridges as translations, and everything else that is solved from the same moments.

    Rows are solved in groups; a group's moments are gone before those of the next are taken. The first group also has the
    moments of the closed forms and of the ridges on shuffled targets.
    """
    inputs = evidence.inputs
    ridge_rows = registry.made_by(registry.RIDGE)
    reads = {
        row.name: tuple(name for name in row.reads if name in inputs)
        for row in ridge_rows
        if row.target == "target" and leads_to_wanted(row)
    }
    shuffled = [row for row in ridge_rows if row.target != "target"]
    closed_rows = [row for row in registry.closed_forms() if leads_to_wanted(row)]
    first_of_all: set[Key] = needed(("x",)) | {("x", row.target) for row in shuffled}
    first_of_all = first_of_all.union(*(needed(row.reads) for row in closed_rows))

    widest = max(len(found.dictionary.encoder_bias) for found in inputs.values() if isinstance(found, Lift))
    sample = evidence.fit.sample(max(LEAST_SQUARES_TOKENS, 8 * widest), options.seed)
    bounded = {name for name, found in inputs.items() if not isinstance(found, Stream)}
    ridges: dict[str, Ridge] = {}
    parts: dict[str, dict[str, float]] = {}
    closed: list[_LeastSquares] = []

    def solve(names: list[str], moments: Moments, moments_held: Moments) -> None:
        for name in names:
            lift = next((one for one in reads[name] if isinstance(inputs[one], Lift)), None)
            ridges[name] = ridge(moments, moments_held, reads[name], apart=lift)
            parts[name] = shares(ridges[name], moments)
        if not closed:
            for row in shuffled:
                ridges[row.name] = ridge(moments, moments_held, row.reads, target=row.target)
                parts[row.name] = shares(ridges[row.name], moments)
            closed.append(_closed_forms(evidence, options, closed_rows, moments, moments_held))

    for names, pairs in groups(reads, first_of_all, sizes, sample.tokens):
        read = {name: found for name, found in inputs.items() if any(name in pair for pair in pairs)}
        held = _variables(evidence.held_out, read, options, None)
        solve(
            names,
            accumulate(_variables(sample, read, options, progress), pairs, bounded, implicit=sizes.implicit),
            accumulate(held, pairs, bounded, implicit=sizes.implicit, sums_of_single=torch.float32),
        )
    solved = {name: from_ridge(name, found, inputs) for name, found in ridges.items()}
    return solved, replace(closed[0], ridges=ridges, shares=parts)


def _closed_forms(
    evidence: Evidence, options: Options, wanted: list[Row], moments: Moments, moments_held: Moments
) -> _LeastSquares:
    """Everything that needs no ridge on many inputs: baselines, and what goes through the matching."""
    given = ClosedForm(
        evidence.fit.site_a, evidence.a, evidence.b, evidence.matching, moments, moments_held, options.seed
    )
    found = {row.name: function_of(row)(given) for row in wanted}
    shuffles = [given.through_features("shuffled-matching", wrong) for wrong in evidence.matching.shuffles]
    covariances = [moments.covariance(*names) for names in (("x", "x"), ("target", "target"), ("x", "target"))]
    similarity = {"cka": linear_cka(*covariances), "svcca": svcca(*covariances)}
    return _LeastSquares({}, {}, found, shuffles, similarity, given.mean)


def function_of(row: Row) -> Callable[[ClosedForm], Translation]:
    """The function that the registry names for a closed form."""
    module, _, name = (row.made_by or "").partition(":")
    return getattr(import_module(module), name)


def _add_routes(
    solved: dict[str, Translation], evidence: Evidence, options: Options, leads_to_wanted: Callable[[Row], bool]
) -> None:
    """Adds the rows that have a matrix per class of tokens."""
    inputs, fit = evidence.inputs, evidence.fit
    for row in registry.made_by(registry.ROUTES):
        if row.base not in solved or not leads_to_wanted(row):
            continue
        read = [found for one in row.reads if isinstance(found := inputs.get(one), Stream)]
        distinct = len(fit.a.windows.ids.unique())
        width = sum(fit.a.width(stream.site) for stream in read)
        number = how_many(options.routes, width, distinct, options.memory)
        if number > 1:
            classes = _classes(row, evidence, number, options.seed)
            left = _left_by(solved[row.base], evidence, options.chunk)
            solved[row.name] = routed(row.short, solved[row.base], fit_routes(streams(read), classes, *left))


def _add_tables(solved: dict[str, Translation], evidence: Evidence, options: Options, wants: Wants) -> None:
    """Adds the rows that have n-gram tables of what another row leaves."""
    for row in registry.made_by(registry.TABLES):
        if row.base in solved and wants(row.name):
            base = solved[row.base]
            left = _left_by(base, evidence, options.chunk)
            ids = evidence.fit.a.windows.ids
            terms = fit_tables(ids, *left, evidence.vocabulary, options.ngrams) if options.ngrams else []
            solved[row.name] = merged(replace(base, name=row.short, terms=(*base.terms, *terms)))


def _left_by(translation: Translation, evidence: Evidence, chunk: int) -> tuple[Residuals, Residuals]:
    """What a translation leaves of B's stream, on the tokens to fit on and on those held out."""
    applied = Applied(translation, evidence.fit.site_a, evidence.vocabulary)
    first, second = (partial(_residuals, split, applied, chunk) for split in (evidence.fit, evidence.held_out))
    return first, second


def _residuals(paired: Paired, applied: Applied, chunk: int) -> Iterator[tuple[Tokens, Tensor]]:
    """What a translation leaves unexplained of each token; tokens know as much as n-grams need."""
    for tokens in paired.with_history(applied.streams, max(2, applied.history), chunk):
        yield tokens, tokens.target.float() - applied(tokens)


def _classes(row: Row, evidence: Evidence, number: int, seed: int) -> Int64[Tensor, " vocabulary"]:
    """A class for every token id: by B's state of the token, or, for the null, at random."""
    if row.kind == "null":
        return classes_at_random(evidence.vocabulary, number, seed)
    state = evidence.inputs["state"]
    assert isinstance(state, ByToken)
    return classes_by_state(state.table, evidence.fit.a.windows.ids.flatten().long(), number, seed)


def _variables(
    paired: Paired, inputs: Mapping[str, Input], options: Options, progress: Progress | None
) -> Iterator[dict]:
    """The columns of all inputs and targets, chunk by chunk."""
    generator = torch.Generator().manual_seed(options.seed)
    done, total = 0, paired.tokens
    for tokens in paired.with_history(streams(inputs.values()), reach(inputs.values()), options.chunk):
        y = tokens.target
        columns = {name: found.columns(tokens) for name, found in inputs.items()}
        yield {**columns, "target": y, "shuffled": y[torch.randperm(len(y), generator=generator)]}
        done += len(y)
        if progress:
            progress("moments (tokens)", done, total)
