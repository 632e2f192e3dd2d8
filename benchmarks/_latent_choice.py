"""Latent attentions of a model at a given cache, each with the settings that lose least on the sweep split."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from _latent_nets import Trace, refitted, with_latents
from _latent_peers import Heads, Latent, care, heads_of, mha2mla, random_latent, spectra, transmla, water_filled
from torch import nn
from transformers import PreTrainedModel

from stitch.conversions.heads.methods import REFITTED
from stitch.internals import weights
from stitch.models.model import Model

PLANES = (0, 1, 2, 3, 4, 6, 8, 12)  # with RoPE per key head, in MHA2MLA
STARTS = (0.25, 0.5, 0.75, 0.875)  # of the mean rank, in CARE
REFITS = 3  # settings of a method, the best without a refit, that are refitted


@dataclass(frozen=True)
class Peer:
    """A model of latents, the setting that made it, and its cross-entropy on the sweep split."""

    net: PreTrainedModel
    latents: list[Latent]
    setting: str
    sweep: float

    def row(self) -> dict:
        """What all blocks cache and multiply per token, and their weights of queries, keys and values."""
        sizes = {key: sum(getattr(one, key) for one in self.latents) for key in ("cached", "parameters", "products")}
        return {**sizes, "setting": self.setting}


def best_latents(
    model: Model, of: Trace, *, cached: int, loss: Callable[[nn.Module], float], seed: int = 0
) -> dict[str, Peer]:
    """Every method by row name, without and with refitted output weights. `loss` says what to choose by.

    `cached` are the numbers per token and block; CARE with ranks by need spends their sum over blocks.
    """
    found = {}
    for name, settings in candidates(model, of, cached, seed).items():
        plain = []
        for setting, latents in settings:
            net = with_latents(model, latents)
            plain.append(Peer(net, latents, setting, loss(net)))
        plain.sort(key=lambda peer: peer.sweep)
        again = []
        for peer in plain[:REFITS]:
            net = with_latents(model, peer.latents, refitted(model, peer.latents, of))
            again.append(Peer(net, peer.latents, peer.setting, loss(net)))
        found[name], found[name + REFITTED] = plain[0], min(again, key=lambda peer: peer.sweep)
    return found


def candidates(model: Model, of: Trace, cached: int, seed: int) -> dict[str, list[tuple[str, list[Latent]]]]:
    """For each method, its settings in words and the latents of all blocks."""
    theta, blocks = weights.frequencies(model), range(model.depth)
    own = [heads_of(weights.attention(model, block), theta) for block in blocks]
    is_rotary = bool(theta.any())
    generator = torch.Generator().manual_seed(seed)

    def everywhere(make: Callable[[Heads, torch.Tensor], Latent]) -> list[Latent]:
        return [make(own[block], of.inputs(block)) for block in blocks]

    return {
        "MHA2MLA": [
            (f"RoPE on {planes} planes" if is_rotary else "", everywhere(lambda heads, x, n=planes: mha2mla(heads, x, cached, n)))
            for planes in (PLANES if is_rotary else (0,))
            if planes <= len(theta) and 2 * planes * own[0].k.shape[1] < cached
        ],
        "TransMLA": [
            (
                f"fold {fold}, collapse {collapse}" if is_rotary else "",
                everywhere(lambda heads, x, f=fold, c=collapse: transmla(heads, x, cached, f, c)),
            )
            for fold, collapse in (folds(len(theta), cached) if is_rotary else [(1, 1)])
        ],
        "CARE": [("uniform ranks", everywhere(lambda heads, x: care(heads, x, (cached // 2, cached // 2))))],
        "CARE, ranks by need": by_need(own, of, cached // 2),
        "null:random latent": [("", everywhere(lambda heads, _: random_latent(heads, cached, generator)))],
    }  # fmt: skip


def folds(planes: int, cached: int) -> Iterator[tuple[int, int]]:
    """Powers of two for TransMLA: neighbouring planes of a fold, and by how much fewer of them keep RoPE."""
    powers = [2**power for power in range(planes.bit_length()) if planes % 2**power == 0]
    for fold in powers:
        for collapse in powers:
            if collapse <= fold and 2 * planes // collapse < cached:
                yield fold, collapse


def by_need(own: list[Heads], of: Trace, rank: int) -> list[tuple[str, list[Latent]]]:
    """CARE with this mean rank of keys, and of values, from several shares of it on (the paper's C is "some constant")."""
    energies = [spectra(heads, of.inputs(block)) for block, heads in enumerate(own)]
    found = []
    for start in sorted({int(share * rank) for share in STARTS}):
        keys, values = (water_filled(part, rank * len(own), start) for part in zip(*energies, strict=True))
        latents = [care(heads, of.inputs(block), (keys[block], values[block])) for block, heads in enumerate(own)]
        found.append((f"from {start} on: keys {keys}, values {values}", latents))
    return found
