"""How good is the ranking behind `stitch circuit`, beside other rankings of today?

Heads and neurons (or the edges between heads, MLPs, tokens and answers) are ranked on some prompts by every method and scored on
others much as MIB scores circuits (arXiv:2504.13151): the first 0.1 % to 100 % of an order are kept, all others are as on the
corrupt prompt, and faithfulness is the answers' log probability between that on the corrupt prompts (0) and that of the whole
model (1). In order of absolute scores, as `stitch circuit` keeps components, CMD is the area between faithfulness and 1, and
`area` that under it. CPR is the area under it in order of signed scores.

Prompts are drawn once and split into disjoint parts, one per draw: a ranking is made on half of a part and scored on the other
half. A draw has one faithfulness per share and so one distance from 1; draws are averaged with their prompts' nats as weights.
Intervals and paired differences are over the scored prompts of all draws together. One JSON line per level, model and
behaviour; of a model without the behaviour, its share of right answers alone.
"""

import argparse
import itertools
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from _circuit_edges import EDGE_METHODS, edges, split_pass
from _circuit_peers import METHODS, ON_FEW, Scores, outputs_of, random_scores
from torch import Tensor

from stitch.circuits.behaviours.named import BEHAVIOURS, make_prompts
from stitch.circuits.behaviours.prompts import Prompts
from stitch.circuits.components import Components, replaced
from stitch.circuits.find import LEAST
from stitch.circuits.score import TOKENS_AT_ONCE, logits_of, share_right, sums_of
from stitch.errors import UsageError
from stitch.evaluation.intervals import ratio_interval
from stitch.models.loading import load
from stitch.models.model import Model
from stitch.models.sources import resolve
from stitch.models.writer import Writer

MODELS = "demo:gpt2", "demo:llama", "demo:induction", "demo:induction-llama"
SHARES = 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0
LONGEST = 64  # tokens of prompts whose length is not fixed
PATCHED = 270_000  # tokens that activation patching may read
FEWEST, MOST = 4, 8  # prompts that it needs, and that it gets where they cost less
MEASURES = {"cmd": ("absolute", "distance"), "area": ("absolute", "area"), "cpr": ("signed", "area")}

Alone = Callable[[Model, Prompts], Callable[[Tensor], Tensor]]
"""For some prompts, a function from a mask of what is kept to the logits on the clean ones."""


def components_alone(model: Model, prompts: Prompts) -> Callable[[Tensor], Tensor]:
    corrupt, whole = outputs_of(model, prompts.corrupt), Components.none(model).masks

    def logits(kept: Tensor) -> Tensor:
        masks = kept.split([len(mask) for mask in whole.values()])
        with replaced(model, Components(dict(zip(whole, masks, strict=True))), corrupt):
            return logits_of(model.net)(prompts.clean)

    return logits


def edges_alone(model: Model, prompts: Prompts) -> Callable[[Tensor], Tensor]:
    clean, corrupt = (model.embedding(ids.to(model.device)) for ids in (prompts.clean, prompts.corrupt))
    instead, known = split_pass(model, corrupt).written, edges(model)

    def logits(kept: Tensor) -> Tensor:
        cut = torch.zeros_like(known)
        cut[known] = ~kept
        return split_pass(model, clean, cut, instead).logits

    return logits


@dataclass(frozen=True)
class Level:
    """What is ranked: the methods, a random one by its seed, their scores in one row, and the model without what is not kept."""

    methods: dict[str, Callable[[Model, Prompts], Any]]
    random: Callable[[Model, int], Any]
    row: Callable[[Model, Any], Tensor]
    alone: Alone


def row_of_components(model: Model, scores: Scores) -> Tensor:
    return torch.cat([scores[place].double().cpu() for place in Components.none(model).masks])


def random_edges(model: Model, seed: int) -> Tensor:
    return torch.rand(edges(model).shape, generator=torch.Generator().manual_seed(seed))


LEVELS = {
    "components": Level(METHODS, random_scores, row_of_components, components_alone),
    "edges": Level(EDGE_METHODS, random_edges, lambda model, scores: scores[edges(model)].double(), edges_alone),
}


