"""The score of a model that reads a text in its own tokens, beside rows that read it in other ones."""

import torch

from stitch.evaluation.next_byte import NextByte
from stitch.evaluation.scores import Scores, batches
from stitch.evaluation.stage import Stage
from stitch.progress import Progress


def own_scores(on: Stage, progress: Progress | None = None) -> tuple[Scores, NextByte]:
    """B's nats on the bytes of every document, in its own tokens, and what it says of the bytes after A's tokens.

    The tokens that nats are divided by are those of A that count.

    So a row's cross-entropy per token of A is its loss on the same bytes, whichever tokens it reads. A token counts to the
    document of the token of A by whose end it has ended. Special tokens do not count.
    """
    original, windows = on.b.original, on.windows
    assert original is not None and on.counted is not None
    count = int(windows.document.max()) + 1
    nats, tokens = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    owner = windows.document[:, 1:].flatten().long()
    tokens.index_add_(0, owner, on.counted[windows.ids[:, 1:].flatten().long()].double())
    next_byte, favourites = [], []
    vocabulary = original.model.config.get_text_config(decoder=True).vocab_size
    for batch in batches(windows, vocabulary, on.memory, range(len(windows.ids))):
        found = original.read(batch.ids)
        nats.index_add_(0, windows.document[batch.rows][found.rows, found.places].long(), found.nats.double())
        next_byte.append(found.next_byte)
        favourites += found.favourites
        if progress:
            progress("B in its own tokens (tokens)", batch.rows.stop * windows.context, windows.tokens)
    return Scores(nats, None, None, tokens), NextByte(
        torch.cat(next_byte), favourites, original.coincides(windows.ids), original.first_bytes, original.pieces
    )
