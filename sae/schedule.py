"""How large an SAE a text can determine, and how long it is trained."""

import math

FEATURES_PER_WIDTH = 8  # features per dimension of the stream, by default
TOKENS_PER_FEATURE = 2  # at least, for least squares on the features
MULTIPLE = 64  # the default number of features is a multiple of this where the text decides it
LARGE = 64 * 1024  # tokens from which batches are large


def default_features(width: int, tokens: int) -> int:
    """Features for a stream of this width: as many as the tokens determine, at most FEATURES_PER_WIDTH per dimension."""
    determined = tokens // TOKENS_PER_FEATURE // MULTIPLE * MULTIPLE
    return max(width, min(FEATURES_PER_WIDTH * width, determined))


def batch_size_for(tokens: int) -> int:
    """Tokens in a training batch: few where there are few, so that there are steps enough."""
    return 1024 if tokens >= LARGE else 256


def steps_for(tokens: int, passes: float, batch: int) -> int:
    """Training steps of `batch` tokens in `passes` passes over `tokens` tokens; at least one."""
    return max(1, math.floor(tokens * passes / batch))
