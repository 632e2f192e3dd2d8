"""What reuse saves: tokens of further training that a composite, its alternatives and a fresh model need.

    python benchmarks/healing.py --budget 1000000 --seeds 0
    python benchmarks/healing.py --summary benchmarks/results/healing.jsonl

Every arm (`_healing.py`) is trained with AdamW on the fit split of the docstring corpus, all its weights or its seam
alone. The rate is chosen for each arm from the same candidates, on the sweep split, after a short run. All arms of a
seed see the same windows in the same order. One JSON line per arm, seed and number of tokens has the nats of every
document of the report split; the untouched donors have lines with no tokens. Runs in --lines are not repeated, so an
interrupted benchmark continues with the same command, and `--arms` shares the work among processes.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from _healing import ARMS, A, B, make, prepare
from _healing_costs import costs
from _healing_summary import summary
from _lines import read
from torch import Tensor, nn
from transformers import PreTrainedModel

from stitch.demo.train import held_out, loss_of
from stitch.evaluation.scores import evaluate, whole_model
from stitch.models.loading import load
from stitch.models.model import Model
from stitch.models.sources import resolve
from stitch.text.corpus import cached_documents
from stitch.text.documents import select
from stitch.text.windows import Windows, sample

BATCH, CONTEXT = 16, 256
WARMUP, COOLING = 5, 0.3  # steps; share of all steps over which the rate falls to zero
RATES = (1e-4, 6e-4, 3e-3)
SHORT = 65_536  # tokens of the runs that choose a rate
REPORT, SWEEP = 49_152, 16_384  # tokens


class Text:
    """Windows to train on, to choose the rate on, and to report on; each spread over its split."""

    def __init__(self, tokenizer, budget: int):
        corpus = cached_documents()
        self.fit = sample(select(corpus, "fit"), tokenizer, CONTEXT, budget).ids.long()
        self.sweep = sample(select(corpus, "sweep"), tokenizer, CONTEXT, SWEEP).ids.long()
        self.report: Windows = sample(select(corpus, "report"), tokenizer, CONTEXT, REPORT)


def train(net: PreTrainedModel, fit: Tensor, tokens: int, rate: float, seed: int, measure) -> None:
    """Trains on `tokens` tokens. Calls `measure(step)` before, after 16, 32, 64, … steps, and after the last."""
    steps = tokens // (BATCH * CONTEXT)
    order = torch.randperm(len(fit), generator=torch.Generator().manual_seed(seed))
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1.0, (step + 1) / WARMUP, (steps - step) / (COOLING * steps))
    )
    measured = {0, steps, *(16 * 2**power for power in range(20))}
    for step in range(steps + 1):
        if step in measured:
            net.eval()
            measure(step)
            net.train()
        if step == steps:
            return
        loss_of(net, fit[order[step * BATCH : (step + 1) * BATCH]]).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()


def best_rate(arm: str, work: Path, b: Model, text: Text) -> float:
    """The candidate with the lowest loss on the sweep split after a short run of seed 0. Kept in `work`."""
    kept = work / f"rates-{arm}.json"
    if not kept.exists():
        losses = {}
        for rate in RATES:
            net = make(arm, 0, work, b)
            train(net, text.fit, SHORT, rate, 0, lambda step: None)
            losses[rate] = held_out(net.eval(), text.sweep)
        kept.write_text(json.dumps(losses))
    losses = {float(rate): loss for rate, loss in json.loads(kept.read_text()).items()}
    return min(losses, key=losses.__getitem__)


def scored(net: PreTrainedModel, report: Windows) -> dict:
    """The cross-entropy on the report split, and its sums by document."""
    score = evaluate({"net": whole_model(net)}, report, vocabulary=net.config.vocab_size)["net"]
    return {"ce": score.ce, "nats": [round(nats, 2) for nats in score.nats.tolist()], "counts": score.tokens.tolist()}


def run(arm: str, seed: int, budget: int, work: Path, b: Model, text: Text) -> list[dict]:
    """All lines of one arm and seed."""
    found: list[dict] = []
    rate = best_rate(arm, work, b, text)
    net = make(arm, seed, work, b)
    began = time.perf_counter()
    size = sum(parameter.numel() for parameter in net.parameters())
    trained = sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)
    given = {"arm": arm, "seed": seed, "budget": budget, "rate": rate, "parameters": size, "trained": trained}

    def measure(step: int) -> None:
        seconds = time.perf_counter() - began
        found.append({**given, "tokens": step * BATCH * CONTEXT, "seconds": seconds, **scored(net, text.report)})
        print(arm, seed, found[-1]["tokens"], f"{found[-1]['ce']:.4f}", f"{seconds:.0f} s", flush=True)

    train(net, text.fit, budget, rate, seed, measure)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=int, default=3_000_000, help="Tokens to train on.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--fit", type=int, default=300_000, help="Tokens that closed forms are fitted on.")
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks/healing"))
    parser.add_argument("--lines", type=Path, default=Path("build/benchmarks/healing.jsonl"))
    parser.add_argument("--summary", type=Path, help="Summarise --lines into this file; train nothing.")
    given = parser.parse_args()
    if given.summary is not None:
        lines = summary(read(given.lines))
        lines += costs(lines)
        given.summary.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return
    given.work.mkdir(parents=True, exist_ok=True)
    given.lines.parent.mkdir(parents=True, exist_ok=True)
    donors = {name: load(resolve(name).folder, dtype=torch.float32, name=name) for name in (A, B)}
    text = Text(donors[B].tokenizer, given.budget)
    prepare(given.work, given.fit, text.sweep)

    def keep(found: list[dict]) -> None:
        with given.lines.open("a") as file:
            file.writelines(json.dumps({"benchmark": "healing", **line}) + "\n" for line in found)

    def missing(arm: str, seed: int) -> bool:
        lines = read(given.lines) if given.lines.exists() else []
        return not any((line["arm"], line["seed"], line["budget"]) == (arm, seed, given.budget) for line in lines)

    for name, donor in donors.items():
        if missing(name, 0):
            size = sum(parameter.numel() for parameter in donor.net.parameters())
            shared = {"arm": name, "seed": 0, "budget": given.budget, "tokens": 0, "parameters": size, "trained": 0}
            keep([{**shared, **scored(donor.net, text.report)}])
    for seed in given.seeds:
        for arm in given.arms:
            if missing(arm, seed):
                keep(run(arm, seed, given.budget, given.work, donors[B], text))


if __name__ == "__main__":
    main()
