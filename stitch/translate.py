"""All translations of a stitch and their nulls, fitted from the same tokens in one pass over them."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from matching.measures import linear_cka, svcca
from matching.null import random_rotation
from sae.types import Dictionary
from stitch.activations import Paired, Progress
from stitch.features import sparse_codes
from stitch.match import Matching
from stitch.translation import baselines, matched
from stitch.translation.moments import accumulate
from stitch.translation.ridge import Ridge, ridge
from stitch.translation.types import Codes, Residual, Term, Token, Translation

# Which inputs each least-squares translation reads. Names of nulls say what is wrong with them.
LEAST_SQUARES = {
    "translation:affine": ("x",),
    "translation:affine+token": ("x", "embedding"),
    "translation:features": ("codes", "x"),
    "translation:features+token": ("codes", "x", "embedding"),
    "null:no-source": ("embedding",),
    "null:untrained-sae": ("untrained", "x"),
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
    similarity: dict[str, float]
    mean: Float[Tensor, " d_b"]


def translate(
    fit: Paired,
    held_out: Paired,
    *,
    embedding: Float[Tensor, "vocabulary d_b"],
    first: Float[Tensor, " d_b"],
    a: Dictionary,
    b: Dictionary,
    untrained: Dictionary,
    matching: Matching,
    seed: int,
    chunk: int,
    progress: Progress | None = None,
) -> Fitted:
    """Fits every family. `embedding` is B's input embedding of every token, `first` B's state for BOS at position 0.

    Least squares chooses its λ on `held_out`; nothing here sees the report split.
    """
    site = fit.site_a
    dictionaries = {"codes": a, "untrained": untrained}
    pairs = _needed_pairs()
    moments = accumulate(_variables(fit, embedding, dictionaries, seed, chunk, progress), pairs)
    moments_held = accumulate(_variables(held_out, embedding, dictionaries, seed, chunk, None), pairs)
    mean = moments.mean("target")
    covariances = [moments.covariance(*names) for names in (("x", "x"), ("target", "target"), ("x", "target"))]

    ridges = {name: ridge(moments, moments_held, inputs) for name, inputs in LEAST_SQUARES.items()}
    ridges["null:shuffled-tokens"] = ridge(moments, moments_held, ("x",), target="shuffled")
    solved = {name: from_ridge(name, found, site, embedding, dictionaries) for name, found in ridges.items()}

    generator = torch.Generator().manual_seed(seed)
    procrustes = baselines.procrustes(site, moments)
    wrong_rotation = random_rotation(fit.width_a, fit.width_b, generator) * _scale_of(procrustes)
    translations = {
        "translation:identity": baselines.identity(site, fit.width_b),
        "translation:mean-shift": baselines.mean_shift(site, moments),
        "translation:procrustes": procrustes,
        "translation:permutation": matched.permutation("permutation", matching.used, a, b, site, mean),
        "translation:directions": matched.directions("directions", matching.used, a, b, site, moments),
        "translation:rotation": matched.rotation("rotation", matching.used, a, b, site, moments),
        **{name: translation for name, translation in solved.items() if name.startswith("translation:")},
    }
    nulls = {
        "null:random-rotation": matched.linear("random-rotation", wrong_rotation, site, moments),
        **{name: translation for name, translation in solved.items() if name.startswith("null:")},
    }
    shuffles = [matched.permutation("shuffled-matching", wrong, a, b, site, mean) for wrong in matching.shuffles]
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
        {"cka": linear_cka(*covariances), "svcca": svcca(*covariances)},
        mean.float(),
    )


def _needed_pairs() -> list[tuple[str, str]]:
    pairs = [("x", "x"), ("x", "target"), ("x", "shuffled"), ("target", "target")]
    for inputs in LEAST_SQUARES.values():
        pairs += [(first, second) for index, first in enumerate(inputs) for second in inputs[index:]]
        pairs += [(name, "target") for name in inputs]
    return pairs


def _variables(
    paired: Paired,
    embedding: Tensor,
    dictionaries: dict[str, Dictionary],
    seed: int,
    chunk: int,
    progress: Progress | None,
) -> Iterator[dict]:
    generator = torch.Generator().manual_seed(seed)
    done, total = 0, paired.tokens
    for x, y, ids in paired.chunks(chunk):
        shuffle = torch.randperm(len(y), generator=generator)
        codes = {name: sparse_codes(dictionary, x) for name, dictionary in dictionaries.items()}
        yield {"x": x, "embedding": embedding[ids], "target": y, "shuffled": y[shuffle], **codes}
        done += len(y)
        if progress:
            progress("moments (tokens)", done, total)


def from_ridge(
    name: str, found: Ridge, site: int, embedding: Tensor, dictionaries: dict[str, Dictionary]
) -> Translation:
    """Weights per input as terms; those on B's embedding become a table over the vocabulary, which costs nothing to read."""
    terms = []
    for variable, weight in found.weights.items():
        if variable == "x":
            terms.append(Term(Residual(site), weight.float()))
        elif variable == "embedding":
            terms.append(Term(Token(), (embedding.double() @ weight).float()))
        else:
            terms.append(Term(Codes(site, dictionaries[variable]), weight.float()))
    return Translation(name.partition(":")[2], tuple(terms), found.bias.float())


def _scale_of(translation: Translation) -> float:
    weight = translation.terms[0].weight
    assert weight is not None
    return float(torch.linalg.matrix_norm(weight, 2))
