"""Documents packed into windows of token ids, for the splits used to fit (fit), to choose (sweep) and to report (report)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from stitch.errors import StitchError
from stitch.progress import Progress
from stitch.text.document import Document
from stitch.text.documents import LEAST_TOKENS, SPLITS, Split, read, select
from stitch.text.tokenizers import bos_of

LONGEST_CONTEXT = 1024  # tokens; the default context is the models' own, but at most this
HELD_OUT = 65_536  # tokens of each held-out split, at most; gives confidence intervals of hundredths of a nat
CHARACTERS_PER_TOKEN = 8  # an upper estimate, so that enough of a streamed dataset is read


@dataclass(frozen=True)
class Windows:
    """`ids[w, t]` is a token id, `document[w, t]` the index of its document. A window's first token, BOS, counts to the document
    of the token after it."""

    ids: Int[Tensor, "windows context"]
    document: Int[Tensor, "windows context"]

    @property
    def context(self) -> int:
        return self.ids.shape[1]

    @property
    def tokens(self) -> int:
        return self.ids.numel()

    def first(self, tokens: int) -> "Windows":
        """The first windows with `tokens` tokens, rounded up to whole windows."""
        count = -(-tokens // self.context)
        return Windows(self.ids[:count], self.document[:count])

    def spread(self, tokens: int) -> "Windows":
        """About `tokens` tokens, in windows evenly spaced over all of them; their documents are numbered from 0 again."""
        count = min(len(self.ids), max(1, tokens // self.context))
        rows = torch.linspace(0, len(self.ids) - 1, count).round().long()
        _, owner = self.document[rows].unique(return_inverse=True)
        return Windows(self.ids[rows], owner.to(self.document.dtype))


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
    flat = torch.cat(ids)[:total].view(-1, body)
    document = torch.cat(owner)[:total].view(-1, body)
    start = torch.full((len(flat), 1), bos, dtype=torch.int32)
    return Windows(torch.cat([start, flat], 1), torch.cat([document[:, :1], document], 1))


def split_windows(
    text: str, limits: dict[Split, int], tokenizer: Any, context: int, progress: Progress | None = None
) -> dict[Split, Windows]:
    """Packed windows of the three splits, of at most `limits` tokens each; `text` as in `read`.

    Raises: StitchError when the text gives fewer than `LEAST_TOKENS` tokens to fit on, or less than one held-out window.
    """
    # The fit split has 90 % of the documents, the other two have 5 % each.
    needed = max(limits["fit"] * 10 // 9, max(limits["sweep"], limits["report"]) * 20)
    documents = list(read(text, characters=CHARACTERS_PER_TOKEN * needed))
    windows = {}
    for number, split in enumerate(SPLITS):
        windows[split] = pack(select(documents, split), tokenizer, context, limits[split])
        if progress:
            progress("text", number + 1, len(SPLITS))
    least = {"fit": LEAST_TOKENS, "sweep": context, "report": context}
    for split, found in windows.items():
        if found.tokens < least[split]:
            raise StitchError(
                f"text must fill at least {least[split]:,} tokens of the {split} split; {text} has "
                f"{len(documents):,} documents that give {found.tokens:,}: use more or longer text, or lower `context`."
            )
    return windows


def report_windows(text: str, tokens: int, tokenizer: Any, context: int) -> Windows:
    """`tokens` tokens of the report split of `text`. Raises: StitchError when they do not fill one window."""
    documents = select(read(text, characters=CHARACTERS_PER_TOKEN * tokens * 25), "report")
    windows = pack(documents, tokenizer, context, tokens)
    if windows.tokens == 0:
        raise StitchError(
            f"text must fill one window of {windows.context} tokens of the report split; {text} does not: use more text."
        )
    return windows
