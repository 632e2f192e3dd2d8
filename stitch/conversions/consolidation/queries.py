"""Queries about a document: edits are fitted on some of them and scored on others.

A query is a short text about the document. *With context* the donor reads [BOS, document, query]. *Without context* a model reads
[BOS, prefix, query], where the prefix is unrelated text, different for each query, or empty. The first tokens of a query are not
scored, since they can often be predicted from the last words before the query.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, LinearAttentionCacheLayerMixin

from stitch.conversions.consolidation.slow_weights import Parameters, logits_with
from stitch.errors import StitchError, UsageError
from stitch.evaluation.intervals import ratio_interval
from stitch.evaluation.scores import Scores
from stitch.models.model import Model
from stitch.progress import Progress, counted
from stitch.text.file_ids import file_ids
from stitch.text.tokenizers import bos_of
from stitch.text.windows import Windows

QUERY = 64  # tokens, at most; shorter where the model's context is
GIVEN = 8  # tokens of a query that are not scored
LEAST = 2  # tokens that a document must have
BATCH = 16  # queries per forward pass
CACHED = 16_384  # tokens of a document in the caches of the queries that are labelled at once, at most
UNSEEN = 32  # queries for the report that the donor generates if no file is given


@dataclass(frozen=True)
class LabelledQueries:
    """Queries and the donor's log-probabilities with context: `target[q, t]` predicts token `given` + t of query q."""

    queries: Int[Tensor, "queries length"]
    target: Float[Tensor, "queries scored vocabulary"]

    @property
    def given(self) -> int:
        """Tokens of a query that are not scored."""
        return self.queries.shape[1] - self.target.shape[1]


def joined(parts: Sequence[LabelledQueries]) -> LabelledQueries:
    """The queries of all `parts`, which are of one length, with their targets."""
    if len(parts) == 1:
        return parts[0]
    return LabelledQueries(torch.cat([one.queries for one in parts]), torch.cat([one.target for one in parts]))


@dataclass(frozen=True)
class PrefixedQueries:
    """Queries to be scored, each after its own prefix."""

    labelled: LabelledQueries
    prefixes: Int[Tensor, "queries prefix"]


