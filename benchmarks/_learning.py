"""Where a learning curve reaches a loss."""

import itertools
from collections.abc import Sequence


def tokens_to(tokens: Sequence[float], losses: Sequence[float], loss: float) -> float | None:
    """The number of tokens at which a curve first reaches a loss, by linear interpolation; None if it never does."""
    if losses[0] <= loss:
        return tokens[0]
    for (before, high), (after, low) in itertools.pairwise(zip(tokens, losses, strict=True)):
        if low <= loss:
            return before + (high - loss) / (high - low) * (after - before)
    return None
