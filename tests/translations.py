"""Translations between pico models, and a dictionary for the codes they read."""

import torch

import tiny
from sae.types import Dictionary
from stitch.models.model import Model
from stitch.translation.types import Residual, Term, Translation


def identity(model: Model, site: int) -> Translation:
    return Translation("identity", (Term(Residual(site), None),), torch.zeros(model.width))


def affine(a: Model, b: Model, site: int) -> Translation:
    weight, bias = tiny.noise(a.width, b.width) / a.width**0.5, tiny.noise(b.width) * 0.1
    return Translation("affine", (Term(Residual(site), weight),), bias)


def dictionary(width: int, features: int, activation: str) -> Dictionary:
    """Random features. Those of `rbf` are Gaussian bumps around random points, so that no code exceeds 1."""
    directions, bias = tiny.noise(width, features, seed=5), tiny.noise(features, seed=6)
    threshold = tiny.noise(features, seed=7).abs()
    if activation == "rbf":
        threshold = 0.01 + threshold / 10  # 1 / 2σ²
        bias = -threshold * directions.square().sum(0)
        directions = 2 * threshold * directions
    return Dictionary(
        encoder=directions,
        encoder_bias=bias,
        activation=activation,
        threshold=threshold if activation in ("jumprelu", "rbf") else None,
        k=15 if activation == "topk" else None,  # so many that some codes are negative
        decoder=tiny.noise(features, width),
        decoder_bias=torch.zeros(width),
    )
