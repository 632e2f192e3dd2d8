"""The inputs that a least-squares translation of a pair may read, by the names that the registry of rows uses."""

import dataclasses
from collections.abc import Callable, Collection

import torch

from sae.null import untrained
from sae.types import Dictionary
from stitch.activations.paired import Paired
from stitch.features.saes import SAEs
from stitch.models.anatomy import blocks_before_last_part
from stitch.models.model import Model
from stitch.translation import lifts, look_ups
from stitch.translation.inputs import ByPosition, Input, Lift, Stream
from stitch.translation.token_tables import TokenTables

SAMPLE = 16_384  # tokens; untrained dictionaries are scaled on them and take their exemplars from them


def earlier_sites(site: int, seam: int = 0) -> list[int]:
    """Up to two sites of A before `site`, evenly spaced. Site 0 is left out: there the stream is the token's embedding.

    Of a composite, whose last seam is at `seam`, they are the last site before that seam, which has what the seam may have lost,
    and one halfway from there to `site`.
    """
    found = {seam - 1, round((seam + site) / 2)} if seam else {round(site / 3), round(2 * site / 3)}
    return sorted(found - {0, site})


def free_inputs(a: Model, b: Model, fit: Paired, tokens: TokenTables) -> dict[str, Input]:
    """A's streams and what is looked up, by name. Without learned positions there is no `position`, and an early site has no
    `earlier-2`."""
    site = fit.site_a
    inputs: dict[str, Input] = {
        "x": Stream(site),
        "x-1": Stream(site, back=1),
        "embedding": tokens.input("embedding"),
        "embedding-1": tokens.input("embedding", back=1),
        "embedding-2": tokens.input("embedding", back=2),
        "state": tokens.input("state"),
        "state-1": tokens.input("state", back=1),
        "state-2": tokens.input("state", back=2),
    }
    for number, earlier in enumerate(earlier_sites(site, blocks_before_last_part(a.config))):
        inputs[f"earlier-{number + 1}"] = Stream(earlier)
    if (positions := look_ups.positions(*dict.fromkeys((a, b)))) is not None:
        inputs["position"] = ByPosition(positions)
    return inputs


def available(
    a: Model,
    b: Model,
    fit: Paired,
    saes: SAEs,
    seed: int,
    lifts_of: Collection[str] | None = None,
    *,
    tokens: TokenTables,
) -> dict[str, Input]:
    """`free_inputs`, the codes of A's SAE, and those of its nulls.

    Each untrained dictionary takes as much memory as an SAE: with `lifts_of`, only those that it names are made.
    """
    features, k = saes.a.encoder.shape[1], max(1, round(saes.quality_a.l0))
    site, stream = fit.site_a, fit.first(max(SAMPLE, features)).float()
    sample = stream[:SAMPLE]
    like_trained = dataclasses.replace(saes.config_a, features=features, k=k)

    def generator(draw: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed + draw)

    nulls: dict[str, Callable[[], Dictionary]] = {
        "untrained": lambda: untrained(like_trained, sample, generator(0)),
        "random-relu": lambda: lifts.random_relu(sample, features, generator(1)),
        "random-topk": lambda: lifts.random_topk(sample, features, k, generator(2)),
        "exemplars": lambda: lifts.exemplars(stream, features, k, generator(3)),
        "rbf": lambda: lifts.rbf(stream, features, generator(4)),
    }
    made = {name: Lift(site, make()) for name, make in nulls.items() if lifts_of is None or name in lifts_of}
    return {**free_inputs(a, b, fit, tokens), "codes": Lift(site, saes.a), **made}
