"""Conjecture: random routing separates patterns: what is learned later disturbs what was learned before less.

    python benchmarks/conjectures/random_routing.py

Language models of two blocks and a width of 96, whose MLP is one of eight experts per token, learn prose and then code, 300 steps
of 2,048 tokens each. Equal FLOPs, three seeds, the same batches in every arm:

    dense     one MLP of an expert's size
    random    the expert is a fixed random function of the token
    learned   the expert with the largest of eight learned scores, with a loss that balances them (Fedus et al. 2022)
    null:position    the expert is the position modulo eight: as many weights, and no patterns

`gained` is the nats per token won on code by its training, `forgotten` those lost on prose in it, both on the report split; `per
nat` is the second over the first.

Rule, set before the run: holds if `per nat` of random is below that of dense and of the null, intervals over documents of prose
clear of zero (the mean over seeds of each document), and that of random − learned is not above zero; refuted if it is not below
dense's; partly otherwise.
"""

import argparse
import sys
from pathlib import Path

import _shared
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

sys.path.insert(0, str(Path(__file__).parents[1]))

import _domains

from stitch.demo.tokenizer import load_tokenizer
from stitch.evaluation.intervals import ratio_interval
from stitch.evaluation.scores import Scores, evaluate
from stitch.models.sources import resolve
from stitch.text.documents import select
from stitch.text.windows import Windows, pack, sample

WIDTH, HEADS, HIDDEN, EXPERTS, CONTEXT = 96, 4, 192, 8, 128
STEPS, BATCH, RATE, BALANCE = 300, 16, 2e-3, 0.01
REPORTED = 32_768
ARMS = ("dense", "random", "learned", "null:position")


class Experts(nn.Module):
    """One of EXPERTS MLPs for each token, chosen as `arm` says."""

    def __init__(self, arm: str, vocabulary: int):
        super().__init__()
        self.arm, count = arm, 1 if arm == "dense" else EXPERTS
        self.enter = nn.Parameter(torch.randn(count, WIDTH, HIDDEN) * WIDTH**-0.5)
        self.leave = nn.Parameter(torch.randn(count, HIDDEN, WIDTH) * HIDDEN**-0.5 * 0.5)
        self.router = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.register_buffer("by_token", torch.randint(EXPERTS, (vocabulary,)))
        self.imbalance = torch.zeros(())

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        weight, chosen = self.routes(x, ids)
        flat, out = x.flatten(0, 1), torch.zeros_like(x.flatten(0, 1))
        for expert in range(len(self.enter)):
            rows = (chosen.flatten() == expert).nonzero()[:, 0]
            out[rows] = nn.functional.gelu(flat[rows] @ self.enter[expert]) @ self.leave[expert]
        return out.view_as(x) * weight

    def routes(self, x: Tensor, ids: Tensor) -> tuple[Tensor | float, Tensor]:
        """What an expert's output is multiplied by, and the expert of every token."""
        if self.arm == "dense":
            return 1.0, torch.zeros_like(ids)
        if self.arm == "random":
            return 1.0, self.get_buffer("by_token")[ids]
        if self.arm == "null:position":
            return 1.0, (torch.arange(ids.shape[1]) % EXPERTS).expand_as(ids)
        shares = self.router(x).softmax(-1)
        largest = shares.max(-1)
        taken = torch.bincount(largest.indices.flatten(), minlength=EXPERTS) / ids.numel()
        self.imbalance = EXPERTS * (taken * shares.mean((0, 1))).sum()
        return largest.values[..., None] * EXPERTS**0.5, largest.indices


