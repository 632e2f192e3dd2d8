"""Alternatives that run a model's first blocks and skip some of the others: `reference:a-exit` and `reference:b-skip`."""

from pathlib import Path
from tempfile import TemporaryDirectory

from stitch.activations.harvest import windows_per_shard
from stitch.activations.paired import Paired, pair
from stitch.composite.compose import compose
from stitch.composite.costs import early, halves, late, of_translation
from stitch.composite.cuts import can_be_cut
from stitch.evaluation.scores import whole_model
from stitch.frontier.alternative import Alternative, Means
from stitch.modeling.modeling_composite import StitchConfig
from stitch.models.anatomy import blocks_before_last_part
from stitch.models.model import Model
from stitch.text.documents import Split
from stitch.translation import rows as registry
from stitch.translation.available import earlier_sites, free_inputs
from stitch.translation.evidence import LEAST_SQUARES_TOKENS, Evidence, Options
from stitch.translation.fit import translate
from stitch.translation.inputs import Input, Stream
from stitch.translation.token_tables import token_tables
from stitch.translation.types import Translation

CHUNK = 2048  # tokens read at a time
AFFINE = "translation:affine"
LEAST = 0.1  # of the bytes that are left for a translation: fewer are not tried to bring its FLOPs within the limit


def a_exit(model: Model, means: Means) -> Alternative | None:
    """As many first blocks of A as keep within the composite's FLOPs, a ridge to its last stream, its final norm and head.

    None for a composite, where not even one block is within, and where no module takes the last stream.
    Source: the tuned lens, Belrose et al. 2023 (2303.08112), with a ridge in the place of training.
    """
    if isinstance(model.config, StitchConfig) or model.last_site < model.depth:
        return None
    site = last_site_within(model, model.depth, AFFINE, means)
    if site is None:
        return None
    made = f"{model.name} with an exit after {site} of {model.depth} blocks"
    return joined(model, model, site, model.depth, AFFINE, made, means)


def b_skip(model: Model, onto: int, row: str, means: Means) -> Alternative | None:
    """As many first blocks of B as keep within the composite's FLOPs, a translation, and B's blocks from `onto` on.

    `row` is that of the composite's translation, without its features, which need an SAE of their own.
    None where not even one block is within.
    """
    row = without_features(row)
    site = last_site_within(model, onto, row, means)
    if site is None:
        return None
    made = f"{model.name} without blocks {site} to {onto - 1} ({registry.row(row).short})"
    return joined(model, model, site, onto, row, made, means)


def last_site_within(model: Model, onto: int, row: str, means: Means) -> int | None:
    """The last site before `onto` at which joining the model to itself takes no more FLOPs than the composite."""
    streams = len(set(registry.row(row).reads) & set(registry.STREAMS))
    rest = 2.0 * streams * model.width**2 + late(model, onto, means.context).flops
    sites = range(onto - 1, 0, -1)
    return next((site for site in sites if early(model, site, means.context).flops + rest <= means.limit.flops), None)


def without_features(row: str) -> str:
    """The row that reads the same but features, named "affine" where theirs is "features"; `affine` for closed forms."""
    name = row.replace("features", "affine")
    found = {one.name: one for one in registry.made_by(registry.RIDGE, registry.ROUTES, registry.TABLES)}
    return name if name in found else AFFINE


def joined(
    a: Model, b: Model, site: int, onto: int, row: str, made: str, means: Means, counted_as: Model | None = None
) -> Alternative | None:
    """A up to `site` and B from `onto` on, which may be one model, with tables cut and packed to the bytes that the composite
    leaves, and to fewer where the packed tables would multiply more than the composite's.

    A costs what the model `counted_as` does. None where B's blocks from `onto` on cannot run alone.
    """
    if not can_be_cut(b, onto):
        return None
    kept = halves(counted_as or a, site, b, onto, means.context)
    means.scratch.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=means.scratch) as folder:
        fitted = _fitted(a, b, row, _paired(a, b, site, onto, row, means, Path(folder)), means)
    room, share = means.limit.bytes - kept.bytes, 1.0
    while True:
        translation = means.packed(fitted, int(share * room), b)
        cost = kept + of_translation(translation, a, b, site)
        if cost.flops <= means.limit.flops or share < LEAST:
            break
        share *= 0.9
    return Alternative(made, cost, whole_model(compose(a, b, site, onto, translation)))


def _paired(
    a: Model, b: Model, site: int, onto: int, row: str, means: Means, folder: Path
) -> dict[Split, Paired]:  # fmt: skip
    """A's streams up to `site` as far as `row` reads them, and B's at `onto`."""
    read = sorted({site, *(earlier_sites(site, blocks_before_last_part(a.config)) if row != AFFINE else ())})
    # A shard has as many windows of either model: they are read side by side.
    width = (len(read) + 1) * max(a.width, b.width)
    per_shard = windows_per_shard(means.context, width, a.dtype, means.memory)
    splits: tuple[Split, ...] = ("fit", "sweep")
    paired: dict[Split, Paired] = {}
    for split in splits:
        windows = means.windows[split].first(LEAST_SQUARES_TOKENS) if row == AFFINE else means.windows[split]
        x = means.harvested(a, windows, [*read, onto] if a is b else read, folder / f"{split}-a", per_shard)
        y = x if a is b else means.harvested(b, windows, [onto], folder / f"{split}-b", per_shard)
        paired[split] = pair(x, y, site, onto)
    return paired


def _fitted(a: Model, b: Model, row: str, paired: dict[Split, Paired], means: Means) -> Translation:
    """The translation `row` from A's stream to B's, fitted as the composite's."""
    fit = paired["fit"]
    inputs: dict[str, Input] = {"x": Stream(fit.site_a)}
    if row != AFFINE:
        tokens = token_tables(a, b, fit.b.windows, paired["sweep"].b.windows, fit.site_b, means.progress)
        inputs = free_inputs(a, b, fit, tokens)
    evidence = Evidence(
        fit=fit, held_out=paired["sweep"], inputs=inputs,
        first=fit.b.first(fit.site_b), vocabulary=b.vocabulary,
    )  # fmt: skip
    options = Options(
        ngrams=means.ngrams, routes=means.routes, seed=means.seed, chunk=CHUNK, memory=means.memory
    )  # fmt: skip
    fitted = translate(evidence, options, lambda name: name == row, means.progress)
    return fitted.translations.get(row) or fitted.translations[AFFINE]
