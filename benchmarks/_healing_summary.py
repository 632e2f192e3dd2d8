"""Means and intervals of `healing.py`, from its lines.

Intervals of 95 % come from a bootstrap that draws seeds and documents, the same for all arms, so differences are paired.
"""

import math
from collections import Counter, defaultdict

import numpy as np
from _healing import ARMS, A, B
from _learning import tokens_to

RESAMPLES = 1000
ALTERNATIVES = ("own tables", "own tables, seam only", "shortened", "random blocks")

Draws = dict[str, dict[int, np.ndarray]]  # by arm and tokens: cross-entropy of the data, then of every resample


def summary(lines: list[dict]) -> list[dict]:
    """One line per arm and number of tokens, and one per arm and set loss, of the largest budget with the most runs."""
    runs = Counter(line["budget"] for line in lines if not line["tokens"])
    budget = max(runs, key=lambda budget: (runs[budget], budget))
    lines = [line for line in lines if line["budget"] == budget]
    drawn = resampled(lines)
    found = [point(lines, drawn, arm, tokens) for arm, curve in drawn.items() for tokens in curve]
    return found + [goal for name, losses in set_losses(drawn).items() for goal in reached(drawn, name, losses)]


def resampled(lines: list[dict]) -> Draws:
    generator = np.random.default_rng(0)
    counts = np.array(lines[0]["counts"])
    documents = generator.integers(len(counts), size=(RESAMPLES, len(counts)))
    weights = np.stack([np.bincount(draw, minlength=len(counts)) for draw in documents])
    weights = np.concatenate([np.ones((1, len(counts))), weights])
    seeds = sorted({line["seed"] for line in lines})
    chosen = np.concatenate(
        [[np.ones(len(seeds))], generator.multinomial(len(seeds), np.ones(len(seeds)) / len(seeds), RESAMPLES)]
    )
    by_arm: dict[str, dict[int, dict[int, np.ndarray]]] = defaultdict(lambda: defaultdict(dict))
    for line in lines:
        by_arm[line["arm"]][line["tokens"]][line["seed"]] = weights @ np.array(line["nats"]) / (weights @ counts)
    drawn: Draws = {}
    for arm, curve in by_arm.items():
        drawn[arm] = {}
        for tokens, runs in sorted(curve.items()):
            # A donor has one line, which stands for all seeds. Draws of seeds are only shared by arms that have them all.
            whole = len(runs) == len(seeds)
            shares = [chosen[:, seeds.index(seed)] if whole else np.ones(len(chosen)) for seed in runs]
            drawn[arm][tokens] = np.average(list(runs.values()), axis=0, weights=shares)
    return drawn


def point(lines: list[dict], drawn: Draws, arm: str, tokens: int) -> dict:
    runs = [line for line in lines if (line["arm"], line["tokens"]) == (arm, tokens)]
    documents = sum(count > 0 for count in runs[0]["counts"])
    kept = {name: runs[0].get(name) for name in ("budget", "rate", "parameters", "trained")}
    values, donor = drawn[arm][tokens], drawn[B][0]
    seconds = np.mean([run.get("seconds", 0) for run in runs])
    return {
        "benchmark": "healing", "arm": arm, "tokens": tokens, "seeds": len(runs), "documents": documents, **kept,
        "seconds": round(float(seconds)), **interval("ce", values), **interval("over_b", values - donor),
    }  # fmt: skip


def interval(name: str, values: np.ndarray) -> dict:
    """The value of the data, and the interval of the resamples."""
    low, high = np.quantile(values[1:], (0.025, 0.975))
    return {
        name: round(float(values[0]), 4),
        f"{name}_low": round(float(low), 4),
        f"{name}_high": round(float(high), 4),
    }


def set_losses(drawn: Draws) -> dict[str, np.ndarray]:
    """Losses that curves are compared at: the fresh model's last one, A's, B's, and their mean. Each resample has its own."""
    a, b = drawn[A][0], drawn[B][0]
    return {"last of fresh": list(drawn["fresh"].values())[-1], "A": a, "between A and B": (a + b) / 2, "B": b}


def reached(drawn: Draws, name: str, losses: np.ndarray) -> list[dict]:
    """For every trained arm the tokens to a loss, infinity where it is not reached, and its share of others' tokens."""
    arms = [arm for arm in ARMS if arm in drawn]
    budget = max(drawn["fresh"])
    tokens = {arm: needed(drawn[arm], losses) for arm in arms}
    best = np.min([tokens[arm] for arm in ALTERNATIVES if arm in tokens], axis=0)
    found = []
    for arm in arms:
        line = {"benchmark": "healing", "arm": arm, "goal": name, "loss": round(float(losses[0]), 4)}
        line |= counted("needed", tokens[arm])
        line |= counted("share_of_fresh", ratio(tokens[arm], tokens["fresh"], budget))
        line |= counted("share_of_alternative", ratio(tokens[arm], best, budget))
        found.append(line)
    return found


def needed(curve: dict[int, np.ndarray], losses: np.ndarray) -> np.ndarray:
    """Tokens to a loss, by resample."""
    tokens = list(curve)
    found = [
        tokens_to(tokens, column, loss) for column, loss in zip(zip(*curve.values(), strict=True), losses, strict=True)
    ]
    return np.array([math.inf if one is None else one for one in found])


def ratio(these: np.ndarray, those: np.ndarray, budget: int) -> np.ndarray:
    """Shares of tokens: 1 where both need none, infinity where only `those` do. Where they do not arrive, the budget counts."""
    arrived = np.minimum(those, budget)
    return np.where(arrived > 0, these / np.maximum(arrived, 1), np.where(these > 0, math.inf, 1.0))


def counted(name: str, values: np.ndarray) -> dict:
    """Like `interval`; a loss that is not reached is null."""
    low, high = np.quantile(values[1:], (0.025, 0.975), method="inverted_cdf")
    entries = {name: values[0], f"{name}_low": low, f"{name}_high": high}
    return {key: round(float(value), 4) if math.isfinite(value) else None for key, value in entries.items()}
