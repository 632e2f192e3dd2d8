"""How the rows of a report compare: the verdict, their order, the line between both models, and paired differences."""

from collections.abc import Collection, Mapping

from stitch.composite.costs import Cost, Costs
from stitch.evaluation.scores import Scores
from stitch.translation import rows as registry
from stitch.translation.types import Translation


def ranked(scores: dict[str, Scores]) -> list[str]:
    """Row names in the order of the report: the models, then each kind, best first."""
    kinds = ("translation", "floor", "ceiling", "reference", "null")
    rest = [name for name in scores if name.partition(":")[0] in kinds]
    return [
        "a",
        "b",
        "composite",
        *sorted(rest, key=lambda name: (kinds.index(name.partition(":")[0]), scores[name].ce)),
    ]


def verdict(scores: Mapping[str, Scores], costs: Mapping[str, Cost], *, itself: Collection[str] = ()) -> dict:
    """How the composite compares with the best alternative that takes no more FLOPs and no more bytes on disk.

    `status` is "dominated" where the alternative is better and the paired 95 % interval of the difference is clear of zero,
    "frontier" where the composite is better in that sense, and "level" in between. `rivals` are all alternatives within the
    composite's cost, best first; where there is none, the composite is on the frontier by its cost alone. Rows of `itself` are
    the composite, or another name of a row.
    """
    known = [row.name for row in registry.ROWS if row.alternative and row.name in scores and row.name in costs]
    names = [name for name in known if name not in itself]
    limit, composite = costs["composite"], scores["composite"]
    rivals = sorted((name for name in names if costs[name].within(limit)), key=lambda name: scores[name].ce)
    if not rivals:
        return {"status": "frontier", "rivals": []}
    best = rivals[0]
    behind = composite.difference(scores[best])
    return {
        "status": "dominated" if behind["ce_low"] > 0 else "frontier" if behind["ce_high"] < 0 else "level",
        "rivals": rivals,
        "row": best,
        **behind,
        "flops": costs[best].flops / limit.flops,
        "bytes": costs[best].bytes / limit.bytes,
    }


def line(costs: Costs, site_a: int, site_b: int, translation: Translation, scores: dict[str, Scores]) -> dict:
    """The row `line`: CE_A + share · (CE_B − CE_A), where share is the place of A's early and B's late blocks with `translation`
    between A's and B's FLOPs per token (see `Costs.share`).
    """
    cost = costs.flops(site_a, site_b, translation.multiply_adds)
    share = costs.share(site_a, site_b, cost)
    ce = scores["a"].ce + share * (scores["b"].ce - scores["a"].ce)
    return {"name": "line", "ce": ce, "ce_low": None, "ce_high": None, "ppl": None, "kl_to_b": None, "top1": None,
            "share": share,
            "flops": cost}  # fmt: skip


def against_line(scores: dict[str, Scores], share: float) -> dict:
    """The paired difference between the composite and its line. The line's nats per document mix those of both models."""
    a, b = scores["a"], scores["b"]
    mixed = Scores(a.nats + share * (b.nats - a.nats), None, None, a.tokens)
    low, high = scores["composite"].interval(minus=mixed)
    difference = scores["composite"].ce - mixed.ce
    return {"name": "composite", "minus": "line", "ce": difference, "ce_low": low, "ce_high": high}


def differences(scores: dict[str, Scores], compared_with: dict[str, str]) -> list[dict]:
    """Paired differences in nats with 95 % intervals.

    They are the composite minus each headline row of the registry, and each row of `compared_with` minus the row that it is
    compared with. Rows without scores are left out.
    """
    pairs = [("composite", row.name) for row in registry.ROWS if row.headline]
    pairs += list(compared_with.items())
    found = []
    for name, other in pairs:
        if name not in scores or other not in scores:
            continue
        found.append(difference(scores, name, other))
    return found


def difference(scores: Mapping[str, Scores], name: str, other: str) -> dict:
    """The paired difference of two rows in nats, with its 95 % interval."""
    return {"name": name, "minus": other, **scores[name].difference(scores[other])}
