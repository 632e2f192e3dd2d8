"""N-grams: the usual third token after two, alone and in held-out text."""

from collections import Counter

import torch
from jaxtyping import Int64
from torch import Tensor

from stitch.circuits.behaviours.prompts import Prompts
from stitch.circuits.behaviours.sampler import READ, TokenSampler, held_out, one_per_document
from stitch.errors import UsageError
from stitch.files.store import Store
from stitch.text.documents import select
from stitch.text.sources import Wanted, corpus_of
from stitch.text.windows import pack

NGRAM_TOKENS, NGRAM_CONTEXT = 2**18, 256  # the text that n-grams are counted in: its length, and that of a window
OFTEN = 8  # the least count of an n-gram that is asked for
SURE = 0.9  # the least share of its last token after the first two
UNSURE = 0.5  # the share of its last token after the second alone must be below this


def ngram(sampler: TokenSampler) -> Prompts:
    """Two tokens that are nearly always followed by the same third one in the text's fit split, while the second alone is not.

    Corrupt: the first token is another one.
    """
    found = _sure_triples(sampler)
    if len(found) < sampler.count:
        raise UsageError(
            f"text must have at least {sampler.count:,} pairs of tokens with one usual successor; {sampler.text} has "
            f"{len(found):,}: lower `count` or take more text."
        )
    drawn = found[torch.randperm(len(found), generator=sampler.generator)[: sampler.count]]
    clean = sampler.starting_with_bos(drawn[:, :2])
    corrupt = sampler.starting_with_bos(sampler.distinct(1), drawn[:, 1:2])
    return _last_asked(clean, corrupt, drawn[:, 2:])


def natural_ngram(sampler: TokenSampler) -> Prompts:
    """The third token of such a triple in held-out text, after the 96 tokens before it.

    Corrupt: the first token of the triple is another one, so right answers there come from the rest of the text. A document gives
    one prompt, of the triple that was asked for least often so far. Every second prompt, from the first on, is of the text's
    sweep split, the others are of its report split.
    """
    known = set(map(tuple, _sure_triples(sampler).tolist()))
    asked_for = Counter[tuple[int, ...]]()

    def rarest(ids: list[int]) -> list[int] | None:
        ends = [at for at in range(READ + 1, len(ids) + 1) if tuple(ids[at - 3 : at]) in known]
        if not ends:
            return None
        order = torch.randperm(len(ends), generator=sampler.generator).tolist()
        end = min((ends[at] for at in order), key=lambda at: asked_for[tuple(ids[at - 3 : at])])
        asked_for[tuple(ids[end - 3 : end])] += 1
        return ids[end - READ - 1 : end]

    read = torch.zeros(sampler.count, READ + 1, dtype=torch.long)
    for rows, count, documents in held_out(sampler, 8 * READ):
        found = one_per_document(sampler, documents, count, rarest, "with an n-gram that occurs often in the fit split")
        read[rows] = torch.tensor(found, dtype=torch.long).view(count, READ + 1)
    before, answers = read.split([READ, 1], 1)
    corrupt = torch.cat([before[:, :-2], sampler.distinct(1), before[:, -1:]], 1)
    return _last_asked(sampler.starting_with_bos(before), sampler.starting_with_bos(corrupt), answers)


def _sure_triples(sampler: TokenSampler) -> Int64[Tensor, "triples 3"]:
    """Three tokens that follow each other at least OFTEN times in the fit split, the last of them nearly always after the first
    two, but not after the second alone."""
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
    return triples[known & ~torch.isin(triples, special).any(1)]


def _last_asked(clean: Tensor, corrupt: Tensor, answers: Int64[Tensor, "prompts 1"]) -> Prompts:
    """Prompts whose last token is followed by the answer."""
    asked = torch.zeros_like(clean, dtype=torch.bool)
    asked[:, -1] = True
    return Prompts(clean, corrupt, asked, torch.where(asked, answers, 0))
