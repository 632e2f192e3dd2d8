"""Behaviours as pairs of prompts: clean prompts with the right answers, and corrupt prompts from which the answers do not follow.

A model that has a behaviour answers the clean prompts and not the corrupt ones. Tokens are random where possible, so that nothing
but the behaviour gives the answer. All prompts start with BOS.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from stitch.errors import UsageError
from stitch.files.schema import Schema, checked_lines
from stitch.files.specification import faulty, shown
from stitch.files.store import Store
from stitch.progress import Progress
from stitch.text.documents import select
from stitch.text.sources import Wanted, Writes, corpus_of
from stitch.text.tokenizers import bos_of
from stitch.text.windows import pack

POOL, DRAWN = 128, 48  # iid sequences: how many different tokens they are drawn from, and their length
REPEATED, AROUND = 24, 16  # length of a repeated sequence, and the number of tokens before and after it together
PAIRS = 12  # pairs of tokens in a prompt made of pairs
BRACKETS = ("()", "[]", "{}", "<>", '""', "''", "``")
WORDS = 12  # words in a prompt with brackets
NGRAM_TOKENS, NGRAM_CONTEXT = 2**18, 256  # the text that n-grams are counted in: its length, and that of a window
OFTEN = 8  # the least count of an n-gram that is asked for
SURE = 0.9  # the least share of its last token after the first two
UNSURE = 0.5  # the share of its last token after the second alone must be below this


@dataclass(frozen=True)
class Prompts:
    """Token ids. Where `asked` is true, the next token should be the one in `answers`; it competes with the tokens in `among`, or
    with all where that is empty.

    `corrupt` replaces the tokens that the answers follow from. It has the same length, so that activations of one can be put into
    the other. `order_one` is for behaviours with repeated tokens: the share of answers that a first-order Markov model of the
    prompt so far gets right, ties broken by chance.
    """

    clean: Int64[Tensor, "prompts length"]
    corrupt: Int64[Tensor, "prompts length"]
    asked: Bool[Tensor, "prompts length"]
    answers: Int64[Tensor, "prompts length"]
    among: tuple[int, ...] = ()
    order_one: float | None = None

    def part(self, rows: slice) -> "Prompts":
        """Some of the prompts."""
        return Prompts(
            self.clean[rows], self.corrupt[rows], self.asked[rows], self.answers[rows], self.among, self.order_one
        )


@dataclass(frozen=True)
class _TokenSampler:
    """Draws the tokens of `count` prompts from a tokenizer's vocabulary, special tokens excepted; n-grams come from `text`."""

    tokenizer: Any
    count: int
    generator: torch.Generator
    text: str
    writer: Writes | None
    progress: Progress | None

    @property
    def bos(self) -> int:
        return bos_of(self.tokenizer)

    def distinct(self, number: int) -> Int64[Tensor, "prompts number"]:
        """`number` different ids for every prompt, drawn at random. Raises UsageError when the vocabulary has fewer."""
        special = set(self.tokenizer.all_special_ids)
        ordinary = torch.tensor([id for id in sorted(self.tokenizer.get_vocab().values()) if id not in special])
        if len(ordinary) < number:
            raise UsageError(
                f"this behaviour needs a vocabulary of at least {number} tokens; the model's has {len(ordinary)}: choose another."
            )
        order = torch.stack(
            [torch.randperm(len(ordinary), generator=self.generator)[:number] for _ in range(self.count)]
        )
        return ordinary[order]

    def starting_with_bos(self, *parts: Tensor) -> Tensor:
        """Prompts of these parts one after another, BOS first."""
        return torch.cat([torch.full((self.count, 1), self.bos), *parts], 1)


def induction(sampler: _TokenSampler) -> Prompts:
    """A sequence of different tokens stands twice in a prompt. At its second occurrence all tokens but the first are asked for.

    Corrupt: the first occurrence is another sequence.
    """
    drawn = sampler.distinct(2 * REPEATED + AROUND)
    repeated, other, around = drawn.split([REPEATED, REPEATED, AROUND], 1)
    clean, corrupt = (sampler.starting_with_bos(around, first, repeated) for first in (repeated, other))
    length, before = clean.shape[1], torch.randint(AROUND + 1, (sampler.count, 1), generator=sampler.generator)
    # BOS stays in front. The rest is rotated, so that some of the tokens before the sequence come after it.
    place = (torch.arange(length - 1) + AROUND - before) % (length - 1) + 1
    clean[:, 1:], corrupt[:, 1:] = clean.gather(1, place), corrupt.gather(1, place)
    last = before + 2 * REPEATED  # position of the second sequence's last token
    column = torch.arange(length)
    asked = (column > last - REPEATED) & (column < last)
    return _following(clean, corrupt, asked)


