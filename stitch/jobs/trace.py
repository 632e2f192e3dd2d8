"""Whether a model holds a trace of a document: whether it learns it faster than a model that never saw it."""

import math
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stitch.errors import UsageError
from stitch.evaluation.intervals import departure
from stitch.evaluation.relearning import HELD, STEPS, area, in_pieces, learn, restored
from stitch.evaluation.scores import Scores, evaluate, whole_model
from stitch.files.shards import stored_tensors
from stitch.files.sizes import size_in_words
from stitch.jobs.evaluate import window_length
from stitch.models.device import torch_device
from stitch.models.loading import AnyModel, load_any
from stitch.models.provenance import described, versions
from stitch.models.sources import Source, resolve_all
from stitch.progress import Progress
from stitch.text.documents import SELF, read, select
from stitch.text.file_ids import file_ids, text_of
from stitch.text.tokenizers import bos_of, require_same_ids
from stitch.text.windows import CHARACTERS_PER_TOKEN, Windows, report_windows, require_rows, require_text_size

LEAST = 10  # control documents
SHORTEST = 8  # tokens of a document


def find_trace(
    model: str,
    document: Path,
    against: str | None = None,
    *,
    controls: int = 24,
    rate: float = 1e-4,
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
    """Lets copies of `model` learn `document`, and each of `controls` others of its length from the report split of `text`.

    Savings are areas between curves in nats · steps: that of a document, less the mean of the controls. With `against`, a model
    that never saw the document, the area is between its curve and the model's; without, between the curve and its own start.
    Raises: UsageError for a request that cannot be met; StitchError when models, text or training fail.
    """
    _check(controls, rate, dtype, text)
    require_text_size(tokens, context)
    text_of(document, "trace")  # said before models are loaded
    names = [model] if against is None else [model, against]
    sources = resolve_all(names, trust_remote_code=trust_remote_code, progress=progress)
    for source in sources:
        _require_memory(source, memory)
    found = [load_any(source, torch.float32, torch_device(device), trust_remote_code, progress) for source in sources]
    if against is not None:
        require_same_ids(found[0].tokenizer, found[1].tokenizer, model, against)
    longest = window_length(found, context)
    tokenizer = found[0].tokenizer
    ids = file_ids(document, tokenizer, "trace")
    if len(ids) < SHORTEST:
        raise UsageError(f"trace must have at least {SHORTEST} tokens; {document} has {len(ids)}: give a longer text.")
    others = _others(text, tokens, tokenizer, ids, controls + 1, seed, progress)
    windows = report_windows(text, tokens, tokenizer, longest, progress=progress)
    for name, one in zip(names, found, strict=True):
        require_rows(windows, one.vocabulary, name)
    pieces = [in_pieces(one, bos_of(tokenizer), longest) for one in (ids, *others)]
    curves, costs = [], []
    for number, one in enumerate(found):
        before = _scores(one, windows, memory)
        rows = []
        for place, some in enumerate(pieces):
            with restored(one.net):
                rows.append(learn(one.net, some, rate))
                if place == 0:
                    costs.append((_scores(one, windows, memory), before))
            if progress:
                progress("relearning (documents)", number * len(pieces) + place + 1, len(found) * len(pieces))
        curves.append(torch.stack(rows))
    return {
        "models": {"a": model, "b": against},
        "document": {"name": document.name, "tokens": len(ids)},
        "controls": controls,
        "steps": STEPS,
        "rate": rate,
        "tokens": {"report": windows.tokens},
        "context": windows.context,
        "results": _rows(curves, costs),
        "provenance": {
            "settings": {
                "model": model,
                "against": against,
                "trace": document.name,
                "controls": controls,
                "rate": rate,
                "text": text,
                "tokens": tokens,
                "context": longest,
                "seed": seed,
                "device": device,
            },
            "models": dict(zip("ab", map(described, sources), strict=False)),
            "versions": versions(),
            **windows.provenance,
        },
    }


def _check(controls: int, rate: float, dtype: str, text: str) -> None:
    if text == SELF:
        raise UsageError(
            "text must not be self for a trace, as its controls are documents that the model has not seen: give another text."
        )
    if controls < LEAST:
        raise UsageError(f"controls must be at least {LEAST}, for an interval; got {controls}.")
    if not 0 < rate < 1:
        raise UsageError(f"rate must be above 0 and below 1; got {rate:g}.")
    if dtype != "fp32":
        raise UsageError(f"dtype must be fp32 for a trace, as the model is trained; got {dtype}.")


def _require_memory(source: Source, memory: int) -> None:
    """Raises UsageError where training would hold more than `memory` bytes, by the headers of the weights."""
    needed = HELD * sum(math.prod(one.shape) for one in stored_tensors(source.folder).values())
    if needed > memory:
        raise UsageError(
            f"memory must be at least {size_in_words(needed)} to train {source.name} beside the model itself; got "
            f"{size_in_words(memory)}: raise it where the machine has it, or choose a smaller model."
        )


def _others(
    text: str,
    tokens: int,
    tokenizer,
    document: Int[Tensor, " tokens"],
    count: int,
    seed: int,
    progress: Progress | None = None,
) -> list[Int[Tensor, " tokens"]]:
    """`count` other documents of the report split, drawn at random among those that are as long, and cut to that length."""
    length = len(document)
    found: list[Tensor] = []
    documents = select(read(text, characters=CHARACTERS_PER_TOKEN * tokens * 25, progress=progress), "report")
    for place in torch.randperm(len(documents), generator=torch.Generator().manual_seed(seed)).tolist():
        content = documents[place][1]
        if len(content.encode()) < length:  # a token has no less than a byte, but for what is lost
            continue
        ids = torch.tensor(tokenizer.encode(content, add_special_tokens=False, verbose=False)[:length])
        if len(ids) == length and not torch.equal(ids, document):
            found.append(ids)
        if len(found) == count:
            return found
    raise UsageError(
        f"text must have {count} documents of {length} tokens in its report split, as long as the one to trace; {text} has "
        f"{len(found)}: trace a part of the document, set fewer `controls`, or use more text."
    )


@torch.no_grad()
def _scores(model: AnyModel, windows: Windows, memory: int) -> Scores:
    return evaluate({"model": whole_model(model.net)}, windows, vocabulary=model.vocabulary, memory=memory)["model"]


def _rows(curves: list[Float[Tensor, "documents points"]], costs: list[tuple[Scores, Scores]]) -> list[dict]:
    """Rows of the report. The first document is the one to trace, the second is the null, the others are the controls."""
    own = curves[0]
    beside = curves[1] if len(curves) == 2 else own[:, :1].expand_as(own)
    areas = torch.tensor([area(one) for one in beside - own], dtype=torch.float64)
    starts = STEPS * (beside - own)[:, 0]

    def savings(place: int) -> dict:
        above, low, high = departure(float(areas[place]), areas[2:])
        at_start = departure(float(starts[place]), starts[2:])[0]
        return {"savings": above, "savings_low": low, "savings_high": high, "at_start": at_start}

    names = ("model", "against")[: len(curves)]
    rows = [
        {"name": name, "curve": one[0].tolist(), **after.difference(before, "cost")}
        for name, one, (after, before) in zip(names, curves, costs, strict=True)
    ]
    rows[0] |= savings(0)
    for name, one in zip(names, curves, strict=True):
        rows.append({"name": f"controls, {name}", "curve": one[2:].mean(0).tolist()})
    rows.append({"name": "null:another document", "curve": own[1].tolist(), **savings(1)})
    return rows
