"""`reference:own-tables`: a model with its first blocks replaced by n-gram tables, as `stitch convert ngram` makes it."""

from collections.abc import Iterator
from dataclasses import replace

from stitch.composite.costs import late, of_translation
from stitch.composite.cuts import can_be_cut
from stitch.conversions.ngrams.fit import fit_full_memory, tables_for
from stitch.conversions.ngrams.late import LateBlocks
from stitch.conversions.ngrams.memory import NgramShape, memory_needed, read_fit_data
from stitch.evaluation.scores import evaluate
from stitch.frontier.alternative import Alternative, Means
from stitch.modeling.modeling_composite import StitchConfig
from stitch.models.model import Model
from stitch.translation.types import Translation

ORDER, SKIPS = 3, 4  # those of `convert ngram`, or fewer where memory allows no more
SHARES = (0.1, 0.3, 1.0)  # sizes of packed tables beside the late blocks


def own_tables(model: Model, means: Means) -> Alternative | None:
    """The model with the fewest first blocks as tables that keeps within the FLOPs and bytes of the composite.

    Directions of packed tables cost products. Where these exceed the FLOPs, it has as many directions as keep within, or one more
    block as tables: what is better on the sweep split. The same where bytes are so few that a table is left out. None for a
    composite, and where no late blocks are within.
    """
    if isinstance(model.config, StitchConfig):
        return None
    site = first_site_within(model, means)
    tables = None if site is None else fitted_tables(model, site, means)
    if site is None or tables is None:
        return None
    packed = _packed(model, site, tables, means)
    free = _alternative(model, site, packed, means)
    if free.cost.flops <= means.limit.flops and len(packed.terms) == len(tables.terms):
        return free
    cut = _alternative(model, site, _packed(model, site, tables, means, _left(model, site, tables, means)), means)
    deeper = _made(model, site + 1, means) if site + 1 < model.depth else None
    rivals = [cut, *([deeper] if deeper is not None and deeper.cost.flops <= means.limit.flops else [])]
    scores = evaluate(
        {str(number): one.logits for number, one in enumerate(rivals)}, means.windows["sweep"],
        vocabulary=model.vocabulary, memory=means.memory, progress=means.progress, task="depth of tables (tokens)",
    )  # fmt: skip
    return rivals[min(range(len(rivals)), key=lambda number: scores[str(number)].ce)]


def at_every_depth(model: Model, means: Means) -> Iterator[Alternative]:
    """The model with its first 1, 2, … blocks as tables, whole and packed to `SHARES` of the bytes of its late blocks."""
    for site in range(1, model.depth):
        tables = fitted_tables(model, site, means)
        if tables is None:
            continue
        whole = within_bytes(model, site, tables, means)
        kept = late(model, site, means.context).bytes
        for share in SHARES:
            limit = replace(means.limit, bytes=int((1 + share) * kept))
            if limit.bytes < whole.cost.bytes:
                yield _sized(within_bytes(model, site, tables, replace(means, limit=limit)), kept)
        yield _sized(whole, kept)


def _sized(one: Alternative, kept: int) -> Alternative:
    """The alternative, with the size of its tables in what it is."""
    return replace(one, made=f"{one.made} of {(one.cost.bytes - kept) / 1e6:.1f} MB")


def _made(model: Model, site: int, means: Means) -> Alternative | None:
    if late(model, site, means.context).bytes >= means.limit.bytes:
        return None
    tables = fitted_tables(model, site, means)
    return None if tables is None else within_bytes(model, site, tables, means)


def fitted_tables(model: Model, site: int, means: Means) -> Translation | None:
    """Tables in the place of the blocks before `site`, whatever their bytes. None where memory allows none."""
    shape = shape_within(model, means)
    if shape is None:
        return None
    indices = tables_for(model, means.windows, shape, means.memory)
    read = read_fit_data(model, means.windows, site, shape, indices, means.progress)
    return fit_full_memory(read, means.progress).translation


def within_bytes(model: Model, site: int, tables: Translation, means: Means) -> Alternative:
    """The model with `tables` in the place of its blocks before `site`, cut and packed to the bytes that the composite leaves."""
    return _alternative(model, site, _packed(model, site, tables, means), means)


def _packed(
    model: Model, site: int, tables: Translation, means: Means, multiply_adds: int | None = None
) -> Translation:
    left = means.limit.bytes - late(model, site, means.context).bytes
    return means.packed(tables, left, model, multiply_adds)


def _alternative(model: Model, site: int, packed: Translation, means: Means) -> Alternative:
    return Alternative(
        f"{model.name} with its first {site} of {model.depth} blocks as n-gram tables",
        of_translation(packed, model, model, site) + late(model, site, means.context),
        LateBlocks(model, site).reading(packed),
    )


def _left(model: Model, site: int, tables: Translation, means: Means) -> int:
    """Multiply-adds per token that the composite's FLOPs leave to directions."""
    fallbacks = sum(term.fallback.multiply_adds for term in tables.terms if term.fallback is not None)
    return max(0, int(means.limit.flops - late(model, site, means.context).flops) // 2 - fallbacks)


def first_site_within(model: Model, means: Means) -> int | None:
    """The smallest site, at least 1, from which the model's late blocks run alone within the composite's FLOPs and bytes."""

    def is_within(site: int) -> bool:
        blocks = late(model, site, means.context)
        return blocks.flops <= means.limit.flops and blocks.bytes < means.limit.bytes

    return next((site for site in range(1, model.depth) if is_within(site) and can_be_cut(model, site)), None)


def shape_within(model: Model, means: Means) -> NgramShape | None:
    """The largest tables whose fit keeps within the memory; None if not even the smallest do."""
    ids, held_out = len(means.windows["fit"].ids.unique()), means.windows["sweep"].tokens
    for skips in range(SKIPS, -1, -1):
        order = min(ORDER, skips + 1)
        rows = means.ngrams if order > 1 else 0
        shape = NgramShape(order=order, rows=rows, skips=skips)
        if memory_needed(shape, model.width, ids * (1 + skips) + rows, held_out) <= means.memory:
            return shape
    return None
