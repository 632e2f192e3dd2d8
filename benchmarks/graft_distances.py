"""Does a grafted circuit hold at distances other than those of the prompts that it was chosen on?

An induction circuit is written into a fresh host four times: chosen on prompts with one distance (24 tokens, in windows of 65) or
on prompts over many (8 to 200, in windows of 256), with maps for the host fitted on prompts of the one kind or of the other. The
hosts are scored on further prompts over distances, and on passages of held-out text that stand twice. One JSON line per donor,
host and distance, and one for natural copying; shares are per cent, intervals over the prompts of all seeds together.

    one distance     circuit and maps from prompts with one distance
    circuit          the circuit from prompts over distances, the maps from those with one
    maps             the circuit from prompts with one distance, the maps from those over many
    distances        both over distances
"""

import argparse
import itertools
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from stitch.circuits.behaviours.named import make_prompts
from stitch.circuits.behaviours.prompts import Prompts
from stitch.circuits.components import replaced
from stitch.circuits.find import ChosenCircuit, choose_on, mean_outputs
from stitch.circuits.score import DISTANCES, Logits, logits_of, share_right, sums_of
from stitch.evaluation.intervals import ratio_interval
from stitch.grafts.allocation import FreeSpace
from stitch.grafts.compared import randomised
from stitch.grafts.fresh_host import read_host
from stitch.grafts.plan import make_plan
from stitch.grafts.write import write
from stitch.models.loading import load
from stitch.models.model import Model
from stitch.models.sources import resolve
from stitch.text.tokenizers import bos_of

PAIRS = {"demo:induction": "examples/llama-tiny.json", "demo:induction-llama": "examples/gpt2-tiny.json"}
REPEATED, AROUND = 24, 16
ARMS = {
    "one distance": ("one", "one"),
    "circuit": ("many", "one"),
    "maps": ("one", "many"),
    "distances": ("many", "many"),
}

Sums = dict[str, list[Tensor]]  # per-prompt sums of every row, by seed


def with_one_distance(tokenizer, count: int, seed: int) -> Prompts:
    """Prompts in which a sequence of different tokens is followed by itself; corrupt: by another one."""
    generator, special = torch.Generator().manual_seed(seed), set(tokenizer.all_special_ids)
    ordinary = torch.tensor([id for id in sorted(tokenizer.get_vocab().values()) if id not in special])
    width = 2 * REPEATED + AROUND
    drawn = ordinary[torch.stack([torch.randperm(len(ordinary), generator=generator)[:width] for _ in range(count)])]
    repeated, other, around = drawn.split([REPEATED, REPEATED, AROUND], 1)
    before = torch.randint(AROUND + 1, (count, 1), generator=generator)
    place = (torch.arange(width) + AROUND - before) % width
    bos = torch.full((count, 1), bos_of(tokenizer))
    clean, corrupt = (
        torch.cat([bos, torch.cat([around, first, repeated], 1).gather(1, place)], 1) for first in (repeated, other)
    )
    last, column = before + 2 * REPEATED, torch.arange(width + 1)
    asked = (column > last - REPEATED) & (column < last)
    return Prompts(clean, corrupt, asked, torch.where(asked, clean.roll(-1, 1), 0))


def halves(prompts: Prompts) -> tuple[Prompts, Prompts]:
    return prompts.part(slice(0, None, 2)), prompts.part(slice(1, None, 2))


def circuit_alone(donor: Model, chosen: ChosenCircuit) -> Logits:
    def alone(ids: Tensor) -> Tensor:
        with replaced(donor, chosen.kept, chosen.means):
            return logits_of(donor.net)(ids)

    return alone


