"""Conjecture: what prepares a later answer is hidden from the output until it is due.

    python benchmarks/conjectures/output_null.py

Delayed response: a cue (one of 8) is seen for one step, then 10 to 50 steps of delay, in which the answer is "wait", then a mark,
after which the answer is the cue. A GRU with 64 units and a diagonal linear recurrence with 64 complex states learn it, five
seeds each. Both are read by one linear map, whose differences of rows span 8 dimensions: what it tells answers apart by.

    read      the share of the cues' variance in the delay (of the means by cue, at step 10) that lies in these dimensions
    chance    the same for 20 random readouts of equal rank
    potent, hidden  accuracy after the delay, where the state at step 10 is moved within those dimensions or beside them, by the
              same length: half of the distance between two cues' means

Nulls: `untrained`, the same networks before training, and `shuffled`, trained with answers that have nothing to do with the cue.

Rule, set before the run: holds for a network where `read` is below `chance` with the interval over seeds clear of it, and
moving the hidden part costs more accuracy than moving the potent one; refuted where `read` is not below chance; partly otherwise.
"""

import argparse
import math
from abc import ABC, abstractmethod
from statistics import mean, stdev

import _shared
import torch
from torch import Tensor, nn

CUES, UNITS, SHORT, LONG = 8, 64, 10, 50
STEPS, BATCH, RATE = 1500, 64, 3e-3
SEEDS, AT = range(5), 10
T_FOUR = 2.776  # Student's t for 95 % and four degrees of freedom


class Network(nn.Module, ABC):
    width: int

    @abstractmethod
    def forward(self, inputs: Tensor, start: Tensor | None = None) -> Tensor:
        """States [batch, time, width] after each input, from `start` [batch, width] or from zero."""


class Gru(Network):
    def __init__(self):
        super().__init__()
        self.core, self.width = nn.GRU(CUES + 2, UNITS, batch_first=True), UNITS

    def forward(self, inputs: Tensor, start: Tensor | None = None) -> Tensor:
        return self.core(inputs, None if start is None else start[None].contiguous())[0]


class Linear(Network):
    """A diagonal linear recurrence within the unit circle, as real and imaginary parts."""

    def __init__(self):
        super().__init__()
        radius = torch.empty(UNITS).uniform_(0.9, 0.999)
        self.radius, self.angle = nn.Parameter((-radius.log()).log()), nn.Parameter(torch.empty(UNITS).uniform_(0, 0.5))
        self.enter, self.width = nn.Parameter(torch.randn(CUES + 2, UNITS, 2) * 0.3), 2 * UNITS

    def forward(self, inputs: Tensor, start: Tensor | None = None) -> Tensor:
        entered = torch.einsum("bts,suc->btuc", inputs, self.enter)
        turn = torch.exp(torch.complex(-self.radius.exp(), self.angle))
        state = torch.zeros(len(inputs), UNITS, dtype=torch.complex64)
        if start is not None:
            state = torch.complex(*start.unflatten(1, (2, UNITS)).unbind(1))
        found = []
        for now in torch.view_as_complex(entered.contiguous()).unbind(1):
            state = state * turn + now
            found.append(torch.cat([state.real, state.imag], -1))
        return torch.stack(found, 1)


def trials(cues: Tensor, delay: int) -> Tensor:
    """Inputs [trials, 1 + delay + 1, cues + 2]: the cue, waiting, and the mark."""
    tokens = torch.full((len(cues), delay + 2), CUES)
    tokens[:, 0], tokens[:, -1] = cues, CUES + 1
    return nn.functional.one_hot(tokens, CUES + 2).float()


