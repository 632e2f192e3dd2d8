"""Documents packed into windows of token ids, for the splits used to fit (fit), to choose (sweep) and to report (report)."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from stitch.errors import StitchError, UsageError
from stitch.files.store import Store
from stitch.progress import Progress
from stitch.text.document import Document
from stitch.text.documents import LEAST_TOKENS, SPLITS, Split, select
from stitch.text.fingerprint import TextRead, text_read
from stitch.text.sources import Corpus, Wanted, Writes, corpus_of
from stitch.text.tokenizers import bos_of

CONTEXT = 512  # tokens; the default context is the models' own, but at most this
LONGEST_CONTEXT = 1024  # tokens; the same for conversions, which are also measured far back in a window
HELD_OUT = 65_536  # tokens of each held-out split, at most, where its windows are not too few
LEAST_HELD_OUT = 128  # windows of each held-out split; they hold about a hundred documents
SHORTEST = 2  # tokens of a window: the first is BOS
CHARACTERS_PER_TOKEN = 8  # an upper estimate, so that enough of a streamed dataset is read and windows do not overlap
CHARACTERS_AT_ONCE = 4  # per token still missing in a window
WHITE_SPACE, LONGEST_WORD = re.compile(r"\s"), 100  # characters
WORD = 8  # tokens; few words have more


@dataclass(frozen=True)
class Windows:
    """`ids[w, t]` is a token id, `document[w, t]` the index of its document. A window's first token, BOS, counts to the document
    of the token after it. `text` says what was read to make them, where they are of a text with splits, and `split` of which."""

    ids: Int[Tensor, "windows context"]
    document: Int[Tensor, "windows context"]
    text: TextRead | None = None
    split: Split | None = None

    @property
    def context(self) -> int:
        return self.ids.shape[1]

    @property
    def tokens(self) -> int:
        return self.ids.numel()

    def first(self, tokens: int) -> "Windows":
        """The first windows with `tokens` tokens, rounded up to whole windows; of a `sample`, a smaller sample."""
        count = -(-tokens // self.context)
        return replace(self, ids=self.ids[:count], document=self.document[:count])

    def after(self, first: "Windows") -> "Windows":
        """The windows that are not in `first`, which are the first of these."""
        return replace(self, ids=self.ids[len(first.ids) :], document=self.document[len(first.ids) :])

    @property
    def provenance(self) -> dict:
        """What a report's provenance says of the text; empty where nothing is known of it."""
        return {} if self.text is None else {"text": self.text.to_dict()}


def tokens_of(windows: Mapping[Split, Windows]) -> dict[Split, int]:
    """Tokens of every split."""
    return {split: found.tokens for split, found in windows.items()}


