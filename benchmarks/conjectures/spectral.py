"""Conjecture: recurrent networks whose eigenvalues are inside the unit circle stay stable.

    python benchmarks/conjectures/spectral.py

A recurrence x ← Λ x + B u with 64 states, read by a small network, learns to repeat 4 of 8 symbols after 100 blanks. Four arms,
three seeds each:

    diagonal, inside   complex λ = exp(−exp(ν) + iθ), so that |λ| < 1 whatever is learned (Orvieto et al. 2023)
    diagonal, free     λ = exp(a + iθ)
    dense, inside      a real matrix, scaled to a spectral radius of at most 0.999 after every step
    dense, free        a real matrix

Diagonal ones begin with radii of 0.9 to 0.999, dense ones as an orthogonal matrix times 0.999.
Null: `before training`, the same network without a step. `accuracy` is over symbols of 512 sequences (chance 0.125), `longer`
the same after 200 blanks. `growth` is the largest norm of the state in 10,000 steps of unit noise over that in the first 1,000:
above 10 it diverges. `transient` is the largest ‖Λᵗ‖ over t, which can be large where Λ is not normal, also inside the circle.
`gradient` is the largest gradient norm in training over the median one. What overflows is null.

Rule, set before the run: holds if nothing inside the circle has a growth above 10 or a transient above 10, and something free has
one; "not needed" if nothing free has one either; refuted if something inside has one. Accuracies say what stability costs. In a
first run dense matrices began with smaller radii, forgot within 100 steps, and learned nothing.
"""

import argparse
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from statistics import median
from typing import Any

import _shared
import torch
from torch import Tensor, nn

STATES, SYMBOLS, COPIED, BLANKS = 64, 8, 4, 100
STEPS, BATCH, RATE = 1500, 32, 2e-3
INSIDE = 0.999
BEYOND = 10.0


class Recurrence(nn.Module, ABC):
    """[batch, time, symbols + 2] → states [batch, time, 2 · STATES], real."""

    @abstractmethod
    def forward(self, inputs: Tensor) -> Tensor: ...

    @abstractmethod
    def matrix(self) -> Tensor:
        """What a state is multiplied by from one step to the next."""

    def constrain(self) -> None:
        """After a step of training."""


class Diagonal(Recurrence):
    """x_t = λ x_{t−1} + γ B u_t with complex λ, for all t at once."""

    scale: Tensor

    def __init__(self, inside: bool):
        super().__init__()
        radius = torch.empty(STATES).uniform_(0.9, INSIDE)
        self.inside = inside
        self.radius = nn.Parameter((-radius.log()).log() if inside else radius.log())
        self.angle = nn.Parameter(torch.empty(STATES).uniform_(0, math.pi))
        self.enter = nn.Parameter(torch.randn(STATES, SYMBOLS + 2, 2) / math.sqrt(2 * (SYMBOLS + 2)))
        self.register_buffer("scale", (1 - radius.square()).sqrt())

    def logarithm(self) -> Tensor:
        return torch.complex(-self.radius.exp() if self.inside else self.radius, self.angle)

    def forward(self, inputs: Tensor) -> Tensor:
        time = inputs.shape[1]  # a convolution, by Fourier transforms
        entered = inputs.to(torch.complex64) @ torch.view_as_complex(self.enter).T * self.scale
        kernel = torch.exp(torch.arange(time)[:, None] * self.logarithm())
        found = torch.fft.ifft(torch.fft.fft(entered, 2 * time, 1) * torch.fft.fft(kernel, 2 * time, 0), dim=1)[
            :, :time
        ]
        return torch.cat([found.real, found.imag], -1)

    def matrix(self) -> Tensor:
        return torch.diag(self.logarithm().exp())


class Dense(Recurrence):
    """x_t = W x_{t−1} + B u_t with a real matrix."""

    def __init__(self, inside: bool):
        super().__init__()
        self.inside = inside
        self.weight = nn.Parameter(torch.linalg.qr(torch.randn(2 * STATES, 2 * STATES))[0] * INSIDE)
        self.enter = nn.Parameter(torch.randn(2 * STATES, SYMBOLS + 2) / math.sqrt(SYMBOLS + 2) * 0.3)

    def forward(self, inputs: Tensor) -> Tensor:
        entered, state, found = inputs @ self.enter.T, torch.zeros(len(inputs), 2 * STATES), []
        for now in entered.unbind(1):
            state = state @ self.weight.T + now
            found.append(state)
        return torch.stack(found, 1)

    @torch.no_grad()
    def constrain(self) -> None:
        if self.inside:
            self.weight.mul_(min(1.0, INSIDE / float(torch.linalg.eigvals(self.weight).abs().max())))

    def matrix(self) -> Tensor:
        return self.weight


