"""`stitch eval`: any causal language model on held-out text, alone or beside another."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from stitch.activations import Progress
from stitch.config import torch_device, torch_dtype
from stitch.errors import StitchError, UsageError
from stitch.evaluate import evaluate, whole_model
from stitch.models import parts_of, register_composites
from stitch.sources import Source, resolve
from stitch.stages import CHARACTERS_PER_TOKEN, LONGEST_CONTEXT
from stitch.text import read, select
from stitch.tokens import Windows, pack, require_same_ids


@dataclass(frozen=True)
class AnyModel:
    """A causal language model of any family: no anatomy is needed to score it."""

    net: nn.Module
    tokenizer: Any
    vocabulary: int
    longest: int | None


def evaluate_models(
    model: str,
    against: str | None = None,
    *,
    text: str = "docs",
    tokens: int = 50_000,
    context: int | None = None,
    memory: int = 4 * 2**30,
    device: str = "auto",
    dtype: str = "fp32",
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> dict:
    """Scores `model` on `tokens` tokens of the report split of `text`; with `against`, that one too, and KL(against ‖ model).

    Raises UsageError when the two do not read the same ids or the context is too long, StitchError when text or weights fail.
    """
    where, precision = torch_device(device), torch_dtype(dtype)
    names = [model] if against is None else [model, against]
    found = [load_any(resolve(name, progress=progress), precision, where, trust_remote_code) for name in names]
    if against is not None:
        require_same_ids(found[0].tokenizer, found[1].tokenizer, model, against)
    longest = min([LONGEST_CONTEXT, *(one.longest for one in found if one.longest)])
    if context is not None and any(one.longest and context > one.longest for one in found):
        raise UsageError(f"--context must be at most {longest}, what the models take; got {context}.")
    windows = report_windows(text, tokens, found[0].tokenizer, context or longest)
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
        "context": windows.context,
        "results": [score.row(name) for name, score in scores.items()],
    }


def report_windows(text: str, tokens: int, tokenizer: Any, context: int) -> Windows:
    """`tokens` tokens of the report split of `text`. Raises StitchError when there is less than one window."""
    documents = select(read(text, characters=CHARACTERS_PER_TOKEN * tokens * 25), "report")
    windows = pack(documents, tokenizer, context, tokens)
    if windows.tokens == 0:
        raise StitchError(
            f"--text must fill one window of {windows.context} tokens of the report split; {text} does not: use more text."
        )
    return windows


def load_any(source: Source, dtype: torch.dtype, device: torch.device, trust_remote_code: bool) -> AnyModel:
    """The model in `source.folder`. Composites need no remote code here: the class that wrote them is at hand."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    register_composites()
    logging.disable_progress_bar()  # progress is told through callbacks
    try:
        net: Any = AutoModelForCausalLM.from_pretrained(
            source.folder, dtype=dtype, trust_remote_code=trust_remote_code, local_files_only=True, use_safetensors=True
        )
        tokenizer = AutoTokenizer.from_pretrained(source.folder, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise StitchError(
            f"{source.name} must load as a causal language model; got {type(error).__name__}: {reason}"
        ) from error
    config = net.config
    limits = [limit for part in parts_of(config) if (limit := getattr(part, "max_position_embeddings", None))]
    return AnyModel(net.to(device).eval(), tokenizer, config.vocab_size, min(limits, default=None))
