"""`stitch convert ngram`: replaces the first L blocks of a decoder by an n-gram memory."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from stitch.conversions.donor import Donor, read_donor
from stitch.conversions.ngrams import work
from stitch.conversions.ngrams.assemble import build_composite, keeps_embedding, table_scale
from stitch.conversions.ngrams.late import LateBlocks, explained_variance
from stitch.conversions.ngrams.leakage import RUN, LeakageAudit, audit_leakage, require_apart
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
from stitch.conversions.ngrams.size import TABLE_BYTES, bytes_of, bytes_replaced, packed, stored
from stitch.conversions.plan import plan_conversion
from stitch.conversions.report import difference
from stitch.conversions.save import save
from stitch.errors import UsageError
from stitch.estimates.plan import Plan
from stitch.evaluation.documents import counted
from stitch.evaluation.scores import Logits, Scores, evaluate, whole_model
from stitch.files.job import Job, run
from stitch.models.anatomy import blocks_before_last_part
from stitch.models.model import Model
from stitch.progress import Progress
from stitch.text.documents import Split
from stitch.text.windows import Windows
from stitch.translation.look_ups import positions
from stitch.translation.packed import Packed
from stitch.translation.types import Ngram, Translation

TOLERANCE = 0.05  # default of the nats that `drop` "auto" may cost on the sweep split
TOKENS, HELD_OUT = 300_000, 32_768  # defaults
UNPACKED = "reference:unpacked"
MUCH = 0.02  # nats lost by packing, above which a report says what would help
COMPARED = (
    ("converted", "donor"), ("converted", UNPACKED), ("reference:passthrough", "converted"), ("null:random-table", "converted"),
    ("floor:mean", "converted"), ("baseline:tables-alone", "converted"), ("baseline:ridge-alone", "converted"),
)  # fmt: skip


def convert_ngram(
    name: str,
    out: Path,
    *,
    drop: int | str,
    shape: NgramShape | None = None,
    table_bytes: float = TABLE_BYTES,
    tolerance: float = TOLERANCE,
    text: str = "docs",
    tokens: int = TOKENS,
    held_out: int = HELD_OUT,
    context: int | None = None,
    seed: int = 0,
    memory: int = 4 * 2**30,
    device: str = "auto",
    dtype: str = "fp32",
    trust_remote_code: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict:
    """Writes the converted model to `out` and returns its report.

    `drop` is L, or "auto": the most blocks whose replacement costs at most `tolerance` nats per token on the sweep split. Rows
    are fitted on the fit split; λ, κ and least counts are chosen on the sweep split. Tables are packed into `table_bytes` percent
    of the bytes of the blocks. `memory` is the budget in bytes.
    Raises UsageError for a request that cannot be met, StitchError for weights or text that fail.
    """
    shape = shape or NgramShape()

    def plan() -> Job:
        if tolerance < 0:
            raise UsageError(f"tolerance must be 0 or more nats; got {tolerance}.")
        if not table_bytes > 0:
            raise UsageError(f"table_bytes must be more than 0 percent; got {table_bytes:g}.")
        donor = read_donor(
            name, text=text, tokens=tokens, held_out=held_out, context=context, seed=seed, device=device, dtype=dtype,
            trust_remote_code=trust_remote_code, progress=progress,
        )  # fmt: skip
        check_drop(donor.model, drop)
        if not keeps_embedding(donor.model):
            table_scale(donor.model.parts[-1])

        def make(scratch: Path, output: Path) -> dict:
            indices = tables_for(donor.model, donor.windows, shape, memory)
            audit = audited_leakage(donor, shape)
            tried: dict[int, float] = {}
            if isinstance(drop, int):
                fit_data = read_fit_data(donor.model, donor.windows, drop, shape, indices, progress)
            else:
                fit_data, tried = deepest_within(donor, shape, indices, table_bytes, tolerance, memory, progress)
            fitted, scores, r2 = measure(donor, fit_data, table_bytes, seed, memory, progress)
            net = build_composite(donor.model, fit_data.site, fitted["converted"].translation)
            scores |= _evaluate({"converted": whole_model(net)}, donor.model, donor.windows["report"], memory, progress)
            known = loss_by_leakage(donor, fit_data.site, fitted["converted"].translation, audit, memory, progress)
            settings = {
                "drop": drop, **dataclasses.asdict(shape), "table_bytes": table_bytes, "tolerance": tolerance, "seed": seed,
                "memory": memory,
            }  # fmt: skip
            report = assemble_report(donor, fit_data, fitted, scores, r2, audit, known, tried, settings)
            save(net, donor.model, output, report)
            return report

        def planned() -> Plan:
            first = blocks_before_last_part(donor.model.config) + 1
            sites = [drop] if isinstance(drop, int) else range(first, donor.model.depth)
            shown = partial(work.stages, sites=sites, order=shape.order, skips=shape.skips)
            share = 0.0 if math.isinf(table_bytes) else table_bytes / 100 - 1
            added = int(bytes_replaced(donor.model, sites[-1]) * share)
            return plan_conversion(donor, shown, memory=memory, added=added, progress=progress)

        return Job(make=make, plan=planned)

    return run("convert ngram", plan, out, overwrite=overwrite)[0]


def check_drop(model: Model, drop: int | str) -> None:
    """Raises UsageError unless `drop` is "auto" or cuts the model, in a composite its last part, between two blocks."""
    before = blocks_before_last_part(model.config)
    least = before + 1
    # With fewer blocks replaced, a seam would remain that reads streams which are no longer computed.
    remedy = (
        f": to replace only some of the first {before}, convert their model before it is stitched." if before else "."
    )
    if drop != "auto" and not (isinstance(drop, int) and least <= drop < model.depth):
        raise UsageError(
            f"drop must be auto or in {least}..{model.depth - 1} for {model.name}, which has {model.depth} blocks; "
            f"got {drop}{remedy}"
        )


def audited_leakage(donor: Donor, shape: NgramShape) -> LeakageAudit:
    """The overlap of the report split with the fit split. Raises UsageError if it is too large."""
    found = audit_leakage(donor.windows["fit"], donor.windows["report"], shape.order, donor.model.vocabulary)
    require_apart(found)
    return found


def tables_for(model: Model, texts: Mapping[Split, Windows], shape: NgramShape, memory: int) -> list[TableIndex]:
    """The tables for memories of any depth, fitted on `texts`."""
    learned = positions(model)
    length = 0 if learned is None else len(learned)
    return choose_tables(texts, shape, model.vocabulary, length, memory, model.width)


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
    base = _evaluate({"donor": whole_model(model.net)}, model, sweep, memory, progress)["donor"].ce
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
        tried[site] = _evaluate({"memory": row}, model, sweep, memory, progress)["memory"].ce - base
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


def fit_full_memory(fit_data: NgramFitData, progress: Progress | None = None) -> NgramMemory:
    """The memory with all tables and inputs."""
    return fit_memory(fit_data, *list(cumulative_stages(fit_data).values())[-1], progress=progress)


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
    return fitted, _evaluate(rows, donor.model, report, memory, progress), r2


def _evaluate(
    rows: dict[str, Logits], model: Model, windows: Windows, memory: int, progress: Progress | None
) -> dict[str, Scores]:
    return evaluate(
        rows, windows, vocabulary=model.vocabulary, reference=whole_model(model.net), memory=memory, progress=progress
    )  # fmt: skip


@dataclass(frozen=True)
class SubsetLoss:
    """Cross-entropies of donor and converted model on a subset of the reported tokens, in nats."""

    tokens: int
    donor: float
    converted: float


def loss_by_leakage(
    donor: Donor,
    site: int,
    translation: Translation,
    audit: LeakageAudit,
    memory: int,
    progress: Progress | None = None,
) -> dict[str, SubsetLoss]:
    """Cross-entropies after tokens whose longest n-gram is in the fit text, is not in it, or that are outside copied runs."""
    report = donor.windows["report"]
    kind = audit.known.int() + 2 * audit.copied.int()
    predicting = torch.zeros_like(kind)
    predicting[:, 1:] = kind[:, :-1]  # `Windows.document` labels predicted tokens; `kind` is that of the token before
    rows = {"donor": whole_model(donor.model.net), "converted": LateBlocks(donor.model, site).reading(translation)}
    scores = evaluate(
        rows, Windows(report.ids, predicting), vocabulary=donor.model.vocabulary, memory=memory, progress=progress,
        task="copied text (tokens)",
    )  # fmt: skip

    def over(kinds: list[int]) -> SubsetLoss:
        kinds = [one for one in kinds if one < len(scores["donor"].tokens)]
        predicted = scores["donor"].tokens[kinds].sum()
        nats = {name: float(found.nats[kinds].sum() / predicted.clamp_min(1)) for name, found in scores.items()}
        return SubsetLoss(int(predicted), nats["donor"], nats["converted"])

    return {"seen": over([1, 3]), "unseen": over([0, 2]), "not copied": over([0, 1])}


def packing_notes(scores: dict[str, Scores]) -> list[str]:
    """A note where packing loses more than MUCH."""
    if UNPACKED not in scores or (lost := scores["converted"].ce - scores[UNPACKED].ce) <= MUCH:
        return []
    return [f"Packing loses {lost:.3f} nats: a higher `table_bytes` keeps more of the tables."]


def differences(scores: dict[str, Scores]) -> list[dict]:
    """Entries of `differences` in report.json."""
    return [difference(scores, *pair) for pair in COMPARED if {*pair} <= {*scores}]


def assemble_report(
    donor: Donor,
    fit_data: NgramFitData,
    fitted: dict[str, NgramMemory],
    scores: dict[str, Scores],
    r2: dict[str, float],
    audit: LeakageAudit,
    known: dict[str, SubsetLoss],
    tried: dict[int, float],
    settings: dict,
) -> dict:
    """report.json; see `stitch.conversions.report`."""
    model, site = donor.model, fit_data.site
    size = {name: bytes_of(found.translation, model) for name, found in fitted.items()}
    kinds = ("donor", "converted", "baseline", "reference", "floor", "null")
    results = []
    for name in sorted(scores, key=lambda name: kinds.index(name.partition(":")[0])):
        row = scores[name].row(name)
        row |= {"r2": r2[name]} if name in r2 else {}
        row |= {"table_bytes": size[name]} if name in size else {}
        results.append(row)
    memory = fitted["converted"]
    described = [
        {
            "by": _label(index),
            "rows": rows,
            "shrinkage": kappa,
            "least_count": least,
            **stored(memory.translation, index),
        }
        for index, rows, kappa, least in zip(
            memory.indices, memory.rows, memory.shrinkages, memory.least_counts, strict=True
        )
    ]
    return {
        "conversion": "ngram",
        "model": model.name,
        "title": f"{model.name} with an n-gram memory in place of its first {site} of {model.depth} blocks",
        "made": f"The stream entering block {site} is looked up by the last {1 + fit_data.shape.skips} tokens instead of being "
        f"computed. Blocks {site} to {model.depth - 1} are the donor's.",
        "site": site,
        "tokens": {split: found.tokens for split, found in donor.windows.items()},
        "documents": counted(scores["donor"]),
        "context": donor.context,
        "results": results,
        "differences": differences(scores),
        "tables": described,
        "passes": [error / memory.errors[0] for error in memory.errors],
        "overlap": {
            "copied": audit.share_copied,
            "run": RUN,
            "seen": {str(n): share for n, share in audit.seen.items()},
        },
        "knowledge": {name: dataclasses.asdict(found) for name, found in known.items()},
        "tried": {str(depth): cost for depth, cost in tried.items()},
        "notes": [
            *_notes(
                model,
                fit_data,
                described,
                audit,
                known,
                tried,
                bytes_replaced(model, site),
                size["converted"],
                settings,
            ),
            *packing_notes(scores),
        ],
        **donor.origin("convert ngram", settings),
    }


def _label(index: TableIndex) -> str:
    if isinstance(index.by, Ngram):
        return f"{index.by.order}-gram"
    back: int | None = getattr(index.by, "back", None)
    return "position" if back is None else "token" if back == 0 else f"token {back} ago"


def _notes(
    model: Model,
    fit_data: NgramFitData,
    described: list[dict],
    audit: LeakageAudit,
    known: dict[str, SubsetLoss],
    tried: dict[int, float],
    dropped: int,
    tables: int,
    settings: dict,
) -> list[str]:
    order, left_out = fit_data.shape.order, [one["by"] for one in described if not one["stored_rows"]]
    shares = ", ".join(f"{share:.1%} of {n}-grams" for n, share in audit.seen.items())
    notes = [
        f"Tables take {tables / 2**20:,.1f} MiB; the blocks they replace took {dropped / 2**20:,.1f} MiB."
        + (
            ""
            if keeps_embedding(model)
            else " The table by the current token is the embedding, which is not counted against the limit."
        )
        + (f" No byte was left for the tables by {', '.join(left_out)}." if left_out else ""),
        "R² is measured on held-out tokens for the stream entering the first remaining block, with weights 1 / ‖stream‖². Rows "
        "by order are fitted with n-grams up to that order.",
        f"Leakage: the fit text has {shares} of the reported text; {audit.share_copied:.1%} of the reported tokens are in runs "
        f"of {RUN} tokens that the fit text has too.",
    ]
    kinds = {"seen": f"whose {order}-gram is in the fit text", "unseen": f"whose {order}-gram is not in it"}
    for name, what in {**kinds, "not copied": "outside such runs"}.items():
        one = known[name]
        notes.append(
            f"After {one.tokens:,} tokens {what}: {one.converted - one.donor:+.4f} nats "
            f"({one.converted:.3f}, donor {one.donor:.3f})."
        )
    if tried:
        costs = ", ".join(f"{depth}: {cost:+.3f}" for depth, cost in tried.items())
        notes.append(
            f"Cost on the sweep split by number of replaced blocks, in nats: {costs}; tolerance {settings['tolerance']:g}."
        )
    return notes
