"""The settings of a stitch: as they are asked for, and with every default that depends on the models filled in."""

from dataclasses import asdict, dataclass, fields
from operator import index
from typing import SupportsIndex, cast

from stitch.errors import UsageError
from stitch.models.device import DTYPES
from stitch.text.documents import LEAST_TOKENS
from stitch.translation import rows

TOKENS = 1_000_000  # to fit on, by default
TOKENS_NATIVE = 100_000  # the same with `native`, where no SAE is trained and fewer are enough
REFERENCE_STEPS = 100  # of gradient descent for the trained reference, by default

CHOICES = {
    "matching": ("hungarian", "ot", "unbalanced"),
    "architecture": ("batchtopk", "topk", "jumprelu", "standard", "matryoshka"),
    "dtype": tuple(DTYPES),
}


LEAST = {"held_out": 1, "context": 8, "k": 1, "ngrams": 0, "routes": 0, "reference_steps": 0, "seed": 0}


@dataclass(frozen=True, kw_only=True)
class _Common:
    """The fields of both kinds of settings. Raises UsageError for a value that is wrong for all models."""

    model_a: str
    model_b: str
    layer: int
    text: str = "docs"
    held_out: int | None = None
    features: int | None = None
    k: int = 32
    architecture: str = "batchtopk"
    sae_a: str | None = None
    sae_b: str | None = None
    sae_any_hook: bool = False  # a given SAE may be of another hook or another model
    sae_passes: float = 2.0
    matching: str = "hungarian"
    translation: str = "auto"
    ngrams: int = 32_768
    seam_bytes: float = 10.0  # of the composite's translation, in percent of the bytes of both halves
    routes: int | None = None  # classes of tokens; None: as many as keep their matrices within 32,768 rows
    reference_steps: int | None = None  # None: REFERENCE_STEPS, or none for a brief report
    seed: int = 0
    memory: int = 4 * 2**30
    device: str = "auto"
    dtype: str = "fp32"
    trust_remote_code: bool = False
    native: bool = False
    brief: bool = False

    def __post_init__(self) -> None:
        self._require_types()
        choices = {**CHOICES, "translation": ("auto", *rows.translations())}
        for name, allowed in choices.items():
            if (got := getattr(self, name)) not in allowed:
                raise UsageError(f"{name} must be one of {', '.join(allowed)}; got {got!r}.")
        if self.translation in rows.NATIVE and not self.native:
            raise UsageError(
                f"translation {self.translation} is written into the model's weights: set `native` as well."
            )
        if self.native and self.brief:
            raise UsageError(
                "brief and native cannot both be set: a report with `native` has no rows for `brief` to leave out."
            )
        if not self.sae_passes > 0:
            raise UsageError(f"sae_passes must be above 0; got {self.sae_passes}.")
        if not self.seam_bytes >= 0:
            raise UsageError(f"seam_bytes must be 0 or more percent; got {self.seam_bytes}.")
        if self.memory < 2**26:
            raise UsageError(f"memory must be at least 64M; got {self.memory / 2**20:.0f}M.")
        for name, bound in {"tokens": LEAST_TOKENS, **LEAST}.items():
            if (got := getattr(self, name, None)) is not None and got < bound:
                raise UsageError(f"{name} must be at least {bound:,}; got {got:,}.")

    def _require_types(self) -> None:
        """From Python any value may come, where the command line has read numbers as numbers. Those of numpy become Python's."""
        for field in fields(self):
            got = getattr(self, field.name)
            if field.name not in ("layer", "layer_b", "features", "tokens", *LEAST) or (
                got is None and field.default is None
            ):
                continue
            if field.name == "layer_b" and isinstance(got, str):
                continue
            try:
                object.__setattr__(self, field.name, index(cast(SupportsIndex, None if isinstance(got, bool) else got)))
            except TypeError:
                raise UsageError(f"{field.name} must be a whole number; got {got!r}.") from None

    @property
    def steps_of_reference(self) -> int:
        """Gradient steps of the trained reference; with 0 the report has no such row."""
        if self.reference_steps is not None:
            return self.reference_steps
        return 0 if self.brief else REFERENCE_STEPS

    def wants(self, row: str) -> bool:
        """Whether the row of this name is fitted and reported."""
        return not self.brief or rows.row(row).brief or row == f"translation:{self.translation}"

    def to_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Settings(_Common):
    """Everything that decides the result, checked as far as that is possible without the models.

    Lengths are in tokens, `memory` is in bytes. None stands for a default, which may depend on the models.
    """

    layer_b: int | str | None = None  # None: the same relative depth; "auto": chosen on the sweep split
    tokens: int | None = None  # None: TOKENS, or TOKENS_NATIVE
    context: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.layer_b, str) and self.layer_b != "auto":
            raise UsageError(f"layer_b must be a block's number or auto; got {self.layer_b!r}.")

    @classmethod
    def from_dict(cls, values: dict) -> "Settings":
        """The inverse of `asdict`; an unknown key raises UsageError."""
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise UsageError(f"settings have the keys {', '.join(known)}; got {unknown[0]!r} as well.")
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class CompleteSettings(_Common):
    """Settings with all defaults filled in that depend on the models or on a choice among layers."""

    layer_b: int
    tokens: int
    context: int

    @property
    def sites(self) -> tuple[int, int]:
        """The sites that are joined: the stream entering block `layer` of A, and that entering block `layer_b` of B."""
        return self.layer, self.layer_b


AnySettings = Settings | CompleteSettings


def same_relative_depth(layer: int, depth_a: int, depth_b: int) -> int:
    """The site of B at the same share of its depth as `layer` of A. Where A's is not at an end, B's is not either."""
    site = round(layer * depth_b / depth_a)
    return min(max(site, 1), depth_b - 1) if 0 < layer < depth_a else site
