"""All translations of a stitch and their nulls, fitted from the same tokens in one pass over them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from matching.measures import linear_cka, svcca
from matching.null import random_rotation
from sae.types import Dictionary
from stitch.activations import Paired, Progress, Tokens
from stitch.match import Matching
from stitch.translation import baselines, cross_code, matched
from stitch.translation.inputs import Input, Stream, reach, streams
from stitch.translation.moments import accumulate
from stitch.translation.ridge import Ridge, ridge, shares
from stitch.translation.tables import tables
from stitch.translation.types import Translation, merged

# Least squares has a few thousand columns: from here on more tokens lower its error by less than a hundredth, and cost the same
# again. Tables of n-grams read everything.
LEAST_SQUARES_TOKENS = 2**17

# What costs next to nothing at inference: look-ups, and A's streams that were computed anyway.
LOOK_UPS = ("embedding", "embedding-1", "embedding-2", "state", "state-1", "state-2", "position")
FREE = ("x-1", "earlier-1", "earlier-2", *LOOK_UPS)

# Which inputs each least-squares row reads, as far as the pair has them. Names of nulls say what is wrong with them.
LEAST_SQUARES = {
    "translation:affine": ("x",),
    "translation:affine+token": ("x", "embedding"),
    "translation:affine+state": ("x", "state", "embedding-1"),
    "translation:affine+free": ("x", *FREE),
    "translation:features": ("codes", "x"),
    "translation:features+token": ("codes", "x", "embedding"),
    "translation:features+free": ("codes", "x", *FREE),
    "null:look-ups": LOOK_UPS,
    "null:untrained-sae": ("untrained", "x"),
    "null:random-relu": ("random-relu", "x", *FREE),
    "null:random-topk": ("random-topk", "x", *FREE),
    "null:exemplars": ("exemplars", "x", *FREE),
}

# Rows that tables of tokens and n-grams are added to.
WITH_TABLES = {
    "translation:affine+free": "translation:affine+free+tables",
    "translation:features+free": "translation:features+free+tables",
    "null:look-ups": "null:no-source",
}


@dataclass(frozen=True)
class Fitted:
    """Translations by row name; `shuffles` are the draws of `null:shuffled-matching`, reported as one row.

    `similarity` says how alike the two streams are before any translation: linear CKA and SVCCA, both 1 for rotated copies.
    """

    translations: dict[str, Translation]
    nulls: dict[str, Translation]
    shuffles: list[Translation]
    ridges: dict[str, Ridge]
    shares: dict[str, dict[str, float]]  # of the variance of each least-squares translation, by input
    similarity: dict[str, float]
    mean: Float[Tensor, " d_b"]


def translate(
    fit: Paired,
    held_out: Paired,
    *,
    inputs: Mapping[str, Input],
    first: Float[Tensor, " d_b"],
    a: Dictionary,
    b: Dictionary,
    matching: Matching,
    vocabulary: int,
    ngrams: int,
    seed: int,
    chunk: int,
    progress: Progress | None = None,
) -> Fitted:
    """Fits every family. `inputs` are what least squares may read by name ("x" among them), `first` B's state for BOS at
    position 0, `ngrams` the number of rows of the n-gram tables (0: none).

    Least squares chooses its λ, and tables their shrinkage, on `held_out`; nothing here sees the report split.
    """
    site = fit.site_a
    rows = {name: tuple(found for found in wanted if found in inputs) for name, wanted in LEAST_SQUARES.items()}
    pairs = _needed_pairs(rows)
    bounded = {name for name, found in inputs.items() if not isinstance(found, Stream)}
    sample = fit.sample(LEAST_SQUARES_TOKENS, seed)
    moments = accumulate(_variables(sample, inputs, seed, chunk, progress), pairs, bounded)
    moments_held = accumulate(_variables(held_out, inputs, seed, chunk, None), pairs, bounded)
    mean = moments.mean("target")
    covariances = [moments.covariance(*names) for names in (("x", "x"), ("target", "target"), ("x", "target"))]

    ridges = {name: ridge(moments, moments_held, wanted) for name, wanted in rows.items()}
    ridges["null:shuffled-tokens"] = ridge(moments, moments_held, ("x",), target="shuffled")
    solved = {name: from_ridge(name, found, inputs) for name, found in ridges.items()}
    for name, longer in WITH_TABLES.items():

        def residuals(paired: Paired, name: str = name):
            return lambda: _residuals(paired, inputs, ridges[name], chunk)

        terms = tables(fit.a.windows.ids, residuals(fit), residuals(held_out), vocabulary, ngrams) if ngrams else []
        solved[longer] = merged(replace(solved[name], name=_short(longer), terms=(*solved[name].terms, *terms)))

    def through_features(name: str, edges: matched.Matched) -> Translation:
        return matched.permutation(name, edges, a, b, site, mean)

    generator = torch.Generator().manual_seed(seed)
    procrustes = baselines.procrustes(site, moments)
    permutation = through_features("permutation", matching.used)
    directions = matched.directions("directions", matching.used, a, b, site, moments)
    crossed = cross_code.cross_code(matching.graph, b, torch.from_numpy(matching.deviation_b), moments, moments_held)
    wrong_rotation = random_rotation(fit.width_a, fit.width_b, generator) * _scale_of(procrustes)
    translations = {
        "translation:identity": baselines.identity(site, fit.width_b),
        "translation:mean-shift": baselines.mean_shift(site, moments),
        "translation:procrustes": procrustes,
        "translation:permutation": permutation,
        "translation:permutation+error": matched.error_carry("permutation+error", permutation, moments, moments_held),
        "translation:barycentric": through_features("barycentric", matching.transport),
        "translation:cross-code": cross_code.translation("cross-code", crossed, a, b, site, moments),
        "translation:directions": directions,
        "translation:prior": matched.prior("prior", directions, moments, moments_held),
        "translation:rotation": matched.rotation("rotation", matching.used, a, b, site, moments),
        **{name: translation for name, translation in solved.items() if name.startswith("translation:")},
    }
    nulls = {
        "null:random-rotation": matched.linear("random-rotation", wrong_rotation, site, moments),
        **{name: translation for name, translation in solved.items() if name.startswith("null:")},
    }
    shuffles = [through_features("shuffled-matching", wrong) for wrong in matching.shuffles]
    # The identity stays bare, so that a model stitched to itself is itself bit for bit.
    placed = {
        name: found if name == "translation:identity" else found.starting_with(first)
        for name, found in translations.items()
    }
    return Fitted(
        placed,
        {name: found.starting_with(first) for name, found in nulls.items()},
        [found.starting_with(first) for found in shuffles],
        ridges,
        {name: shares(found, moments) for name, found in ridges.items()},
        {"cka": linear_cka(*covariances), "svcca": svcca(*covariances)},
        mean.float(),
    )


def _needed_pairs(rows: Mapping[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    """Every product some row needs, each once, whichever way round."""
    pairs = {("x", "x"), ("x", "target"), ("x", "shuffled"), ("target", "target")}
    for inputs in rows.values():
        pairs |= {(name, "target") for name in inputs}
        for index, first in enumerate(inputs):
            pairs |= {(first, other) for other in inputs[index:] if (other, first) not in pairs}
    return sorted(pairs)


def _tokens(paired: Paired, inputs: Mapping[str, Input], chunk: int) -> Iterator[Tokens]:
    return paired.with_history(streams(inputs.values()), reach(inputs.values()), chunk)


def _variables(
    paired: Paired, inputs: Mapping[str, Input], seed: int, chunk: int, progress: Progress | None
) -> Iterator[dict]:
    generator = torch.Generator().manual_seed(seed)
    done, total = 0, paired.tokens
    for tokens in _tokens(paired, inputs, chunk):
        y = tokens.target
        columns = {name: found.columns(tokens) for name, found in inputs.items()}
        yield {**columns, "target": y, "shuffled": y[torch.randperm(len(y), generator=generator)]}
        done += len(y)
        if progress:
            progress("moments (tokens)", done, total)


def _residuals(
    paired: Paired, inputs: Mapping[str, Input], found: Ridge, chunk: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """What a ridge leaves unexplained, with the ids it belongs to; as far back as n-grams go."""
    used = {name: inputs[name] for name in found.weights}
    for tokens in paired.with_history(streams(used.values()), max(2, reach(used.values())), chunk):
        left = tokens.target.float() - found.bias.float()
        for name, weight in found.weights.items():
            columns, matrix = used[name].columns(tokens), weight.float()
            left -= (
                columns.float() @ matrix if isinstance(columns, Tensor) else torch.from_numpy(columns @ matrix.numpy())
            )
        yield tokens.ids, left


def from_ridge(name: str, found: Ridge, inputs: Mapping[str, Input]) -> Translation:
    """The translation of row `name`: weights on tables become tables, one per token offset."""
    terms = tuple(inputs[variable].term(weight) for variable, weight in found.weights.items())
    return merged(Translation(_short(name), terms, found.bias.float()))


def _short(name: str) -> str:
    return name.partition(":")[2]


def _scale_of(translation: Translation) -> float:
    weight = translation.terms[0].weight
    assert weight is not None
    return float(torch.linalg.matrix_norm(weight, 2))