@torch.no_grad()
def nats_by_share(model: Model, prompts: Prompts, order: Tensor, alone: Alone) -> Tensor:
    """The answers' nats per prompt when only the first of an order are kept.

    [prompts, shares], for all of SHARES but the last.
    """
    at_once, parts = max(1, TOKENS_AT_ONCE // prompts.clean.shape[1]), []
    for start in range(0, len(prompts.clean), at_once):
        part = prompts.part(slice(start, start + at_once))
        logits, columns = alone(model, part), []
        for share in SHARES[:-1]:
            kept = torch.zeros(len(order), dtype=torch.bool)
            kept[order[: int(share * len(order))]] = True
            found = logits(kept)
            columns.append(sums_of(lambda _, found=found: found, part.clean, part, None)[:, 2])
        parts.append(torch.stack(columns, 1))
    return torch.cat(parts)


def ordered(scores: Tensor, *, signed: bool) -> Tensor:
    """The highest score first, or the highest absolute score."""
    return (scores if signed else scores.abs()).argsort(descending=True, stable=True)


def areas(gains: Tensor) -> dict[str, Tensor]:
    """Of one draw, the area under faithfulness and that between it and 1, as sums over prompts that are to be divided by those of
    the last share.

    `gains` [prompts, shares] are nats gained over the corrupt prompt; those of the last share are the whole model's. Which side
    of 1 a point is on is decided by all prompts of the draw together.
    """
    shares = torch.tensor(SHARES, dtype=torch.float64)
    width = torch.zeros_like(shares)
    width[1:] += shares.diff() / 2
    width[:-1] += shares.diff() / 2
    missing = gains[:, -1:] - gains
    return {"area": gains @ width, "distance": missing @ (width * missing.sum(0).sign())}


def measured(by_order: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    """Every measure's sums over the prompts of all draws. `by_order` has gains per draw."""
    return {
        name: torch.cat([areas(gains)[area] for gains in by_order[order]]) for name, (order, area) in MEASURES.items()
    }


@contextmanager
def counted(model: Model, rows: int) -> Iterator[dict[str, float]]:
    """Inside, counts forward and backward passes over all of `rows` prompts, and seconds."""
    found: dict[str, float] = {"forward": 0.0, "backward": 0.0}

    def back(gradient: Tensor) -> None:
        found["backward"] += len(gradient) / rows

    def forward(_: Any, __: Any, output: Any) -> None:
        found["forward"] += len(output.logits) / rows
        if output.logits.requires_grad:
            output.logits.register_hook(back)

    handle, start = model.net.register_forward_hook(forward), time.process_time()
    try:
        yield found
    finally:
        handle.remove()
        found["seconds"] = time.process_time() - start


def rankings(level: Level, model: Model, prompts: Prompts, names: list[str], seed: int) -> Iterator[tuple]:
    """Every method's name, its scores in one row, and what they took."""
    for name in names:
        some = prompts
        if name in ON_FEW:
            tokens = sum(len(mask) for mask in Components.none(model).masks.values()) * prompts.clean.shape[1]
            some = prompts.part(slice(min(PATCHED // tokens, MOST)))
            if len(some.clean) < FEWEST:
                continue
        with counted(model, len(some.clean)) as cost:
            scores = level.methods[name](model, some)
        yield name, level.row(model, scores), {"found_on": len(some.clean), **cost}
    yield "null:random", level.row(model, level.random(model, seed)), {}


def scored(
    level: Level, model: Model, parts: list[tuple[Prompts, Prompts]], whole: list[Tensor], corrupt: list[Tensor], names
) -> list[dict]:
    """A record per method, from its gains on the scored prompts of all draws."""
    gains: dict[str, dict[str, list[Tensor]]] = defaultdict(lambda: {"signed": [], "absolute": []})
    costs: dict[str, list[dict]] = defaultdict(list)
    for seed, (first, other) in enumerate(parts):
        most = corrupt[seed] - whole[seed]
        for name, scores, cost in rankings(level, model, first, names, seed):
            costs[name].append(cost)
            for kind, found in gains[name].items():
                if kind == "absolute" and bool((scores >= 0).all()):
                    found.append(gains[name]["signed"][-1])
                    continue
                nats = nats_by_share(model, other, ordered(scores, signed=kind == "signed"), level.alone)
                found.append(torch.cat([corrupt[seed][:, None] - nats, most[:, None]], 1).double())
            print(f"{name}, draw {seed}: {cost}", file=sys.stderr, flush=True)
    ours = measured(gains["ours"])
    return [
        {
            "name": name,
            **described(by_order, ours),
            **{key: round(sum(cost[key] for cost in costs[name]) / len(parts), 3) for key in costs[name][0]},
        }
        for name, by_order in gains.items()
    ]


def described(by_order: dict[str, list[Tensor]], ours: dict[str, Tensor]) -> dict:
    """Every measure with its interval, by draw, and by how much ours is higher; and faithfulness at every share."""
    whole = [one[:, -1] for one in by_order["signed"]]
    most = torch.cat(whole)
    found = {}
    for kind, sums in measured(by_order).items():
        for key, one in ((kind, sums), (f"ours_minus_{kind}", ours[kind] - sums)):
            low, high = ratio_interval(one, most)
            numbers = {key: float(one.sum() / most.sum()), f"{key}_low": low, f"{key}_high": high}
            found |= {each: round(value, 4) for each, value in numbers.items()}
        draws = zip(sums.split([len(one) for one in whole]), whole, strict=True)
        found[f"{kind}_by_draw"] = [round(float(one.sum() / all_of_it.sum()), 4) for one, all_of_it in draws]
    for order, gains in by_order.items():
        faithfulness = torch.cat(gains).sum(0) / most.sum()
        found[f"faithfulness_{order}"] = [round(value, 4) for value in faithfulness.tolist()]
    return found


def line(level: str, name: str, model: Model, behaviour: str, given: argparse.Namespace) -> dict:
    prompts = make_prompts(
        behaviour,
        model.tokenizer,
        count=2 * given.draws * given.count,
        longest=min(given.longest, model.longest),
        writer=Writer.of(model, 0),
    )
    rows = [slice(draw * 2 * given.count, (draw + 1) * 2 * given.count) for draw in range(given.draws)]
    parts = [(part.part(slice(0, None, 2)), part.part(slice(1, None, 2))) for part in map(prompts.part, rows)]
    clean, corrupt = (
        [sums_of(logits_of(model.net), ids, other, None) for _, other in parts for ids in [getattr(other, side)]]
        for side in ("clean", "corrupt")
    )
    right, by_chance = (share_right(torch.cat(sums))["right"] for sums in (clean, corrupt))
    about = {
        "level": level, "model": name, "behaviour": behaviour,
        "tokens": prompts.clean.shape[1], "prompts": given.draws * given.count,
        "ranked": len(LEVELS[level].row(model, LEVELS[level].random(model, 0))),
        "right": round(100 * right, 1), "right_corrupt": round(100 * by_chance, 1),
        "nats": round(float(sum(one[:, 2].sum() for one in clean) / sum(one[:, 3].sum() for one in clean)), 3),
        "nats_corrupt": round(float(sum(one[:, 2].sum() for one in corrupt) / sum(one[:, 3].sum() for one in clean)), 3),
    }  # fmt: skip
    if right - by_chance < LEAST:
        return about
    whole, without = ([sums[:, 2] for sums in each] for each in (clean, corrupt))
    names = [method for method in LEVELS[level].methods if method in (given.methods or LEVELS[level].methods)]
    return {**about, "results": scored(LEVELS[level], model, parts, whole, without, names)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--behaviours", nargs="+", default=list(BEHAVIOURS))
    parser.add_argument("--levels", nargs="+", default=list(LEVELS))
    parser.add_argument("--methods", nargs="+", help="By default all of a level.")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--count", type=int, default=34, help="Prompts to rank on, and as many to score on, per draw.")
    parser.add_argument("--longest", type=int, default=LONGEST, help="Tokens of prompts whose length is not fixed.")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.models:
        model = load(resolve(name).folder, dtype=torch.float32, name=name)
        model.net.requires_grad_(False)
        for level, behaviour in itertools.product(given.levels, given.behaviours):
            try:
                print(json.dumps(line(level, name, model, behaviour, given)), flush=True)
            except UsageError as error:
                print(f"{name}, {behaviour}: {error}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
