"""Trials of a compiled automaton: all short strings, random long ones, loops, and a tour of all transitions."""

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from stitch.synthesis import interpreters
from stitch.synthesis.automata.automaton import Automaton
from stitch.synthesis.automata.stepwise import interleaved
from stitch.synthesis.trials import Trial

MOST_STRINGS = 1_000
LONGEST_LOOP = 3  # symbols


def trials(automaton: Automaton, mode: str, length: int, tokens: int, seed: int) -> Iterator[Trial]:
    """Trials of about `tokens` symbols each."""
    symbols = range(len(automaton.symbols))
    short = 1
    while short < length and (short + 1) * len(symbols) ** (short + 1) <= tokens:
        short += 1
    strings = torch.tensor(list(itertools.product(symbols, repeat=short)))
    yield _asked(f"every string of length {short}", automaton, mode, strings)
    count = min(max(tokens // length, 1), MOST_STRINGS)
    drawn = torch.randint(len(symbols), (count, length), generator=torch.Generator().manual_seed(seed))
    yield _asked(f"random strings of length {length:,}", automaton, mode, drawn)
    every = (loop for size in range(1, LONGEST_LOOP + 1) for loop in itertools.product(symbols, repeat=size))
    loops = itertools.islice(every, count)
    rows = torch.tensor([list(itertools.islice(itertools.cycle(loop), length)) for loop in loops])
    yield _asked(f"loops of length {length:,}", automaton, mode, rows)
    yield _asked(
        f"every step of every state, to length {length:,}", automaton, mode, torch.tensor([_tour(automaton, length)])
    )


def _tour(automaton: Automaton, length: int) -> list[int]:
    """A string that takes, in every state, the transition that it has taken least often."""
    taken = [[0] * len(automaton.symbols) for _ in automaton.states]
    state, string = automaton.start, []
    for _ in range(length):
        row = taken[state]
        symbol = row.index(min(row))
        row[symbol] += 1
        string.append(symbol)
        state = automaton.steps[state][symbol]
    return string


def _asked(name: str, automaton: Automaton, mode: str, strings: Tensor) -> Trial:
    said, machine = list(automaton.said), automaton.as_json()
    says = torch.tensor([_numbers(said, interpreters.words(machine, string)) for string in strings.tolist()])
    word = 1 + len(automaton.symbols) + says
    if mode != "parallel":
        ids = interleaved(automaton, strings, says)
        answers = torch.full_like(ids, -1)
        answers[:, 1:-1:2] = word
        return Trial(name, ids[:, :-1], answers[:, :-1])  # the last output is not read
    ids = torch.cat([torch.zeros_like(strings[:, :1]), 1 + strings], 1)
    return Trial(name, ids, torch.cat([torch.full_like(word[:, :1], -1), word], 1))


def _numbers(said: Sequence[str], words: Sequence[str]) -> list[int]:
    number = {word: index for index, word in enumerate(said)}
    return [number[word] for word in words]
