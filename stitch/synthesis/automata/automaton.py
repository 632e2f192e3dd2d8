"""Deterministic finite automata with output, as data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Automaton:
    """Reading `symbols[a]` in state q leads to state `steps[q][a]`, with the output `says[q][a]`, the name of a token.

    The output of an accepting automaton is the new state, with a plus where it accepts. That of a Moore machine is the new state
    and its output; that of a Mealy machine is the new state and the output of the step.
    """

    states: tuple[str, ...]
    symbols: tuple[str, ...]
    start: int
    steps: tuple[tuple[int, ...], ...]
    says: tuple[tuple[str, ...], ...]

    def as_json(self) -> dict:
        return {
            "states": list(self.states),
            "symbols": list(self.symbols),
            "start": self.start,
            "steps": [list(row) for row in self.steps],
            "says": [list(row) for row in self.says],
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Automaton":
        """The inverse of `as_json`."""
        return cls(
            tuple(found["states"]),
            tuple(found["symbols"]),
            found["start"],
            tuple(tuple(row) for row in found["steps"]),
            tuple(tuple(row) for row in found["says"]),
        )

    @property
    def said(self) -> dict[str, int]:
        """Every possible output, and the state after it, in order of states."""
        pairs = {
            (state, word)
            for row, words in zip(self.steps, self.says, strict=True)
            for state, word in zip(row, words, strict=True)
        }
        return {word: state for state, word in sorted(pairs)}
