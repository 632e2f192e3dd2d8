"""What translations are fitted from, and how; and the columns that least squares reads of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae.types import Dictionary
from stitch.activations.paired import Paired
from stitch.features.matching import Matching
from stitch.progress import Progress
from stitch.translation.inputs import Input, reach, streams

# Tokens that least squares reads. It has a few thousand columns: more tokens lower its error by less than 1 % at the same cost
# again. Tables of n-grams read all tokens.
LEAST_SQUARES_TOKENS = 2**17


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What translations are fitted from. λ and shrinkage are chosen on `held_out`; the report split is not among them.

    `inputs` are what a ridge may read, by name; "x" is among them. `first` is B's state for BOS at position 0, and `vocabulary`
    the number of token ids. Without `features` no closed form is fitted.
    """

    fit: Paired
    held_out: Paired
    inputs: Mapping[str, Input]
    first: Float[Tensor, " d_b"]
    vocabulary: int
    features: "MatchedFeatures | None" = None


@dataclass(frozen=True)
class MatchedFeatures:
    """The SAEs of A and B and the matching of their features, for closed forms and the null of the matching."""

    a: Dictionary
    b: Dictionary
    matching: Matching


@dataclass(frozen=True, kw_only=True)
class Options:
    """How translations are fitted.

    `ngrams`: rows of the n-gram tables, 0 for none. `routes`: classes of tokens with a matrix of their own, 0 for none, None
    for the number that `how_many` gives. `chunk`: tokens read at a time. `memory`: in bytes; moments take at most half of it.
    """

    ngrams: int
    routes: int | None
    seed: int
    chunk: int
    memory: int


def variables(
    paired: Paired, inputs: Mapping[str, Input], options: Options, progress: Progress | None, which: str = ""
) -> Iterator[dict]:
    """The columns of all inputs, the target, and the target shuffled among the tokens of the chunk; chunk by chunk.

    Progress says `which` moments they are read for.
    """
    generator = torch.Generator().manual_seed(options.seed)
    done, total = 0, paired.tokens
    for tokens in paired.with_history(streams(inputs.values()), reach(inputs.values()), options.chunk):
        y = tokens.target
        columns = {name: found.columns(tokens) for name, found in inputs.items()}
        yield {**columns, "target": y, "shuffled": y[torch.randperm(len(y), generator=generator)]}
        done += len(y)
        if progress:
            progress(f"{which}moments (tokens)", done, total)
