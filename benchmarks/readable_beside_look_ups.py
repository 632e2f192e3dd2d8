"""Do matched features still give the sparsest map when the composite has look-ups? One JSON line per seed and
direction.

As `readable.py`, but the N nonzero weights are fitted together with B's look-ups by token and position. By the theorem
of Frisch, Waugh and Lovell, look-ups are regressed out of codes, x and target by ridge, the sparse map is fitted
between the residuals, and the look-ups are then refitted to the residual of the map.

`look-ups` has only the look-ups; `dense` has all entries of ridge and the look-ups.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from _pair import Pair, prepare, print_lines, row
from readable import PARTNERS, edges, null, principal, sparse_affine
from torch import Tensor

from sae.types import Dictionary
from stitch.regression.moments import Moments, accumulate
from stitch.regression.ridge import ridge
from stitch.translation import cross_code
from stitch.translation.groups import needed
from stitch.translation.inputs import Input, Lift, reach, streams
from stitch.translation.least_squares import from_ridge
from stitch.translation.rows import LOOK_UPS
from stitch.translation.types import Translation, merged

BASES = ("shuffled", "exemplars", "pca", "neurons")


@dataclass(frozen=True)
class Left:
    """Moments of the residuals of `codes`, `x` and `target` after look-ups, and the look-ups' weights."""

    inputs: Mapping[str, Input]
    whole: Moments
    held_out: Moments
    explained: dict[str, dict[str, Tensor]]  # by variable, then by look-up
    moments: Moments

    def translation(self, name: str, read: str, weight: Tensor) -> Translation:
        """The map from `read` to B's stream by `weight`, with the look-ups that fit best beside it."""
        own = {one: self.explained["target"][one] - part @ weight for one, part in self.explained[read].items()}
        weights = {read: weight, **own}
        bias = self.whole.means["target"] - sum(self.whole.means[one] @ part for one, part in weights.items())
        terms = tuple(self.inputs[one].term(part) for one, part in weights.items())
        return merged(Translation(name, terms, bias.float()))


def left_by_look_ups(pair: Pair, a: Dictionary) -> Left:
    fit, held_out = pair.paired["fit"], pair.paired["sweep"]
    look_ups = tuple(name for name in LOOK_UPS if name in pair.inputs)
    inputs: dict[str, Input] = {name: pair.inputs[name] for name in ("x", *look_ups)} | {"codes": Lift(fit.site_a, a)}

    def variables(paired):
        for tokens in paired.with_history(streams(inputs.values()), reach(inputs.values())):
            yield {**{name: found.columns(tokens) for name, found in inputs.items()}, "target": tokens.target}

    wanted, single = needed(tuple(inputs)), set(inputs) - {"x"}
    whole, held = (accumulate(variables(paired), wanted, single) for paired in (fit, held_out))
    explained = {name: ridge(whole, held, look_ups, target=name).weights for name in ("codes", "x", "target")}
    found, done = whole, []
    for name, weights in explained.items():
        own = torch.eye(len(whole.sums[name]), dtype=torch.float64)
        parts = {name: own, **{one: -weight for one, weight in weights.items()}}
        found = found.combined(f"{name} left", parts, (*look_ups, *explained, *done))
        done.append(f"{name} left")
    moments = Moments(
        found.count,
        {name: found.sums[f"{name} left"] for name in explained},
        {name: found.squares[f"{name} left"] for name in explained},
        {(one, other): found.product(f"{one} left", f"{other} left") for one in explained for other in explained},
    )
    return Left(inputs, whole, held, explained, moments)


def run(direction: str, seed: int, tokens: int, held_out: int, work) -> dict:
    pair = prepare(direction, seed=seed, tokens=tokens, held_out=held_out, work=work)
    saes = pair.saes
    left = left_by_look_ups(pair, saes.a)
    look_ups = tuple(left.explained["target"])
    rows = {
        "look-ups": from_ridge("null:look-ups", ridge(left.whole, left.held_out, look_ups), left.inputs),
        "dense": from_ridge("row:dense", ridge(left.whole, left.held_out, ("x", *look_ups)), left.inputs),
    }
    sizes: dict[str, int] = {}

    def add(name: str, left: Left, a: Dictionary, b: Dictionary, shuffle: bool = False) -> None:
        decoder = b.decoder.double()
        for m, start in edges(pair, a, b, left.whole, seed, shuffle=shuffle):
            weight = cross_code.towards_stream(start, left.moments, decoder)
            rows[f"{name}, m={m}"] = left.translation(name, "codes", weight @ decoder)
            sizes[f"{name}, m={m}"] = int((weight != 0).sum())

    add("sae", left, saes.a, saes.b)
    add("shuffled", left, saes.a, saes.b, shuffle=True)
    a, b = (null("exemplars", pair, side, seed) for side in "ab")
    add("exemplars", left_by_look_ups(pair, a), a, b)
    dense = ridge(left.whole, left.held_out, ("x", *look_ups)).weights["x"]
    bases = {
        "pca": (principal(left.moments, "x"), principal(left.moments, "target")),
        "neurons": tuple(torch.eye(size, dtype=torch.float64) for size in dense.shape),
    }
    for name, (basis_a, basis_b) in bases.items():
        for m in PARTNERS:
            weight, _ = sparse_affine(left.moments, dense, basis_a, basis_b, sizes[f"sae, m={m}"])
            rows[f"{name}, m={m}"] = left.translation(name, "x", weight)
            sizes[f"{name}, m={m}"] = min(sizes[f"sae, m={m}"], dense.numel())
    scores = pair.scores(rows)
    against = [(f"sae, m={m}", f"{other}, m={m}") for m in PARTNERS for other in BASES]
    against += [(f"sae, m={m}", other) for m in PARTNERS for other in ("dense", "look-ups")]
    return {
        "benchmark": "readable_beside_look_ups", "direction": direction, "seed": seed, "tokens": pair.paired["fit"].tokens,
        "documents": scores["b"].documents,
        "results": [{**row(scores, name), "nonzeros": sizes.get(name)} for name in scores],
        "differences": [row(scores, name, other) for name, other in against],
    }  # fmt: skip


if __name__ == "__main__":
    print_lines(run, tokens=200_000)
