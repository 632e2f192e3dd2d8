"""Behaviours as pairs of prompts: clean prompts with the right answers, and corrupt prompts from which the answers do not follow.

A model that has a behaviour answers the clean prompts and not the corrupt ones. Tokens are random where possible, so that nothing
but the behaviour gives the answer. All prompts start with BOS.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from stitch.circuits.bracket_text import BracketTokens, Closed, bracket_tokens, closed_brackets
from stitch.errors import UsageError
from stitch.files.schema import Schema, checked_lines
from stitch.files.specification import faulty, shown
from stitch.files.store import Store
from stitch.progress import Progress
from stitch.text.document import Document
from stitch.text.documents import Split, select
from stitch.text.sources import Wanted, Writes, corpus_of
from stitch.text.tokenizers import bos_of
from stitch.text.windows import pack

POOL = 128  # iid sequences: how many different tokens they are drawn from
LONGEST = 256  # tokens of a prompt with a repeated sequence, at most
REPEATED = 8, 24  # the least and the largest length of a repeated sequence
NEAREST, FARTHEST = 8, 200  # how far before its second occurrence a sequence stands first, in tokens
PASSAGE, BETWEEN = 60, 20  # natural text: length of a repeated passage, and the tokens between its two occurrences
READ = 96  # natural text: tokens before the closing bracket that is asked for
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
    prompt so far gets right, ties broken by chance. `distance` is how many tokens back stands what decides: the first occurrence
    of a sequence that stands twice, or an opening bracket.

    A circuit is chosen on every second prompt, from the first on, and reported on the others.
    """

    clean: Int64[Tensor, "prompts length"]
    corrupt: Int64[Tensor, "prompts length"]
    asked: Bool[Tensor, "prompts length"]
    answers: Int64[Tensor, "prompts length"]
    among: tuple[int, ...] = ()
    order_one: float | None = None
    distance: Int64[Tensor, " prompts"] | None = None

    def part(self, rows: slice) -> "Prompts":
        """Some of the prompts."""
        return replace(
            self,
            clean=self.clean[rows],
            corrupt=self.corrupt[rows],
            asked=self.asked[rows],
            answers=self.answers[rows],
            distance=None if self.distance is None else self.distance[rows],
        )


@dataclass(frozen=True)
class _TokenSampler:
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


def induction(sampler: _TokenSampler) -> Prompts:
    """A sequence of different tokens stands twice in a prompt. At its second occurrence all tokens but the first are asked for.

    Corrupt: the first occurrence is another sequence. No other token stands twice.
    """
    length, longest = _room(sampler, len(sampler.ordinary))
    drawn, other = sampler.distinct_by_half(length + longest).split([length, longest], 1)
    return _repeated(sampler, drawn, other)


def iid_induction(sampler: _TokenSampler) -> Prompts:
    """As `induction`, with tokens drawn independently from a small pool, so that most tokens have had several successors.

    A head that attends to earlier occurrences of the current token finds all of them; `order_one` is what that can reach.
    """
    length, longest = _room(sampler)
    pool = sampler.distinct_by_half(POOL)
    drawn, other = (
        pool.gather(1, torch.randint(POOL, (sampler.count, width), generator=sampler.generator))
        for width in (length, longest)
    )
    found = _repeated(sampler, drawn, other)
    return replace(found, order_one=_order_one(found.clean, found.asked))


