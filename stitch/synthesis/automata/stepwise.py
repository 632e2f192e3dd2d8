"""An automaton in one block, on alternating symbols and states: the model writes every state, and reads it one token later.

One head copies the previous token. Each neuron is active for one pair of state and symbol. States and symbols have codes: one
channel each, or nearly orthogonal vectors, which need far fewer channels than states.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stitch.errors import UsageError
from stitch.synthesis.automata.automaton import Automaton
from stitch.synthesis.blueprint import Block, Blueprint, Neurons, Select, all_of, allot, back
from stitch.synthesis.bounds import MOST_WEIGHTS

BOS = "<s>"
HIGHEST_COHERENCE = 0.9  # above it, bf16 cannot distinguish codes


@dataclass(frozen=True)
class Codes:
    """Unit vectors for symbols and for outputs, in separate channels. `said[0]` is that of the start state."""

    symbols: Float[Tensor, "symbols d_symbols"]
    said: Float[Tensor, "said d_said"]

    @property
    def coherence(self) -> float:
        """The largest product of two vectors, both of symbols or both of outputs."""
        return max(coherence(self.symbols), coherence(self.said))


def coherence(vectors: Float[Tensor, "n d"]) -> float:
    """The largest product of two different rows, at least 0."""
    products = vectors @ vectors.T
    return max(float(products.fill_diagonal_(-torch.inf).max()), 0.0) if len(vectors) > 1 else 0.0


def tokens_of(automaton: Automaton) -> tuple[str, ...]:
    """The vocabulary of a compiled automaton: the first token, symbols, outputs."""
    return (BOS, *automaton.symbols, *automaton.said)


def exact_codes(automaton: Automaton) -> Codes:
    """One channel for every symbol and every output."""
    symbols, said = len(automaton.symbols), len(automaton.said) + 1
    return Codes(torch.eye(symbols, dtype=torch.float64), torch.eye(said, dtype=torch.float64))


def random_codes(automaton: Automaton, dimension: int, seed: int = 0) -> Codes:
    """Nearly orthogonal vectors of `dimension` numbers: random signs, half of them negative.

    Raises: UsageError for an odd dimension, or when two vectors are too similar.
    """
    if dimension < 2 or dimension % 2:
        raise UsageError(f"dimension must be even and at least 2; got {dimension}.")
    generator = torch.Generator().manual_seed(seed)

    def drawn(count: int) -> Tensor:
        order = torch.rand(count, dimension, generator=generator, dtype=torch.float64).argsort(1)
        return (1.0 - 2.0 * (order < dimension // 2).double()) / dimension**0.5

    codes = Codes(drawn(len(automaton.symbols)), drawn(len(automaton.said) + 1))
    if codes.coherence > HIGHEST_COHERENCE:
        raise UsageError(
            f"dimension must give the vectors of {len(automaton.said) + 1} states and {len(automaton.symbols)} symbols products "
            f"of at most {HIGHEST_COHERENCE}; with {dimension}, two have {codes.coherence:.2f}. Raise it."
        )
    return codes


def stepwise(automaton: Automaton, length: int, codes: Codes) -> Blueprint:
    """The blueprint for strings of up to `length` symbols. Raises: UsageError where its weights are too many."""
    symbols, said = len(automaton.symbols), len(automaton.said)
    d_symbols, d_said = codes.symbols.shape[1], codes.said.shape[1]
    at = allot(symbol=d_symbols, state=d_said, before_symbol=d_symbols, before=d_said, result=d_said)
    width = sum(map(len, at.values()))
    if (neurons := symbols * (1 + said)) * width > MOST_WEIGHTS:
        raise UsageError(
            f"the automaton may take {MOST_WEIGHTS:,} weights; its {neurons:,} neurons on {width:,} channels take "
            f"{neurons * width:,}. Use `mode=vsa`, which needs fewer channels, with a lower `dimension`."
        )
    context = 1 + 2 * length
    # The first token has the first of the codes of outputs, which stands for the start state.
    embedding = [
        _placed(codes.said[:1], at["state"], width),
        _placed(codes.symbols, at["symbol"], width),
        _placed(codes.said[1:], at["state"], width),
    ]
    before = Select(
        back(1, context),
        torch.cat([at["symbol"], at["state"]]),
        torch.cat([at["before_symbol"], at["before"]]),
    )
    unembedding = torch.zeros(width, 1 + symbols + said, dtype=torch.float64)
    unembedding[at["result"], 1 + symbols :] = codes.said[1:].T
    specimens, asked = _specimens(automaton, min(length, 16))
    return Blueprint(
        tokens=tokens_of(automaton),
        embedding=torch.cat(embedding),
        blocks=(Block((before,), _transitions(automaton, codes, at, width)),),
        unembedding=unembedding,
        length=context,
        specimens=specimens,
        asked=asked,
        crosstalk=coherence(codes.said[1:]),
    )


def _transitions(automaton: Automaton, codes: Codes, at: dict[str, Tensor], width: int) -> Neurons:
    """A neuron for every pair of an output before (which gives the state) and a symbol; it writes the output after."""
    said = list(automaton.said)
    state_of = torch.tensor([automaton.start, *automaton.said.values()])  # by code
    code, symbol = torch.meshgrid(torch.arange(len(state_of)), torch.arange(len(automaton.symbols)), indexing="ij")
    code, symbol = code.flatten(), symbol.flatten()
    answers = torch.tensor([[said.index(word) for word in row] for row in automaton.says])[state_of[code], symbol]
    reads = [_placed(codes.said[code], at["before"], width), _placed(codes.symbols[symbol], at["symbol"], width)]
    write = _placed(codes.said[1:][answers], at["result"], width)
    # A similar code meets a condition in part.
    return all_of(torch.stack(reads), write, highest_miss=1 + codes.coherence)


def _placed(rows: Tensor, channels: Tensor, width: int) -> Float[Tensor, "rows d"]:
    """Rows in these channels of an otherwise empty stream."""
    wide = torch.zeros(len(rows), width, dtype=torch.float64)
    wide[:, channels] = rows
    return wide


def interleaved(
    automaton: Automaton, strings: Int64[Tensor, "strings length"], says: Int64[Tensor, "strings length"]
) -> Int64[Tensor, "strings context"]:
    """Token ids of strings (indices of symbols), with every symbol followed by its output."""
    pairs = torch.stack([1 + strings, 1 + len(automaton.symbols) + says], 2).flatten(1)
    return torch.cat([torch.zeros_like(pairs[:, :1]), pairs], 1)


def _specimens(automaton: Automaton, length: int) -> tuple[Tensor, Tensor]:
    """Eight random strings with their outputs."""
    said = list(automaton.said)
    generator = torch.Generator().manual_seed(0)
    strings = torch.randint(len(automaton.symbols), (8, length), generator=generator)
    says = torch.empty_like(strings)
    for row, string in enumerate(strings.tolist()):
        state = automaton.start
        for position, symbol in enumerate(string):
            says[row, position] = said.index(automaton.says[state][symbol])
            state = automaton.steps[state][symbol]
    ids = interleaved(automaton, strings, says)
    asked = torch.zeros_like(ids, dtype=torch.bool)
    asked[:, 1::2] = True
    return ids, asked
