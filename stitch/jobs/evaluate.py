"""Scores any causal language model on held-out text, alone or compared with another."""

from collections.abc import Sequence

from stitch.errors import UsageError
from stitch.evaluation.documents import counted
from stitch.evaluation.scores import evaluate, whole_model
from stitch.files.store import Store
from stitch.models.device import torch_device, torch_dtype
from stitch.models.loading import AnyModel, load_any
from stitch.models.provenance import versions
from stitch.models.sources import resolve_all
from stitch.models.writer import Writer
from stitch.progress import Progress
from stitch.text.tokenizers import require_same_ids
from stitch.text.windows import CONTEXT, report_windows, require_text_size


def evaluate_models(
    model: str,
    against: str | None = None,
    *,
    text: str = "docs",
    tokens: int = 50_000,
    context: int | None = None,
    seed: int = 0,
    memory: int = 4 * 2**30,
    device: str = "auto",
    dtype: str = "fp32",
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> dict:
    """Scores `model`, and `against` if given, on `tokens` tokens of the report split of `text`.

    With `against` the scores also have KL(against ‖ model) and top-1 agreement. Text `self` is written from `seed` by `against`,
    where it is given, otherwise by `model`. Returns the report.
    Raises: UsageError when the two models do not read the same token ids or `context` is too long; StitchError when the text is
    too small or weights are missing or damaged.
    """
    require_text_size(tokens, context)
    place, precision = torch_device(device), torch_dtype(dtype)
    names = [model] if against is None else [model, against]
    sources = resolve_all(names, progress=progress)
    found = [load_any(source, precision, place, trust_remote_code, progress) for source in sources]
    if against is not None:
        require_same_ids(found[0].tokenizer, found[1].tokenizer, model, against)
    writer = Writer(sources[-1].name, found[-1].net, found[-1].tokenizer, sources[-1].folder, seed)
    windows = report_windows(
        text, tokens, found[0].tokenizer, window_length(found, context), writer=writer, store=Store(), progress=progress
    )
    rows = {name: whole_model(one.net) for name, one in zip(("model", "against"), found, strict=False)}
    scores = evaluate(
        rows,
        windows,
        vocabulary=min(one.vocabulary for one in found),
        reference=rows.get("against"),
        memory=memory,
        progress=progress,
    )
    return {
        "models": {"a": model, "b": against},
        "tokens": {"report": windows.tokens},
        "documents": counted(scores["model"]),
        "context": windows.context,
        "results": [score.row(name) for name, score in scores.items()],
        "provenance": {"versions": versions(), **windows.provenance},
    }


def window_length(models: Sequence[AnyModel], context: int | None) -> int:
    """`context`, or the longest that all models take, at most CONTEXT. Raises: UsageError where one does not take it."""
    longest = min([CONTEXT, *(one.longest for one in models if one.longest)])
    if context is not None and any(one.longest and context > one.longest for one in models):
        raise UsageError(f"context must be at most {longest}, what the models take; got {context}.")
    return context or longest
