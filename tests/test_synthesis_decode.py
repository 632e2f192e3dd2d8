"""Frames are decoded at a cost that does not grow, and are those of greedy decoding with all keys."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from stitch.synthesis import checkpoint, kinds
from stitch.synthesis.build import build
from stitch.synthesis.decode import Machine, decoded
from stitch.synthesis.machines.subleq import frames
from stitch.synthesis.machines.subleq_tokens import tokens_of
from stitch.synthesis.machines.turing import Names, frame_text, from_description, laid_out, program_text, read_turing
from stitch.synthesis.machines.turing_circuit import TOKENS, ids_of
from stitch.synthesis.write import MARGIN

EXAMPLES = Path(__file__).parent.parent / "examples"
WINDOW, CELLS, CONTEXT = 8, 12, 150
COUNTER = {
    "start": "carry",
    "blank": "0",
    "rules": {
        "carry": {"0": ["1", "R", "back"], "1": ["0", "L", "carry"]},
        "back": {"0": ["0", "R", "back"], "e": ["e", "L", "carry"]},
    },
    "tape": "0000000e",
    "head": 6,
}  # runs until it leaves the window after 508 steps
SHUTTLE = {"start": "q", "blank": "0", "rules": {"q": {"0": ["1", "S", "r"]}, "r": {"1": ["0", "R", "q"]}}}


@dataclass(frozen=True)
class Prompted:
    """A checkpoint's network with a program, its first frame, and the answer of plain greedy decoding."""

    net: object
    prompt: list[int]
    frame: list[int]
    tokens: tuple[str, ...] = TOKENS
    ends: tuple[str, ...] = ("!", "#")

    def written(self, steps: int, **how) -> list[str]:
        machine = Machine(self.net, CONTEXT, self.tokens, self.ends, **how)
        return [token for found in machine.frames(self.prompt, self.frame, steps) for token in found.tokens]

    def plain(self, steps: int) -> list[str]:
        """By `generate`, in one run with all keys."""
        ends = [self.tokens.index(end) for end in self.ends]
        ids = decoded(self.net, self.prompt + self.frame, steps * len(self.frame), ends)
        return [self.tokens[number] for number in ids]


def network(folder: Path, description: dict):
    checkpoint.save(build(kinds.blueprint_of(description), description["arch"]), description, folder)
    return checkpoint.load(folder, torch.float32, "sdpa")


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def universal(request, tmp_path_factory):
    description = {"kind": "turing", "arch": request.param, "window": WINDOW, "context": CONTEXT}
    return network(tmp_path_factory.mktemp("turing") / "machine", description)


def turing(net, found) -> Prompted:
    machine = read_turing(found) if isinstance(found, Path) else from_description(found)
    names = Names.of(machine, machine.tape)
    cells, head = laid_out(machine, machine.tape, WINDOW, machine.head)
    return Prompted(
        net, ids_of(program_text(machine, names)), ids_of(frame_text(names, cells, head, machine.start))[1:]
    )


def subleq(net, memory: list[int]) -> Prompted:
    tokens = tokens_of(CELLS)
    (first,) = frames([*memory, *[0] * (CELLS - len(memory))], 1)
    return Prompted(net, [0], [tokens.index(token) for token in first], tokens, ("!",))


PROGRAMS = {
    "counter": COUNTER,
    "shuttle": SHUTTLE,  # leaves the window
    "halts": EXAMPLES / "busy_beaver_2.json",
}


@pytest.mark.parametrize("kept, drafts", [(1, True), (2, False), (3, True)])
@pytest.mark.parametrize("program", PROGRAMS)
def test_frames_are_those_of_greedy_decoding_with_all_keys(universal, program, kept, drafts):
    prompted = turing(universal, PROGRAMS[program])
    steps = (CONTEXT - len(prompted.prompt)) // (WINDOW + 1) - 1
    assert prompted.written(steps, kept=kept, drafts=drafts) == prompted.plain(steps)


@pytest.mark.slow
def test_so_are_those_of_a_program_that_rewrites_itself(tmp_path):
    net = network(tmp_path / "machine", {"kind": "subleq", "arch": "gpt2", "cells": CELLS, "context": CONTEXT})
    counting = subleq(net, [9, 4, 3, 10, 11, 0, 0, 0, 0, 1])  # the first instruction changes the second
    plain = counting.plain(9)
    assert {"0a", "09"} < set(plain)
    for kept, drafts in ((1, True), (2, False)):
        assert counting.written(9, kept=kept, drafts=drafts) == plain


@dataclass
class Counted:
    """A network that writes down how many tokens it reads in a pass, and how many keys there are after it."""

    net: object
    read: list[int] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)

    def __call__(self, ids, **given):
        found = self.net(ids, **given)
        self.read.append(ids.shape[1])
        self.keys.append(given["past_key_values"].get_seq_length())
        return found

    def __getattr__(self, name):
        return getattr(self.net, name)


@pytest.mark.slow
def test_the_last_steps_cost_as_much_as_the_first(universal):
    """Passes, tokens and keys of every 40 of 200 steps, which are twelve times the context."""
    counted = Counted(universal)
    prompted = turing(counted, COUNTER)
    steps = Machine(counted, CONTEXT, TOKENS, ("!", "#")).frames(prompted.prompt, prompted.frame, 201)
    next(steps)  # also reads the prompt
    passes, read, keys = [], [], []
    for _ in range(5):
        counted.read.clear(), counted.keys.clear()
        for _ in range(40):
            next(steps)
        passes.append(len(counted.read))
        read.append(sum(counted.read))
        keys.append(max(counted.keys))
    assert set(keys) == {len(prompted.prompt) + 5 * (WINDOW + 1) - 1}
    assert max(passes) <= 3 * 40 and max(read) < 1.2 * min(read) < 40 * 4 * (WINDOW + 1)


def test_without_a_rule_or_a_cell_of_the_last_frame_steps_are_wrong(universal):
    """All that the cache keeps is needed."""
    prompted = turing(universal, COUNTER)
    right = prompted.written(9)
    for start in range(1, len(prompted.prompt) - 1, 3):
        fewer = Prompted(universal, prompted.prompt[:start] + prompted.prompt[start + 3 :], prompted.frame)
        assert fewer.written(9) != right
    assert Prompted(universal, prompted.prompt, prompted.frame[1:]).written(1) != right[: WINDOW + 1]


def test_the_margin_is_the_smallest_of_all_tokens(universal):
    prompted = turing(universal, {**COUNTER, "tape": "0010000e"})
    machine = Machine(universal, CONTEXT, TOKENS, ("!", "#"))
    assert all(found.margin > 0.99 * MARGIN for found in machine.frames(prompted.prompt, prompted.frame, 20))
    row = universal.lm_head.weight.data[TOKENS.index("1")]
    row *= 0.5
    try:
        (found,) = machine.frames(prompted.prompt, prompted.frame, 1)
        assert "".join(found.tokens) == "0010001B2|" and found.margin == pytest.approx(MARGIN / 2, rel=0.01)
    finally:
        row *= 2
