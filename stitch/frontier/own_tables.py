"""`reference:own-tables`: a model with its first blocks replaced by n-gram tables, as `stitch convert ngram` makes it."""

from collections.abc import Iterator

from stitch.composite.costs import late, of_translation
from stitch.conversions.ngrams.convert import fit_full_memory
from stitch.conversions.ngrams.late import LateBlocks
from stitch.conversions.ngrams.memory import NgramShape, choose_tables, memory_needed, read_fit_data
from stitch.frontier.alternative import Alternative, Means
from stitch.modeling.modeling_composite import StitchConfig
from stitch.models.model import Model
from stitch.translation.look_ups import positions

ORDER, SKIPS = 3, 4  # those of `convert ngram`, or fewer where bytes or memory allow no more


def own_tables(model: Model, means: Means) -> Alternative | None:
    """The model with the fewest first blocks as tables that keeps within the FLOPs and bytes of the composite.

    None for a composite, and where no table fits within the bytes.
    """
    if isinstance(model.config, StitchConfig):
        return None
    site = first_site_within(model, means)
    if site is None:
        return None
    shape = shape_within(model, means, means.limit.bytes - late(model, site, means.context).bytes)
    if shape is None:
        return None
    return _with_tables(model, site, shape, means)


def at_every_depth(model: Model, means: Means) -> Iterator[Alternative]:
    """The model with its first 1, 2, … blocks as tables, whatever they cost."""
    shape = shape_within(model, means, means.limit.bytes)
    for site in range(1, model.depth) if shape else ():
        yield _with_tables(model, site, shape, means)


def _with_tables(model: Model, site: int, shape: NgramShape, means: Means) -> Alternative:
    learned = positions(model)
    indices = choose_tables(
        means.windows["fit"], shape, model.config.vocab_size, 0 if learned is None else len(learned), means.memory,
        model.width,
    )  # fmt: skip
    data = read_fit_data(model, means.windows, site, shape, indices, means.progress)
    translation = fit_full_memory(data).translation
    return Alternative(
        f"{model.name} with its first {site} of {model.depth} blocks as n-gram tables",
        of_translation(translation, model, model, site) + late(model, site, means.context),
        LateBlocks(model, site).reading(translation),
    )


def first_site_within(model: Model, means: Means) -> int | None:
    """The smallest site, at least 1, from which the model's late blocks take no more FLOPs than the composite."""

    def flops(site: int) -> float:
        return late(model, site, means.context).flops

    return next((site for site in range(1, model.depth) if flops(site) <= means.limit.flops), None)


def shape_within(model: Model, means: Means, limit: int) -> NgramShape | None:
    """The largest tables within `limit` bytes on disk whose fit keeps within the memory; None if not even one fits."""
    width, itemsize = model.width, model.dtype.itemsize
    learned = positions(model)
    ids = len(means.windows["fit"].ids.unique())
    for skips in range(SKIPS, -1, -1):
        order = min(ORDER, skips + 1)
        single = (1 + skips) * model.config.vocab_size + (0 if learned is None else len(learned))
        left = limit - single * width * itemsize
        if left < 0:
            continue
        rows = min(means.ngrams, left // (width * itemsize + 8)) if order > 1 else 0
        shape = NgramShape(order=order, rows=rows, skips=skips)
        if memory_needed(shape, width, ids * (1 + skips) + rows) <= means.memory:
            return shape
    return None
