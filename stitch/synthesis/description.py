"""The description of a compiled checkpoint (`synthesis.json` in its folder), checked when it is read back."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from stitch.errors import UsageError
from stitch.files.schema import Loose, checked
from stitch.files.specification import MOST_DATA, read_json
from stitch.synthesis.automata.automaton import Automaton
from stitch.synthesis.automata.tables import check_table
from stitch.synthesis.bounds import LONGEST, MOST_DIMENSIONS, MOST_SEED
from stitch.synthesis.machines.subleq_circuit import FEWEST_CELLS, MOST_CELLS
from stitch.synthesis.machines.turing_circuit import FEWEST_CELLS as NARROWEST
from stitch.synthesis.patterns.induction_circuit import FEWEST_TOKENS
from stitch.synthesis.patterns.pattern import checked_pattern

FILE = "synthesis.json"
Arch = Literal["gpt2", "llama"]
Context = Annotated[int, Field(ge=2, le=LONGEST)]


class Table(Loose):
    states: list[str]
    symbols: list[str]
    start: int
    steps: list[list[int]]
    says: list[list[str]]


class AutomatonDescription(Loose):
    kind: Literal["automaton"]
    source: str
    arch: Arch
    mode: Literal["stepwise", "parallel", "vsa"]
    length: int = Field(ge=2, lt=LONGEST // 2)
    automaton: Table
    dimension: int | None = Field(None, ge=2, le=MOST_DIMENSIONS, multiple_of=2)
    seed: int | None = Field(None, ge=0, le=MOST_SEED)
    coherence: float | None = None


class TuringDescription(Loose):
    kind: Literal["turing"]
    arch: Arch
    window: int = Field(ge=NARROWEST, le=LONGEST)
    context: Context


class SubleqDescription(Loose):
    kind: Literal["subleq"]
    arch: Arch
    cells: int = Field(ge=FEWEST_CELLS, le=MOST_CELLS)
    context: Context


class Errors(Loose):
    max: float
    mean: float


class RankRow(Errors):
    rank: int
    naive: Errors
    completed: Errors


class PatternDescription(Loose):
    kind: Literal["pattern"]
    source: str
    arch: Arch
    context: Context
    targets: list[int] | None = None
    matrix: list[list[float]] | None = None
    rank: int | None = Field(None, ge=1, le=LONGEST)
    rank_curve: list[RankRow] | None = Field(None, min_length=1)


class InductionDescription(Loose):
    kind: Literal["induction"]
    arch: Arch
    context: int = Field(ge=FEWEST_TOKENS, le=LONGEST)
    tokens: list[str] = Field(min_length=3)
    tokenizer: str | None


Description = Annotated[
    AutomatonDescription | TuringDescription | SubleqDescription | PatternDescription | InductionDescription,
    Field(discriminator="kind"),
]


def described(folder: Path) -> dict:
    """The description in `folder`.

    Raises: UsageError when the folder holds no compiled checkpoint, or its description is not one that was written.
    """
    path = folder / FILE
    if not path.is_file():
        raise UsageError(f"{folder} must be a folder with a compiled checkpoint; it has no {FILE}.")
    found: Any = read_json(path, "the description", MOST_DATA)
    match checked(Description, found, str(path)):  # pyright: ignore[reportArgumentType]
        case AutomatonDescription() as one:
            check_table(Automaton.from_json(found["automaton"]), f"the automaton in {path}")
            if one.mode == "vsa" and None in (one.dimension, one.seed, one.coherence):
                raise UsageError(f"{path} must have dimension, seed and coherence for the mode vsa; compile it again.")
        case PatternDescription() as one:
            if (one.targets is None) == (one.matrix is None):
                raise UsageError(f"{path} must have targets or a matrix, and not both; compile it again.")
            if one.matrix is not None and (one.rank is None or one.rank_curve is None):
                raise UsageError(f"{path} must have rank and rank_curve for its matrix; compile it again.")
            checked_pattern(one.targets if one.matrix is None else one.matrix, one.context, str(path))
        case InductionDescription() as one:
            if len(set(one.tokens)) < len(one.tokens):
                raise UsageError(f"tokens of {path} must differ; compile it again.")
    return found