def trained(kind: type[Network], seed: int, steps: int, shuffled: bool = False) -> tuple[Network, nn.Linear]:
    torch.manual_seed(seed)
    core = kind()
    readout = nn.Linear(core.width, CUES + 1)  # the last answer is "wait"
    optimiser = torch.optim.Adam([*core.parameters(), *readout.parameters()], RATE)
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        cues = torch.randint(CUES, (BATCH,), generator=draw)
        said = torch.randint(CUES, (BATCH,), generator=draw) if shuffled else cues
        delay = int(torch.randint(SHORT, LONG + 1, (1,), generator=draw))
        scores = readout(core(trials(cues, delay)))
        wanted = torch.full((BATCH, delay + 2), CUES)
        wanted[:, -1] = said
        weight = torch.ones(delay + 2) / (delay + 2)
        weight[-1] = 1.0
        loss = (nn.functional.cross_entropy(scores.transpose(1, 2), wanted, reduction="none") * weight).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([*core.parameters(), *readout.parameters()], 1.0)
        optimiser.step()
    return core, readout


def potent(rows: Tensor) -> Tensor:
    """An orthonormal basis [width, rank] of the directions in which a readout's scores differ from each other."""
    return torch.linalg.svd(rows - rows.mean(0), full_matrices=False)[2][: len(rows) - 1].T


@torch.no_grad()
def numbers(core: Network, readout: nn.Linear, seed: int) -> dict[str, float]:
    draw, every = torch.Generator().manual_seed(1000 + seed), torch.arange(CUES)
    means = core(trials(every, LONG))[:, AT]  # nothing is random in a trial: the state is the mean by cue
    centred = means - means.mean(0)
    basis = potent(readout.weight)
    total = float(centred.square().sum())
    shares = [
        float((centred @ potent(torch.randn(readout.weight.shape, generator=draw))).square().sum()) / total
        for _ in range(20)
    ]
    cues = every.repeat(64)
    state, rest = means[cues], trials(cues, LONG)[:, AT + 1 :]
    length = 0.5 * float(torch.pdist(means).mean())

    def accuracy(move: Tensor | None = None) -> float:
        moved = state if move is None else state + length * nn.functional.normalize(move, dim=1)
        scores = readout(core(rest, moved)[:, -1])
        return float((scores[:, :CUES].argmax(-1) == cues).float().mean())

    noise = torch.randn(state.shape, generator=draw)
    inside = noise @ basis @ basis.T
    return {
        "read": float((centred @ basis).square().sum()) / total, "chance": mean(shares),
        "accuracy": accuracy(), "potent": accuracy(inside), "hidden": accuracy(noise - inside),
    }  # fmt: skip


def with_interval(values: list[float]) -> list[float]:
    """Mean over five seeds, and the 95 % interval by Student's t."""
    half = T_FOUR * stdev(values) / math.sqrt(len(values))
    return [mean(values), mean(values) - half, mean(values) + half]


def verdict(seeds: list[dict[str, float]]) -> str:
    """By the rule in the head, from five seeds of a trained network."""
    _, _, high = with_interval([seed["read"] - seed["chance"] for seed in seeds])
    costs_more = mean(seed["hidden"] for seed in seeds) < mean(seed["potent"] for seed in seeds)
    return "holds" if high < 0 and costs_more else "partly" if high < 0 else "refuted"


def measure(name: str, given: argparse.Namespace) -> None:
    kind, steps = {"gru": Gru, "linear": Linear}[name], 200 if given.small else STEPS
    arms = {
        "trained": [numbers(*trained(kind, seed, steps), seed) for seed in SEEDS],
        "null:untrained": [numbers(*trained(kind, seed, 0), seed) for seed in SEEDS],
        "null:shuffled": [numbers(*trained(kind, seed, steps, shuffled=True), seed) for seed in SEEDS],
    }
    rows = [
        {"arm": arm, **{key: with_interval([seed[key] for seed in seeds]) for key in seeds[0]}}
        for arm, seeds in arms.items()
    ]
    _shared.tell("output_null", name, verdict(arms["trained"]), seeds=len(SEEDS), steps=steps, rows=rows)


if __name__ == "__main__":
    _shared.run(__doc__, ["gru", "linear"], measure)
