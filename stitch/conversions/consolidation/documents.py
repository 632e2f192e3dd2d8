"""Documents to write into a model, each with the queries that a report scores it on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from stitch.conversions.consolidation.arms import ModelAndText
from stitch.conversions.consolidation.queries import (
    UNSEEN,
    PrefixedQueries,
    continuations,
    cut_queries,
    label_queries,
    query_length,
    read_ids,
    unrelated_prefixes,
)


@dataclass(frozen=True)
class Document:
    """A document to write into a model, and the queries that the report scores it on."""

    name: str
    ids: Int[Tensor, " tokens"]
    behind_text: PrefixedQueries
    bare: PrefixedQueries


def with_queries(setup: ModelAndText, name: str, ids: Tensor, queries: Path | None, seed: int) -> Document:
    """The document, with queries after unrelated text as long as it is (at most a window) and without a prefix."""
    model = setup.model
    generator = torch.Generator().manual_seed(seed + 1)  # another seed than for the continuations of the fit
    length = query_length(model)
    if queries is None:
        asked = continuations(model, ids, UNSEEN, length, generator, setup.progress)
    else:
        asked = cut_queries(read_ids(model, queries, "queries"), length)
    labelled = label_queries(model, ids, asked, progress=setup.progress)
    windows = setup.windows["report"]
    prefixes = unrelated_prefixes(windows, len(asked), len(ids), generator)
    return Document(name, ids, PrefixedQueries(labelled, prefixes), PrefixedQueries(labelled, prefixes[:, :0]))


def wrong_documents(setup: ModelAndText, lengths: Sequence[int]) -> list[Int[Tensor, " tokens"]]:
    """Unrelated documents of these lengths, from the end of the sweep split."""
    text = setup.windows["sweep"].ids[:, 1:].flatten().long()
    together = text.repeat(-(-sum(lengths) // len(text)))[-sum(lengths) :]
    return list(together.split(list(lengths)))


def names_of(documents: Sequence[Document]) -> str:
    """Their names in a sentence; of more than three the first two, and how many more."""
    names = [one.name for one in documents]
    if len(names) > 3:
        return f"{names[0]}, {names[1]} and {len(names) - 2} more"
    *before, last = names
    return f"{', '.join(before)} and {last}" if before else last
