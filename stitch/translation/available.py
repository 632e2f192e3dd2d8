"""Everything a least-squares translation of this pair may read, by the names that `stitch.translate` uses."""

import dataclasses

import torch

from sae.null import untrained
from stitch.activations import Paired
from stitch.features import SAEs
from stitch.models import Model
from stitch.translation import lifts, look_ups
from stitch.translation.inputs import ByPosition, ByToken, Input, Lift, Stream

SAMPLE = 16_384  # tokens that lifts without training are scaled on, and that exemplars are drawn from


def earlier_sites(site: int) -> list[int]:
    """Up to two sites of A before `site`, evenly spaced; site 0 holds nothing but the token."""
    return sorted({round(site / 3), round(2 * site / 3)} - {0, site})


def available(a: Model, b: Model, fit: Paired, saes: SAEs, seed: int) -> dict[str, Input]:
    """Inputs by name; a pair without learned positions has no `position`, an early site no `earlier-2`."""
    site, sample = fit.site_a, fit.shard(0)[0].float()[:SAMPLE]
    features, k = saes.a.encoder.shape[1], max(1, round(saes.quality_a.l0))
    like_trained = dataclasses.replace(saes.config_a, features=features, k=k)

    def generator(draw: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed + draw)

    embedding, state = look_ups.embeddings(b), look_ups.context_free(b, fit.site_b)
    inputs: dict[str, Input] = {
        "x": Stream(site),
        "x-1": Stream(site, back=1),
        "embedding": ByToken(embedding),
        "embedding-1": ByToken(embedding, back=1),
        "embedding-2": ByToken(embedding, back=2),
        "state": ByToken(state),
        "state-1": ByToken(state, back=1),
        "state-2": ByToken(state, back=2),
        "codes": Lift(site, saes.a),
        "untrained": Lift(site, untrained(like_trained, sample, generator(0))),
        "random-relu": Lift(site, lifts.random_relu(sample, features, generator(1))),
        "random-topk": Lift(site, lifts.random_topk(sample, features, k, generator(2))),
        "exemplars": Lift(site, lifts.exemplars(sample, features, k, generator(3))),
        "rbf": Lift(site, lifts.rbf(sample, features, generator(4))),
    }
    for number, earlier in enumerate(earlier_sites(site)):
        inputs[f"earlier-{number + 1}"] = Stream(earlier)
    if (positions := look_ups.positions(*dict.fromkeys((a, b)))) is not None:
        inputs["position"] = ByPosition(positions)
    return inputs
