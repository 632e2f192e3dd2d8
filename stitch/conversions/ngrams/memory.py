"""An n-gram memory in place of a decoder's first blocks: its tables, the data they are fitted on, and the resulting translation.

The stream entering block L is looked up instead of computed, in tables by token, by the token k ago and by n-gram. Rows start
from ridge regression on the model's embeddings and on its context-free states of the last few tokens, which also covers tokens
and n-grams that are rare or absent in the fit text. `backfit` then adds the mean residual of each row.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stitch.activations.observe import residuals
from stitch.activations.paired import SINK_RATIO, Tokens
from stitch.conversions.ngrams.backfit import (
    TableSamples,
    TableStatistics,
    backfit,
    collect,
    relative_weights,
    with_rows,
)
from stitch.conversions.ngrams.reading import TableIndex, stream
from stitch.errors import UsageError
from stitch.files.heap import give_back
from stitch.models.model import Model
from stitch.progress import Progress, Steps, counted
from stitch.regression.moments import Moments, accumulate
from stitch.regression.ridge import STRENGTHS, ridge
from stitch.text.documents import Split
from stitch.text.windows import Windows
from stitch.translation.evidence import LEAST_SQUARES_TOKENS
from stitch.translation.frequent import frequent
from stitch.translation.inputs import ByPosition, ByToken, Input
from stitch.translation.least_squares import from_ridge
from stitch.translation.look_ups import positions
from stitch.translation.packed import Packed
from stitch.translation.token_tables import TokenTables, token_tables
from stitch.translation.types import Ngram, Position, Term, Token, Translation, merged
from stitch.translation.unfolded import Unfolded

HELD = 2**29  # bytes of streams that are held in memory to be read again
COPIES = 6  # float64 arrays of the size of all rows that fitting holds at most


@dataclass(frozen=True, kw_only=True)
class NgramShape:
    """Tables of a memory: n-grams up to `order`, at most `rows` of them, and single tokens up to `skips` ago."""

    order: int = 3
    rows: int = 65_536
    skips: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.order <= 5:
            raise UsageError(f"order must be in 1..5; got {self.order}.")
        if self.rows < 0:
            raise UsageError(f"rows must be 0 or more; got {self.rows}.")
        if self.skips < self.order - 1:
            raise UsageError(f"skips must be at least `order` − 1, {self.order - 1}; got {self.skips}.")


@dataclass(frozen=True)
class NgramFitData:
    """The data that memories of one depth are fitted on. `indices` are all available tables, in the order of fitting."""

    site: int
    vocabulary: int
    shape: NgramShape
    indices: list[TableIndex]
    inputs: dict[str, Input]
    moments: dict[Split, Moments]
    seen: TableStatistics
    held: TableSamples
    mean: Float[Tensor, " d"]  # weighted
    first: Float[Tensor, " d"]


@dataclass(frozen=True)
class NgramMemory:
    """A fitted memory: `linear` is the ridge regression alone, `translation` includes the backfitted tables.

    By table: the number of nonzero rows, κ, and the least count. `errors` are those of `Fit`.
    """

    indices: list[TableIndex]
    rows: list[int]
    shrinkages: list[float]
    least_counts: list[int]
    errors: list[float]
    linear: Translation
    translation: Translation


def choose_tables(
    texts: Mapping[Split, Windows], shape: NgramShape, vocabulary: int, learned_positions: int, memory: int, width: int
) -> list[TableIndex]:
    """Tables by token, up to `skips` ago, and of the most frequent n-grams that occur at least twice, evenly by order.

    Raises UsageError if the vocabulary is too large for the order, or if fitting needs more than `memory` bytes.
    """
    if vocabulary**shape.order >= 2**63:
        raise UsageError(
            f"order must be below {shape.order} for a vocabulary of {vocabulary:,} ids; got {shape.order}: lower it."
        )
    windows = texts["fit"]
    ids = windows.ids.unique().long()
    indices, left = [TableIndex(Token(), ids)], shape.rows
    for order in range(2, shape.order + 1):
        most = left // (shape.order + 1 - order)
        keys = frequent(windows.ids, order, vocabulary, least=2, most=most, remembered=max(2**20, 8 * shape.rows))
        left -= len(keys)
        indices.append(TableIndex(Ngram(order, keys), keys))
    indices += [TableIndex(Token(back), ids) for back in range(1, shape.skips + 1)]
    if learned_positions:
        indices.append(TableIndex(Position(), torch.arange(learned_positions)))
    rows = sum(len(index.keys) for index in indices)
    needed = memory_needed(shape, width, rows, texts["sweep"].tokens)
    if needed > memory:
        raise UsageError(
            f"memory must be at least {needed / 2**30:.2f} GiB to fit {rows:,} rows of {width} numbers; got "
            f"{memory / 2**30:.2f} GiB: raise it, or lower `rows`, `skips`, `tokens` or `held_out`."
        )
    return indices


def memory_needed(shape: NgramShape, width: int, rows: int, held_out: int) -> int:
    """Bytes that fitting `rows` rows takes: the rows; of so many held-out tokens the streams, what the ridge leaves of them, and
    that in float64 again; and of the ridge the moments of two splits, a factor and a copy."""
    columns = width * (shape.order + shape.skips + 1)
    return COPIES * 8 * width * rows + (4 + 4 + 8) * width * held_out + 4 * 8 * columns**2


@torch.no_grad()
def read_fit_data(
    model: Model,
    texts: Mapping[Split, Windows],
    site: int,
    shape: NgramShape,
    indices: list[TableIndex],
    progress: Progress | None = None,
) -> NgramFitData:
    """Runs the fit and sweep splits up to block `site` and collects what memories of that depth are fitted on.

    What is read twice, the least-squares sample and the sweep split, is held in memory where it takes at most HELD bytes.
    """
    vocabulary = model.vocabulary
    occurring = token_tables(model, model, texts["fit"], texts["sweep"], site, progress)
    inputs: dict[str, Input] = {
        f"embedding-{back}": _input(occurring, "embedding", back) for back in range(shape.skips + 1)
    }
    inputs |= {f"state-{back}": _input(occurring, "state", back) for back in range(shape.order)}
    if (learned := positions(model)) is not None:
        inputs["position"] = ByPosition(learned)

    def tokens(windows: Windows, split: Split) -> Iterator[Tokens]:
        return stream(model, windows, site, shape.skips, progress, f"block {site}, {split} text")

    def twice(windows: Windows, split: Split) -> Callable[[], Iterable[Tokens]]:
        fits = 4 * windows.tokens * model.width <= HELD
        held = _in_one_array(tokens(windows, split), windows.tokens, model.width) if fits else None
        again = f"block {site}, {split} text again (batches)"
        return lambda: tokens(windows, split) if held is None else counted(held, again, progress)

    def variables(read: Iterable[Tokens]) -> Iterator[dict]:
        limit = None
        for part in read:
            norms = part.target.norm(dim=1)
            limit = SINK_RATIO * norms.median() if limit is None else limit
            kept = norms <= limit  # sinks would dominate an unweighted fit
            some = Tokens({}, part.ids[kept], part.positions[kept], part.target[kept])
            yield {**{name: found.columns(some) for name, found in inputs.items()}, "target": some.target}

    names = list(inputs)
    pairs = [(one, other) for place, one in enumerate(names) for other in (*names[place:], "target")]
    sample = texts["fit"].first(LEAST_SQUARES_TOKENS)
    sampled, swept = twice(sample, "fit"), twice(texts["sweep"], "sweep")
    moments: dict[Split, Moments] = {
        "fit": accumulate(variables(sampled()), pairs, names),
        "sweep": accumulate(variables(swept()), pairs, names, sums_of_single=torch.float32),
    }

    def some(part: Tokens) -> TableSamples:
        rows = torch.stack([index.rows(part, vocabulary) for index in indices])
        return TableSamples(rows, relative_weights(part.target), part.target)

    every = chain(sampled(), tokens(texts["fit"].after(sample), "fit"))
    seen = collect([len(index.keys) for index in indices], map(some, every))
    parts = list(map(some, swept()))
    held = TableSamples(
        torch.cat([part.places for part in parts], 1),
        torch.cat([part.weights for part in parts]),
        torch.cat([part.y for part in parts]),
    )
    ids = texts["fit"].ids[:1].to(model.device).long()
    first = residuals(model, ids, [site])[site][0, 0].float().cpu()
    by_token = seen.of(0)  # every token has a row of this table
    mean = seen.totals[by_token].sum(0) / seen.mass[by_token].sum()
    return NgramFitData(site, vocabulary, shape, indices, inputs, moments, seen, held, mean, first)


def _in_one_array(parts: Iterable[Tokens], tokens: int, width: int) -> list[Tokens]:
    """The parts, with views of one array as targets. Arrays of their own, kept between those of forward passes, would leave the
    allocator gaps that nothing fits into."""
    found, left = [], torch.empty(tokens, width)
    for part in parts:
        target, left = left.split([len(part.target), len(left) - len(part.target)])
        found.append(dataclasses.replace(part, target=target.copy_(part.target)))
    return found


def _input(tables: TokenTables, name: str, back: int) -> ByToken:
    """The table as an input. The converted model keeps the donor's embedding only if it is also the head's.

    Otherwise the fall-back for earlier tokens is the mean row; that for the current token is stored as rows.
    """
    found = tables.input(name, back)
    if found.fallback is None or not back or found.fallback.of == "b":
        return found
    return dataclasses.replace(found, fallback=found.fallback.always(found.table.mean(0)))


def cumulative_stages(fit_data: NgramFitData) -> dict[str, tuple[list[int], list[str]]]:
    """Indices of tables and names of inputs for growing memories, by name. The last stage has all of them."""
    shape, found = fit_data.shape, {}
    steps = [(f"{order}-grams", order, order - 1) for order in range(1, shape.order + 1)]
    if shape.skips >= shape.order:
        steps.append((f"and single tokens up to {shape.skips} ago", shape.order, shape.skips))
    for name, order, back in steps:
        chosen = [place for place, index in enumerate(fit_data.indices) if _within(index, order, back)]
        read = [name for name in fit_data.inputs if name == "position" or int(name.rpartition("-")[2]) <= back]
        found[name] = chosen, read
    return found


def _within(index: TableIndex, order: int, back: int) -> bool:
    match index.by:
        case Token(ago):
            return ago <= back
        case Ngram(of, _):
            return of <= order
        case Position():
            return True


def fit_memory(
    fit_data: NgramFitData,
    tables: Sequence[int],
    inputs: Sequence[str],
    name: str = "memory",
    progress: Progress | None = None,
) -> NgramMemory:
    """A memory of some of the tables, with rows that start from ridge regression on `inputs`. Without inputs they start at 0."""
    give_back()  # streams that `fit_data` was collected from
    indices = [fit_data.indices[place] for place in tables]
    if inputs:
        step = Steps("ridge behind the tables (strengths, at most)", len(STRENGTHS), progress)
        found = ridge(fit_data.moments["fit"], fit_data.moments["sweep"], tuple(inputs), tick=step)
        step.end()
        linear = from_ridge(name, found, fit_data.inputs)
    else:
        linear = Translation(name, (), fit_data.mean.float())
    by_input = {term.input: term for term in linear.terms}
    seen = fit_data.seen.chosen(tables)
    prior = torch.zeros_like(seen.totals)
    for place, index in enumerate(indices):
        if (term := by_input.get(index.by)) is not None:
            prior[seen.of(place)] = _rows_at(term, index.keys).double()
    held = TableSamples(fit_data.held.places[list(tables)], fit_data.held.weights, fit_data.held.y - linear.bias)
    for place, every in enumerate(held.places):
        for tokens, rows in with_rows(every):
            held.y[tokens] -= prior[seen.of(place)][rows].float()
    seen = seen.less(prior, linear.bias.double())
    del prior
    give_back()
    fit = backfit(seen, held, progress=progress)
    added = [_term(index, rows.float()) for index, rows in zip(indices, fit.rows, strict=True)]
    together = merged(dataclasses.replace(linear, terms=(*linear.terms, *added)))
    terms = tuple(term for term in map(_dense, together.terms) if term.weight is not None and len(term.weight))
    finished = dataclasses.replace(together, terms=terms, first=fit_data.first)
    rows = [int(table.ne(0).any(1).sum()) for table in fit.rows]
    choices = fit.shrinkages, fit.least_counts, fit.errors
    return NgramMemory(indices, rows, *choices, linear.starting_with(fit_data.first), finished)


def _term(index: TableIndex, rows: Float[Tensor, "rows d"]) -> Term:
    """The table as a term of a translation. N-gram tables lose rows of zeros."""
    if isinstance(index.by, Ngram):
        kept = rows.ne(0).any(1)
        return Term(Ngram(index.by.order, index.keys[kept]), rows[kept])
    return Term(Token(index.by.back, index.keys) if isinstance(index.by, Token) else index.by, rows)


def _rows_at(term: Term, keys: Int64[Tensor, " rows"]) -> Float[Tensor, "rows d"]:
    """Rows of a table by token or by position, for keys that it has."""
    place = keys
    if isinstance(term.input, Token) and term.input.keys is not None:
        place = torch.searchsorted(term.input.keys, keys)
    return term.weight.rows(place) if isinstance(term.weight, Unfolded) else term.matrix[place]


def _dense(term: Term) -> Term:
    return dataclasses.replace(term, weight=term.weight.folded()) if isinstance(term.weight, Unfolded) else term


def with_shuffled_rows(translation: Translation, seed: int) -> Translation:
    """Null: the rows of every table permuted among its keys. Norms, sizes, BOS and bias are unchanged."""
    generator = torch.Generator().manual_seed(seed)
    terms = []
    for term in translation.terms:
        assert isinstance(term.weight, (Tensor, Packed))
        order = torch.randperm(len(term.weight), generator=generator)
        terms.append(dataclasses.replace(term, weight=term.weight[order]))
    return dataclasses.replace(translation, name="random-table", terms=tuple(terms))
