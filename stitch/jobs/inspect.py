"""A model's heads or sites, measured on held-out text."""

from typing import Any

from stitch.errors import UsageError
from stitch.files.store import Store
from stitch.layers.heads_report import heads_report
from stitch.layers.sites_report import sites_report
from stitch.models.device import torch_device, torch_dtype
from stitch.models.loading import load
from stitch.models.model import Model
from stitch.models.sources import Source, resolve
from stitch.models.writer import Writer
from stitch.progress import Progress
from stitch.text.windows import CONTEXT, SHORTEST, Windows, report_windows, require_rows, require_text_size

SHORTEST_OF_HEADS = 16  # tokens of a window in which some keys are far


def inspect_heads(
    model: str, *, seed: int = 0, memory: int = 4 * 2**30, progress: Progress | None = None, **asked: Any
) -> dict:
    """The report on the attention heads of `model`; `asked` are the other options of `stitch inspect`.

    Raises: UsageError for a model whose attention is not known, and for too long a context; StitchError for too little text.
    """
    loaded, source, windows = _read(model, SHORTEST_OF_HEADS, seed=seed, progress=progress, **asked)
    settings = {"model": model, **asked, "context": windows.context, "seed": seed, "memory": memory}
    return heads_report(loaded, source, windows, settings, seed=seed, memory=memory, progress=progress)


def inspect_sites(
    model: str, *, seed: int = 0, memory: int = 4 * 2**30, progress: Progress | None = None, **asked: Any
) -> dict:
    """The report on the residual stream of `model` at its sites; the rest as in `inspect_heads`."""
    loaded, source, windows = _read(model, SHORTEST, seed=seed, progress=progress, **asked)
    settings = {"model": model, **asked, "context": windows.context, "seed": seed, "memory": memory}
    return sites_report(loaded, source, windows, settings, seed=seed, memory=memory, progress=progress)


def _read(
    model: str,
    shortest: int,
    *,
    seed: int,
    text: str = "docs",
    tokens: int = 32_768,
    context: int | None = None,
    device: str = "auto",
    dtype: str = "fp32",
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> tuple[Model, Source, Windows]:
    require_text_size(tokens, context, shortest)
    source = resolve(model, trust_remote_code=trust_remote_code, progress=progress)
    loaded = load(
        source.folder, name=source.name, dtype=torch_dtype(dtype), device=torch_device(device),
        trust_remote_code=trust_remote_code, progress=progress,
    )  # fmt: skip
    if context is not None and context > loaded.longest:
        raise UsageError(f"context must be at most {loaded.longest}, what the model takes; got {context}.")
    length = min(loaded.longest, CONTEXT) if context is None else context
    writer = Writer.of(loaded, seed)
    windows = report_windows(text, tokens, loaded.tokenizer, length, writer=writer, store=Store(), progress=progress)
    require_rows(windows, loaded.vocabulary, loaded.name)
    return loaded, source, windows
