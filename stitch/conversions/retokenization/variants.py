"""The rows of a report: embeddings for the new vocabulary, and heads behind each, made in different ways."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.conversions.retokenization import rows as made
from stitch.conversions.retokenization.bias import with_bias
from stitch.conversions.retokenization.embedding_ridge import fitted_embedding
from stitch.conversions.retokenization.head_ridge import fitted_head
from stitch.conversions.retokenization.omp import affordable, pursued
from stitch.conversions.retokenization.passages import Passage
from stitch.conversions.retokenization.rows import Rows
from stitch.conversions.retokenization.scoring import Head, head_of, softcap
from stitch.conversions.retokenization.streams import OnText, embedding, final_of
from stitch.conversions.retokenization.targets import NextToken
from stitch.conversions.retokenization.transfer import Probabilities, probabilities_of, transfer_matrix
from stitch.models.model import Model
from stitch.progress import Progress
from stitch.text.correspondence import Correspondence
from stitch.text.reader import Reader

BIAS, FITTED = " + bias", "ridge, all"


@dataclass(frozen=True)
class Behind:
    """An embedding, its name, and the heads behind it by the name of their row.

    `clipped` is how many of the embedding's rows were shortened to the length of the longest shared one.
    """

    name: str
    rows: Rows
    heads: dict[str, Head]
    clipped: int

    @property
    def is_null(self) -> bool:
        return self.name.startswith("null:")


@dataclass(frozen=True)
class Workshop:
    """What rows are made from. `donor` is a model whose ids are those of `new`; None: nothing is made from its rows.

    `found` says what the new tokens are in the model's own, `fit` is the text that statistics are taken on.
    """

    model: Model
    donor: Model | None
    own: Reader
    new: Reader
    found: Correspondence
    fit: Sequence[Passage]
    seed: int
    progress: Progress | None = None

    @cached_property
    def own_rows(self) -> Rows:
        return self.model.embedding.weight.detach()

    @cached_property
    def own_head(self) -> Head:
        return head_of(self.model)

    @cached_property
    def on_text(self) -> OnText:
        return OnText.of(self.model, self.fit, self.own.bos, self.progress)

    @cached_property
    def probabilities(self) -> Probabilities:
        return probabilities_of(self.on_text, self.own_head, softcap(self.model), self.found, self.progress)

    @cached_property
    def said(self) -> NextToken:
        matrix = transfer_matrix(self.own, self.new, self.found, self.probabilities.after, len(self.own_head))
        return NextToken(matrix, self.own, self.new, self.own_head, softcap(self.model))

    @cached_property
    def mean(self) -> Rows:
        return made.mean_of_pieces(self.own_rows, self.found)

    @cached_property
    def heads(self) -> dict[str, tuple[Head, int]]:
        """Heads that do not depend on the embedding, each with the number of rows clipped."""
        found = {
            "first": made.one_piece(self.own_head, self.found, 0),
            "mean": made.mean_of_pieces(self.own_head, self.found),
        }
        if self.donor is not None and self.terms:
            theirs = head_of(self.donor)[:, : self.donor.width]
            made_of = pursued(self.own_head, theirs, self.found, self.terms, self.progress)
            found |= {f"omp-{terms}": rows for terms, rows in made_of.items()}
        return {name: made.clipped(head, self.own_head, self.found) for name, head in found.items()}

    @cached_property
    def terms(self) -> list[int]:
        """Numbers of shared rows of the donor's that missing ones are combined from; none where that takes too long."""
        return [] if self.donor is None else affordable(self.found, self.donor.width)

    def embeddings(self) -> Iterator[tuple[str, Rows]]:
        yield "mean", self.mean
        yield "last", made.one_piece(self.own_rows, self.found, -1)
        yield "ridge", fitted_embedding(self.on_text, self.own_rows, self.mean, self.fit, self.found, self.progress)
        if self.donor is not None and self.terms:
            theirs = self.donor.embedding.weight.detach()
            for terms, rows in pursued(self.own_rows, theirs, self.found, self.terms, self.progress).items():
                yield f"omp-{terms}", rows
        yield "null:random rows", made.random_rows(self.mean, self.found, self.seed)
        yield "null:shuffled rows", made.shuffled_rows(self.mean, self.found, self.seed)

    def variants(self) -> Iterator[Behind]:
        """One embedding after another, each with its heads: only one is held at a time."""
        for name, raw in self.embeddings():
            is_null = name.startswith("null:")
            rows, clipped = (raw, 0) if is_null else made.clipped(raw, self.own_rows, self.found)
            with embedding(self.model, rows):
                streams = final_of(self.model, self.fit, self.new.bos, f"streams behind {name}", self.progress)
            yield Behind(name, rows, self._nulls(name, streams) if is_null else self._heads(name, streams), clipped)

    def _heads(self, name: str, streams: list[Float[Tensor, "_ d"]]) -> dict[str, Head]:
        start = self.heads["mean"][0]
        fitted = self._fitted(streams, start)
        if name != "mean":
            own = {name: self.heads[name][0]} if name in self.heads else {f"{name} / first": self.heads["first"][0]}
            return {**own, f"{name} / {FITTED}": fitted}
        new_only = start.clone()
        new_only[made.filled(self.found)] = fitted[made.filled(self.found)]
        heads = {"first": self.heads["first"][0], "mean": start, "ridge": new_only, FITTED: fitted}
        found = {f"mean / {which}": head for which, head in heads.items()}
        return found | {f"{row}{BIAS}": self._with_bias(streams, head) for row, head in found.items()}

    def _nulls(self, name: str, streams: list[Float[Tensor, "_ d"]]) -> dict[str, Head]:
        change = made.random_rows if name == "null:random rows" else made.shuffled_rows
        head = change(self.heads["mean"][0], self.found, self.seed)
        return {name: head, f"{name} / {FITTED}": self._fitted(streams, head)}

    def _fitted(self, streams: list[Float[Tensor, "_ d"]], start: Head) -> Head:
        return fitted_head(streams, start, self.on_text, self.fit, self.said, self.progress)

    def _with_bias(self, streams: list[Float[Tensor, "_ d"]], head: Head) -> Head:
        """Fitted on the text that other statistics are taken on."""
        read = torch.cat([stream[:-1] for stream in streams])
        targets = torch.cat([passage.new.ids for passage in self.fit])
        return with_bias(read, targets, head, self.said.cap, self.progress)
