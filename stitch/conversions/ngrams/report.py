"""report.json of `stitch convert ngram`: rows, tables, and notes in words."""

import dataclasses

from stitch.conversions.donor import Donor
from stitch.conversions.ngrams.assemble import keeps_embedding
from stitch.conversions.ngrams.fit import UNPACKED
from stitch.conversions.ngrams.knowledge import SubsetLoss
from stitch.conversions.ngrams.leakage import RUN, LeakageAudit
from stitch.conversions.ngrams.memory import NgramFitData, NgramMemory
from stitch.conversions.ngrams.reading import TableIndex
from stitch.conversions.ngrams.size import bytes_of, bytes_replaced, stored
from stitch.conversions.report import difference
from stitch.evaluation.documents import counted
from stitch.evaluation.scores import Scores
from stitch.models.model import Model
from stitch.translation.types import Ngram

MUCH = 0.02  # nats lost by packing, above which a report says what would help
COMPARED = (
    ("converted", "donor"), ("converted", UNPACKED), ("reference:passthrough", "converted"), ("null:random-table", "converted"),
    ("floor:mean", "converted"), ("baseline:tables-alone", "converted"), ("baseline:ridge-alone", "converted"),
)  # fmt: skip


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
