"""All translations of a stitch and their nulls, fitted from the same tokens in one pass over them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from matching.measures import linear_cka, svcca
from matching.procrustes import random_rotation
from sae.types import Dictionary
from stitch.activations.paired import Paired, Tokens
from stitch.features.matching import Matching
from stitch.progress import Progress
from stitch.regression.moments import Key, Moments, accumulate
from stitch.regression.ridge import Ridge, ridge, shares
from stitch.translation import baselines, cross_code, matched
from stitch.translation.groups import Sizes, groups
from stitch.translation.inputs import ByToken, Input, Lift, Stream, reach, streams
from stitch.translation.module import Applied
from stitch.translation.routes import classes_at_random, classes_by_state, how_many, routed
from stitch.translation.routes import routes as fit_routes
from stitch.translation.tables import Residuals, tables
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
    "null:rbf": ("rbf", "x", *FREE),
}

# What baselines, everything that goes through the matching, and the null of shuffled tokens are solved from; the rows among them
# that also read A's codes, and what these are solved from.
CLOSED = {("x", "x"), ("x", "target"), ("target", "target"), ("x", "shuffled")}
READING_CODES = ("translation:permutation+error", "translation:cross-code")
OF_CODES = {("codes", "x"), ("codes", "codes"), ("codes", "target")}

# Rows with a matrix per class of tokens, and the one that they refine.
BY_CLASS = ("translation:routed", "null:random-routes")
ROUTED = "translation:affine+free"

# Rows that tables of tokens and n-grams are added to.
WITH_TABLES = {
    "translation:affine+free": "translation:affine+free+tables",
    "translation:routed": "translation:routed+tables",
    "translation:features+free": "translation:features+free+tables",
    "null:look-ups": "null:no-source",
}


def everything(row: str) -> bool:
    """No row is left out."""
    return True


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
    left_out: tuple[str, ...]  # rows whose moments the memory does not hold


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
    routes: int | None,
    seed: int,
    chunk: int,
    memory: int,
    wants: Callable[[str], bool] = everything,
    progress: Progress | None = None,
) -> Fitted:
    """Fits every row that `wants` approves of. `inputs` are what least squares may read by name ("x" among them), `first` B's
    state for BOS at position 0, `ngrams` the number of rows of the n-gram tables (0: none), `routes` that of classes of tokens
    (0: none; None: see `how_many`). Moments take at most half of `memory` (bytes) at a time, if a single row does: rows that
    need more together are fitted one after another. Lifts whose products alone would take more are solved for by conjugate
    gradients; rows that cannot be had so, as their lifts are dense or their edges need the products, are left out.

    Least squares chooses its λ, and tables their shrinkage, on `held_out`; nothing here sees the report split.
    """
    sizes = Sizes.of(inputs, next(_variables(held_out, inputs, seed, chunk, None)), memory // 2)
    impossible = _impossible(sizes)

    def leads_to_wanted(name: str) -> bool:
        return name not in impossible and _leads_to(name, wants)

    classes_wanted = [name for name in BY_CLASS if leads_to_wanted(name)]
    rows = {
        name: tuple(found for found in wanted if found in inputs)
        for name, wanted in LEAST_SQUARES.items()
        if leads_to_wanted(name) or (name == ROUTED and classes_wanted)
    }
    first_of_all = CLOSED | (OF_CODES if any(map(leads_to_wanted, READING_CODES)) else set())

    def closed_forms(moments: Moments, moments_held: Moments) -> _ClosedForms:
        return _closed_forms(fit, a, b, matching, moments, moments_held, leads_to_wanted, seed)

    ridges, parts, closed = _least_squares(
        fit, held_out, inputs, rows, first_of_all, sizes, closed_forms, seed=seed, chunk=chunk, progress=progress
    )
    solved = {name: from_ridge(name, found, inputs) for name, found in ridges.items()}

    def unexplained(name: str) -> tuple[Residuals, Residuals]:
        """What a row leaves of B's stream, on the tokens to fit on and on those held out."""
        applied = Applied(solved[name], fit.site_a, vocabulary)
        first, second = (partial(_residuals, split, applied, chunk) for split in (fit, held_out))
        return first, second

    if classes_wanted:
        read = [found for one in rows[ROUTED] if isinstance(found := inputs[one], Stream)]
        distinct = len(fit.a.windows.ids.unique())
        number = how_many(routes, sum(fit.a.width(stream.site) for stream in read), distinct, memory)
        for name in classes_wanted if number > 1 else ():
            classes = _classes(name, inputs, fit, vocabulary, number, seed)
            solved[name] = routed(
                _short(name), solved[ROUTED], fit_routes(streams(read), classes, *unexplained(ROUTED))
            )
    for name, longer in WITH_TABLES.items():
        if name in solved and wants(longer):
            terms = tables(fit.a.windows.ids, *unexplained(name), vocabulary, ngrams) if ngrams else []
            solved[longer] = merged(replace(solved[name], name=_short(longer), terms=(*solved[name].terms, *terms)))

    found = {**closed.translations, **solved}
    # The identity stays bare, so that a model stitched to itself is itself bit for bit.
    placed = {
        name: translation if name == "translation:identity" else translation.starting_with(first)
        for name, translation in found.items()
        if wants(name)
    }
    return Fitted(
        {name: translation for name, translation in placed.items() if name.startswith("translation:")},
        {name: translation for name, translation in placed.items() if name.startswith("null:")},
        [translation.starting_with(first) for translation in closed.shuffles],
        ridges,
        parts,
        closed.similarity,
        closed.mean.float(),
        tuple(sorted(filter(wants, impossible))),
    )


