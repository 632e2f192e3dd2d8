"""An automaton over a whole string at once, in ⌈log₂ length⌉ blocks: every token holds what its window does to every state.

Block ℓ fetches the window that ends 2^ℓ tokens back and composes both, which doubles the window. The first token, where all
that reach beyond it look, does nothing to any state. Source: Liu et al. 2022, arXiv 2210.10749 (there as an existence proof).
"""

import torch
from torch import Tensor

from stitch.errors import UsageError
from stitch.synthesis.automata.automaton import Automaton
from stitch.synthesis.automata.stepwise import tokens_of
from stitch.synthesis.blueprint import Block, Blueprint, Neurons, Select, allot, back, one_hots, together

MOST_STATES = 8


def parallel(automaton: Automaton, length: int) -> Blueprint:
    """For strings of `length` symbols and less. A state that is read does nothing, so that symbols may follow it.

    Raises UsageError for too many states, as neurons grow with their third power, and where a state has several outputs.
    """
    states, context = len(automaton.states), length + 1
    if states > MOST_STATES:
        neurons = 2 * states**3 + 2 * states**2
        raise UsageError(
            f"--mode parallel takes {MOST_STATES} states at most; {states} would need {neurons:,} neurons in each of "
            f"{_depth(length)} blocks: use --mode stepwise."
        )
    words = list(automaton.said)
    if len(words) > len(set(automaton.said.values())):
        raise UsageError(
            "--mode parallel says one word for each state; this machine's outputs depend on steps: use --mode stepwise."
        )
    at = allot(window=states**2, earlier=states**2)
    width = 2 * states**2
    hot = {name: one_hots(channels, width).view(states, states, width) for name, channels in at.items()}

    every = torch.arange(states)
    doing = [
        every,
        *(torch.tensor([row[symbol] for row in automaton.steps]) for symbol in range(len(automaton.symbols))),
    ]
    doing += [every] * len(words)
    embedding = torch.stack([hot["window"][every, does].sum(0) for does in doing])
    neurons = _compose(hot["earlier"], hot["window"])
    blocks = tuple(
        Block((Select(back(2**block, context), at["window"], at["earlier"]),), neurons)
        for block in range(_depth(length))
    )
    unembedding = torch.zeros(width, len(doing), dtype=torch.float64)
    first_word = 1 + len(automaton.symbols)
    unembedding[:, first_word:] = hot["window"][automaton.start, torch.tensor(list(automaton.said.values()))].T
    generator = torch.Generator().manual_seed(0)
    specimens = torch.randint(1, first_word, (8, min(context, 32)), generator=generator)
    specimens[:, 0] = 0
    return Blueprint(
        tokens_of(automaton),
        embedding,
        blocks,
        unembedding,
        context,
        specimens,
        torch.ones_like(specimens, dtype=torch.bool),
    )


def _depth(length: int) -> int:
    return max((length - 1).bit_length(), 1)


def _compose(earlier: Tensor, window: Tensor) -> Neurons:
    """The window becomes what the earlier one and then it do; the earlier one is cleared. Both: one-hots [from, to, channel].

    Sums that should be 0 or 1 are drawn to them, so that errors don't double with every block.
    """
    states = len(window)
    q, r, s = (index.flatten() for index in torch.meshgrid(*[torch.arange(states)] * 3, indexing="ij"))
    both, to = earlier[q, r] + window[r, s], window[q, s]
    count = len(to)
    up = Neurons(4 * both.T, torch.full((count,), 5.5, dtype=torch.float64), to)
    down = Neurons(4 * both.T, torch.full((count,), 6.5, dtype=torch.float64), -to)
    old = torch.cat([earlier.flatten(0, 1), window.flatten(0, 1)])
    clear = Neurons(old.T, torch.zeros(len(old), dtype=torch.float64), -old)
    return together(up, down, clear)
