"""How fast a machine is at what commands spend their time with, measured in about two seconds."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch

from stitch.composite.costs import whole
from stitch.estimates.work import Work
from stitch.evaluation.scores import Batch, evaluate
from stitch.models.model import Model
from stitch.progress import Progress, counted
from stitch.text.windows import Windows

LONG = 0.3  # seconds that a measurement lasts at least
ROWS = 2048  # tokens in a product


@dataclass(frozen=True)
class Machine:
    """Rates: FLOPs per second of forward passes by model, and of products in float32 and float64; bytes per second that pass
    through element-wise operations. `compared` is the seconds per token that scoring logits takes after the forward pass.
    `load` is how many processes ran or waited while it was measured, on average of a minute; None where that is unknown. `cores`
    are those that this process may use."""

    passes: dict[str, float]
    single: float
    double: float
    bytes: float
    compared: float
    load: float | None = None
    cores: int = 1

    @property
    def was_busy(self) -> bool:
        return self.load is not None and self.load > self.cores

    def forward(self, model: str, flops: float) -> Work:
        """Forward passes of a model, of its blocks and head."""
        return Work(flops, flops / self.passes[model])

    def product(self, flops: float, *, double: bool = False) -> Work:
        """Products of matrices."""
        return Work(flops, flops / (self.double if double else self.single))

    def moved(self, bytes: float) -> Work:
        """Arrays read or written, element by element."""
        return Work(0.0, bytes / self.bytes)

    def scoring(self, tokens: float) -> Work:
        """Cross-entropy, divergence and agreement of so many tokens, once logits are there."""
        return Work(0.0, tokens * self.compared)

    def to_dict(self) -> dict:
        return asdict(self)


@torch.no_grad()
def calibrate(models: Mapping[str, Model], context: int, progress: Progress | None = None) -> Machine:
    """Measures this machine with the models, in windows of `context` tokens. Models are on one device."""
    first = next(iter(models.values()))
    width = max(model.width for model in models.values())
    known: dict[int, float] = {}  # a model given twice is measured once
    for model in counted(list(models.values()), "measuring the machine (models)", progress):
        if id(model) not in known:
            known[id(model)] = _passes(model, context)
    return Machine(
        {name: known[id(model)] for name, model in models.items()},
        _product(width, torch.float32, first.device),
        _product(width, torch.float64, torch.device("cpu")),
        _bytes(),
        _compared(min(model.vocabulary for model in models.values()), context, first.device),
        os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        os.cpu_count() or 1,  # the load is that of all cores, also where this process may use some of them
    )


def _passes(model: Model, context: int) -> float:
    """FLOPs per second of a forward pass through the whole model. A batch has as many windows as take a tenth of a second."""
    flops = whole(model, context).flops * context

    def run(windows: int) -> float:
        ids = torch.zeros(windows, context, dtype=torch.int64, device=model.device)
        return _seconds(
            lambda: model.net(input_ids=ids, use_cache=False).logits.sum().item(), 0.0 if windows == 1 else LONG
        )

    once = run(1)
    windows = max(1, min(2048 // context, round(0.1 / once)))
    return flops * windows / (run(windows) if windows > 1 else min(once, run(1)))


def _product(width: int, dtype: torch.dtype, device: torch.device) -> float:
    x = torch.randn(ROWS, width, dtype=dtype, device=device)
    return 2.0 * ROWS * width**2 / _seconds(lambda: (x.T @ x)[0, 0].item())


def _bytes() -> float:
    x = torch.zeros(2**25)  # larger than caches
    return 3.0 * x.numel() * x.itemsize / _seconds(lambda: (x + x)[0].item())


def _compared(vocabulary: int, context: int, device: torch.device) -> float:
    """Seconds per token to compare logits with targets and with other logits."""
    ids = torch.zeros(1, context, dtype=torch.int32)
    windows = Windows(ids, torch.zeros_like(ids))
    logits = torch.randn(1, context, vocabulary, device=device)

    def given(batch: Batch) -> torch.Tensor:
        return logits

    def run(rows: int) -> float:
        named = {str(number): given for number in range(rows)}
        return _seconds(
            lambda: evaluate(named, windows, vocabulary=vocabulary, reference=lambda batch: logits), LONG / 3
        )

    return max(0.0, run(3) - run(1)) / 2 / context


def _seconds(run: Callable[[], object], long: float = LONG) -> float:
    """The least seconds of several runs, which last `long` in all or are one."""
    run()
    least, start = float("inf"), time.perf_counter()
    while True:
        before = time.perf_counter()
        run()
        now = time.perf_counter()
        least = min(least, now - before)
        if now - start >= long:
            return least
