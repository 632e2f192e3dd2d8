"""How far closed forms are from trained maps: translations trained further by gradient descent on cross-entropy.

The trained rows of this script are references: none is ever written into a composite. Each starts at its closed form.

    affine          ridge on A's stream, the usual map of model stitching
    mlp             A's stream and as many ReLU units as the SAE has features, directions and weights trained
    routed+tables   the default of the main job, all its matrices and tables trained

One JSON line per seed and direction, with the value of `line` for a composite of the default's cost.
"""

from pathlib import Path

from _pair import lifted, prepare, print_lines, row

from stitch.composite.costs import Costs
from stitch.evaluation.comparisons import line
from stitch.evaluation.trained import trained
from stitch.jobs import stages
from stitch.translation.inputs import Lift
from stitch.translation.types import Translation

RATES = (1e-2, 1e-3)  # the one with the lowest loss on the sweep split after SHORT steps is used
SHORT = 100
STEPS = {"affine": (100, 2000), "mlp": (2000,), "routed+tables": (2000,)}


def run(direction: str, seed: int, tokens: int, held_out: int, work: Path) -> dict:
    pair = prepare(direction, seed=seed, tokens=tokens, held_out=held_out, work=work)
    fit = pair.paired["fit"]
    matching = stages.match_pair(
        pair.settings, fit, pair.saes, work / f"{direction}-{tokens}-{held_out}" / f"seed-{seed}"
    )
    fitted = stages.translate_pair(pair.settings, pair.a, pair.b, pair.paired, pair.saes, matching)
    closed = {name: fitted.translations[f"translation:{name}"] for name in STEPS if name != "mlp"}
    units = pair.inputs["random-relu"]
    assert isinstance(units, Lift)
    closed["mlp"] = lifted(pair, "mlp", units.dictionary).starting_with(pair.first())
    rows, rates = dict(closed), {}
    for name, lengths in STEPS.items():

        def go_on(steps: int, rate: float, start: Translation = closed[name]) -> Translation:
            return trained(start, pair.a, pair.b, fit, steps=steps, seed=seed, rate=rate)

        short = {str(rate): go_on(SHORT, rate) for rate in RATES}
        tried = pair.scores(short, pair.paired["sweep"])
        rates[name] = min(RATES, key=lambda rate: tried[str(rate)].ce)
        rows |= {f"{name}, trained {n}": go_on(n, rates[name]) for n in lengths}
    scores = pair.scores(rows)
    sites = fit.site_a, fit.site_b
    yardstick = line(Costs(pair.a, pair.b, pair.settings.context), *sites, closed["routed+tables"], scores)
    against = [(name, name.partition(",")[0]) for name in rows if "trained" in name]
    against += [(name, "routed+tables") for name in rows if name != "routed+tables"]
    return {
        "benchmark": "trained", "direction": direction, "seed": seed, "tokens": fit.tokens, "line": yardstick["ce"],
        "rates": rates,
        "results": [row(scores, name) for name in scores],
        "differences": [row(scores, name, other) for name, other in dict.fromkeys(against)],
    }  # fmt: skip


if __name__ == "__main__":
    print_lines(run, tokens=1_000_000)
