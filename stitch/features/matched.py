"""The edges of a feature matching with what translations need to know of each."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Matched:
    """Edges of a matching, one-to-one or soft, with what streaming found on them. Everything is float64.

    `mass` weighs the edges of a row (1 for one-to-one), `similarity` is the activation correlation, `co_moment` E[z_i z_j].
    """

    rows: Int[Tensor, " edges"]
    cols: Int[Tensor, " edges"]
    mass: Float[Tensor, " edges"]
    similarity: Float[Tensor, " edges"]
    co_moment: Float[Tensor, " edges"]
    mean_a: Float[Tensor, " features_a"]
    second_a: Float[Tensor, " features_a"]  # E[z_i²]
