"""`stitch convert ngram`: replaces the first L blocks of a decoder by an n-gram memory."""

import dataclasses
import math
from functools import partial
from pathlib import Path

from stitch.conversions.donor import read_donor
from stitch.conversions.ngrams import work
from stitch.conversions.ngrams.assemble import build_composite, keeps_embedding, table_scale
from stitch.conversions.ngrams.fit import deepest_within, measure, score_rows, tables_for
from stitch.conversions.ngrams.knowledge import audited_leakage, loss_by_leakage
from stitch.conversions.ngrams.memory import NgramShape, read_fit_data
from stitch.conversions.ngrams.report import assemble_report
from stitch.conversions.ngrams.size import TABLE_BYTES, bytes_replaced
from stitch.conversions.plan import plan_conversion
from stitch.conversions.save import save
from stitch.errors import UsageError
from stitch.estimates.plan import Plan
from stitch.evaluation.scores import whole_model
from stitch.files.job import Job, run
from stitch.models.anatomy import blocks_before_last_part
from stitch.models.model import Model
from stitch.progress import Progress

TOLERANCE = 0.05  # default of the nats that `drop` "auto" may cost on the sweep split
TOKENS, HELD_OUT = 300_000, 32_768  # defaults


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
            scores |= score_rows(
                {"converted": whole_model(net)}, donor.model, donor.windows["report"], memory, progress
            )
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
