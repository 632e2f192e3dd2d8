"""Behaviours as prompts: where the next token is asked for, what it should be, and the same prompts without what it follows from.

Sequences are of random tokens where they can be, so that nothing but the behaviour answers; all start with BOS. A model that
has a behaviour answers the clean prompts and not the corrupt ones.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from stitch.errors import StitchError, UsageError
from stitch.text.documents import read, select
from stitch.text.tokenizers import bos_of
from stitch.text.windows import pack

POOL, DRAWN = 128, 48  # different tokens in iid sequences, and how long those are
REPEATED, AROUND = 24, 16  # tokens of a repeated sequence, and before and after it
PAIRS = 12  # of tokens, in prompts made of pairs
BRACKETS = ("()", "[]", "{}", "<>", '""', "''", "``")
WORDS = 12  # in a prompt with brackets
NGRAM_TOKENS, NGRAM_CONTEXT = 2**18, 256  # of text that n-grams are counted in
OFTEN, SURE, UNSURE = (
    8,
    0.9,
    0.5,
)  # an n-gram's count; shares of its last token after all others, and after the last of them


@dataclass(frozen=True)
class Prompts:
    """Token ids. Where `asked`, the next token should be the one in `answers`; it competes with those `among` (none: with all).

    `corrupt` has other tokens in the place of those that the answers follow from, and is as long, so that activations of one
    can be put into the other. `order_one`, where tokens repeat: the share that what followed the current
    token most often until then gets right, ties by chance.
    """

    clean: Int64[Tensor, "prompts length"]
    corrupt: Int64[Tensor, "prompts length"]
    asked: Bool[Tensor, "prompts length"]
    answers: Int64[Tensor, "prompts length"]
    among: tuple[int, ...] = ()
    order_one: float | None = None

    def part(self, of: slice) -> "Prompts":
        """Some of the prompts."""
        return Prompts(self.clean[of], self.corrupt[of], self.asked[of], self.answers[of], self.among, self.order_one)


@dataclass(frozen=True)
class _Source:
    """What prompts are made of: tokens that are no special ones, drawn with a generator of their own."""

    tokenizer: Any
    count: int
    generator: torch.Generator
    text: str

    @property
    def bos(self) -> int:
        return bos_of(self.tokenizer)

    def distinct(self, number: int) -> Int64[Tensor, "prompts number"]:
        """Different ids for every prompt."""
        special = set(self.tokenizer.all_special_ids)
        ordinary = torch.tensor([id for id in sorted(self.tokenizer.get_vocab().values()) if id not in special])
        if len(ordinary) < number:
            raise UsageError(
                f"this behaviour needs a vocabulary of at least {number} tokens; the model's has {len(ordinary)}."
            )
        order = torch.stack(
            [torch.randperm(len(ordinary), generator=self.generator)[:number] for _ in range(self.count)]
        )
        return ordinary[order]

    def starting_with_bos(self, *parts: Tensor) -> Tensor:
        return torch.cat([torch.full((self.count, 1), self.bos), *parts], 1)


def induction(source: _Source) -> Prompts:
    """A sequence without repeated tokens comes twice, somewhere among others: the second time every token but the first is known.

    Corrupt: the first time it is another sequence.
    """
    drawn = source.distinct(2 * REPEATED + AROUND)
    repeated, other, around = drawn.split([REPEATED, REPEATED, AROUND], 1)
    clean, corrupt = (source.starting_with_bos(around, first, repeated) for first in (repeated, other))
    length, before = clean.shape[1], torch.randint(AROUND + 1, (source.count, 1), generator=source.generator)
    # BOS stays in front; the rest is turned round, so that what was before the sequence comes partly after it.
    place = (torch.arange(length - 1) + AROUND - before) % (length - 1) + 1
    clean[:, 1:], corrupt[:, 1:] = clean.gather(1, place), corrupt.gather(1, place)
    last = before + 2 * REPEATED  # place of the second sequence's last token
    column = torch.arange(length)
    asked = (column > last - REPEATED) & (column < last)
    return _following(clean, corrupt, asked)


def iid_induction(source: _Source) -> Prompts:
    """A sequence comes twice whose tokens are drawn independently from a few: most stood there before, followed by others too.

    A head that looks for the current token finds all its places: `order_one` says how far that goes. Corrupt: the first sequence
    is another.
    """
    pool = source.distinct(POOL)
    first, other = (
        pool.gather(1, torch.randint(POOL, (source.count, DRAWN), generator=source.generator)) for _ in range(2)
    )
    clean, corrupt = (source.starting_with_bos(before, first) for before in (first, other))
    asked = torch.zeros_like(clean, dtype=torch.bool)
    asked[:, DRAWN + 1 : -1] = True
    found = _following(clean, corrupt, asked)
    return replace(found, order_one=_order_one(clean, asked))


def _order_one(ids: Int64[Tensor, "prompts length"], asked: Bool[Tensor, "prompts length"]) -> float:
    """Of the tokens asked for, the share that what followed the current token most often until then gets right."""
    right = []
    for row, where in zip(ids.tolist(), asked, strict=True):
        for place in where.nonzero()[:, 0].tolist():
            counts = Counter(row[i + 1] for i in range(place) if row[i] == row[place])
            best = [token for token, count in counts.items() if count == max(counts.values())]
            right.append((row[place + 1] in best) / len(best))
    return sum(right) / len(right)


def previous_token(source: _Source) -> Prompts:
    """Two tokens take turns: the next one is the one before. Corrupt: all tokens differ, up to the one that is asked at."""
    drawn = source.distinct(2 + 2 * PAIRS)
    clean = source.starting_with_bos(drawn[:, :2].repeat(1, PAIRS))
    corrupt = source.starting_with_bos(drawn[:, 2:])
    asked = torch.zeros_like(clean, dtype=torch.bool)
    asked[:, 4:-1] = True
    return _following(clean, corrupt, asked)


def duplicate_token(source: _Source) -> Prompts:
    """Every token comes twice in a row: the second time it is known. Corrupt: the second is another."""
    drawn = source.distinct(2 * PAIRS)
    clean = source.starting_with_bos(drawn[:, :PAIRS].repeat_interleave(2, 1))
    corrupt = source.starting_with_bos(torch.stack([drawn[:, :PAIRS], drawn[:, PAIRS:]], 2).flatten(1))
    asked = torch.zeros_like(clean, dtype=torch.bool)
    asked[:, 5::2] = True
    return _following(clean, corrupt, asked)


def brackets(source: _Source) -> Prompts:
    """A bracket or quotation mark is open, another has been closed before: which closes now? Corrupt: the other way round.

    Closing marks compete with each other alone.
    """
    kinds = [[_single(source.tokenizer, mark) for mark in pair] for pair in BRACKETS]
    pairs = torch.tensor([kind for kind in kinds if None not in kind])
    if len(pairs) < 2:
        raise UsageError("closing brackets needs a tokenizer that has at least two kinds as tokens of their own.")
    vocabulary = source.tokenizer.get_vocab()
    words = torch.tensor(
        sorted(id for token, id in vocabulary.items() if token[:1] in ("Ġ", "▁") and token[1:].isalpha())
    )
    if not len(words):
        raise UsageError("closing brackets needs a tokenizer with words that start with a space.")
    ids = words[torch.randint(len(words), (source.count, WORDS), generator=source.generator)]
    kind = torch.stack([torch.randperm(len(pairs), generator=source.generator)[:2] for _ in range(source.count)])
    prompts = []
    for now, done in (kind.T, kind.T.flip(0)):
        opened, closed, still = pairs[done, :1], pairs[done, 1:], pairs[now, :1]
        prompts.append(
            source.starting_with_bos(ids[:, :3], opened, ids[:, 3:6], closed, ids[:, 6:8], still, ids[:, 8:])
        )
    asked = torch.zeros_like(prompts[0], dtype=torch.bool)
    asked[:, -1] = True
    answers = torch.where(asked, pairs[kind[:, 0], 1:], 0)
    return Prompts(prompts[0], prompts[1], asked, answers, tuple(pairs[:, 1].tolist()))


def ngram(source: _Source) -> Prompts:
    """Two tokens after which a text (its fit split) nearly always goes on in one way, which the second alone does not say.

    Corrupt: another first token.
    """
    windows = pack(select(read(source.text), "fit"), source.tokenizer, NGRAM_CONTEXT, NGRAM_TOKENS)
    ids = windows.ids.long()[:, 1:]  # BOS in front of a window is not of the text
    triples, counts = (
        torch.stack([ids[:, :-2], ids[:, 1:-1], ids[:, 2:]], 2).flatten(0, 1).unique(dim=0, return_counts=True)
    )

    def share(columns: slice) -> Tensor:
        """Of its last token, for every triple, after the tokens in these columns."""
        _, before = triples[:, columns].unique(dim=0, return_inverse=True)
        _, whole = triples[:, columns.start :].unique(dim=0, return_inverse=True)
        sums = [
            torch.zeros(int(group.max()) + 1).index_add_(0, group, counts.float())[group] for group in (whole, before)
        ]
        return sums[0] / sums[1]

    special = torch.tensor(sorted({*source.tokenizer.all_special_ids, source.bos}))
    known = (counts >= OFTEN) & (share(slice(0, 2)) >= SURE) & (share(slice(1, 2)) < UNSURE)
    known &= ~torch.isin(triples, special).any(1)
    found = triples[known]
    if len(found) < source.count:
        raise UsageError(
            f"--text must have at least {source.count:,} pairs of tokens that go on in one way; {source.text} has "
            f"{len(found):,}: ask for fewer prompts or take more text."
        )
    drawn = found[torch.randperm(len(found), generator=source.generator)[: source.count]]
    clean = source.starting_with_bos(drawn[:, :2])
    corrupt = source.starting_with_bos(source.distinct(1), drawn[:, 1:2])
    asked = torch.zeros_like(clean, dtype=torch.bool)
    asked[:, -1] = True
    return Prompts(clean, corrupt, asked, torch.where(asked, drawn[:, 2:], 0))


BEHAVIOURS: dict[str, Callable[[_Source], Prompts]] = {
    "induction": induction,
    "iid-induction": iid_induction,
    "previous-token": previous_token,
    "duplicate-token": duplicate_token,
    "brackets": brackets,
    "ngram": ngram,
}


def make_prompts(behaviour: str, tokenizer: Any, *, count: int = 256, seed: int = 0, text: str = "docs") -> Prompts:
    """`count` prompts of the behaviour of that name, or all of a .jsonl file (`from_file`). n-grams are those of `text`.

    Raises: UsageError when there is no such behaviour or file, or when the vocabulary does not allow it.
    """
    if make := BEHAVIOURS.get(behaviour):
        return make(_Source(tokenizer, count, torch.Generator().manual_seed(seed), text))
    if Path(behaviour).is_file():
        return from_file(Path(behaviour), tokenizer)
    raise UsageError(f"--behaviour must be one of {', '.join(BEHAVIOURS)}, or a .jsonl file; got {behaviour}.")


def from_file(path: Path, tokenizer: Any) -> Prompts:
    """Prompts from lines {"clean": …, "corrupt": …, "answer": …}: the answer is one token, clean and corrupt equally many.

    Raises: StitchError for lines that are not so, with their number.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
            texts = [found[name] for name in ("clean", "corrupt", "answer")]
        except (ValueError, KeyError, TypeError) as error:
            raise StitchError(
                f"{path}, line {number}, needs JSON with clean, corrupt and answer; got {line[:60]!r}."
            ) from error
        clean, corrupt = (tokenizer.encode(text, add_special_tokens=False) for text in texts[:2])
        answer = _single(tokenizer, texts[2])
        if not clean or len(clean) != len(corrupt):
            raise StitchError(
                f"{path}, line {number}: clean and corrupt must have equally many tokens; got {len(clean)} and {len(corrupt)}."
            )
        if answer is None:
            raise StitchError(
                f"{path}, line {number}: the answer must be one token; got {texts[2]!r}. Mind the space before it."
            )
        rows.append((clean, corrupt, answer))
    if not rows:
        raise StitchError(f"{path} must have at least one prompt; it is empty.")
    length, bos = 1 + max(len(clean) for clean, _, _ in rows), bos_of(tokenizer)
    # What comes after the place that is asked at changes nothing there.
    clean, corrupt = (
        torch.tensor([[bos, *row[side], *[bos] * (length - 1 - len(row[side]))] for row in rows]) for side in (0, 1)
    )
    asked, answers = torch.zeros_like(clean, dtype=torch.bool), torch.zeros_like(clean)
    for number, (ids, _, answer) in enumerate(rows):
        asked[number, len(ids)], answers[number, len(ids)] = True, answer
    return Prompts(clean, corrupt, asked, answers)


def _single(tokenizer: Any, text: str) -> int | None:
    """The id of a text that is one token, and not the one for everything unknown."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    return ids[0] if len(ids) == 1 and ids[0] != tokenizer.unk_token_id else None


def _following(clean: Tensor, corrupt: Tensor, asked: Tensor) -> Prompts:
    """Prompts whose answers are the tokens that follow in the clean ones, where the same token is read in the corrupt ones."""
    answers = torch.where(asked, clean.roll(-1, 1), 0)
    return Prompts(clean, corrupt, asked, answers)
