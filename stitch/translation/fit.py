"""Fits the rows of the registry: ridge regressions and closed forms from shared moments, then routes, then n-gram tables."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

from jaxtyping import Float, Int64
from torch import Tensor

from stitch.activations.paired import Paired, Tokens
from stitch.files.heap import give_back
from stitch.progress import Progress, Steps
from stitch.regression.ridge import Ridge
from stitch.translation import rows as registry
from stitch.translation.evidence import Evidence, Options, variables
from stitch.translation.groups import Sizes
from stitch.translation.inputs import ByToken, Stream, streams
from stitch.translation.least_squares import solve
from stitch.translation.module import Applied
from stitch.translation.routes import classes_at_random, classes_by_state, fit_routes, how_many, over_vocabulary, routed
from stitch.translation.rows import Row
from stitch.translation.tables import Residuals, contexts_within, fit_tables
from stitch.translation.types import Translation, merged

Wants = Callable[[str], bool]

KINDS = ("translation", "null")


def everything(row: str) -> bool:
    """Accepts every row."""
    return True


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
    first_chunk = next(variables(evidence.held_out, evidence.inputs, options, None))
    sizes = Sizes.of(evidence.inputs, first_chunk, options.memory // 2)
    impossible = _impossible(sizes)

    def is_requested(row: Row) -> bool:
        return row.name not in impossible and registry.leads_to(row, wants)

    solved, least_squares = solve(evidence, options, sizes, is_requested, progress)
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


def inputs_read(wants: Wants) -> set[str]:
    """Names of the inputs that the ridges of accepted rows may read."""
    return {name for row in registry.made_by(registry.RIDGE) if registry.leads_to(row, wants) for name in row.reads}


def _impossible(sizes: Sizes) -> set[str]:
    """Names of the rows that need products too large for the memory."""

    def is_impossible(row: Row) -> bool:
        read = set(row.reads)
        return bool(read & sizes.impossible) or (row.needs_products and bool(read & sizes.implicit))

    return {row.name for row in registry.ROWS if row.made_by and is_impossible(row)}


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