def query_length(model: Model) -> int:
    """A quarter of the model's context, at most QUERY."""
    return min(QUERY, model.longest // 4)


def read_document(model: Model, file: Path) -> Int[Tensor, " tokens"]:
    """Token ids of a text file. Raises UsageError if it is missing, empty, or too long for the context with a query."""
    return check_document(model, read_ids(model, file, "document"), file.name)


def read_ids(model: Model, file: Path, parameter: str) -> Int[Tensor, " tokens"]:
    """Token ids of a text file, without BOS. Raises UsageError if it is missing, StitchError if it is not UTF-8 text."""
    return file_ids(file, model.tokenizer, parameter)


def check_document(model: Model, ids: Int[Tensor, " tokens"], name: str) -> Int[Tensor, " tokens"]:
    """Returns `ids`. Raises UsageError if they are too few, or too many for the context together with a query."""
    if len(ids) < LEAST:
        raise UsageError(
            f"document must have at least {LEAST} tokens; got {len(ids)} in {name}: give a file with text."
        )
    room = model.longest - 1 - query_length(model)
    if len(ids) > room:
        raise UsageError(
            f"document must have at most {room} tokens, so that it fits into the context of {model.longest} together "
            f"with a query of {query_length(model)}; got {len(ids)} in {name}: cut it into several files."
        )
    return ids


def cut_queries(ids: Int[Tensor, " tokens"], length: int) -> Int[Tensor, "queries length"]:
    """`ids` cut into queries of `length` tokens, without the remainder. Raises UsageError if there are too few for one query."""
    if len(ids) < length:
        raise UsageError(
            f"queries must hold at least {length} tokens; got {len(ids)}: give more text about the document."
        )
    return ids[: len(ids) // length * length].view(-1, length).long()


def predictions(
    model: Model,
    prefixes: Int[Tensor, "queries prefix"],
    queries: Int[Tensor, "queries length"],
    changed: Parameters | None = None,
    given: int = GIVEN,
) -> Float[Tensor, "queries scored vocabulary"]:
    """Log-probabilities for the tokens of each query after the first `given`, when it follows BOS and its prefix."""
    bos = torch.full((len(queries), 1), bos_of(model.tokenizer))
    ids = torch.cat([bos, prefixes, queries], 1)
    kept = queries.shape[1] - given + 1
    logits = logits_with(model, changed or {}, ids, logits_to_keep=kept)
    logits = logits[:, -kept:]  # some families do not know the argument
    return logits[:, :-1].float().log_softmax(-1)


@torch.no_grad()
def read_once(model: Model, document: Int[Tensor, " tokens"]) -> tuple[Float[Tensor, "1 vocabulary"], Cache | None]:
    """Logits behind BOS and the document, and the cache of both; None where it cannot be repeated for several texts."""
    ids = torch.cat([torch.tensor([bos_of(model.tokenizer)]), document])[None].to(model.device)
    found = model.net(input_ids=ids, use_cache=True, logits_to_keep=1)
    cache = getattr(found, "past_key_values", None)
    return found.logits[:, -1], cache if can_be_repeated(cache) else None


def can_be_repeated(cache: Any) -> bool:
    """Whether all that a cache holds can be copied for several texts.

    States of linear attention cannot be copied, nor can a cache without `layers`, such as EncoderDecoderCache.
    """
    layers = getattr(cache, "layers", None) if isinstance(cache, Cache) else None
    return layers is not None and all(
        hasattr(layer, "batch_repeat_interleave") and not isinstance(layer, LinearAttentionCacheLayerMixin)
        for layer in layers
    )


def _repeated(cache: Cache, count: int) -> Any:
    """A copy of the cache of one text, for `count` texts that begin with it."""
    found = copy.deepcopy(cache)
    found.batch_repeat_interleave(count)
    return found


@torch.no_grad()
def label_queries(
    model: Model,
    document: Int[Tensor, " tokens"],
    queries: Int[Tensor, "queries length"],
    given: int = GIVEN,
    progress: Progress | None = None,
) -> LabelledQueries:
    """The queries with the model's log-probabilities when it has read the document before each."""
    cache = read_once(model, document)[1]
    parts, at_once = [], max(1, min(BATCH, CACHED // len(document)))
    for some in counted(queries.split(at_once), "what the model says with the document (batches)", progress):
        if cache is None or not given:
            parts.append(predictions(model, document.expand(len(some), -1), some, given=given))
        else:
            before = _repeated(cache, len(some))
            found = model.net(input_ids=some.to(model.device), past_key_values=before, use_cache=True)
            parts.append(found.logits[:, given - 1 : -1].float().log_softmax(-1))
    return LabelledQueries(queries, torch.cat(parts))


@torch.no_grad()
def continuations(
    model: Model,
    document: Int[Tensor, " tokens"],
    count: int,
    length: int,
    generator: torch.Generator,
    progress: Progress | None = None,
) -> Int[Tensor, "count length"]:
    """Texts that the model generates after the document, sampled at temperature 1."""
    logits, cache = read_once(model, document)
    whole = torch.cat([torch.tensor([bos_of(model.tokenizer)]), document]).expand(count, -1)
    if cache is None:
        found = model.net(input_ids=whole.to(model.device), use_cache=True, logits_to_keep=1)
        logits, cache = found.logits[:, -1], getattr(found, "past_key_values", None)
    else:
        logits, cache = logits.expand(count, -1), _repeated(cache, count)
    for step in counted(range(length), "continuations of the document (tokens)", progress):
        chances = logits.float().softmax(-1).cpu()  # on the CPU: the same tokens with every device
        whole = torch.cat([whole, torch.multinomial(chances, 1, generator=generator)], 1)
        if step == length - 1:
            continue
        if cache is None:  # the family keeps its state elsewhere
            logits = model.net(input_ids=whole.to(model.device), use_cache=False).logits[:, -1]
        else:
            last = whole[:, -1:].to(model.device)
            logits = model.net(input_ids=last, past_key_values=cache, use_cache=True).logits[:, -1]
    return whole[:, -length:]


def passages(
    document: Int[Tensor, " tokens"], count: int, length: int, generator: torch.Generator
) -> Int[Tensor, "count length"]:
    """Passages from random places of the document. A document shorter than `length` is repeated."""
    if len(document) < length:
        document = document.repeat(-(-2 * length // len(document)))
    starts = torch.randint(len(document) - length + 1, (count,), generator=generator).tolist()
    return torch.stack([document[start : start + length] for start in starts])


def unrelated_prefixes(
    windows: Windows, count: int, length: int, generator: torch.Generator
) -> Int[Tensor, "count prefix"]:
    """Prefixes from random places of other text, different for each query, at most as long as the windows."""
    length = min(length, windows.context - 1)
    rows = torch.randint(len(windows.ids), (count,), generator=generator).tolist()
    starts = torch.randint(1, windows.context - length + 1, (count,), generator=generator).tolist()
    return torch.stack(
        [windows.ids[row, start : start + length] for row, start in zip(rows, starts, strict=True)]
    ).long()


@torch.no_grad()
def score_queries(
    model: Model,
    prefixed: PrefixedQueries,
    changed: Parameters | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Cross-entropy, KL(with context ‖ without) and agreement on the scored tokens, summed per query.

    Raises StitchError for logits that are not finite.
    """
    rows = []
    parts = list(
        zip(
            *(one.split(BATCH) for one in (prefixed.labelled.queries, prefixed.labelled.target, prefixed.prefixes)),
            strict=True,
        )
    )
    for queries, target, prefixes in counted(parts, "queries scored (batches)", progress):
        rows.append(_sums(predictions(model, prefixes, queries, changed, prefixed.labelled.given), target, queries))
    return _scores(torch.cat(rows, 1))


@torch.no_grad()
def scores_with_context(labelled: LabelledQueries) -> Scores:
    """Scores of the donor that reads the document, which are the ceiling."""
    return _scores(_sums(labelled.target, labelled.target, labelled.queries))


def _sums(
    predicted: Float[Tensor, "queries scored vocabulary"],
    target: Float[Tensor, "queries scored vocabulary"],
    queries: Int[Tensor, "queries length"],
) -> Float[Tensor, "four queries"]:
    answers = queries[:, -target.shape[1] :].to(predicted.device)
    nats = -predicted.gather(2, answers[..., None])[..., 0]
    if not torch.isfinite(nats).all():
        raise StitchError("logits must be finite; the model gives NaN or infinity: set `dtype` to fp32.")
    kl = (target.exp() * (target - predicted)).sum(2)
    agree = (target.argmax(2) == predicted.argmax(2)).float()
    return torch.stack([one.double().sum(1).cpu() for one in (nats, kl, agree, torch.ones_like(nats))])


def _scores(sums: Float[Tensor, "four units"]) -> Scores:
    return Scores(sums[0], sums[1], sums[2], sums[3])


def as_one_unit(scores: Scores) -> Scores:
    """All queries of one document as one unit, for intervals over documents."""
    assert scores.kl is not None and scores.agreements is not None
    return _scores(
        torch.stack([one.sum(0, keepdim=True) for one in (scores.nats, scores.kl, scores.agreements, scores.tokens)])
    )


def concatenated(parts: Sequence[Scores]) -> Scores:
    """The units of all `parts`."""

    def joined(a: Scores, b: Scores) -> Scores:
        assert a.kl is not None and b.kl is not None and a.agreements is not None and b.agreements is not None
        return replace(
            a,
            nats=torch.cat([a.nats, b.nats]),
            kl=torch.cat([a.kl, b.kl]),
            agreements=torch.cat([a.agreements, b.agreements]),
            tokens=torch.cat([a.tokens, b.tokens]),
        )

    return reduce(joined, parts)


def gain_kept(row: Scores, without: Scores, with_: Scores) -> tuple[float, float, float]:
    """The share of the in-context gain, (CE without − CE row) / (CE without − CE with), and its 95 % interval."""
    gains, whole_gains = without.nats - row.nats, without.nats - with_.nats
    return float(gains.sum() / whole_gains.sum()), *ratio_interval(gains, whole_gains)
