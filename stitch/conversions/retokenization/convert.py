"""`stitch retokenize`: the job from the request to the folder."""

from pathlib import Path

from stitch.conversions.retokenization.choice import scored
from stitch.conversions.retokenization.report import assemble, files_of
from stitch.conversions.retokenization.request import Asked, prepare
from stitch.conversions.retokenization.write import with_vocabulary, write
from stitch.files.job import Job, run
from stitch.models.donor_code import brings_code
from stitch.progress import Progress


def retokenize(
    name: str,
    out: Path,
    *,
    tokenizer: str,
    donor_model: str | None = None,
    text: str = "docs",
    tokens: int = 16_384,
    documents: int = 128,
    context: int | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "fp32",
    overwrite: bool = False,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> dict:
    """Writes the model called `name` with new rows for the tokenizer of the model `tokenizer` to `out`, and returns the report.

    Rows of tokens that stand for the same bytes or have the same role are copied, others made in several ways. The way with
    the fewest bits per byte on `documents` documents of the sweep split is written; the report is on as many others.
    `donor_model` is a model that reads the new tokenizer, for rows made from its own.
    Raises UsageError for a request that cannot be met, StitchError for weights or text that fail.
    """

    def plan() -> Job:
        asked = Asked(
            name, tokenizer, donor_model, text, tokens, documents, context, seed, device, dtype, trust_remote_code
        )
        given = prepare(asked, progress)

        def make(scratch: Path, output: Path) -> dict:
            scores, best = scored(given, progress)
            net = with_vocabulary(given.shop.model, *best.rows, given.shop.new)
            report = assemble(given, scores, best, tied=bool(net.config.tie_word_embeddings))
            write(net, given.sources["tokenizer"].folder, output, files_of(report, remote_code=brings_code(net.config)))
            return report

        return Job(make=make)

    return run("retokenize", plan, out, overwrite=overwrite)[0]
