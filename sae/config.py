"""Architecture, size and training schedule of an SAE."""

import math
from dataclasses import dataclass, fields

from sae.errors import SAEError

ARCHITECTURES = ("batchtopk", "topk", "jumprelu", "standard", "matryoshka")


@dataclass(frozen=True, kw_only=True)
class SAEConfig:
    """One SAE and its training schedule.

    Raises SAEError when a value is out of range.

    architecture one of ARCHITECTURES.
    k            active features per token: exact for topk, on average for batchtopk and matryoshka, the target of
                 jumprelu's penalty. Not used by `standard`, whose sparsity follows from its L1 penalty (see `auxiliary`).
    lr           peak learning rate of Adam; None is 2e-4 / sqrt(features / 16384), the scaling law of Gao et al. 2024,
                 arXiv 2406.04093.
    warmup       share of the steps over which lr rises linearly.
    decay        share of the steps, at the end, over which lr falls linearly to zero.
    auxiliary    weight of the architecture's second loss: reviving dead features (batchtopk, topk, matryoshka),
                 (L0 − k)² (jumprelu), L1 (standard). Activations are scaled to a mean norm of sqrt(d) first.

    >>> import sae
    >>> sae.SAEConfig(features=4096, k=32).learning_rate
    0.0004
    """

    architecture: str = "batchtopk"
    features: int
    k: int = 32
    lr: float | None = None
    steps: int = 1000
    batch_size: int = 2048
    warmup: float = 0.05
    decay: float = 0.2
    auxiliary: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise SAEError(f"architecture must be one of {', '.join(ARCHITECTURES)}; got {self.architecture!r}.")
        for name, least in (("features", 1), ("k", 1), ("steps", 1), ("batch_size", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise SAEError(f"{name} must be a whole number of at least {least}; got {value!r}.")
        if self.k > self.features:
            raise SAEError(f"k must be at most features = {self.features}; got {self.k}. Lower k or raise features.")
        if self.architecture == "matryoshka" and self.features < 4:
            raise SAEError(f"matryoshka needs at least 4 features to nest levels; got {self.features}.")
        if self.lr is not None and not (math.isfinite(self.lr) and self.lr > 0):
            raise SAEError(f"lr must be positive, or None for the default; got {self.lr!r}.")
        if not (math.isfinite(self.auxiliary) and self.auxiliary >= 0):
            raise SAEError(f"auxiliary must be zero or more; got {self.auxiliary!r}.")
        if not (self.warmup >= 0 and self.decay >= 0 and self.warmup + self.decay <= 1):
            raise SAEError(
                f"warmup and decay are shares of the steps, together at most 1; got {self.warmup} and {self.decay}."
            )

    @classmethod
    def from_dict(cls, values: dict) -> "SAEConfig":
        """The inverse of `dataclasses.asdict`; an unknown key raises SAEError."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown or "features" not in values:
            problem = f"unknown key {unknown[0]!r}" if unknown else "features is missing"
            raise SAEError(f"an SAE config has the keys {', '.join(known)}; {problem}.")
        return cls(**values)

    @property
    def learning_rate(self) -> float:
        return 2e-4 / math.sqrt(self.features / 16384) if self.lr is None else self.lr

    @property
    def warmup_steps(self) -> int:
        return int(self.steps * self.warmup)

    @property
    def decay_steps(self) -> int:
        return int(self.steps * self.decay)
