"""Untrained dictionaries: the nulls for SAE codes as inputs of a regression. Their decoders are never used."""

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from sae.types import Dictionary


def random_relu(sample: Float[Tensor, "tokens d"], features: int, generator: torch.Generator) -> Dictionary:
    """ReLU features along random directions of the whitened stream. Each is active on a share of tokens drawn from 0.2 … 0.8.

    About half of the features are active per token. Source: random feature regression, Rahimi & Recht 2007.
    """
    mean, whitening = _whitening(sample)
    directions = whitening @ torch.randn(len(mean), features, generator=generator, dtype=torch.float64)
    active = 0.2 + 0.6 * torch.rand(features, generator=generator, dtype=torch.float64)
    return _dictionary(sample, directions, mean, active, None)


def random_topk(sample: Float[Tensor, "tokens d"], features: int, k: int, generator: torch.Generator) -> Dictionary:
    """Random directions of the whitened stream at an SAE's sparsity: the k largest features of each token are active."""
    mean, whitening = _whitening(sample)
    directions = whitening @ torch.randn(len(mean), features, generator=generator, dtype=torch.float64)
    return _dictionary(sample, directions, mean, None, k)


def exemplars(sample: Float[Tensor, "tokens d"], features: int, k: int, generator: torch.Generator) -> Dictionary:
    """Activations of single tokens as directions; of each token the k most similar ones are active."""
    x = sample.double()
    mean = x.mean(0)
    if len(x) < features:
        features = len(x)
    chosen = x[torch.randperm(len(x), generator=generator)[:features]] - mean
    return _dictionary(sample, (chosen / chosen.norm(dim=1, keepdim=True).clamp_min(1e-12)).T, mean, None, k)


def rbf(sample: Float[Tensor, "tokens d"], features: int, generator: torch.Generator) -> Dictionary:
    """Gaussian features exp(−‖x − c‖² / 2σ²) around single tokens' activations c; σ² is half the mean squared distance of tokens.

    Ridge on them is kernel regression on landmarks. Source: Nyström features, Williams & Seeger 2001.
    """
    x = sample.double()
    centres = x[torch.randperm(len(x), generator=generator)[:features]]
    variance = x.var(0, correction=0).sum().clamp_min(1e-12)  # E‖x − c‖² = 2 · variance
    found = _dictionary(sample, centres.T / variance, torch.zeros_like(x[0]), None, None)
    bias = -centres.square().sum(1) / (2 * variance)
    halves = (0.5 / variance).float().expand(len(centres)).contiguous()
    return dataclasses.replace(found, encoder_bias=bias.float(), activation="rbf", threshold=halves)


def _whitening(sample: Tensor) -> tuple[Tensor, Tensor]:
    x = sample.double()
    mean = x.mean(0)
    values, vectors = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
    return mean, vectors / values.clamp_min(1e-6 * values.max()).sqrt()


def _dictionary(sample: Tensor, directions: Tensor, mean: Tensor, active: Tensor | None, k: int | None) -> Dictionary:
    bias = -mean @ directions
    if active is not None:  # biases at quantiles of a part of the sample
        pre = (sample[:4096].double() @ directions + bias).sort(0).values
        bias = bias - pre[((1 - active) * (len(pre) - 1)).long(), torch.arange(len(active))]
    return Dictionary(
        encoder=directions.float().contiguous(),
        encoder_bias=bias.float(),
        activation="relu" if k is None else "topk",
        threshold=None,
        k=k,
        decoder=(directions / directions.norm(dim=0)).T.float().contiguous(),
        decoder_bias=mean.float(),
    )
