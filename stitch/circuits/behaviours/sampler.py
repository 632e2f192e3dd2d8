"""Random tokens and held-out text that prompts are made of."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Int64
from torch import Tensor

from stitch.errors import UsageError
from stitch.files.store import Store
from stitch.progress import Progress
from stitch.text.document import Document
from stitch.text.documents import Split, select
from stitch.text.sources import Wanted, Writes, corpus_of
from stitch.text.tokenizers import bos_of

LONGEST = 256  # tokens of a prompt whose length is not fixed, at most
READ = 96  # held-out text: tokens before the one that is asked for

Found = TypeVar("Found")


@dataclass(frozen=True)
class TokenSampler:
    """Draws the tokens of `count` prompts from a tokenizer's vocabulary, special tokens excepted; n-grams and passages come from
    `text`. Prompts with a repeated sequence have at most `longest` tokens."""

    tokenizer: Any
    count: int
    generator: torch.Generator
    longest: int
    text: str
    writer: Writes | None
    progress: Progress | None

    @property
    def bos(self) -> int:
        return bos_of(self.tokenizer)

    @property
    def ordinary(self) -> Int64[Tensor, " tokens"]:
        """The ids of all tokens that are not special, in order."""
        special = set(self.tokenizer.all_special_ids)
        return torch.tensor([id for id in sorted(self.tokenizer.get_vocab().values()) if id not in special])

    def distinct(self, number: int) -> Int64[Tensor, "prompts number"]:
        """`number` different ids for every prompt, drawn at random. Raises UsageError when the vocabulary has fewer."""
        return self._drawn(number, [self.ordinary])

    def distinct_by_half(self, number: int) -> Int64[Tensor, "prompts number"]:
        """As `distinct`, but where the vocabulary allows, every second prompt draws from one half of it and the others from the
        other half. A circuit is then reported on tokens that it was not chosen on."""
        ordinary = self.ordinary
        halves = [ordinary[::2], ordinary[1::2]]
        return self._drawn(number, halves if len(halves[1]) >= number else [ordinary])

    def _drawn(self, number: int, parts: list[Tensor]) -> Int64[Tensor, "prompts number"]:
        """`number` different ids for every prompt, from these parts of the vocabulary in turn."""
        if (fewest := min(map(len, parts))) < number:
            raise UsageError(
                f"this behaviour needs a vocabulary of at least {number} tokens; the model's has {fewest}: choose another."
            )
        return torch.stack(
            [
                part[torch.randperm(len(part), generator=self.generator)[:number]]
                for part in itertools.islice(itertools.cycle(parts), self.count)
            ]
        )

    def starting_with_bos(self, *parts: Tensor) -> Tensor:
        """Prompts of these parts one after another, BOS first."""
        return torch.cat([torch.full((self.count, 1), self.bos), *parts], 1)


def held_out(sampler: TokenSampler, tokens: int) -> Iterator[tuple[slice, int, list[Document]]]:
    """For the sweep split, then for the report split of the text: the prompts that come from it, their number, and its documents,
    with at least `tokens` per prompt in all where the text is long enough."""
    per_split: dict[Split, int] = {"sweep": (sampler.count + 1) // 2, "report": sampler.count // 2}
    wanted = Wanted({split: tokens * count for split, count in per_split.items()}, sampler.tokenizer, LONGEST)
    corpus = corpus_of(sampler.text, None, wanted, sampler.writer, Store(), sampler.progress)
    for first, (split, count) in enumerate(per_split.items()):
        yield slice(first, None, 2), count, select(corpus.documents, split)


def single(tokenizer: Any, text: str) -> int | None:
    """The id of a text that is a single known token, otherwise None."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    return ids[0] if len(ids) == 1 and ids[0] != tokenizer.unk_token_id else None


def one_per_document(
    sampler: TokenSampler, documents: list[Document], count: int, find: Callable[[list[int]], Found | None], what: str
) -> list[Found]:
    """What `find` finds in the tokens of `count` documents, drawn in random order; those where it finds None are left out.

    Raises: UsageError when it finds `what` in fewer documents.
    """
    found: list[Found] = []
    for number in torch.randperm(len(documents), generator=sampler.generator).tolist():
        if len(found) == count:
            break
        one = find(sampler.tokenizer.encode(documents[number][1], add_special_tokens=False, verbose=False))
        if one is not None:
            found.append(one)
    if len(found) < count:
        raise UsageError(
            f"each held-out split of the text must have at least {count:,} documents {what}; {sampler.text} has {len(found):,}: "
            "lower `count` or take more text."
        )
    return found
