"""Prompts of a behaviour: clean ones with the right answers, and corrupt ones from which the answers do not follow.

A model that has the behaviour answers the clean prompts and not the corrupt ones. All prompts start with BOS.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from stitch.errors import UsageError


@dataclass(frozen=True)
class Prompts:
    """Token ids. Where `asked` is true, the next token should be the one in `answers`; it competes with the tokens in `among`, or
    with all where that is empty.

    `corrupt` replaces the tokens that the answers follow from. It has the same length, so that activations of one can be put into
    the other. `order_one` is for behaviours with repeated tokens: the share of answers that a first-order Markov model of the
    prompt so far gets right, ties broken by chance. `distance` is how many tokens back stands what decides: the first occurrence
    of a sequence that stands twice, or an opening bracket.

    A circuit is chosen on every second prompt, from the first on, and reported on the others.
    """

    clean: Int64[Tensor, "prompts length"]
    corrupt: Int64[Tensor, "prompts length"]
    asked: Bool[Tensor, "prompts length"]
    answers: Int64[Tensor, "prompts length"]
    among: tuple[int, ...] = ()
    order_one: float | None = None
    distance: Int64[Tensor, " prompts"] | None = None

    def part(self, rows: slice) -> "Prompts":
        """Some of the prompts."""
        return replace(
            self,
            clean=self.clean[rows],
            corrupt=self.corrupt[rows],
            asked=self.asked[rows],
            answers=self.answers[rows],
            distance=None if self.distance is None else self.distance[rows],
        )


def following(clean: Tensor, corrupt: Tensor, asked: Tensor) -> Prompts:
    """Prompts whose answers are the next tokens of the clean ones."""
    answers = torch.where(asked, clean.roll(-1, 1), 0)
    return Prompts(clean, corrupt, asked, answers)


def require_room(prompts: Prompts, behaviour: str, model: str, longest: int | None) -> None:
    """Raises: UsageError where prompts, which may come from a file, are longer than the model's context."""
    length = prompts.clean.shape[1]
    if longest is not None and length > longest:
        raise UsageError(
            f"{behaviour} needs a context of {length} tokens; {model} takes {longest}: choose another model."
        )