def _room(sampler: _TokenSampler, vocabulary: int | None = None) -> tuple[int, int]:
    """(tokens after BOS, longest repeated sequence) of prompts as long as the context and the `vocabulary` allow.

    Raises: UsageError when a sequence that stands twice does not fit.
    """
    shortest, longest = REPEATED
    length = min(sampler.longest, LONGEST) - 1
    if vocabulary is not None:
        length = min(length, max(vocabulary - longest, 3 * vocabulary // 4))
    if length < 3 * shortest:
        raise UsageError(
            f"this behaviour needs a context and a vocabulary of at least {3 * shortest + 1} and {4 * shortest} tokens; "
            f"the model has {sampler.longest} and {len(sampler.ordinary)}: choose another."
        )
    return length, min(longest, length // 3)


def _repeated(
    sampler: _TokenSampler, drawn: Int64[Tensor, "prompts length"], other: Int64[Tensor, "prompts longest"]
) -> Prompts:
    """Prompts of the tokens `drawn`, in which a sequence also replaces those that come some distance after it.

    Distances are spread evenly on a logarithmic scale from NEAREST to FARTHEST, or to what fits. Lengths and places are random.
    Corrupt: the sequence's first occurrence is `other` tokens.
    """
    count, length, longest = sampler.count, drawn.shape[1], other.shape[1]
    farthest = min(FARTHEST, length - longest)

    def up_to(most: Int64[Tensor, " prompts"]) -> Int64[Tensor, " prompts"]:
        """A number from 0 to `most` for every prompt."""
        return (torch.rand(count, generator=sampler.generator) * (most + 1)).long()

    share = (torch.randperm(count, generator=sampler.generator) + 0.5) / count
    distance = (NEAREST * (farthest / NEAREST) ** share).round().long()
    size = REPEATED[0] + up_to(distance.clamp_max(longest) - REPEATED[0])
    start = up_to(length - distance - size)
    place = torch.arange(length) - start[:, None]  # in the sequence's first occurrence
    back = place - distance[:, None]
    is_first, is_second = ((each >= 0) & (each < size[:, None]) for each in (place, back))
    column = torch.arange(length)
    clean = drawn.gather(1, torch.where(is_second, column - distance[:, None], column))
    corrupt = torch.where(is_first, other.gather(1, place.clamp(0, longest - 1)), clean)
    asked = torch.nn.functional.pad(is_second & (back < size[:, None] - 1), (1, 0))
    found = _following(sampler.starting_with_bos(clean), sampler.starting_with_bos(corrupt), asked)
    return replace(found, distance=distance)


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


def natural_copying(sampler: _TokenSampler) -> Prompts:
    """A passage of held-out text stands twice, with other text between. At its second occurrence all tokens but the first are
    asked for.

    Corrupt: the first occurrence is a passage of another document, so its right answers are those of a first reading. A document
    gives one passage, from its start. Every second passage, from the first on, is of the text's sweep split, the others are of
    its report split.
    """
    length = PASSAGE + BETWEEN
    passages = torch.zeros(2, sampler.count, length, dtype=torch.long)
    for rows, count, documents in _held_out(sampler, 4 * length):
        found = _starts(sampler, documents, count + 1, length)
        passages[:, rows] = torch.stack([found[:-1], found[1:]])
    (passage, _), (other, between) = (ids.split([PASSAGE, BETWEEN], 1) for ids in passages)
    clean, corrupt = (sampler.starting_with_bos(first, between, passage) for first in (passage, other))
    asked = torch.zeros_like(clean, dtype=torch.bool)
    asked[:, length + 1 : -1] = True
    return _following(clean, corrupt, asked)


def natural_brackets(sampler: _TokenSampler) -> Prompts:
    """The closing bracket that comes next in held-out text is asked for, 8 to 96 tokens after it was opened.

    Corrupt: the opening bracket is of another kind, so right answers there come from the rest of the text. Closing brackets
    compete only with each other. A document gives one prompt. Kinds, then distances, are as equal in number as the text allows.
    Every second prompt, from the first on, is of the text's sweep split, the others are of its report split.
    """
    if (tokens := bracket_tokens(sampler.tokenizer)) is None:
        raise UsageError(
            "natural-brackets needs a tokenizer in which (, ), [, ], { and } are single tokens: choose another."
        )
    clean = torch.zeros(sampler.count, READ, dtype=torch.long)
    kinds, distance = (torch.zeros(sampler.count, dtype=torch.long) for _ in range(2))
    for rows, count, documents in _held_out(sampler, 8 * READ):
        read, opened = _open_brackets(sampler, tokens, documents, count)
        clean[rows] = torch.tensor(read, dtype=torch.long).view(count, READ)
        kinds[rows] = torch.tensor([one.kind for one in opened], dtype=torch.long)
        distance[rows] = torch.tensor([one.closing - one.opening for one in opened], dtype=torch.long)
    place = (READ - distance)[:, None]
    step = torch.randint(1, len(tokens.closings), (sampler.count,), generator=sampler.generator)
    other = (kinds + step) % len(tokens.closings)
    opening = clean.gather(1, place)[:, 0].tolist()
    replaced = [tokens.exchanged[id][kind] for id, kind in zip(opening, other.tolist(), strict=True)]
    corrupt = sampler.starting_with_bos(clean.scatter(1, place, torch.tensor(replaced)[:, None]))
    asked = torch.zeros_like(corrupt, dtype=torch.bool)
    asked[:, -1] = True
    answers = torch.where(asked, torch.tensor(tokens.closings)[kinds][:, None], 0)
    clean = sampler.starting_with_bos(clean)
    return Prompts(clean, corrupt, asked, answers, tuple(tokens.closings), distance=distance)


def _open_brackets(
    sampler: _TokenSampler, tokens: BracketTokens, documents: list[Document], count: int
) -> tuple[list[list[int]], list[Closed]]:
    """The READ tokens before a closing bracket, of `count` documents in random order, and which it is. Raises UsageError when
    fewer documents have one."""
    read, found = [], []
    for number in torch.randperm(len(documents), generator=sampler.generator).tolist():
        if len(found) == count:
            break
        ids = sampler.tokenizer.encode(documents[number][1], add_special_tokens=False, verbose=False)
        fitting = [
            one
            for one in closed_brackets([tokens.texts[id] for id in ids])
            if one.closing >= READ and NEAREST <= one.closing - one.opening <= READ
            and ids[one.opening] in tokens.exchanged and ids[one.closing] in tokens.closings
        ]  # fmt: skip
        if fitting:
            order = torch.randperm(len(fitting), generator=sampler.generator).tolist()
            kinds, octaves = (Counter(map(of, found)) for of in (_kind, _octave))
            found.append(min((fitting[at] for at in order), key=lambda one: (kinds[one.kind], octaves[_octave(one)])))
            read.append(ids[found[-1].closing - READ : found[-1].closing])
    if len(found) < count:
        raise UsageError(
            f"each held-out split of the text must have at least {count:,} documents with a bracket that closes {NEAREST} to "
            f"{READ} tokens after it opened; {sampler.text} has {len(found):,}: lower `count` or take more text."
        )
    return read, found


def _kind(one: Closed) -> int:
    return one.kind


def _octave(one: Closed) -> int:
    """Which power of two the distance of the brackets is below."""
    return (one.closing - one.opening).bit_length()


def _held_out(sampler: _TokenSampler, tokens: int) -> Iterator[tuple[slice, int, list[Document]]]:
    """For the sweep split, then for the report split of the text: the prompts that come from it, their number, and its documents,
    with at least `tokens` per prompt in all where the text is long enough."""
    per_split: dict[Split, int] = {"sweep": (sampler.count + 1) // 2, "report": sampler.count // 2}
    wanted = Wanted({split: tokens * count for split, count in per_split.items()}, sampler.tokenizer, LONGEST)
    corpus = corpus_of(sampler.text, None, wanted, sampler.writer, Store(), sampler.progress)
    for first, (split, count) in enumerate(per_split.items()):
        yield slice(first, None, 2), count, select(corpus.documents, split)


def _starts(
    sampler: _TokenSampler, documents: list[Document], count: int, length: int
) -> Int64[Tensor, "count length"]:
    """The first `length` tokens of `count` documents, drawn from those that are as long. Raises UsageError when fewer are."""
    found = []
    for number in torch.randperm(len(documents), generator=sampler.generator).tolist():
        if len(found) == count:
            break
        ids = sampler.tokenizer.encode(documents[number][1], add_special_tokens=False, verbose=False)[:length]
        if len(ids) == length:
            found.append(ids)
    if len(found) < count:
        raise UsageError(
            f"each held-out split of the text must have at least {count:,} documents of {length} tokens; {sampler.text} has "
            f"{len(found):,}: lower `count` or take more text."
        )
    return torch.tensor(found, dtype=torch.long).view(count, length)


BEHAVIOURS: dict[str, Callable[[_TokenSampler], Prompts]] = {
    "induction": induction,
    "iid-induction": iid_induction,
    "previous-token": previous_token,
    "duplicate-token": duplicate_token,
    "brackets": brackets,
    "ngram": ngram,
    "natural-copying": natural_copying,
    "natural-brackets": natural_brackets,
}


def make_prompts(
    behaviour: str,
    tokenizer: Any,
    *,
    count: int = 256,
    seed: int = 0,
    longest: int = LONGEST,
    text: str = "docs",
    writer: Writes | None = None,
    progress: Progress | None = None,
) -> Prompts:
    """`count` prompts of the behaviour with that name, or all prompts of a .jsonl file (`from_file`). Prompts whose length is not
    fixed have at most `longest` tokens. `text`, which may be written by `writer`, is what the text of behaviours comes from.

    Raises: UsageError when there is no such behaviour or file, when the context, the vocabulary or the text is too small for it,
    and for a file with other lines.
    """
    if make := BEHAVIOURS.get(behaviour):
        generator = torch.Generator().manual_seed(seed)
        return make(_TokenSampler(tokenizer, count, generator, longest, text, writer, progress))
    if Path(behaviour).is_file():
        return from_file(Path(behaviour), tokenizer)
    raise UsageError(f"behaviour must be one of {', '.join(BEHAVIOURS)}, or a .jsonl file; got {behaviour}.")


def require_room(prompts: Prompts, behaviour: str, model: str, longest: int | None) -> None:
    """Raises: UsageError where prompts, which may come from a file, are longer than the model's context."""
    length = prompts.clean.shape[1]
    if longest is not None and length > longest:
        raise UsageError(
            f"{behaviour} needs a context of {length} tokens; {model} takes {longest}: choose another model."
        )


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
