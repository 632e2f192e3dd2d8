"""Scores any causal language model on held-out text, alone or compared with another, which may read other tokens."""

from collections.abc import Sequence

from stitch.activations.in_own_tokens import InOwnTokens, alignment
from stitch.errors import UsageError
from stitch.evaluation.comparisons import difference
from stitch.evaluation.documents import counted
from stitch.evaluation.own_tokens import own_scores
from stitch.evaluation.scores import Scores, evaluate, whole_model
from stitch.files.store import Store
from stitch.models.device import torch_device, torch_dtype
from stitch.models.loading import AnyModel, load_any
from stitch.models.model import UNBOUNDED
from stitch.models.provenance import versions
from stitch.models.sources import resolve_all
from stitch.models.writer import Writer
from stitch.progress import Progress
from stitch.report.across import across_tokenizers
from stitch.text.alignment import require_lossless
from stitch.text.reader import Reader
from stitch.text.rewrite import Rewriter
from stitch.text.tokenizers import same_ids
from stitch.text.windows import CONTEXT, Windows, report_windows, require_rows, require_text_size


def evaluate_models(
    model: str,
    against: str | None = None,
    *,
    text: str = "docs",
    whole_text: bool = False,
    tokens: int = 50_000,
    context: int | None = None,
    seed: int = 0,
    memory: int = 4 * 2**30,
    device: str = "auto",
    dtype: str = "fp32",
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> dict:
    """Scores `model`, and `against` if given, on `tokens` tokens of the report split of `text`, or of `whole_text`.

    With `against` the scores also have KL(against ‖ model) and top-1 agreement. Where it reads other tokens than `model`, it
    reads the same bytes in its own; then losses are also in bits per byte, and KL is of the next byte. Text `self` is written
    from `seed` by `against`, where it is given, otherwise by `model`. Returns the report.
    Raises: UsageError when `context` is too long or the tokenizer of `against` loses too much of the text; StitchError when the
    text is too small or weights are missing or damaged.
    """
    require_text_size(tokens, context)
    place, precision = torch_device(device), torch_dtype(dtype)
    names = [model] if against is None else [model, against]
    sources = resolve_all(names, trust_remote_code=trust_remote_code, progress=progress)
    found = [load_any(source, precision, place, trust_remote_code, progress) for source in sources]
    writer = Writer(sources[-1].name, found[-1].net, found[-1].tokenizer, sources[-1].folder, seed)
    windows = report_windows(
        text, tokens, found[0].tokenizer, window_length(found, context), whole=whole_text, writer=writer, store=Store(),
        progress=progress,
    )  # fmt: skip
    other = None
    if against is not None and not same_ids(found[0].tokenizer, found[1].tokenizer):
        other = _in_own_tokens(found[1], against, Reader.of(model, found[0].tokenizer))
    for name, one in zip(names, found if other is None else found[:1], strict=False):
        require_rows(windows, one.vocabulary, name)
    lost = None if other is None else _lost(other, windows)
    scores = _scores(found, other, windows, memory, progress)
    report = {
        "models": {"a": model, "b": against},
        "tokens": {"report": windows.tokens},
        "documents": counted(scores["model"]),
        "context": windows.context,
        "whole_text": whole_text,
        "results": [score.row(name) for name, score in scores.items()],
        "differences": [] if against is None else [difference(scores, "model", "against")],
        "provenance": {"versions": versions(), **windows.provenance},
    }
    if other is None:
        return report
    return across_tokenizers(report, {**alignment(other, windows, windows), "lost": lost})


def _scores(
    found: Sequence[AnyModel],
    other: InOwnTokens | None,
    windows: Windows,
    memory: int,
    progress: Progress | None,
) -> dict[str, Scores]:
    """Scores of the model, and of that which it is compared with. The latter is `other` where it reads its own tokens."""
    rows = {name: whole_model(one.net) for name, one in zip(("model", "against"), found, strict=False)}
    same: dict = {"memory": memory, "progress": progress}
    if other is None:
        vocabulary = min(one.vocabulary for one in found)
        return evaluate(rows, windows, vocabulary=vocabulary, reference=rows.get("against"), **same)
    own, next_byte = own_scores(other, windows, **same)
    model = evaluate(
        {"model": rows["model"]}, windows, vocabulary=found[0].vocabulary, reference=next_byte,
        counted=other.bytes_of > 0, **same,
    )  # fmt: skip
    return {**model, "against": own}


def _in_own_tokens(model: AnyModel, name: str, given: Reader) -> InOwnTokens:
    """A model that reads the bytes which ids of `given` stand for."""
    return InOwnTokens(model.net, model.longest or UNBOUNDED, Rewriter(given, Reader.of(name, model.tokenizer)))


def _lost(other: InOwnTokens, windows: Windows) -> float:
    """The share of the windows' bytes that the other tokenizer loses. Raises: UsageError where that is too much."""
    runs = [own for window in windows.ids for _, own in other.rewriter.runs(window.tolist())]
    return require_lossless(runs, other.rewriter.own.name)


def window_length(models: Sequence[AnyModel], context: int | None) -> int:
    """`context`, or the longest that all models take, at most CONTEXT. Raises: UsageError where one does not take it."""
    longest = min([CONTEXT, *(one.longest for one in models if one.longest)])
    if context is not None and any(one.longest and context > one.longest for one in models):
        raise UsageError(f"context must be at most {longest}, what the models take; got {context}.")
    return context or longest
