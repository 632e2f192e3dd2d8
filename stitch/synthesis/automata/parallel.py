"""An automaton over a whole string at once, in ⌈log₂ length⌉ blocks: every token holds the transition function of its window.

Block ℓ fetches the window that ends 2^ℓ tokens back and composes both functions, which doubles the window. Windows that begin
before the first token fetch it; its function is the identity. Source: Liu et al. 2022, arXiv 2210.10749 (an existence proof).
"""

import torch
from torch import Tensor

from stitch.errors import UsageError
from stitch.synthesis.automata.automaton import Automaton
from stitch.synthesis.automata.stepwise import tokens_of
from stitch.synthesis.blueprint import Block, Blueprint, Neurons, Select, allot, back, bits_for, one_hots, together

MOST_STATES = 8


def parallel(automaton: Automaton, length: int) -> Blueprint:
    """The blueprint for strings of up to `length` symbols. An output that is read has the identity as its function.

    Raises: UsageError for too many states, since neurons grow with their third power, and for states with several outputs.
    """
    _check(automaton, length)
    states, context = len(automaton.states), length + 1
    at = allot(window=states**2, earlier=states**2)
    width = 2 * states**2
    hot = {name: one_hots(channels, width).view(states, states, width) for name, channels in at.items()}
    neurons = _compose(hot["earlier"], hot["window"])
    blocks = tuple(
        Block((Select(back(2**block, context), at["window"], at["earlier"]),), neurons)
        for block in range(bits_for(length))
    )
    functions = _functions(automaton)
    first_output = 1 + len(automaton.symbols)
    unembedding = torch.zeros(width, len(functions), dtype=torch.float64)
    unembedding[:, first_output:] = hot["window"][automaton.start, torch.tensor(list(automaton.said.values()))].T
    generator = torch.Generator().manual_seed(0)
    specimens = torch.randint(1, first_output, (8, min(context, 32)), generator=generator)
    specimens[:, 0] = 0
    return Blueprint(
        tokens=tokens_of(automaton),
        embedding=torch.stack([hot["window"][torch.arange(states), function].sum(0) for function in functions]),
        blocks=blocks,
        unembedding=unembedding,
        length=context,
        specimens=specimens,
        asked=torch.ones_like(specimens, dtype=torch.bool),
    )


def _check(automaton: Automaton, length: int) -> None:
    states = len(automaton.states)
    if states > MOST_STATES:
        neurons = 2 * states**3 + 2 * states**2
        raise UsageError(
            f"`mode=parallel` takes {MOST_STATES} states at most; {states} would need {neurons:,} neurons in each of "
            f"{bits_for(length)} blocks. Use `mode=stepwise`."
        )
    if len(automaton.said) > len(set(automaton.said.values())):
        raise UsageError(
            "`mode=parallel` needs one output for each state; this machine's outputs depend on its steps. "
            "Use `mode=stepwise`."
        )


def _functions(automaton: Automaton) -> list[Tensor]:
    """The next state from every state, for each token: transitions for symbols, the identity for the first token and outputs."""
    identity = torch.arange(len(automaton.states))
    transitions = [torch.tensor([row[symbol] for row in automaton.steps]) for symbol in range(len(automaton.symbols))]
    return [identity, *transitions, *[identity] * len(automaton.said)]


def _compose(earlier: Tensor, window: Tensor) -> Neurons:
    """Neurons that replace the window by the composition of the earlier window and it, and clear the earlier one.

    Both arguments are one-hot vectors [from, to, channel]. Each result is the difference of two neurons that saturates at 0 and
    1, so that errors do not double with every block.
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