def inputs_read(wants: Callable[[str], bool]) -> set[str]:
    """Names of what the rows that `wants` approves of may read."""
    return {name for row, read in LEAST_SQUARES.items() if _leads_to(row, wants) for name in read}


def _leads_to(name: str, wants: Callable[[str], bool]) -> bool:
    """Whether a row is wanted, or one that adds tables to it."""
    return wants(name) or (name in WITH_TABLES and wants(WITH_TABLES[name]))


def _impossible(sizes: Sizes) -> set[str]:
    """Rows that need products which the memory does not hold."""
    found = {row for row, read in LEAST_SQUARES.items() if sizes.impossible & set(read)}
    found |= {longer for row, longer in WITH_TABLES.items() if row in found}
    if "codes" in sizes.impossible:
        found |= set(READING_CODES)
    elif "codes" in sizes.implicit:  # products of the codes on its edges' ends
        found.add("translation:cross-code")
    return found


def _least_squares(
    fit: Paired,
    held_out: Paired,
    inputs: Mapping[str, Input],
    rows: Mapping[str, tuple[str, ...]],
    first_of_all: set[Key],
    sizes: Sizes,
    closed_forms: Callable[[Moments, Moments], "_ClosedForms"],
    *,
    seed: int,
    chunk: int,
    progress: Progress | None,
) -> tuple[dict[str, Ridge], dict[str, dict[str, float]], "_ClosedForms"]:
    """Ridges on the inputs of `rows`, what each input brings to them, and the closed forms of the same moments.

    Rows are solved in groups; a group's moments are gone before those of the next are taken. The first has `first_of_all`, what
    closed forms need.
    """
    ridges: dict[str, Ridge] = {}
    parts: dict[str, dict[str, float]] = {}
    closed: list[_ClosedForms] = []

    def solve(names: list[str], moments: Moments, moments_held: Moments) -> None:
        for name in names:
            lift = next((one for one in rows[name] if isinstance(inputs[one], Lift)), None)
            ridges[name] = ridge(moments, moments_held, rows[name], apart=lift)
            parts[name] = shares(ridges[name], moments)
        if not closed:
            shuffled = "null:shuffled-tokens"
            ridges[shuffled] = ridge(moments, moments_held, ("x",), target="shuffled")
            parts[shuffled] = shares(ridges[shuffled], moments)
            closed.append(closed_forms(moments, moments_held))

    widest = max(len(found.dictionary.encoder_bias) for found in inputs.values() if isinstance(found, Lift))
    sample = fit.sample(max(LEAST_SQUARES_TOKENS, 8 * widest), seed)
    bounded = {name for name, found in inputs.items() if not isinstance(found, Stream)}
    for names, pairs in groups(rows, first_of_all, sizes, sample.tokens):
        read = {name: found for name, found in inputs.items() if any(name in pair for pair in pairs)}
        held = _variables(held_out, read, seed, chunk, None)
        solve(
            names,
            accumulate(_variables(sample, read, seed, chunk, progress), pairs, bounded, implicit=sizes.implicit),
            accumulate(held, pairs, bounded, implicit=sizes.implicit, sums_of_single=torch.float32),
        )
    return ridges, parts, closed[0]


