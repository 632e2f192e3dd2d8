"""What should an affine joint be fitted to? The same matrix by every objective, one JSON line per row and direction.

    python benchmarks/stitch_objectives.py > build/stitch_objectives.jsonl

All rows but the nulls are one affine map from A's stream to B's, so they cost as many FLOPs and bytes. Both models are frozen.

    ridge       closed form: B's own stream at the site (SLM; the row `affine` of this kit)
    task loss   trained on the cross-entropy of B's late blocks (model stitching, Bansal et al. 2021, arXiv:2106.07682)
    KL to B     trained on the divergence from B's own prediction
    FuLA        trained on B's own streams at the site, at every later one and on its logits: squared errors over squared norms,
                all with the same weight (functional latent alignment, Athanasiadis et al. 2025, arXiv:2505.20142v1)

Trained maps start from `ridge`; for each objective the rate that is best on the sweep split is kept. Nulls put something else in
the place of A's stream, and are fitted by ridge and by task loss:

    untrained A         the stream of A with random weights
    token noise         a random vector per current token, and noise
    prediction noise    a random vector per token that A thinks comes next, and noise: "clustered noise" (Smith et al. 2025,
                        ICML), which holds A's decision and nothing that it was made from

Left out: forward-backward compatibility, as 2505.20142v2 has it, since its formulas could not be had here.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from beside_tables import fitted, read, through
from torch import Tensor
from torch.nn import functional

from stitch.composite.compose import late_half, late_logits
from stitch.composite.costs import Costs
from stitch.config import Settings
from stitch.evaluation.scores import Logits, Scores, evaluate, mean_of, whole_model
from stitch.frontier.untrained import untrained
from stitch.jobs.pair.models import load_pair
from stitch.jobs.pair.settings import complete
from stitch.jobs.pair.text import read_windows
from stitch.modeling.modeling_halves import Half
from stitch.models.model import Model
from stitch.regression.ridge import Ridge
from stitch.text.documents import Split
from stitch.text.windows import Windows

DIRECTIONS = (("demo:gpt2", 3, "demo:llama", 4), ("demo:llama", 4, "demo:gpt2", 3))
SEEDS = (0, 1)  # of training; nulls are trained once, at the rate of the task loss
RATES = (
    1e-2,
    3e-2,
)  # of the first step, relative to a parameter's root mean square; three times more or less while that helps
STEPS, WINDOWS = 100, 4  # of training, and windows per step
NOISE = 0.1  # of a random vector's standard deviation
Stream = dict[Split, Tensor]  # [windows, context, width]
# The loss of B's late half on some rows of the fit split, behind the stream that enters it.
Objective = Callable[[Half, Tensor, Tensor, Tensor], Tensor]


def task_loss(late: Half, hidden: Tensor, ids: Tensor, rows: Tensor) -> Tensor:
    logits = late_logits(late, hidden, ids=ids)[:, :-1].float()
    return functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def kl_to(own: Tensor) -> Objective:
    """`own` is B's stream at the site."""

    def loss(late: Half, hidden: Tensor, ids: Tensor, rows: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = late_logits(late, own[rows], ids=ids).float().log_softmax(-1)
        found = late_logits(late, hidden, ids=ids).float().log_softmax(-1)
        return (wanted.exp() * (wanted - found)).sum(-1).mean()

    return loss


def fula(own: dict[int, Tensor], site: int) -> Objective:
    """`own` are B's streams at `site` and later ones."""

    def loss(late: Half, hidden: Tensor, ids: Tensor, rows: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = late_logits(late, own[site][rows], ids=ids).float()
        late.watch({one for one in own if one > site})
        logits = late_logits(late, hidden, ids=ids).float()
        pairs = [(hidden, own[site][rows]), (logits, wanted), *((late.seen[one], own[one][rows]) for one in late.seen)]
        # BOS has no context, and a norm of its own.
        return sum((found - goal)[:, 1:].square().sum() / goal[:, 1:].square().sum() for found, goal in pairs) / len(
            pairs
        )

    return loss


def trained(
    start: Ridge, source: Tensor, first: Tensor, late: Half, ids: Tensor, objective: Objective, rate: float, seed: int
) -> Ridge:
    """`start` after STEPS steps of Adam on `objective`. `first` is B's stream at BOS."""
    weight, bias = start.weights["source"].float().clone(), start.bias.float().clone()
    groups = [
        {"params": [one.requires_grad_()], "lr": rate * float(one.detach().square().mean().sqrt())}
        for one in (weight, bias)
    ]
    optimiser = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / STEPS)
    generator = torch.Generator().manual_seed(seed)
    late.net.requires_grad_(False)
    with torch.enable_grad():
        for _ in range(STEPS):
            rows = torch.randint(len(ids), (WINDOWS,), generator=generator)
            hidden = source[rows] @ weight + bias
            hidden = torch.cat([first.expand(len(rows), 1, -1), hidden[:, 1:]], 1)
            optimiser.zero_grad(set_to_none=True)
            objective(late, hidden, ids[rows], rows).backward()
            optimiser.step()
            schedule.step()
    return dataclasses.replace(start, weights={"source": weight.detach()}, bias=bias.detach())


def clustered(labels: dict[Split, Tensor], count: int, width: int, seed: int) -> Stream:
    """A random vector per label, and noise."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(count, width, generator=generator)
    return {
        split: table[one] + NOISE * torch.randn(*one.shape, width, generator=generator) for split, one in labels.items()
    }


@torch.no_grad()
def predictions(model: Model, windows: Windows) -> Tensor:
    """The token that the model thinks comes next, at every token."""
    return torch.cat([model.net(ids, use_cache=False).logits.argmax(-1) for ids in windows.ids.long().split(8)])


def at(model: Model, site: int, windows: dict[Split, Windows], folder: Path) -> Stream:
    return {split: streams[site] for split, streams in read(model, windows, folder, (site,)).items()}


def lines(names: tuple[str, int, str, int], tokens: int, folder: Path) -> Iterator[dict]:
    settings = Settings(model_a=names[0], layer=names[1], model_b=names[2], layer_b=names[3], tokens=tokens)
    a, b, _ = load_pair(settings)
    settings = complete(settings, a, b)
    site, onto = settings.sites
    windows = read_windows(settings, a, b)
    of_a = at(a, site, windows, folder / "a")
    of_b = read(b, windows, folder / "b", range(onto, b.depth + 1))
    target: Stream = {split: streams[onto] for split, streams in of_b.items()}
    own = of_b["fit"]
    late = late_half(b, onto)
    ids = windows["fit"].ids.long()

    def ridge_of(source: Stream) -> Ridge:
        return fitted({"source": source}, target)

    def row(found: Ridge, source: Stream, split: Split) -> Logits:
        return through(late, found, {"source": source}, target, split)

    def score(rows: dict[str, Logits], split: Split) -> dict[str, Scores]:
        return evaluate(rows, windows[split], vocabulary=b.vocabulary, reference=rows.get("b"))

    def draw(source: Stream, start: Ridge, objective: Objective, rate: float, seed: int) -> Ridge:
        return trained(start, source["fit"], target["fit"][0, 0], late, ids, objective, rate, seed)

    def best(source: Stream, start: Ridge, objective: Objective) -> tuple[list[Ridge], float]:
        """The draws at the rate that is best on the sweep split, which has a worse one on either side, and this rate."""
        first: dict[float, Ridge] = {}
        swept: dict[float, float] = {}

        def swept_at(rate: float) -> float:
            if rate not in swept:
                first[rate] = draw(source, start, objective, rate, SEEDS[0])
                swept[rate] = score({"it": row(first[rate], source, "sweep")}, "sweep")["it"].ce
            return swept[rate]

        rate = min(RATES, key=swept_at)
        while (near := min((rate, rate * 3, rate / 3), key=swept_at)) != rate:
            rate = near
        return [first[rate], *(draw(source, start, objective, rate, seed) for seed in SEEDS[1:])], rate

    start = ridge_of(of_a)
    found: dict[str, tuple[list[Ridge], Stream, float | None]] = {"ridge": ([start], of_a, None)}
    for name, objective in (("task loss", task_loss), ("KL to B", kl_to(own[onto])), ("FuLA", fula(own, onto))):
        draws, rate = best(of_a, start, objective)
        found[name] = draws, of_a, rate
        print(f"{a.name} → {b.name}: {name}, rate {rate}", file=sys.stderr)
    tokens_read = {split: some.ids.long() for split, some in windows.items()}
    guesses = {split: predictions(a, some) for split, some in windows.items()}
    nulls = {
        "untrained A": at(untrained(a, 0), site, windows, folder / "untrained"),
        "token noise": clustered(tokens_read, a.vocabulary, a.width, 0),
        "prediction noise": clustered(guesses, a.vocabulary, a.width, 0),
    }
    for name, source in nulls.items():
        fit = ridge_of(source)
        found[f"null: {name}, ridge"] = [fit], source, None
        rate = found["task loss"][2]
        assert rate is not None
        found[f"null: {name}, task loss"] = [draw(source, fit, task_loss, rate, SEEDS[0])], source, rate
    logits = {"a": whole_model(a.net), "b": whole_model(b.net)}
    logits |= {
        f"{name} {number}": row(one, source, "report")
        for name, (draws, source, _) in found.items()
        for number, one in enumerate(draws)
    }
    scores = score(logits, "report")
    for name, (draws, _, _) in found.items():
        scores[name] = mean_of([scores.pop(f"{name} {number}") for number in range(len(draws))])
    multiply_adds = a.width * b.width
    flops = Costs(a, b, settings.context).flops(site, onto, multiply_adds)
    for name, one in scores.items():
        low, high = one.interval()
        minus = dict(zip(("minus_ridge_low", "minus_ridge_high"), one.interval(minus=scores["ridge"]), strict=True))
        draws, source, rate = found.get(name, ([], {}, None))
        joint = source is of_a  # what the nulls stand for is not counted
        yield {
            "benchmark": "stitch_objectives", "source": a.name, "site": site, "target": b.name, "onto": onto, "row": name,
            "ce": one.ce, "ce_low": low, "ce_high": high, "kl": one.row("")["kl_to_b"],
            "minus_ridge": one.ce - scores["ridge"].ce, **minus,
            "rate": rate, "draws": len(draws), "flops": flops if joint else None,
            "bytes": 4 * (multiply_adds + b.width) if joint else None,
            "fitted": windows["fit"].tokens, "tokens": windows["report"].tokens, "documents": one.documents,
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=100_000)
    given = parser.parse_args()
    for number, names in enumerate(DIRECTIONS):
        with tempfile.TemporaryDirectory() as folder:
            for line in lines(names, given.tokens, Path(folder) / str(number)):
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
