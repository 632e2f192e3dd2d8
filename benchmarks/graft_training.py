"""Does a graft speed up training? One host is trained on the embedded corpus from a graft, from two controls and from
scratch.

    graft       the donor's circuit, embedding and unembedding
    noise       the same, with noise of the same norm instead of the circuit's heads and neurons
    embeddings  the donor's embedding and unembedding, without the circuit
    fresh       the host's own initialisation
    donor       the donor itself, untouched: not trained further

All variants of a seed see the same windows in the same order, with the same optimisers and learning rates. One JSON
line per run: cross-entropy on held-out windows and the share of right answers to induction prompts, by tokens trained
on. The last line has the share of tokens that each variant needs to reach the final loss of `fresh`. Runs
that are already in --lines are not repeated.
"""

import argparse
import json
from pathlib import Path

import torch
from _learning import tokens_to
from _lines import read
from torch import nn

from stitch.circuits.behaviours.named import make_prompts
from stitch.circuits.find import choose_circuit
from stitch.circuits.score import answered
from stitch.demo.recipe import RECIPES
from stitch.demo.train import held_out, loss_of, optimisers
from stitch.grafts import compared
from stitch.grafts.allocation import FreeSpace
from stitch.grafts.fresh_host import read_host
from stitch.grafts.plan import make_plan
from stitch.grafts.write import write
from stitch.internals import weights
from stitch.models.loading import load
from stitch.models.model import Model
from stitch.models.sources import resolve
from stitch.text.corpus import cached_documents
from stitch.text.documents import select
from stitch.text.windows import pack

VARIANTS = ("graft", "noise", "embeddings", "fresh")


def make_host(variant: str, donor: Model, behaviour: str, config: Path, seed: int) -> Model:
    host = read_host(config, donor, seed)
    if variant == "fresh":
        return host
    chosen = choose_circuit(donor, behaviour, keep=0.98, constant=True)
    plan = make_plan(donor, behaviour, chosen.kept, chosen.means, chosen.first, host, FreeSpace.of(host))
    if variant == "noise":
        plan = compared.randomised(plan, seed)
    if variant == "embeddings":
        for block in set(plan.layers.values()):
            plan = compared.without(plan, block)
    write(host, [plan])
    return host


def train(
    host: Model, windows: torch.Tensor, sweep: torch.Tensor, donor: Model, given: argparse.Namespace, seed: int
) -> list[dict]:
    asked = make_prompts(given.behaviour, donor.tokenizer, count=32, seed=seed + 1000)
    found, net = [], host.net
    recipe = RECIPES["gpt2"]
    optimizers = optimisers(net, recipe)
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))

    def measure(step: int) -> None:
        net.eval()
        score = answered(lambda ids: net(input_ids=ids, use_cache=False).logits, asked.clean, asked)
        tokens = step * given.batch * given.context
        found.append({"tokens": tokens, "ce": held_out(net, sweep), "right": score["right"]})
        net.train()

    measure(0)
    for step in range(given.steps):
        warm, cool = min(1.0, (step + 1) / 20), min(1.0, (given.steps - step) / (0.3 * given.steps))
        for optimizer, peak in zip(
            optimizers, (given.rate * recipe.rate_matrices, given.rate * recipe.rate_others), strict=True
        ):
            for group in optimizer.param_groups:
                group["lr"] = peak * warm * cool
        part = windows[order[step * given.batch : (step + 1) * given.batch]]
        loss_of(net, part).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if (step + 1) % given.every == 0:
            measure(step + 1)
    return found


def untouched(donor: Model, sweep: torch.Tensor, given: argparse.Namespace) -> list[dict]:
    """The donor's curve, which is level."""
    asked = make_prompts(given.behaviour, donor.tokenizer, count=32, seed=1000)
    right = answered(lambda ids: donor.net(input_ids=ids, use_cache=False).logits, asked.clean, asked)["right"]
    found = {"ce": held_out(donor.net, sweep), "right": right}
    return [{"tokens": step * given.batch * given.context, **found} for step in (0, given.steps)]


def summary(lines: list[dict]) -> dict:
    found: dict[str, list[float | None]] = {variant: [] for variant in VARIANTS}
    for seed in sorted({line["seed"] for line in lines}):
        runs = {line["arm"]: line["curve"] for line in lines if line["seed"] == seed and line["arm"] in VARIANTS}
        if "fresh" not in runs:
            continue
        goal, total = runs["fresh"][-1]["ce"], runs["fresh"][-1]["tokens"]
        for variant, curve in runs.items():
            tokens, losses = ([point[key] for point in curve] for key in ("tokens", "ce"))
            needed = tokens_to(tokens, losses, goal)
            found[variant].append(None if needed is None else needed / total)
    return {"benchmark": "graft_training", "share_of_tokens_to_fresh_loss": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--donor", default="demo:induction")
    parser.add_argument("--behaviour", default="induction")
    parser.add_argument("--host", type=Path, default=Path("examples/llama-tiny.json"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--rate", type=float, default=0.5, help="Multiple of the embedded pair's learning rates.")
    parser.add_argument("--lines", type=Path, default=Path("build/benchmarks/graft_training.jsonl"))
    given = parser.parse_args()
    donor = load(resolve(given.donor).folder, dtype=torch.float32, name=given.donor)
    weights.check(donor, "donor")
    tokens = given.steps * given.batch * given.context
    fit, sweep = (
        pack(select(cached_documents(), split), donor.tokenizer, given.context, count).ids.long()
        for split, count in (("fit", tokens), ("sweep", 128 * given.context))
    )
    given.lines.parent.mkdir(parents=True, exist_ok=True)
    lines = read(given.lines) if given.lines.exists() else []

    def keep(line: dict) -> None:
        lines.append(line)
        with given.lines.open("a") as file:
            file.write(json.dumps(line) + "\n")

    if not any(line["arm"] == "donor" for line in lines):
        keep({"arm": "donor", "seed": 0, "curve": untouched(donor, sweep, given)})
    for seed in given.seeds:
        for variant in given.variants:
            if any((line["arm"], line["seed"]) == (variant, seed) for line in lines):
                continue
            host = make_host(variant, donor, given.behaviour, given.host, seed)
            line = {"arm": variant, "seed": seed, "curve": train(host, fit, sweep, donor, given, seed)}
            keep(line)
            print(json.dumps({**line, "curve": line["curve"][:: max(1, len(line["curve"]) // 5)]}), flush=True)
    print(json.dumps(summary(lines)))


if __name__ == "__main__":
    main()
