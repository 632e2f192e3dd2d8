"""The text that a pair is fitted and measured on."""

from collections.abc import Mapping
from dataclasses import dataclass

from stitch.config import TOKENS, TOKENS_NATIVE, AnySettings
from stitch.errors import UsageError
from stitch.files.store import Store
from stitch.models.model import Model
from stitch.models.writer import Writer
from stitch.progress import Progress
from stitch.text.documents import Split
from stitch.text.sources import Corpus
from stitch.text.windows import CONTEXT, HELD_OUT, LEAST_HELD_OUT, Windows, read_for, require_rows, split_windows


@dataclass(frozen=True, kw_only=True)
class TextSize:
    """How much text a job reads, in tokens: in the fit split, in each held-out split, and in a window."""

    fit: int
    held_out: int
    context: int

    @property
    def limits(self) -> dict[Split, int]:
        """Tokens of each split."""
        return {"fit": self.fit, "sweep": self.held_out, "report": self.held_out}


def text_size(settings: AnySettings, a: Model, b: Model, held_out: int = HELD_OUT) -> TextSize:
    """Tokens of the splits and of a window, with the defaults for these models.

    Unless the settings say otherwise, a held-out split has LEAST_HELD_OUT windows, or more up to `held_out` tokens.
    Raises: UsageError when the context is longer than the models take.
    """
    longest = min(a.longest, b.longest)
    context = settings.context if settings.context is not None else min(longest, CONTEXT)
    if context > longest:
        raise UsageError(f"context must be at most {longest}, what both models take; got {context}.")
    tokens = settings.tokens or (TOKENS_NATIVE if settings.native else TOKENS)
    held = settings.held_out or max(LEAST_HELD_OUT * context, min(tokens // 10, held_out))
    return TextSize(fit=tokens, held_out=held, context=context)


def read_corpus(
    settings: AnySettings,
    a: Model,
    b: Model,
    progress: Progress | None = None,
    held_out: int = HELD_OUT,
    *,
    store: Store | None = None,
) -> Corpus:
    """The text that the settings name. Text `self` is B's, whose blocks finish what A's have begun; `store` keeps it."""
    size = text_size(settings, a, b, held_out)
    writer = Writer.of(b, settings.seed)
    return read_for(
        settings.text, size.limits, b.tokenizer, size.context, writer=writer, store=store, progress=progress
    )


def read_windows(
    settings: AnySettings,
    a: Model,
    b: Model,
    progress: Progress | None = None,
    held_out: int = HELD_OUT,
    *,
    store: Store | None = None,
) -> dict[Split, Windows]:
    """Packed windows of the three splits. Raises StitchError when the text is too small to fill them."""
    corpus = read_corpus(settings, a, b, progress, held_out, store=store)
    windows = windows_of(corpus, settings, a, b, progress, held_out)
    require_all_rows(windows, a)
    return windows


def windows_of(
    corpus: Corpus,
    settings: AnySettings,
    a: Model,
    b: Model,
    progress: Progress | None = None,
    held_out: int = HELD_OUT,
) -> dict[Split, Windows]:
    """The same of a text that has been read."""
    size = text_size(settings, a, b, held_out)
    windows = split_windows(corpus, size.limits, b.tokenizer, size.context, progress)
    require_all_rows(windows, b if b.original is None else a)
    return windows


def require_all_rows(windows: Mapping[Split, Windows], model: Model) -> None:
    """Raises: UsageError where the text has tokens without a row in the model's embedding."""
    for part in windows.values():
        require_rows(part, model.vocabulary, model.name)