def iid_induction(sampler: _TokenSampler) -> Prompts:
    """A sequence of tokens drawn independently from a small pool stands twice, so that most tokens have had several successors.

    A head that attends to earlier occurrences of the current token finds all of them; `order_one` is what that can reach.
    Corrupt: the first sequence is another one.
    """
    pool = sampler.distinct(POOL)
    first, other = (
        pool.gather(1, torch.randint(POOL, (sampler.count, DRAWN), generator=sampler.generator)) for _ in range(2)
    )
    clean, corrupt = (sampler.starting_with_bos(before, first) for before in (first, other))
    asked = torch.zeros_like(clean, dtype=torch.bool)
    asked[:, DRAWN + 1 : -1] = True
    found = _following(clean, corrupt, asked)
    return replace(found, order_one=_order_one(clean, asked))


def _order_one(ids: Int64[Tensor, "prompts length"], asked: Bool[Tensor, "prompts length"]) -> float:
    """The share of the tokens asked for that followed the current token most often until then; ties count as 1 / their number."""
    right = []
    for row, where in zip(ids.tolist(), asked, strict=True):
        for place in where.nonzero()[:, 0].tolist():
            counts = Counter(row[i + 1] for i in range(place) if row[i] == row[place])
            best = [token for token, count in counts.items() if count == max(counts.values())]
            right.append((row[place + 1] in best) / len(best))
    return sum(right) / len(right)


def previous_token(sampler: _TokenSampler) -> Prompts:
    """Two tokens alternate, so the next token is the previous one. Corrupt: all tokens are different."""
    drawn = sampler.distinct(2 + 2 * PAIRS)
    clean = sampler.starting_with_bos(drawn[:, :2].repeat(1, PAIRS))
    corrupt = sampler.starting_with_bos(drawn[:, 2:])
    asked = torch.zeros_like(clean, dtype=torch.bool)
    asked[:, 4:-1] = True
    return _following(clean, corrupt, asked)


def duplicate_token(sampler: _TokenSampler) -> Prompts:
    """Every token comes twice in a row; the second one is asked for. Corrupt: the second one is another token."""
    drawn = sampler.distinct(2 * PAIRS)
    clean = sampler.starting_with_bos(drawn[:, :PAIRS].repeat_interleave(2, 1))
    corrupt = sampler.starting_with_bos(torch.stack([drawn[:, :PAIRS], drawn[:, PAIRS:]], 2).flatten(1))
    asked = torch.zeros_like(clean, dtype=torch.bool)
    asked[:, 5::2] = True
    return _following(clean, corrupt, asked)


def brackets(sampler: _TokenSampler) -> Prompts:
    """One kind of bracket or quotation mark has been closed and another is open; the mark that closes it is asked for.

    Corrupt: the two kinds are exchanged. Closing marks compete only with each other.
    """
    kinds = [[_single(sampler.tokenizer, mark) for mark in pair] for pair in BRACKETS]
    pairs = torch.tensor([kind for kind in kinds if None not in kind])
    if len(pairs) < 2:
        raise UsageError(
            "brackets need a tokenizer in which at least two kinds are single tokens: choose another behaviour."
        )
    vocabulary = sampler.tokenizer.get_vocab()
    words = torch.tensor(
        sorted(id for token, id in vocabulary.items() if token[:1] in ("Ġ", "▁") and token[1:].isalpha())
    )
    if not len(words):
        raise UsageError("brackets need a tokenizer with words that start with a space: choose another behaviour.")
    ids = words[torch.randint(len(words), (sampler.count, WORDS), generator=sampler.generator)]
    kind = torch.stack([torch.randperm(len(pairs), generator=sampler.generator)[:2] for _ in range(sampler.count)])

    def prompts(open_kind: Tensor, closed_kind: Tensor) -> Tensor:
        first, closing, second = pairs[closed_kind, :1], pairs[closed_kind, 1:], pairs[open_kind, :1]
        return sampler.starting_with_bos(ids[:, :3], first, ids[:, 3:6], closing, ids[:, 6:8], second, ids[:, 8:])

    clean, corrupt = prompts(*kind.T), prompts(*kind.T.flip(0))
    asked = torch.zeros_like(clean, dtype=torch.bool)
    asked[:, -1] = True
    answers = torch.where(asked, pairs[kind[:, 0], 1:], 0)
    return Prompts(clean, corrupt, asked, answers, tuple(pairs[:, 1].tolist()))


