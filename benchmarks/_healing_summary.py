"""Means and intervals of `healing.py`, from its lines.

Seeds of an arm are averaged document by document. Intervals of 95 % are over documents, as in a report
(`stitch/evaluation/intervals.py`); differences are paired. How far seeds differ is a range of its own.
"""

from collections import Counter

import torch
from _healing import ARMS, A, B
from _learning import tokens_to
from torch import Tensor

from stitch.evaluation.intervals import ratio_interval

ALTERNATIVES = ("own tables", "own tables, seam only", "shortened", "random blocks")

Curves = dict[str, dict[int, Tensor]]  # nats of every document, by arm and tokens trained on


def summary(lines: list[dict]) -> list[dict]:
    """One line per arm and number of tokens, and one per arm and set loss, of the largest budget with the most runs."""
    runs = Counter(line["budget"] for line in lines if not line["tokens"])
    budget = max(runs, key=lambda budget: (runs[budget], budget))
    lines = [line for line in lines if line["budget"] == budget]
    counts, curves = numbers(lines[0]["counts"]), averaged(lines)
    found = [point(lines, curves, counts, arm, tokens) for arm, curve in curves.items() for tokens in curve]
    return found + [line for name, loss in set_losses(curves).items() for line in reached(curves, counts, name, loss)]


def numbers(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def averaged(lines: list[dict]) -> Curves:
    by_arm: dict[str, dict[int, list[Tensor]]] = {}
    for line in lines:
        by_arm.setdefault(line["arm"], {}).setdefault(line["tokens"], []).append(numbers(line["nats"]))
    return {
        arm: {tokens: torch.stack(seeds).mean(0) for tokens, seeds in sorted(curve.items())}
        for arm, curve in by_arm.items()
    }


def point(lines: list[dict], curves: Curves, counts: Tensor, arm: str, tokens: int) -> dict:
    runs = [line for line in lines if (line["arm"], line["tokens"]) == (arm, tokens)]
    kept = {name: runs[0].get(name) for name in ("budget", "rate", "parameters", "trained")}
    by_seed = [float(numbers(run["nats"]).sum() / counts.sum()) for run in runs]
    nats = curves[arm][tokens]
    return {
        "benchmark": "healing", "arm": arm, "tokens": tokens, "seeds": len(runs), "documents": int((counts > 0).sum()),
        **kept, "seconds": round(sum(run.get("seconds", 0) for run in runs) / len(runs)),
        **interval("ce", nats, counts), **interval("over_b", nats - curves[B][0], counts),
        "ce_of_seeds": [round(min(by_seed), 4), round(max(by_seed), 4)],
    }  # fmt: skip


def interval(name: str, nats: Tensor, counts: Tensor) -> dict:
    ends = dict(zip((f"{name}_low", f"{name}_high"), ratio_interval(nats, counts), strict=True))
    return {key: round(value, 4) for key, value in {name: float(nats.sum() / counts.sum()), **ends}.items()}


def set_losses(curves: Curves) -> dict[str, Tensor]:
    """Losses that curves are compared at: the fresh model's last one, A's, B's, and their mean."""
    a, b = curves[A][0], curves[B][0]
    return {"last of fresh": list(curves["fresh"].values())[-1], "A": a, "between A and B": (a + b) / 2, "B": b}


def reached(curves: Curves, counts: Tensor, name: str, loss: Tensor) -> list[dict]:
    """For every trained arm the tokens to a loss, None where it is not reached, and its share of others' tokens.

    The interval of the tokens is where the two ends of the paired difference to the loss reach zero.
    """
    budget = max(curves["fresh"])
    goals = {arm: needed(curves[arm], counts, loss) for arm in ARMS if arm in curves}
    alternatives = [goals[arm]["needed"] for arm in ALTERNATIVES if arm in goals]
    best = min((tokens for tokens in alternatives if tokens is not None), default=budget)
    fresh = budget if goals["fresh"]["needed"] is None else goals["fresh"]["needed"]
    return [
        {
            "benchmark": "healing", "arm": arm, "goal": name, "loss": round(float(loss.sum() / counts.sum()), 4), **goal,
            "share_of_fresh": share(goal["needed"], fresh), "share_of_alternative": share(goal["needed"], best),
            "told": told(goal),
        }
        for arm, goal in goals.items()
    ]  # fmt: skip


def needed(curve: dict[int, Tensor], counts: Tensor, loss: Tensor) -> dict:
    above = [interval("needed", nats - loss, counts) for nats in curve.values()]
    tokens = {key: tokens_to(list(curve), [one[key] for one in above], 0.0) for key in above[0]}
    return {key: None if found is None else round(found, 4) for key, found in tokens.items()}


def share(these: float | None, those: float) -> float | None:
    """1 where both need no tokens; None where these do not arrive, or only those need none."""
    if these is None or (those == 0 < these):
        return None
    return round(these / those, 4) if those else 1.0


def told(goal: dict) -> str:
    """The tokens to a loss with their interval, in words."""
    middle, low, high = (
        "not reached" if goal[key] is None else f"{goal[key]:,.0f}" for key in ("needed", "needed_low", "needed_high")
    )
    return middle if middle == low == high else f"{middle} ({low} to {high})"
