"""Fits and packs n-gram memories on a donor's text, as deep as asked for or as a tolerance allows, and scores them."""

import dataclasses
from collections.abc import Mapping
from functools import partial

from stitch.conversions.donor import Donor
from stitch.conversions.ngrams.late import LateBlocks, explained_variance
from stitch.conversions.ngrams.memory import (
    NgramFitData,
    NgramMemory,
    NgramShape,
    choose_tables,
    cumulative_stages,
    fit_memory,
    read_fit_data,
    with_shuffled_rows,
)
from stitch.conversions.ngrams.reading import TableIndex
from stitch.conversions.ngrams.size import packed
from stitch.errors import UsageError
from stitch.evaluation.scores import Logits, Scores, evaluate, whole_model
from stitch.models.anatomy import blocks_before_last_part
from stitch.models.model import Model
from stitch.progress import Progress
from stitch.text.documents import Split
from stitch.text.windows import Windows
from stitch.translation.look_ups import positions
from stitch.translation.packed import Packed
from stitch.translation.types import Translation

UNPACKED = "reference:unpacked"


def tables_for(model: Model, texts: Mapping[Split, Windows], shape: NgramShape, memory: int) -> list[TableIndex]:
    """The tables for memories of any depth, fitted on `texts`."""
    learned = positions(model)
    length = 0 if learned is None else len(learned)
    return choose_tables(texts, shape, model.vocabulary, length, memory, model.width)


def fit_full_memory(fit_data: NgramFitData, progress: Progress | None = None) -> NgramMemory:
    """The memory with all tables and inputs."""
    return fit_memory(fit_data, *list(cumulative_stages(fit_data).values())[-1], progress=progress)


def deepest_within(
    donor: Donor,
    shape: NgramShape,
    indices: list[TableIndex],
    table_bytes: float,
    tolerance: float,
    memory: int,
    progress: Progress | None,
) -> tuple[NgramFitData, dict[int, float]]:
    """The data of the deepest memory within the tolerance, and the cost of each tried depth on the sweep split, in nats.

    Costs grow with depth, so the search ends at the first depth above the tolerance.
    """
    model, sweep = donor.model, donor.windows["sweep"]
    base = score_rows({"donor": whole_model(model.net)}, model, sweep, memory, progress)["donor"].ce
    best, tried = None, {}
    no_room = None
    for site in range(blocks_before_last_part(model.config) + 1, model.depth):
        fit_data = read_fit_data(donor.model, donor.windows, site, shape, indices, progress)
        tables = fit_full_memory(fit_data, progress).translation
        try:
            small = packed(model, donor.windows["fit"], site, tables, table_bytes, memory)
        except UsageError as error:  # more blocks leave more bytes
            no_room = error
            continue
        row = LateBlocks(model, site).reading(small)
        tried[site] = score_rows({"memory": row}, model, sweep, memory, progress)["memory"].ce - base
        if tried[site] > tolerance:
            break
        best = fit_data
    if not tried and no_room is not None:
        raise no_room
    if best is None:
        raise UsageError(
            f"tolerance must be at least {min(tried.values()):.3f} nats for {model.name}, the cost of the fewest blocks; got "
            f"{tolerance:g}: raise it, or raise `tokens`."
        )
    return best, tried


def measure(
    donor: Donor, fit_data: NgramFitData, table_bytes: float, seed: int, memory: int, progress: Progress | None
) -> tuple[dict[str, NgramMemory], dict[str, Scores], dict[str, float]]:
    """Memories by row name, for every order and in full; scores of all rows on the report split; held-out R².

    That in full is there as packed, and as it was before where that is another.
    """
    steps = cumulative_stages(fit_data)
    everything = list(steps.values())[-1]
    memory_of = partial(fit_memory, fit_data, progress=progress)
    fitted = {f"baseline:{name}": memory_of(*step) for name, step in list(steps.items())[:-1]}
    whole = memory_of(*everything)
    small = packed(donor.model, donor.windows["fit"], fit_data.site, whole.translation, table_bytes, memory)
    fitted["converted"] = dataclasses.replace(whole, translation=small)
    if any(isinstance(term.weight, Packed) for term in small.terms):
        fitted[UNPACKED] = whole
    fitted["baseline:tables-alone"] = memory_of(everything[0], [])
    translations: dict[str, Translation] = {
        **{name: found.translation for name, found in fitted.items()},
        "baseline:ridge-alone": fitted["converted"].linear,
        "floor:mean": Translation("mean", (), fit_data.mean.float(), fit_data.first),
        "null:random-table": with_shuffled_rows(fitted["converted"].translation, seed),
    }
    late = LateBlocks(donor.model, fit_data.site)
    rows: dict[str, Logits] = {"donor": whole_model(donor.model.net)}
    rows |= {name: late.reading(found) for name, found in translations.items()}
    rows["reference:passthrough"] = late.passthrough()
    report = donor.windows["report"]
    r2 = explained_variance(translations, donor.model, report, fit_data.site, fit_data.mean, progress)
    return fitted, score_rows(rows, donor.model, report, memory, progress), r2


def score_rows(
    rows: dict[str, Logits], model: Model, windows: Windows, memory: int, progress: Progress | None
) -> dict[str, Scores]:
    """Scores of rows beside the logits of the model."""
    return evaluate(
        rows, windows, vocabulary=model.vocabulary, reference=whole_model(model.net), memory=memory, progress=progress
    )  # fmt: skip
