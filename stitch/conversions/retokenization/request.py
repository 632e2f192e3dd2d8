"""What is asked for, checked; and the models, tokenizers and texts that it needs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stitch.conversions.retokenization.passages import Passage, beginnings, whole
from stitch.conversions.retokenization.variants import Workshop
from stitch.conversions.retokenization.write import require_plain_ends
from stitch.errors import StitchError, UsageError
from stitch.files.store import Store
from stitch.models.device import torch_device, torch_dtype
from stitch.models.loading import load
from stitch.models.model import Model
from stitch.models.sources import Source, resolve
from stitch.models.writer import Writer
from stitch.progress import Progress
from stitch.text.alignment import beside, require_lossless
from stitch.text.correspondence import correspond
from stitch.text.document import Document
from stitch.text.documents import LEAST_TOKENS, Split, select
from stitch.text.fingerprint import TextRead, text_read
from stitch.text.reader import Reader
from stitch.text.sources import Wanted, corpus_of
from stitch.text.tokenizers import same_ids

CONTEXT = 256  # tokens; the default is the model's own, but at most this
READ = 200  # characters of a dataset that are read per token of the held-out documents


@dataclass(frozen=True)
class Asked:
    """The request, by the names of options."""

    model: str
    tokenizer: str
    donor_model: str | None
    text: str
    tokens: int
    documents: int
    context: int | None
    seed: int
    device: str
    dtype: str
    trust_remote_code: bool


@dataclass(frozen=True)
class Given:
    """Models, tokenizers and text of a request that can be met. `held_out` are documents of the sweep and the report split."""

    asked: Asked
    context: int
    sources: dict[str, Source]
    shop: Workshop
    held_out: dict[str, list[Passage]]
    lost: float  # share of the text's bytes that the new tokenizer does not keep
    coinciding: float  # share of new tokens that end where one of the model's own does
    text: TextRead


def prepare(asked: Asked, progress: Progress | None) -> Given:
    """Checks the request and loads what it needs."""
    for option, value, least in (("tokens", asked.tokens, LEAST_TOKENS), ("documents", asked.documents, 2)):
        if value < least:
            raise UsageError(f"{option} must be at least {least:,}; got {value:,}.")
    sources = {
        "model": resolve(asked.model, trust_remote_code=asked.trust_remote_code, progress=progress),
        "tokenizer": _tokenizer_source(asked.tokenizer, asked.trust_remote_code, progress),
    }
    model = _load(sources["model"], asked, progress)
    if len(model.parts) > 1:
        raise UsageError(
            f"model must be no composite, as a composite looks things up by token id; {asked.model} is one."
        )
    new = Reader.of(asked.tokenizer, _load_tokenizer(sources["tokenizer"], asked.trust_remote_code))
    own = Reader.of(asked.model, model.tokenizer, len(model.embedding.weight))
    if same_ids(own.tokenizer, new.tokenizer):
        raise UsageError(f"tokenizer must be another one; {asked.model} reads that of {asked.tokenizer} already.")
    require_plain_ends(model, new)
    donor = None
    if asked.donor_model is not None:
        sources["donor_model"] = resolve(
            asked.donor_model, trust_remote_code=asked.trust_remote_code, progress=progress
        )
        donor = _load(sources["donor_model"], asked, progress)
        _check_donor(donor, new)
    context = min(model.longest, CONTEXT) if asked.context is None else asked.context
    if not 8 <= context <= model.longest:
        raise UsageError(f"context must be in 8..{model.longest} for {asked.model}; got {context}.")
    held: dict[Split, int] = dict.fromkeys(("sweep", "report"), asked.documents * context)
    corpus = corpus_of(
        asked.text, READ * asked.documents * context, Wanted({"fit": asked.tokens, **held}, model.tokenizer, context),
        Writer.of(model, asked.seed), Store(), progress,
    )  # fmt: skip
    fit, held_out = _passages(asked, corpus.documents, own, new, context)
    for reader, found in ((own, [passage.own for passage in fit]), (new, [passage.new for passage in fit])):
        lost = require_lossless(found, reader.name)
    found = correspond(own, new)
    if not found.shared:
        raise UsageError(
            f"both tokenizers must share some tokens; those of {asked.model} and {asked.tokenizer} share none."
        )
    coinciding = [beside(passage.new, passage.own) for passage in held_out["report"]]
    share = sum(float(one.coincides.sum()) for one in coinciding) / sum(len(one.index) for one in coinciding)
    shop = Workshop(model, donor, own, new, found, fit, asked.seed, progress)
    text = text_read(asked.text, corpus.documents, corpus.written)
    return Given(asked, context, sources, shop, held_out, lost, share, text)


def _tokenizer_source(name: str, trust_remote_code: bool, progress: Progress | None) -> Source:
    """A model, or a folder that holds a tokenizer and no weights."""
    folder = Path(name).expanduser()
    if name and folder.is_dir() and not any(folder.glob("*.safetensors*")):
        return Source(name, folder, None, "folder")
    return resolve(name, for_tokenizer=True, trust_remote_code=trust_remote_code, progress=progress)


def _load_tokenizer(source: Source, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source.folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise StitchError(f"the tokenizer of {source.name} must load; got {type(error).__name__}: {reason}") from error


def _load(source: Source, asked: Asked, progress: Progress | None) -> Model:
    return load(
        source.folder, name=source.name, dtype=torch_dtype(asked.dtype), device=torch_device(asked.device),
        trust_remote_code=asked.trust_remote_code, progress=progress,
    )  # fmt: skip


def _check_donor(donor: Model, new: Reader) -> None:
    if not same_ids(donor.tokenizer, new.tokenizer):
        raise UsageError(
            f"donor_model must read the tokenizer of {new.name}; {donor.name} reads another: choose a model that does."
        )
    rows = len(donor.embedding.weight)
    if rows < len(new.vocabulary):
        raise UsageError(
            f"donor_model must have a row for each of the {len(new.vocabulary):,} tokens; {donor.name} has {rows:,}."
        )


def _passages(
    asked: Asked, found: list[Document], own: Reader, new: Reader, context: int
) -> tuple[list[Passage], dict[str, list[Passage]]]:
    """Text to take statistics on, and the documents of the sweep and the report split.

    Raises: StitchError for too little text.
    """
    fit = whole(select(found, "fit"), own, new, context, asked.tokens)
    held_out = {
        split: beginnings(select(found, split), own, new, context, asked.documents) for split in ("sweep", "report")
    }
    count = sum(len(passage.own.ids) for passage in fit)
    if count < LEAST_TOKENS or not all(held_out.values()):
        raise StitchError(
            f"text must give at least {LEAST_TOKENS:,} tokens of the fit split and documents of the other two; {asked.text} "
            f"gives {count:,}, and {', '.join(f'{len(part)} to {split}' for split, part in held_out.items())}: use more text."
        )
    return fit, held_out
