"""`stitch.retokenize`: a model that reads another model's tokenizer."""

from stitch.api.given import ModelLike, Output, PathLike, TextLike, named, text_named
from stitch.api.page import Page
from stitch.api.progress import progress
from stitch.api.result import ModelResult


class Retokenized(ModelResult):
    """A model with another tokenizer, its report and its table."""


def retokenize(
    model: ModelLike,
    tokenizer: ModelLike,
    *,
    donor_model: ModelLike | None = None,
    text: TextLike = "docs",
    tokens: int = 16_384,
    documents: int = 128,
    context: int | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "fp32",
    out: PathLike | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    quiet: bool = False,
) -> Retokenized:
    """Writes `model` with new embedding and head rows for the tokenizer of the model `tokenizer`. Nothing is trained.

    `tokenizer` may also be a folder that holds a tokenizer alone. `donor_model` is a model that reads it, from whose rows
    some of the new ones are made. Options are those of `stitch retokenize`; models, `text` and `out` as in `stitch.join`.
    Raises: UsageError for a request that cannot be met, StitchError for weights or text that fail.
    """
    from stitch.conversions.retokenization.convert import retokenize as job
    from stitch.conversions.retokenization.report import footnotes, table

    place = Output(out)
    with (
        named(model, tokenizer, donor_model) as (name, of_tokenizer, of_donor),
        text_named(text) as source,
        progress(quiet) as update,
    ):
        report = job(
            name, place.path, tokenizer=of_tokenizer, donor_model=of_donor, text=source, tokens=tokens, documents=documents,
            context=context, seed=seed, device=device, dtype=dtype, overwrite=overwrite,
            trust_remote_code=trust_remote_code, progress=update,
        )  # fmt: skip
    page = Page(tables=[table(report)], notes=footnotes(report), written=place.written(place.path))
    return Retokenized(report, page, place, place.path)
