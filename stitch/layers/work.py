"""The work of fitting and scoring the fast translations of many pairs of sites, counted from what `cells.py` does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stitch.composite.costs import Costs
from stitch.estimates import counts
from stitch.estimates.machine import Machine
from stitch.estimates.work import Work
from stitch.layers.choose import FIT, HELD_OUT, eligible
from stitch.models.flops import block_flops
from stitch.models.model import Model
from stitch.text.documents import Split


@dataclass(frozen=True)
class Depths:
    """A model as cells see it: its name in the machine's rates, width, FLOPs per token before each site, and of the whole."""

    name: str
    width: int
    before: tuple[float, ...]
    whole: float

    @classmethod
    def of(cls, name: str, model: Model, whole: float, context: int) -> "Depths":
        before = [0.0]
        for block in range(model.depth):
            before.append(before[-1] + block_flops(model.config, block, context))
        return cls(name, model.width, tuple(before), whole)

    def after(self, site: int) -> float:
        """FLOPs per token from a site on, head included."""
        return self.whole - self.before[site]


Pair = tuple[Depths, int, Depths, int]  # the source and its site, the target and its site


def fitted(machine: Machine, pairs: Sequence[Pair], tokens: int) -> Work:
    """`_moments` and `_fit` of every pair: products that pairs share are formed once, equations are solved for each."""
    products: dict[tuple, int] = {}
    for source, site, target, onto in pairs:
        x, y, embedding = (source.name, site), (target.name, onto), (target.name, -1)
        for one, other, columns in (
            (x, x, source.width**2), (*sorted((x, y)), source.width * target.width), (x, embedding, source.width * target.width),
            (embedding, y, target.width**2), (embedding, embedding, target.width**2),
        ):  # fmt: skip
            products[one, other] = columns
    read = sum({(side.name, site): side.width for pair in pairs for side, site in (pair[:2], pair[2:])}.values())
    total = machine.product(2.0 * tokens * sum(products.values()), double=True)
    total += machine.moved(counts.CONVERTED * tokens * read)
    for source, _, target, _ in pairs:
        for columns in (source.width, source.width + target.width):
            total += counts.ridge(machine, columns, target.width)
    return total


def scored(machine: Machine, pairs: Sequence[Pair], tokens: int, *, reference: bool) -> Work:
    """`_score` of every pair: two translations, and a null for every site of a target; `reference`: B whole, once for each."""
    total = Work()
    for _, _, target, onto in pairs:
        total += 2 * counts.scored(machine, target.name, tokens, target.after(onto))
    for target, onto in {(target.name, onto): (target, onto) for _, _, target, onto in pairs}.values():
        total += counts.scored(machine, target.name, tokens, target.after(onto))
        total += counts.scored(machine, target.name, tokens, target.whole) if reference else Work()
    return total


def layer_choice(machine: Machine, costs: Costs, layer: int, tokens: Mapping[Split, int]) -> Work:
    """`choose_layer`: both models' streams on a part of the text, and every layer of B that is affordable."""
    a = Depths.of("a", costs.source, costs.whole_source.flops, costs.context)
    b = Depths.of("b", costs.target, costs.whole_target.flops, costs.context)
    pairs = [(a, layer, b, onto) for onto, flops in eligible(costs, layer).items() if flops <= costs.costlier_donor]
    if len(pairs) < 2:
        return Work()
    fit, sweep = min(FIT, tokens["fit"]), min(HELD_OUT, tokens["sweep"])
    streams = machine.forward("a", (fit + sweep) * a.before[layer]) + machine.forward("b", (fit + sweep) * b.before[-1])
    return streams + fitted(machine, pairs, fit + sweep) + scored(machine, pairs, sweep, reference=False)
