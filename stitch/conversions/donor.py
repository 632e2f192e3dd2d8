"""The donor of a conversion: a trained model, and text in three splits."""

from collections.abc import Sequence
from dataclasses import dataclass

from stitch.errors import UsageError
from stitch.files.recipe import recipe
from stitch.files.store import Store
from stitch.models.device import torch_device, torch_dtype
from stitch.models.loading import load
from stitch.models.model import Model
from stitch.models.provenance import surroundings
from stitch.models.sources import Source, resolve
from stitch.models.writer import Writer
from stitch.progress import Progress
from stitch.text.documents import Split
from stitch.text.windows import LEAST_TOKENS, LONGEST_CONTEXT, Windows, read_for, require_rows, split_windows


@dataclass(frozen=True)
class Donor:
    """A model to convert, and windows of the three splits: `fit` to fit on, `sweep` to choose on, `report` for results.

    `to_choose_on` is the sweep split in windows of the report's length. `asked` are the settings that it was read with, by the
    names of options.
    """

    model: Model
    source: Source
    windows: dict[Split, Windows]
    to_choose_on: Windows
    asked: dict

    @property
    def context(self) -> int:
        """Tokens in a window of the fit split."""
        return self.windows["fit"].context

    def origin(self, command: str, settings: dict, *, without: Sequence[str] = ()) -> dict:
        """`provenance` and `recipe` in report.json. `settings` are those of the conversion; `without` are no options of it."""
        models = {"donor": (self.model, self.source)}
        provenance = {**surroundings({**self.asked, **settings}, models), **self.windows["fit"].provenance}
        return {"provenance": provenance, "recipe": recipe(command, provenance, without=without)}


def read_donor(
    name: str,
    *,
    text: str,
    tokens: int,
    held_out: int,
    context: int | None = None,
    report_factor: int = 1,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "fp32",
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Donor:
    """Loads the model and `text`: `tokens` tokens of the fit split and `held_out` of each other split, in windows.

    Windows have `context` tokens; None: the model's context, at most LONGEST_CONTEXT. Those of the report split are
    `report_factor` times as long, limited by the same maximum. Text `self` is written by the model, from `seed`.
    Raises UsageError for a request that cannot be met, StitchError for weights or text that fail.
    """
    if tokens < LEAST_TOKENS:
        raise UsageError(f"tokens must be at least {LEAST_TOKENS:,}; got {tokens:,}.")
    source = resolve(name, trust_remote_code=trust_remote_code, progress=progress)
    model = load(
        source.folder, name=source.name, dtype=torch_dtype(dtype), device=torch_device(device),
        trust_remote_code=trust_remote_code, progress=progress,
    )  # fmt: skip
    if context is not None and not 8 <= context <= model.longest:
        raise UsageError(f"context must be in 8..{model.longest} for {name}; got {context}.")
    longest = min(model.longest, LONGEST_CONTEXT)
    context = context or longest
    limits: dict[Split, int] = {"fit": tokens, "sweep": held_out, "report": held_out}
    longer = min(report_factor * context, longest)
    corpus = read_for(
        text,
        limits,
        model.tokenizer,
        max(context, longer),
        writer=Writer.of(model, seed),
        store=Store(),
        progress=progress,
    )
    windows = split_windows(corpus, limits, model.tokenizer, context, progress)
    for one in windows.values():
        require_rows(one, model.vocabulary, model.name)
    to_choose_on = windows["sweep"]
    if longer > context:
        long = split_windows(corpus, {**limits, "fit": LEAST_TOKENS}, model.tokenizer, longer, progress)
        windows["report"], to_choose_on = long["report"], long["sweep"]
    asked = {
        "model": name, "text": text, "tokens": tokens, "held_out": held_out, "context": context, "device": device, "dtype": dtype,
    }  # fmt: skip
    return Donor(model, source, windows, to_choose_on, asked)
