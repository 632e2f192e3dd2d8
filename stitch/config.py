"""What a stitch is asked to be: one frozen record, checked at birth, stored in the report."""

from dataclasses import asdict, dataclass, fields

from stitch.errors import UsageError

NATIVE = ("down-projection", "down-projections")  # translations that become weights of the model itself

CHOICES = {
    "matching": ("hungarian", "ot", "unbalanced"),
    "architecture": ("batchtopk", "topk", "jumprelu", "standard", "matryoshka"),
    "translation": (
        *("auto", "identity", "mean-shift", "procrustes", "permutation", "permutation+error", "barycentric"),
        *("cross-code", "directions", "rotation", "prior"),
        *("affine", "affine+token", "affine+state", "affine+free", "affine+free+tables"),
        *("routed", "routed+tables"),
        *("features", "features+token", "features+free", "features+free+tables"),
        *NATIVE,
    ),
    "dtype": ("fp32", "bf16", "fp16"),
}

# Rows of a brief report besides models, composite, and references and a translation that are asked for: what a pair and a model
# stitched to itself get by default, baseline, what the matching carries, floor, ceiling, nulls.
BRIEF = (
    *("translation:routed+tables", "translation:affine+free+tables", "translation:identity", "translation:affine"),
    *("translation:permutation", "floor:mean", "ceiling:sae-b", "sae-a", "null:no-source", "null:shuffled-matching"),
)

TOKENS = 1_000_000  # to fit on, by default

REFERENCE_STEPS = 100  # of gradient descent, by default

TOKENS_NATIVE = 100_000  # no SAE is trained, so that fewer will do

LEAST_TOKENS = 4096  # two SAE batches; fewer tokens cannot fit anything


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides the result. Layers are checked against the models later, when these are known."""

    model_a: str
    model_b: str
    layer: int
    layer_b: int | str | None = None  # None: the same relative depth; "auto": chosen on the sweep split
    text: str = "docs"
    tokens: int | None = None  # None: TOKENS, or TOKENS_NATIVE
    held_out: int | None = None
    context: int | None = None
    features: int | None = None
    k: int = 32
    architecture: str = "batchtopk"
    sae_a: str | None = None
    sae_b: str | None = None
    sae_passes: float = 2.0
    matching: str = "hungarian"
    translation: str = "auto"
    ngrams: int = 32_768
    routes: int | None = None  # classes of tokens; None: as many as make their matrices as large as 32,768 table rows
    reference_steps: int | None = None  # None: REFERENCE_STEPS, or none for a brief report
    seed: int = 0
    memory: int = 4 * 2**30
    device: str = "auto"
    dtype: str = "fp32"
    trust_remote_code: bool = False
    native: bool = False
    brief: bool = False

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if (got := getattr(self, name)) not in choices:
                raise UsageError(f"--{name} must be one of {', '.join(choices)}; got {got!r}.")
        if isinstance(self.layer_b, str) and self.layer_b != "auto":
            raise UsageError(f"--layer-b must be a block's number or auto; got {self.layer_b!r}.")
        if self.translation in NATIVE and not self.native:
            raise UsageError(f"--translation {self.translation} is written into the model's weights: add --native.")
        if self.native and self.brief:
            raise UsageError("--brief leaves out rows that a report of --native does not have: give one of the two.")
        if self.tokens is not None and self.tokens < LEAST_TOKENS:
            raise UsageError(f"--tokens must be at least {LEAST_TOKENS:,}; got {self.tokens:,}.")
        if self.held_out is not None and self.held_out < 1:
            raise UsageError(f"--held-out must be at least 1; got {self.held_out}.")
        if self.context is not None and self.context < 8:
            raise UsageError(f"--context must be at least 8 tokens; got {self.context}.")
        if self.k < 1:
            raise UsageError(f"--k must be at least 1; got {self.k}.")
        if not self.sae_passes > 0:
            raise UsageError(f"--sae-passes must be above 0; got {self.sae_passes}.")
        if self.memory < 2**26:
            raise UsageError(f"--memory must be at least 64M; got {self.memory / 2**20:.0f}M.")
        if self.ngrams < 0:
            raise UsageError(f"--ngrams must be 0 or more; got {self.ngrams}.")
        if self.routes is not None and self.routes < 0:
            raise UsageError(f"--routes must be 0 or more; got {self.routes}.")
        if self.reference_steps is not None and self.reference_steps < 0:
            raise UsageError(f"--reference-steps must be 0 or more; got {self.reference_steps}.")
        if self.seed < 0:
            raise UsageError(f"--seed must be 0 or more; got {self.seed}.")

    @property
    def steps_of_reference(self) -> int:
        """Gradient steps of the trained reference; none: there is no such row."""
        if self.reference_steps is not None:
            return self.reference_steps
        return 0 if self.brief else REFERENCE_STEPS

    def wants(self, row: str) -> bool:
        """Whether a row of this name is to be fitted and reported."""
        return not self.brief or row in BRIEF or row == f"translation:{self.translation}"

    @classmethod
    def from_dict(cls, values: dict) -> "Settings":
        """The inverse of `asdict`; an unknown key raises UsageError."""
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise UsageError(f"settings have the keys {', '.join(known)}; got {unknown[0]!r} as well.")
        return cls(**values)

    def to_dict(self) -> dict:
        return asdict(self)


def same_relative_depth(layer: int, depth_a: int, depth_b: int) -> int:
    """The site of B at the same share of its depth as `layer` of A, at least one block from either end where A's is."""
    site = round(layer * depth_b / depth_a)
    return min(max(site, 1), depth_b - 1) if 0 < layer < depth_a else site