def ngram(sampler: _TokenSampler) -> Prompts:
    """Two tokens that are nearly always followed by the same third one in the text's fit split, while the second alone is not.

    Corrupt: the first token is another one.
    """
    wanted = Wanted({"fit": NGRAM_TOKENS}, sampler.tokenizer, NGRAM_CONTEXT)
    corpus = corpus_of(sampler.text, None, wanted, sampler.writer, Store(), sampler.progress)
    windows = pack(select(corpus.documents, "fit"), sampler.tokenizer, NGRAM_CONTEXT, NGRAM_TOKENS)
    ids = windows.ids.long()[:, 1:]  # the BOS in front of a window is not part of the text
    triples, counts = (
        torch.stack([ids[:, :-2], ids[:, 1:-1], ids[:, 2:]], 2).flatten(0, 1).unique(dim=0, return_counts=True)
    )

    def share(columns: slice) -> Tensor:
        """For every triple, the share of its last token among all that follow the tokens in these columns."""
        _, before = triples[:, columns].unique(dim=0, return_inverse=True)
        _, whole = triples[:, columns.start :].unique(dim=0, return_inverse=True)
        of_whole, of_before = (
            torch.zeros(int(group.max()) + 1).index_add_(0, group, counts.float())[group] for group in (whole, before)
        )
        return of_whole / of_before

    special = torch.tensor(sorted({*sampler.tokenizer.all_special_ids, sampler.bos}))
    known = (counts >= OFTEN) & (share(slice(0, 2)) >= SURE) & (share(slice(1, 2)) < UNSURE)
    known &= ~torch.isin(triples, special).any(1)
    found = triples[known]
    if len(found) < sampler.count:
        raise UsageError(
            f"text must have at least {sampler.count:,} pairs of tokens with one usual successor; {sampler.text} has "
            f"{len(found):,}: lower `count` or take more text."
        )
    drawn = found[torch.randperm(len(found), generator=sampler.generator)[: sampler.count]]
    clean = sampler.starting_with_bos(drawn[:, :2])
    corrupt = sampler.starting_with_bos(sampler.distinct(1), drawn[:, 1:2])
    asked = torch.zeros_like(clean, dtype=torch.bool)
    asked[:, -1] = True
    return Prompts(clean, corrupt, asked, torch.where(asked, drawn[:, 2:], 0))


BEHAVIOURS: dict[str, Callable[[_TokenSampler], Prompts]] = {
    "induction": induction,
    "iid-induction": iid_induction,
    "previous-token": previous_token,
    "duplicate-token": duplicate_token,
    "brackets": brackets,
    "ngram": ngram,
}


def make_prompts(
    behaviour: str,
    tokenizer: Any,
    *,
    count: int = 256,
    seed: int = 0,
    text: str = "docs",
    writer: Writes | None = None,
    progress: Progress | None = None,
) -> Prompts:
    """`count` prompts of the behaviour with that name, or all prompts of a .jsonl file (`from_file`). n-grams come from `text`,
    which may be written by `writer`.

    Raises: UsageError when there is no such behaviour or file, when the vocabulary or the text is too small for it, and for a
    file with other lines.
    """
    if make := BEHAVIOURS.get(behaviour):
        return make(_TokenSampler(tokenizer, count, torch.Generator().manual_seed(seed), text, writer, progress))
    if Path(behaviour).is_file():
        return from_file(Path(behaviour), tokenizer)
    raise UsageError(f"behaviour must be one of {', '.join(BEHAVIOURS)}, or a .jsonl file; got {behaviour}.")


class PromptLine(Schema):
    clean: str
    corrupt: str
    answer: str


def from_file(path: Path, tokenizer: Any) -> Prompts:
    """Prompts from lines {"clean": …, "corrupt": …, "answer": …}. The answer is one token; clean and corrupt have equally many.

    Raises: UsageError for all other lines, with their numbers, and for an empty file.
    """
    rows, faults = [], []
    for number, line in checked_lines(PromptLine, path, "the file of prompts"):
        clean, corrupt = (tokenizer.encode(text, add_special_tokens=False) for text in (line.clean, line.corrupt))
        answer = _single(tokenizer, line.answer)
        if not clean or len(clean) != len(corrupt):
            faults.append(
                f"line {number}: clean and corrupt must have equally many tokens, got {len(clean)} and {len(corrupt)}"
            )
        if answer is None:
            faults.append(
                f"line {number}: the answer must be one token, got {shown(line.answer)}: mind the space before it"
            )
        rows.append((clean, corrupt, answer))
    if faults:
        raise faulty(str(path), faults)
    if not rows:
        raise UsageError(f"{path} must have at least one prompt; it is empty: write one line per prompt.")
    length, bos = 1 + max(len(clean) for clean, _, _ in rows), bos_of(tokenizer)
    # Padding comes after the token that is asked for, so it changes nothing there.
    clean, corrupt = (
        torch.tensor([[bos, *row[side], *[bos] * (length - 1 - len(row[side]))] for row in rows]) for side in (0, 1)
    )
    asked, answers = torch.zeros_like(clean, dtype=torch.bool), torch.zeros_like(clean)
    for number, (ids, _, answer) in enumerate(rows):
        asked[number, len(ids)], answers[number, len(ids)] = True, answer
    return Prompts(clean, corrupt, asked, answers)


def _single(tokenizer: Any, text: str) -> int | None:
    """The id of a text that is a single known token, otherwise None."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    return ids[0] if len(ids) == 1 and ids[0] != tokenizer.unk_token_id else None


def _following(clean: Tensor, corrupt: Tensor, asked: Tensor) -> Prompts:
    """Prompts whose answers are the next tokens of the clean ones."""
    answers = torch.where(asked, clean.roll(-1, 1), 0)
    return Prompts(clean, corrupt, asked, answers)