def rows_of(donor: Model, config: Path, count: int, seed: int) -> tuple[dict[str, Logits], dict]:
    """Everything that is scored, by name, and the sizes of the circuits."""
    prompts = {
        "one": halves(with_one_distance(donor.tokenizer, 2 * count, seed)),
        "many": halves(make_prompts("induction", donor.tokenizer, count=2 * count, seed=seed)),
    }
    circuits = {kind: choose_on(donor, *both, keep=0.98, constant=True) for kind, both in prompts.items()}
    rows: dict[str, Logits] = {"donor": logits_of(donor.net)}
    for arm, (chosen_on, fitted_on) in ARMS.items():
        chosen, first = circuits[chosen_on], prompts[fitted_on][0]
        means = {place: mean.mean(1, keepdim=True) for place, mean in mean_outputs(donor, first).items()}
        host = read_host(config, donor, seed)
        plan = make_plan(donor, "induction", chosen.kept, means, first, host, FreeSpace.of(host))
        write(host, [plan])
        rows[arm] = logits_of(host.net)
        if chosen_on == fitted_on:
            rows[f"{arm}, circuit alone"] = circuit_alone(donor, chosen)
            noise = read_host(config, donor, seed)
            write(noise, [randomised(plan, seed)])
            rows[f"{arm}, noise"] = logits_of(noise.net)
    rows["bare"] = logits_of(read_host(config, donor, seed).net)
    return rows, {kind: one.kept.count("neurons") for kind, one in circuits.items()}


def percent(sums: Tensor) -> dict[str, float]:
    return {key: round(100 * value, 1) for key, value in share_right(sums).items()}


def beyond(clean: Tensor, corrupt: Tensor) -> dict[str, float]:
    """By how much more is right than at a first reading, with the paired interval."""
    more, places = clean[:, 0] - corrupt[:, 0], clean[:, 3]
    low, high = ratio_interval(more, places)
    return {
        "first": percent(corrupt)["right"],
        "beyond": round(float(100 * more.sum() / places.sum()), 1),
        "beyond_low": round(100 * low, 1),
        "beyond_high": round(100 * high, 1),
    }


def lines_of(donor: str, host: str, given: argparse.Namespace) -> list[dict]:
    model = load(resolve(donor).folder, dtype=torch.float32, name=donor)
    asked: dict[str, Mapping[str, Sums]] = {
        kind: {"clean": defaultdict(list), "corrupt": defaultdict(list)} for kind in ("induction", "natural")
    }
    passages = make_prompts("natural-copying", model.tokenizer, count=2 * given.count * len(given.seeds))
    of_report_split = halves(passages)[1]
    distances, neurons = [], []
    for number, seed in enumerate(given.seeds):
        rows, sizes = rows_of(model, Path(host), given.choose, seed)
        neurons.append(sizes)
        scored = {
            "induction": halves(make_prompts("induction", model.tokenizer, count=2 * given.count, seed=1000 + seed))[1],
            "natural": of_report_split.part(slice(number * given.count, (number + 1) * given.count)),
        }
        distances.append(scored["induction"].distance)
        for kind, prompts in scored.items():
            for name, logits in rows.items():
                asked[kind]["clean"][name].append(sums_of(logits, prompts.clean, prompts, None))
                if kind == "natural" or name in ("donor", "one distance", "distances"):
                    asked[kind]["corrupt"][name].append(sums_of(logits, prompts.corrupt, prompts, None))
    about = {"donor": donor, "host": host, "seeds": given.seeds, "neurons": neurons}
    distance, lines = torch.cat(distances), []
    for least, most in itertools.pairwise(DISTANCES):
        within = (distance >= least) & (distance < most)
        results = [
            {
                "name": name,
                **percent(torch.cat(sums)[within]),
                "by_seed": [
                    percent(one[(back >= least) & (back < most)])["right"]
                    for one, back in zip(sums, distances, strict=True)
                ],
            }
            for name, sums in [
                *asked["induction"]["clean"].items(),
                *((f"{name}, corrupt", sums) for name, sums in asked["induction"]["corrupt"].items()),
            ]
        ]
        size = {"least": least, "most": most - 1, "prompts": int(within.sum())}
        lines.append({"behaviour": "induction", **about, **size, "results": results})
    clean, corrupt = (
        {name: torch.cat(sums) for name, sums in asked["natural"][of].items()} for of in ("clean", "corrupt")
    )
    results = [{"name": name, **percent(sums), **beyond(sums, corrupt[name])} for name, sums in clean.items()]
    return [*lines, {"behaviour": "natural-copying", **about, "prompts": len(clean["donor"]), "results": results}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--choose", type=int, default=48, help="Prompts that a circuit is chosen on.")
    parser.add_argument("--count", type=int, default=80, help="Prompts and passages to score, per seed.")
    given = parser.parse_args()
    for donor, host in PAIRS.items():
        for line in lines_of(donor, host, given):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