@dataclass(frozen=True)
class _ClosedForms:
    """What needs no ridge on many inputs: baselines and everything that goes through the matching."""

    translations: dict[str, Translation]
    shuffles: list[Translation]
    similarity: dict[str, float]
    mean: Float[Tensor, " d_b"]


def _closed_forms(
    fit: Paired,
    a: Dictionary,
    b: Dictionary,
    matching: Matching,
    moments: Moments,
    moments_held: Moments,
    wants: Callable[[str], bool],
    seed: int,
) -> _ClosedForms:
    site, mean = fit.site_a, moments.means["target"]

    def through_features(name: str, edges: matched.Matched) -> Translation:
        return matched.permutation(name, edges, a, b, site, mean)

    procrustes = baselines.procrustes(site, moments)
    permutation = through_features("permutation", matching.used)
    directions = matched.directions("directions", matching.used, a, b, site, moments)
    generator = torch.Generator().manual_seed(seed)
    wrong_rotation = random_rotation(fit.width_a, fit.width_b, generator) * _scale_of(procrustes)
    translations = {
        "translation:identity": baselines.identity(site, fit.width_b),
        "translation:mean-shift": baselines.mean_shift(site, moments),
        "translation:procrustes": procrustes,
        "translation:permutation": permutation,
        "translation:barycentric": through_features("barycentric", matching.transport),
        "translation:directions": directions,
        "translation:prior": matched.prior("prior", directions, moments, moments_held),
        "translation:rotation": matched.rotation("rotation", matching.used, a, b, site, moments),
        "null:random-rotation": matched.linear("random-rotation", wrong_rotation, site, moments),
    }
    if wants("translation:permutation+error"):
        carried = matched.error_carry("permutation+error", permutation, moments, moments_held)
        translations["translation:permutation+error"] = carried
    if wants("translation:cross-code"):
        deviation_b = torch.from_numpy(matching.deviation_b)
        crossed = cross_code.cross_code(matching.graph, b, deviation_b, moments, moments_held)
        translations["translation:cross-code"] = cross_code.translation("cross-code", crossed, a, b, site, moments)
    shuffles = [through_features("shuffled-matching", wrong) for wrong in matching.shuffles]
    covariances = [moments.covariance(*names) for names in (("x", "x"), ("target", "target"), ("x", "target"))]
    return _ClosedForms(translations, shuffles, {"cka": linear_cka(*covariances), "svcca": svcca(*covariances)}, mean)


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


def _classes(
    name: str, inputs: Mapping[str, Input], fit: Paired, vocabulary: int, number: int, seed: int
) -> Int64[Tensor, " vocabulary"]:
    if name.startswith("null:"):
        return classes_at_random(vocabulary, number, seed)
    state = inputs["state"]
    assert isinstance(state, ByToken)
    return classes_by_state(state.table, fit.a.windows.ids.flatten().long(), number, seed)


def _residuals(paired: Paired, applied: Applied, chunk: int) -> Iterator[tuple[Tokens, Tensor]]:
    """What a translation leaves unexplained of each token; tokens know as much as n-grams need."""
    for tokens in paired.with_history(applied.streams, max(2, applied.history), chunk):
        yield tokens, tokens.target.float() - applied(tokens)


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
