"""The most frequent n-grams of a text."""

import torch
from jaxtyping import Int, Int64

from stitch.modeling.modeling_translation import ngram_keys

COUNTED = 2**18  # tokens counted at a time


def frequent(
    ids: Int[torch.Tensor, "windows context"], order: int, vocabulary: int, *, least: int, most: int, remembered: int
) -> Int64[torch.Tensor, " ngrams"]:
    """Sorted keys of the `most` most frequent n-grams that occur at least `least` times.

    Memory does not grow with the text: n-grams seen once are dropped whenever there are more than `remembered`.
    """
    keys, counts = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    for part in ids.split(max(1, COUNTED // ids.shape[1])):
        columns = [part.long()[:, order - 1 - back : part.shape[1] - back] for back in range(order)]
        new, their_counts = ngram_keys(columns, vocabulary).flatten().unique(return_counts=True)
        keys, position = torch.cat([keys, new]).unique(return_inverse=True)
        counts = torch.zeros_like(keys).index_add_(0, position, torch.cat([counts, their_counts]))
        if len(keys) > remembered:
            keys, counts = keys[counts > 1], counts[counts > 1]
    keys, counts = keys[counts >= least], counts[counts >= least]
    return keys[counts.argsort(descending=True, stable=True)[:most]].sort().values
