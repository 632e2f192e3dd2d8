"""An automaton inside a trained model: it reads the same tokens in channels, heads and neurons of its own.

As in `parallel`, every token holds the transition function of its window, and every block composes windows. Here, norms multiply
channels by a factor that is not known beforehand and differs between tokens. Therefore scores are 0 for the target and negative
for all other tokens, whatever the factor. A neuron is inhibited by evidence against its path; evidence for it is not added up.
The outputs of neurons are saturated by biases, which norms do not scale. The automaton's channels ("lanes") are so small that
they hardly change the host's norms.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from stitch.errors import UsageError
from stitch.grafts.hosts import widened
from stitch.internals import weights
from stitch.models.model import Model
from stitch.synthesis.automata.automaton import Automaton
from stitch.synthesis.tool.lanes import ABSORBERS, Lanes, Shape
from stitch.synthesis.tool.write import ToolWriter, norm_factors

FAINT = 0.1  # norm of all lanes relative to the shortest residual stream; bf16 needs that much
MOST_WINDOWS = 3  # composed in one block


@dataclass(frozen=True)
class Tool:
    """`read` has a vector for every state; the state is the one with the largest product with the last hidden state.

    `windows` are composed in each of `blocks` blocks.
    """

    net: Model
    read: Tensor  # [states, d]
    windows: int
    blocks: int


def steps_of_tokens(automaton: Automaton, tokenizer, count: int) -> Int64[Tensor, "vocabulary states"]:
    """The next state after each of `count` tokens, from every state.

    The symbols of a token's text are read one after another, and other characters are skipped. Special tokens lead to the start.
    """
    special = set(tokenizer.all_special_ids)
    number = {symbol: index for index, symbol in enumerate(automaton.symbols)}
    rows = []
    for token in range(count):
        if token in special:
            rows.append([automaton.start] * len(automaton.states))
            continue
        text = tokenizer.decode([token])
        rows.append([_state_after(automaton, number, state, text) for state in range(len(automaton.states))])
    return torch.tensor(rows)


def _state_after(automaton: Automaton, number: dict[str, int], state: int, text: str) -> int:
    for symbol in text:
        if symbol in number:
            state = automaton.steps[state][number[symbol]]
    return state


def states_along(
    steps: Int64[Tensor, "vocabulary states"], ids: Int64[Tensor, "rows length"], start: int
) -> Int64[Tensor, "rows length"]:
    """The state after every token, computed sequentially."""
    state, found = torch.full((len(ids),), start), []
    for column in ids.T:
        state = steps[column, state]
        found.append(state)
    return torch.stack(found, 1)


@torch.no_grad()
def with_tool(host: Model, automaton: Automaton, text: Int64[Tensor, "rows length"], faint: float = FAINT) -> Tool:
    """The host with the automaton in additional lanes. Contexts must start with a special token.

    The factors of the host's norms are measured on `text`. `faint` is the norm of all lanes relative to the shortest residual
    stream: larger lanes cost the host more, smaller ones are lost in bf16.

    Raises: UsageError for a host without learned positions, for symbols that are not characters, or for too many states.
    """
    shape = _shape(host, automaton)
    # Besides the lanes there are the ground channel and the absorbers, one of which is the channel that `widened` adds itself.
    neurons = 2 * shape.states ** (shape.windows + 1)
    wide, free = widened(host, channels=shape.lanes + ABSORBERS, groups=shape.windows - 1, neurons=neurons)
    net: Any = wide.net
    net.to("cpu")  # where the lanes are laid out
    lanes = Lanes.of(shape, free.channels, wide.width)
    writer = ToolWriter(wide, free, lanes, norm_factors(host, shape.blocks, text), faint, host.width)
    writer.embedding(steps_of_tokens(automaton, wide.tokenizer, wide.vocabulary))
    writer.positions()
    for block in range(shape.blocks):
        writer.heads(block)
        writer.neurons(block)
    net.to(host.device)
    return Tool(wide, lanes.reading[lanes.windows[-1][automaton.start]], shape.windows, shape.blocks)


def _shape(host: Model, automaton: Automaton) -> Shape:
    if host.config.model_type != "gpt2":
        raise UsageError(f"a tool needs a host with learned positions (gpt2); {host.name} is {host.config.model_type}.")
    if any(len(symbol) != 1 for symbol in automaton.symbols):
        raise UsageError(
            f"a tool reads characters; the automaton has symbols such as {max(automaton.symbols, key=len)!r}."
        )
    states, context = len(automaton.states), host.longest
    windows = next((n for n in range(2, MOST_WINDOWS + 1) if n**host.depth >= context), None)
    if windows is None:
        raise UsageError(
            f"the {host.depth} blocks of {host.name} can compose {MOST_WINDOWS**host.depth:,} tokens; its context has "
            f"{context:,}. Choose a deeper host."
        )
    blocks = next(n for n in range(1, host.depth + 1) if windows**n >= context)
    shape = Shape(states, windows, blocks, bits=(context - 1).bit_length())
    size = weights.attention(host, 0).q.shape[2]
    if states**2 > size or shape.bits + 1 > size:
        raise UsageError(
            f"the automaton may have {int(size**0.5)} states, as heads of {host.name} copy {size} numbers; it has {states}."
        )
    return shape
