"""The score of a model that reads a text in its own tokens, beside rows that read it in other ones."""

from typing import Any

import torch

from stitch.activations.in_own_tokens import InOwnTokens
from stitch.evaluation.next_byte import NextByte
from stitch.evaluation.scores import Scores, batches
from stitch.progress import Progress
from stitch.text.windows import Windows


def own_scores(
    b: InOwnTokens, windows: Windows, memory: int, progress: Progress | None = None
) -> tuple[Scores, NextByte]:
    """B's nats on the bytes of every document, in its own tokens, and what it says of the bytes after the windows' tokens.

    The tokens that nats are divided by are those of the windows that count: special ones do not. So a row's cross-entropy per
    token is its loss on the same bytes, whichever tokens it reads. A token of B counts to the document of the token by whose end
    it has ended.
    """
    count = int(windows.document.max()) + 1
    nats, tokens = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    owner = windows.document[:, 1:].flatten().long()
    tokens.index_add_(0, owner, (b.bytes_of > 0)[windows.ids[:, 1:].flatten().long()].double())
    next_byte, favourites = [], []
    config: Any = b.net.config
    vocabulary = config.get_text_config(decoder=True).vocab_size
    for batch in batches(windows, vocabulary, memory, range(len(windows.ids))):
        found = b.read(batch.ids)
        nats.index_add_(0, windows.document[batch.rows][found.rows, found.places].long(), found.nats.double())
        next_byte.append(found.next_byte)
        favourites += found.favourites
        if progress:
            progress("B in its own tokens (tokens)", batch.rows.stop * windows.context, windows.tokens)
    return Scores(nats, None, None, tokens), NextByte(
        torch.cat(next_byte), favourites, b.coincides(windows.ids), b.first_bytes, b.pieces
    )