class Block(nn.Module):
    def __init__(self, arm: str, vocabulary: int):
        super().__init__()
        self.first, self.second = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.experts = Experts(arm, vocabulary)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        q, k, v = self.qkv(self.first(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.experts(self.second(x), ids)


class Language(nn.Module):
    def __init__(self, arm: str, vocabulary: int):
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.places.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(arm, vocabulary) for _ in range(2))
        self.norm = nn.RMSNorm(WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x, ids)
        return self.norm(x) @ self.tokens.weight.T

    def imbalance(self) -> Tensor:
        return torch.stack([block.experts.imbalance for block in self.blocks]).mean()  # pyright: ignore


def learn(net: Language, windows: Windows, steps: int, seed: int) -> None:
    """AdamW on windows drawn at random, the same in every arm; the rate falls linearly to zero."""
    draw = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(net.parameters(), RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    for _ in range(steps):
        ids = windows.ids[torch.randint(len(windows.ids), (BATCH,), generator=draw)].long()
        loss = cross_entropy(net(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimiser.zero_grad()
        (loss + BALANCE * net.imbalance()).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        schedule.step()


@torch.no_grad()
def scored(net: Language, windows: Windows, vocabulary: int) -> Scores:
    return evaluate({"net": lambda batch: net(batch.ids)}, windows, vocabulary=vocabulary)["net"]


def texts(small: bool) -> tuple[dict[str, Windows], dict[str, Windows], int]:
    """Windows to learn from and to report on, by domain, and the size of the vocabulary.

    Code is learned from the modules of the sweep split, which are enough, and are read in a minute.
    """
    tokenizer = load_tokenizer(resolve("demo:llama").folder)
    prose = _domains.prose()
    learned = {"prose": select(prose, "fit"), "code": _domains.code("sweep")}
    reported = {"prose": select(prose, "report"), "code": _domains.code("report")}
    most = STEPS * BATCH * CONTEXT // (8 if small else 1)
    return (
        {name: pack(documents, tokenizer, CONTEXT, most) for name, documents in learned.items()},
        {name: sample(documents, tokenizer, CONTEXT, REPORTED) for name, documents in reported.items()},
        len(tokenizer),
    )


def arm(name: str, seed: int, steps: int, learned: dict, reported: dict, vocabulary: int) -> dict[str, Scores]:
    """Scores on prose and on code, before and after code is learned."""
    torch.manual_seed(seed)
    net = Language(name, vocabulary)
    learn(net, learned["prose"], steps, seed)
    found = {f"{text} before": scored(net, windows, vocabulary) for text, windows in reported.items()}
    learn(net, learned["code"], steps, seed + 1000)
    return found | {f"{text} after": scored(net, windows, vocabulary) for text, windows in reported.items()}


def per_nat(seeds: list[dict[str, Scores]]) -> Tensor:
    """By document of prose, nats forgotten over the nats per token gained on code; the mean over seeds."""
    gains = [seed["code before"].ce - seed["code after"].ce for seed in seeds]
    lost = [
        (seed["prose after"].nats - seed["prose before"].nats) / gain for seed, gain in zip(seeds, gains, strict=True)
    ]
    return torch.stack(lost).mean(0)


def verdict(differences: dict[str, list[float]]) -> str:
    """By the rule in the head, from random minus each other arm."""
    below = {name: high < 0 for name, (_, _, high) in differences.items()}
    if not below["dense"]:
        return "refuted"
    return "holds" if below["null:position"] and differences["learned"][1] <= 0 else "partly"


def measure(_: str, given: argparse.Namespace) -> None:
    learned, reported, vocabulary = texts(given.small)
    steps = STEPS // 8 if given.small else STEPS
    found = {name: [arm(name, seed, steps, learned, reported, vocabulary) for seed in _shared.SEEDS] for name in ARMS}
    tokens = found["dense"][0]["prose before"].tokens

    def told(sums: Tensor) -> list[float]:
        return [float(sums.sum() / tokens.sum()), *ratio_interval(sums, tokens)]

    by_arm = {name: per_nat(seeds) for name, seeds in found.items()}
    differences = {name: told(by_arm["random"] - by_arm[name]) for name in ARMS if name != "random"}

    def mean(seeds: list[dict[str, Scores]], place: str) -> float:
        return sum(seed[place].ce for seed in seeds) / len(seeds)

    rows = [
        {
            "arm": name, **{place: round(mean(seeds, place), 4) for place in seeds[0]},
            "gained": mean(seeds, "code before") - mean(seeds, "code after"),
            "forgotten": mean(seeds, "prose after") - mean(seeds, "prose before"), "per_nat": told(by_arm[name]),
        }
        for name, seeds in found.items()
    ]  # fmt: skip
    _shared.tell(
        "random_routing", "two blocks, eight experts", verdict(differences), steps=steps, rows=rows,
        random_minus=differences, **_shared.documents(found["dense"][0]["prose before"]),
    )  # fmt: skip


if __name__ == "__main__":
    _shared.run(__doc__, ["prose then code"], measure)
