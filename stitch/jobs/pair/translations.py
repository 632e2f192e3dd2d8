"""Every translation of a pair fitted, and cut to the bytes that a composite may have."""

import dataclasses

from stitch.activations.paired import Paired
from stitch.composite.costs import Costs
from stitch.config import CompleteSettings
from stitch.features.matching import Matching
from stitch.features.saes import SAEs
from stitch.jobs.pair.features import chunk_tokens
from stitch.models.model import Model
from stitch.progress import Progress, Steps
from stitch.text.documents import Split
from stitch.translation.available import available
from stitch.translation.evidence import Evidence, MatchedFeatures, Options
from stitch.translation.fit import Fitted, inputs_read, translate
from stitch.translation.packing import bytes_without_tables, pack, steps
from stitch.translation.token_tables import TokenTables, token_tables
from stitch.translation.types import Translation


def states_of_tokens(
    a: Model, b: Model, paired: dict[Split, Paired], progress: Progress | None = None
) -> TokenTables:  # fmt: skip
    """B's embedding of every token that occurs, and its state at B's site, behind BOS alone."""
    fit, held_out = paired["fit"], paired["sweep"]
    return token_tables(a, b, fit.a.windows, held_out.a.windows, fit.site_b, progress)


def translate_pair(
    settings: CompleteSettings,
    a: Model,
    b: Model,
    paired: dict[Split, Paired],
    saes: SAEs,
    matching: Matching,
    tokens: TokenTables,
    progress: Progress | None = None,
) -> Fitted:
    """Every translation and null that the settings ask for, fitted on the fit split, with λ chosen on the sweep split."""
    fit, held_out = paired["fit"], paired["sweep"]
    inputs = available(a, b, fit, saes, settings.seed, inputs_read(settings.wants), tokens=tokens)
    evidence = Evidence(
        fit=fit, held_out=held_out, inputs=inputs, first=fit.b.first(fit.site_b),
        vocabulary=b.vocabulary, features=MatchedFeatures(saes.a, saes.b, matching),
    )  # fmt: skip
    options = Options(
        ngrams=settings.ngrams, routes=settings.routes, seed=settings.seed, chunk=chunk_tokens(settings, saes.a, saes.b),
        memory=settings.memory,
    )  # fmt: skip
    return dataclasses.replace(translate(evidence, options, settings.wants, progress), look_ups=tokens.described())


def pack_pair(
    settings: CompleteSettings, costs: Costs, fitted: Fitted, fit: Paired, progress: Progress | None = None
) -> dict[str, Translation]:
    """Translations that may be written, by row name, within the bytes that the settings leave to the seam.

    Those whose matrices alone take more are left out; where that is all of them, the smallest remains. A translation that the
    settings name is the only one, and is kept in any case.
    """
    b = costs.target
    limit = int(costs.halves(settings.layer, settings.layer_b).bytes * settings.seam_bytes / 100)
    if settings.translation == "auto":
        sizes = {name: bytes_without_tables(found, b.dtype) for name, found in fitted.translations.items()}
        allowed = {name for name, size in sizes.items() if size <= limit} or {min(sizes, key=lambda name: sizes[name])}
    else:
        allowed = {f"translation:{settings.translation}"}
    written = {name: found for name, found in fitted.translations.items() if name in allowed}
    step = Steps("packing (tables, at most)", sum(map(steps, written.values())), progress)
    packed = {
        name: pack(found, limit, fit.a.windows.ids, b.vocabulary, b.dtype, memory=settings.memory, tick=step)
        for name, found in written.items()
    }
    step.end()
    return packed
