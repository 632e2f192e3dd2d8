"""How large what is compiled may be. What is larger is refused before anything is allocated, and the message names the bound."""

from numbers import Integral  # also those of NumPy

from stitch.errors import UsageError
from stitch.files.specification import shown

# A certificate looks at the whole attention of every head at once: 4 GiB a head in fp32 at this context.
LONGEST = 32_768  # tokens
# A soft pattern is factorised by singular value decompositions of its matrix: minutes at this length, hours at four times it.
LONGEST_SOFT = 2_048  # tokens
MOST_TOKENS = 10_000_000  # of every trial of a certificate, which are kept in memory
MOST_STEPS = 1_000_000_000  # of a run: weeks
MOST_DIMENSIONS = 4_096  # of nearly orthogonal vectors, of which 256 tell 256 states apart
MOST_SEED = 2**63 - 1
# Numbers in one matrix of weights: 256 MB in float64, in which weights are made.
MOST_WEIGHTS = 2**25


def within(name: str, value: int, low: int, high: int) -> None:
    """Raises: UsageError unless the parameter `name` is a whole number from `low` to `high`."""
    if not isinstance(value, Integral) or isinstance(value, bool) or not low <= value <= high:
        raise UsageError(f"{name} must be {low:,} to {high:,}; got {shown(value)}.")