def sequences(count: int, blanks: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs [count, time, symbols + 2] with a blank and a mark that asks, and the symbols [count, COPIED]."""
    wanted = torch.randint(SYMBOLS, (count, COPIED), generator=generator)
    tokens = torch.full((count, COPIED + blanks + COPIED), SYMBOLS)
    tokens[:, :COPIED], tokens[:, -COPIED:] = wanted, SYMBOLS + 1
    return nn.functional.one_hot(tokens, SYMBOLS + 2).float(), wanted


def answers(recurrence: Recurrence, head: nn.Module, inputs: Tensor) -> Tensor:
    return head(recurrence(inputs)[:, -COPIED:])


@torch.no_grad()
def accuracy(recurrence: Recurrence, head: nn.Module, blanks: int) -> float:
    inputs, wanted = sequences(512, blanks, torch.Generator().manual_seed(10_000))
    return float((answers(recurrence, head, inputs).argmax(-1) == wanted).float().mean())


@torch.no_grad()
def stability(matrix: Tensor) -> dict[str, float]:
    """`growth` and `transient` in float64; infinity where the state overflows."""
    matrix = matrix.to(torch.complex128 if matrix.is_complex() else torch.float64)
    noise = torch.randn(10_000, len(matrix), generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(matrix)
    state, norms = torch.zeros_like(noise[0]), []
    for now in noise:
        state = matrix @ state + now
        norms.append(float(state.norm()))
    power, largest = torch.eye(len(matrix)).to(matrix), 1.0
    for _ in range(500):
        power = matrix @ power
        largest = max(largest, float(torch.linalg.matrix_norm(power, 2)) if power.isfinite().all() else math.inf)
    growth = max(norms) / max(norms[:1000])
    return {"growth": growth if math.isfinite(growth) else math.inf, "transient": largest}


def arm(kind: Callable[[bool], Recurrence], inside: bool, seed: int, steps: int) -> dict[str, float]:
    torch.manual_seed(seed)
    recurrence = kind(inside)
    head = nn.Sequential(nn.Linear(2 * STATES, 128), nn.GELU(), nn.Linear(128, SYMBOLS))
    optimiser = torch.optim.Adam([*recurrence.parameters(), *head.parameters()], RATE)
    generator, norms = torch.Generator().manual_seed(seed), []
    for _ in range(steps):
        inputs, wanted = sequences(BATCH, BLANKS, generator)
        loss = nn.functional.cross_entropy(answers(recurrence, head, inputs).flatten(0, 1), wanted.flatten())
        optimiser.zero_grad()
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_([*recurrence.parameters(), *head.parameters()], 1.0)))
        optimiser.step()
        recurrence.constrain()
    matrix = recurrence.matrix().detach()
    return {
        "accuracy": accuracy(recurrence, head, BLANKS),
        "longer": accuracy(recurrence, head, 2 * BLANKS),
        "radius": float(torch.linalg.eigvals(matrix).abs().max()),
        "gradient": max(norms) / median(norms) if norms else 1.0,
        **stability(matrix),
    }


def verdict(rows: dict[str, list[dict[str, float]]]) -> str:
    """By the rule in the head, from every arm's seeds."""

    def unstable(place: str) -> bool:
        found = [seed for name, seeds in rows.items() if name.endswith(place) for seed in seeds]
        return any(not seed["growth"] <= BEYOND or not seed["transient"] <= BEYOND for seed in found)

    return "refuted" if unstable("inside") else "holds" if unstable("free") else "not needed"


def measure(_: str, given: argparse.Namespace) -> None:
    steps = 100 if given.small else STEPS
    kinds: dict[str, Callable[[bool], Recurrence]] = {"diagonal": Diagonal, "dense": Dense}
    rows: dict[str, list[dict[str, float]]] = {}
    for name, kind in kinds.items():
        for inside in (True, False):
            place = f"{name}, {'inside' if inside else 'free'}"
            rows[place] = [arm(kind, inside, seed, steps) for seed in _shared.SEEDS]
            rows[f"{place}: before training"] = [arm(kind, inside, seed, 0) for seed in _shared.SEEDS]
    told: list[dict[str, Any]] = [
        {
            "arm": name,
            "seed": seed,
            **{key: round(value, 4) if math.isfinite(value) else None for key, value in found.items()},
        }
        for name, seeds in rows.items()
        for seed, found in zip(_shared.SEEDS, seeds, strict=True)
    ]
    trained = {name: seeds for name, seeds in rows.items() if not name.endswith("training")}
    _shared.tell("spectral", "recurrences of 64 states", verdict(trained), steps=steps, rows=told)


if __name__ == "__main__":
    _shared.run(__doc__, ["copying"], measure)
