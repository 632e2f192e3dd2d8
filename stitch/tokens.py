"""Text to packed windows of token ids.

Policy: every document starts with the BOS token, documents follow each other without padding, and every window starts with BOS
as well, so position 0 always holds the token that models use as their attention sink. The tail that does not fill a window is
dropped. Each token remembers its document, which is what confidence intervals resample.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from stitch.errors import UsageError
from stitch.text import Document


@dataclass(frozen=True)
class Windows:
    """`ids[w, t]` is a token id, `document[w, t]` the index of its document (a window's own BOS counts to the next token's)."""

    ids: Int[Tensor, "windows context"]
    document: Int[Tensor, "windows context"]

    @property
    def context(self) -> int:
        return self.ids.shape[1]

    @property
    def tokens(self) -> int:
        return self.ids.numel()

    def first(self, tokens: int) -> "Windows":
        """The first windows, `tokens` of them or the whole windows that hold so many."""
        count = -(-tokens // self.context)
        return Windows(self.ids[:count], self.document[:count])

    def spread(self, tokens: int) -> "Windows":
        """So many tokens in windows evenly spread over all, of as many documents as may be; documents are numbered anew."""
        count = min(len(self.ids), max(1, tokens // self.context))
        rows = torch.linspace(0, len(self.ids) - 1, count).round().long()
        _, owner = self.document[rows].unique(return_inverse=True)
        return Windows(self.ids[rows], owner.to(self.document.dtype))


def bos_of(tokenizer) -> int:
    """The token that starts a text: BOS, or EOS for the families (Qwen, GPT-NeoX) that have none."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise UsageError("a tokenizer must have a BOS or an EOS token to start windows with; this one has neither.")


def pack(documents: Iterable[Document], tokenizer, context: int, limit: int | None = None) -> Windows:
    """Packs documents into windows of `context` ids, BOS first; stops after `limit` tokens (rounded up to whole windows)."""
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


def require_same_ids(a, b, name_a: str, name_b: str) -> None:
    """Both models must read the same ids: raises UsageError saying how many entries of the two vocabularies differ.

    Names and classes of tokenizers say nothing; what counts is that every token string has the same id in both.
    """
    first, second = a.get_vocab(), b.get_vocab()
    if first == second and _splits_alike(a, b):
        return
    tokens = first.keys() | second.keys()
    differing = sum(first.get(token) != second.get(token) for token in tokens)
    what = f"{differing:,} of {len(tokens):,} tokens differ" if differing else "they split text differently"
    raise UsageError(
        f"both models must share a tokenizer; {name_a} and {name_b} do not: {what}. Choose two models of one tokenizer family."
    )


PROBE = "The 3 quick_foxes' naïve plan:\n\tdef f(x): return x**2  # 漢字 🙂 1234567 don't\r\n\n  end."


def _splits_alike(a, b) -> bool:
    return a.encode(PROBE, add_special_tokens=False) == b.encode(PROBE, add_special_tokens=False)