def sample(documents: Sequence[Document], tokenizer, context: int, limit: int) -> Windows:
    """Windows of `limit` tokens, rounded up to whole windows, spread evenly over all documents; all windows if there are fewer.

    They come in an order of which every part is spread as evenly. Only the text that they hold is tokenised, unless they are
    most of it.
    """
    count = -(-limit // context)
    spacing = CHARACTERS_PER_TOKEN * (context - 1)
    places = sum(len(text) for _, text in documents) // spacing
    if count > places:
        windows = pack(documents, tokenizer, context)
        rows = evenly(len(windows.ids))[:count]
        return Windows(windows.ids[rows], windows.document[rows])
    ends = torch.tensor([len(text) for _, text in documents]).cumsum(0)
    found = []
    for place in evenly(places)[:count].tolist():
        skipped = place % WORD  # otherwise every window would start with the start of a word
        tokens = _tokens_from(place * spacing, skipped + context - 1, ends, documents, tokenizer)
        found.append([part[skipped:] for part in tokens])
    ids, owner = (torch.tensor(part, dtype=torch.int32) for part in zip(*found, strict=True))
    return _windows(ids, owner, bos_of(tokenizer))


def evenly(count: int) -> Int[Tensor, " count"]:
    """0 … count − 1 in an order of which every part is spread evenly over them: by multiples of the golden ratio, modulo 1."""
    multiples = torch.arange(count, dtype=torch.float64) * ((5**0.5 - 1) / 2) % 1
    return multiples.argsort().argsort()


def _tokens_from(
    start: int, count: int, ends: Int[Tensor, " documents"], documents: Sequence[Document], tokenizer
) -> tuple[list[int], list[int]]:
    """`count` tokens and their documents: the text from the white space after character `start` of all documents on.

    `ends` says where each document ends. Raises: StitchError when the tokenizer makes nothing of any document.
    """
    index = int(torch.searchsorted(ends, start, right=True))
    text = documents[index][1]
    place = _white_space(text, start - int(ends[index]) + len(text))
    ids: list[int] = []
    owner: list[int] = []
    pieces = 0
    while len(ids) < count:
        if pieces > len(documents) and not ids:
            raise StitchError("the tokenizer gives no tokens for any of the text: check that it belongs to the model.")
        pieces += 1
        text = documents[index][1]
        stop = _white_space(text, place + CHARACTERS_AT_ONCE * (count - len(ids)))
        found = tokenizer.encode(text[place:stop], add_special_tokens=False, verbose=False)
        if place == 0 and ids:
            found = [bos_of(tokenizer), *found]
        ids += found
        owner += [index] * len(found)
        index, place = (index, stop) if stop < len(text) else ((index + 1) % len(documents), 0)
    return ids[:count], owner[:count]


def _white_space(text: str, place: int) -> int:
    """The first white space or end from `place` on, where text can be cut without cutting a word; `place` in too long a word."""
    if found := WHITE_SPACE.search(text, place, place + LONGEST_WORD):
        return found.start()
    return place if place + LONGEST_WORD < len(text) else len(text)


def pack(documents: Iterable[Document], tokenizer, context: int, limit: int | None = None) -> Windows:
    """Packs documents into windows of `context` ids that start with BOS, up to `limit` tokens rounded up to whole windows.

    Every document starts with a BOS of its own too. The rest of the text that does not fill a window is left out.
    """
    bos = bos_of(tokenizer)
    body = context - 1
    needed = None if limit is None else -(-limit // context) * body
    ids, owner, count = [], [], 0
    for index, (_, text) in enumerate(documents):
        encoded = tokenizer.encode(text, add_special_tokens=False, verbose=False)
        piece = torch.tensor([bos, *encoded], dtype=torch.int32)
        ids.append(piece)
        owner.append(torch.full_like(piece, index))
        count += len(piece)
        if needed is not None and count >= needed:
            break
    total = (count if needed is None else min(count, needed)) // body * body
    if total == 0:
        return Windows(torch.zeros(0, context, dtype=torch.int32), torch.zeros(0, context, dtype=torch.int32))
    return _windows(torch.cat(ids)[:total].view(-1, body), torch.cat(owner)[:total].view(-1, body), bos)


def _windows(ids: Int[Tensor, "windows body"], document: Int[Tensor, "windows body"], bos: int) -> Windows:
    """Windows of `ids`, each with BOS in front."""
    start = torch.full((len(ids), 1), bos, dtype=torch.int32)
    return Windows(torch.cat([start, ids], 1), torch.cat([document[:, :1], document], 1))


def read_for(
    text: str,
    limits: dict[Split, int],
    tokenizer: Any,
    context: int,
    *,
    writer: Writes | None = None,
    store: Store | None = None,
    progress: Progress | None = None,
) -> Corpus:
    """The documents of `text`: of a dataset, and of what `writer` writes, as many as give splits of so many tokens.

    `tokenizer` and `context` are those of the windows that will be made of it.
    """
    # The fit split has 90 % of the documents, the other two have 5 % each.
    needed = max(limits["fit"] * 10 // 9, max(limits["sweep"], limits["report"]) * 20)
    whole: dict[Split, int] = {split: -(-limit // context) * context for split, limit in limits.items()}
    wanted = Wanted(whole, tokenizer, context)
    return corpus_of(text, CHARACTERS_PER_TOKEN * needed, wanted, writer, store, progress)


def split_windows(
    corpus: Corpus, limits: dict[Split, int], tokenizer: Any, context: int, progress: Progress | None = None
) -> dict[Split, Windows]:
    """Packed windows of the three splits of a text, of at most `limits` tokens each.

    Raises: StitchError when the text gives fewer than `LEAST_TOKENS` tokens to fit on, or less than one held-out window.
    """
    documents = corpus.documents
    fingerprint, windows = text_read(corpus.name, documents, corpus.written), {}
    for number, split in enumerate(SPLITS):
        found = sample(select(documents, split), tokenizer, context, limits[split])
        windows[split] = replace(found, text=fingerprint, split=split)
        if progress:
            progress("text", number + 1, len(SPLITS))
    least = {"fit": LEAST_TOKENS, "sweep": context, "report": context}
    for split, found in windows.items():
        if found.tokens < least[split]:
            raise StitchError(
                f"text must fill at least {least[split]:,} tokens of the {split} split; {corpus.name} has "
                f"{len(documents):,} documents that give {found.tokens:,}: use more or longer text, or lower `context`."
            )
    return windows


def require_text_size(tokens: int, context: int | None, shortest: int = SHORTEST) -> None:
    """Raises UsageError for no tokens, or windows of fewer than `shortest`."""
    if tokens < 1:
        raise UsageError(f"tokens must be at least 1; got {tokens}.")
    if context is not None and context < shortest:
        raise UsageError(f"context must be at least {shortest}; got {context}.")


def report_windows(
    text: str,
    tokens: int,
    tokenizer: Any,
    context: int,
    *,
    whole: bool | None = None,
    writer: Writes | None = None,
    store: Store | None = None,
    progress: Progress | None = None,
) -> Windows:
    """`tokens` tokens of the report split of `text`, or of the `whole` text, which may be written by `writer`. `whole` is None
    where the user has no such choice.

    Raises: StitchError when they do not fill one window.
    """
    wanted = Wanted({"report": -(-tokens // context) * context}, tokenizer, context)
    characters = CHARACTERS_PER_TOKEN * tokens * (2 if whole else 25)
    corpus = corpus_of(text, characters, wanted, writer, store, progress)
    documents = select(corpus.documents, None if whole else "report")
    found = sample(documents, tokenizer, context, tokens)
    windows = replace(found, text=text_read(text, corpus.documents, corpus.written))
    if windows.tokens == 0:
        have = f"{len(documents):,} of its {len(corpus.documents):,} documents"
        read = "" if whole else f" of the report split, which has {have}"
        more = "use more text, or `whole_text`" if whole is False else "use more text"
        raise StitchError(f"text must fill one window of {windows.context} tokens{read}; {text} does not: {more}.")
    return windows


def require_rows(windows: Windows, rows: int, name: str) -> None:
    """Raises: UsageError where the text has tokens without a row in the embedding of the model called `name`."""
    if windows.tokens and (largest := int(windows.ids.max())) >= rows:
        raise UsageError(
            f"the tokenizer must belong to the model; that of {name} gives ids up to {largest:,}, and its embedding has {rows:,} "
            "rows: save the model's own beside it."
        )
