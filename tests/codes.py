"""Small streams of paired sparse codes for the tests of `matching`, made from dense arrays and cut at any rows."""

from collections.abc import Callable, Iterator

import numpy as np
import scipy.sparse as sp


def stream_of(
    a: np.ndarray, b: np.ndarray, batch: int = 300
) -> Callable[[], Iterator[tuple[sp.csr_array, sp.csr_array]]]:
    def start() -> Iterator[tuple[sp.csr_array, sp.csr_array]]:
        for first in range(0, len(a), batch):
            yield sp.csr_array(a[first : first + batch]), sp.csr_array(b[first : first + batch])

    return start


def random_codes(tokens: int, features: int, seed: int, share: float = 0.1) -> np.ndarray:
    """Non-negative codes with a share `share` of non-zero entries. Frequencies differ from feature to feature."""
    generator = np.random.default_rng(seed)
    frequency = share * generator.uniform(0.3, 1.7, features)
    return (generator.random((tokens, features)) < frequency) * generator.gamma(2.0, 1.0, (tokens, features))


def planted(tokens: int, features: int, seed: int, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes of A, codes of B, and the partner of every feature of A. B is A permuted, rescaled with noise, with a
    share `noise` replaced.
    """
    generator = np.random.default_rng(seed)
    a = random_codes(tokens, features, seed + 1)
    other = random_codes(tokens, features, seed + 2)
    partner = generator.permutation(features)
    b = np.empty_like(a)
    mixed = np.where(generator.random(a.shape) < noise, other, a * generator.uniform(0.7, 1.3, a.shape))
    b[:, partner] = mixed
    return a, b, partner
