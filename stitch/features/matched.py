"""The edges of a feature matching with the statistics that translations need."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Matched:
    """Edges of a one-to-one or soft matching with statistics of the codes z they connect. All values are float64.

    `rows` are features of A, `cols` features of B; `mass` is the weight of an edge (1 in a one-to-one matching), `similarity`
    the correlation of its two features' codes, `co_moment` E[z_i z_j].
    """

    rows: Int[Tensor, " edges"]
    cols: Int[Tensor, " edges"]
    mass: Float[Tensor, " edges"]
    similarity: Float[Tensor, " edges"]
    co_moment: Float[Tensor, " edges"]
    mean_a: Float[Tensor, " features_a"]
    second_a: Float[Tensor, " features_a"]  # E[z_i²]
