"""Translations in closed form: one function per row of the registry, each from the same `ClosedForm` inputs."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from matching import procrustes as rotations
from sae.types import Dictionary
from stitch.features.matching import Matching
from stitch.regression.moments import Moments
from stitch.translation import baselines, cross_code, matched
from stitch.translation.types import Translation


@dataclass(frozen=True)
class ClosedForm:
    """What closed forms are computed from: the site of A, both SAEs, their matching, and moments of the fit and the sweep split.

    The moments hold the products of "x" (A's stream), "target" (B's stream) and, where a requested row reads them, A's "codes".
    """

    site: int
    a: Dictionary
    b: Dictionary
    matching: Matching
    moments: Moments
    held_out: Moments
    seed: int

    @property
    def mean(self) -> Float[Tensor, " d_b"]:
        """Mean of B's stream."""
        return self.moments.means["target"]

    @cached_property
    def procrustes(self) -> Translation:
        return baselines.procrustes(self.site, self.moments)

    @cached_property
    def permutation(self) -> Translation:
        return self.through_features("permutation", self.matching.used)

    @cached_property
    def directions(self) -> Translation:
        return matched.directions("directions", self.matching.used, self.a, self.b, self.site, self.moments)

    def through_features(self, name: str, edges: matched.Matched) -> Translation:
        """A's codes, each decoded by the directions of B that `edges` match it to."""
        return matched.permutation(name, edges, self.a, self.b, self.site, self.mean)


def identity(given: ClosedForm) -> Translation:
    return baselines.identity(given.site, len(given.mean))


def mean_shift(given: ClosedForm) -> Translation:
    return baselines.mean_shift(given.site, given.moments)


def procrustes(given: ClosedForm) -> Translation:
    return given.procrustes


def permutation(given: ClosedForm) -> Translation:
    return given.permutation


def barycentric(given: ClosedForm) -> Translation:
    return given.through_features("barycentric", given.matching.transport)


def directions(given: ClosedForm) -> Translation:
    return given.directions


def prior(given: ClosedForm) -> Translation:
    return matched.prior("prior", given.directions, given.moments, given.held_out)


def rotation(given: ClosedForm) -> Translation:
    return matched.rotation("rotation", given.matching.used, given.a, given.b, given.site, given.moments)


def permutation_with_error(given: ClosedForm) -> Translation:
    return matched.error_carry("permutation+error", given.permutation, given.moments, given.held_out)


def cross_coded(given: ClosedForm) -> Translation:
    deviation_b = torch.from_numpy(given.matching.deviation_b)
    found = cross_code.cross_code(given.matching.graph, given.b, deviation_b, given.moments, given.held_out)
    return cross_code.translation("cross-code", found, given.a, given.b, given.site, given.moments)


def random_rotation(given: ClosedForm) -> Translation:
    """A random orthogonal map (between unequal widths an isometry) with the spectral norm of `procrustes`."""
    scaled = given.procrustes.terms[0].weight
    assert scaled is not None
    width_a, width_b = scaled.shape
    rotation = rotations.random_rotation(width_a, width_b, torch.Generator().manual_seed(given.seed))
    weight = rotation * float(torch.linalg.matrix_norm(scaled, 2))
    return matched.linear("random-rotation", weight, given.site, given.moments)
