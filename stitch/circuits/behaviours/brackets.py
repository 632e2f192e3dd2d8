"""Brackets: the mark that closes the open bracket, among random words and in held-out text."""

from collections import Counter

import torch
from torch import Tensor

from stitch.circuits.behaviours.bracket_text import BracketTokens, Closed, bracket_tokens, closed_brackets
from stitch.circuits.behaviours.prompts import Prompts
from stitch.circuits.behaviours.sampler import READ, TokenSampler, held_out, one_per_document, single
from stitch.errors import UsageError
from stitch.text.document import Document

MARKS = ("()", "[]", "{}", "<>", '""', "''", "``")
WORDS = 12  # words in a prompt with brackets
NEAREST = 8  # held-out text: the least number of tokens from an opening bracket to its closing one


def brackets(sampler: TokenSampler) -> Prompts:
    """One kind of bracket or quotation mark has been closed and another is open; the mark that closes it is asked for.

    Corrupt: the two kinds are exchanged. Closing marks compete only with each other.
    """
    kinds = [[single(sampler.tokenizer, mark) for mark in pair] for pair in MARKS]
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


def natural_brackets(sampler: TokenSampler) -> Prompts:
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
    for rows, count, documents in held_out(sampler, 8 * READ):
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
    sampler: TokenSampler, tokens: BracketTokens, documents: list[Document], count: int
) -> tuple[list[list[int]], list[Closed]]:
    """The READ tokens before a closing bracket, of `count` documents in random order, and which it is. Raises UsageError when
    fewer documents have one."""
    kinds, octaves = Counter[int](), Counter[int]()

    def rarest(ids: list[int]) -> tuple[list[int], Closed] | None:
        """Of the brackets of a document, one of the kind, then of the distance, that was found least often so far."""
        fitting = [
            one
            for one in closed_brackets([tokens.texts[id] for id in ids])
            if one.closing >= READ and NEAREST <= one.closing - one.opening <= READ
            and ids[one.opening] in tokens.exchanged and ids[one.closing] in tokens.closings
        ]  # fmt: skip
        if not fitting:
            return None
        order = torch.randperm(len(fitting), generator=sampler.generator).tolist()
        found = min((fitting[at] for at in order), key=lambda one: (kinds[one.kind], octaves[_octave(one)]))
        kinds[found.kind] += 1
        octaves[_octave(found)] += 1
        return ids[found.closing - READ : found.closing], found

    what = f"with a bracket that closes {NEAREST} to {READ} tokens after it opened"
    found = one_per_document(sampler, documents, count, rarest, what)
    return [read for read, _ in found], [closed for _, closed in found]


def _octave(one: Closed) -> int:
    """Which power of two the distance of the brackets is below."""
    return (one.closing - one.opening).bit_length()
