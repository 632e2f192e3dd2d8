"""A second universal machine: memory in the prompt, one instruction, programs that may rewrite themselves. Four blocks of GPT-2.

SUBLEQ a b c: subtract the cell at a from the cell at b; where the result is 0 or less, go on at c, else at the next instruction.
A cell is two hexadecimal digits, negative from 80 on. With b = ff the cell at a is put out instead; whatever needs a cell that
isn't there halts. A frame is what was put out, the counter and all cells: `.@030aff…`; learned positions know every token's place
in it, and its number.

Streams stay equally long: what a neuron finds out has a channel that is 1 until then, and 0 afterwards.

Block 0 fetches the counter, and the cell that is to be written next. Block 1 looks a, b and c up; neurons compare b with the
address of that cell. Block 2 looks up what a and b point to; neurons subtract digit by digit. Block 3 decides.
Source of the instruction: Mavaddat & Parhami 1988.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from stitch.errors import UsageError
from stitch.synthesis.blueprint import Block, Blueprint, LookUp, Neurons, Select, all_of, allot, sharp, signs, together

Channels = dict[str, Tensor]

BOS, HALT, NOTHING = "<s>", "!", "."
DIGITS = "0123456789abcdef"
VALUES = tuple(high + low for high in DIGITS for low in DIGITS)
PARTS = ("high", "low")  # digits; the seventeenth of each is "none"
NONE = 16
FLAGS = ("out", "hit_high", "hit_low", "c_there", "borrow")
MOST_CELLS, FEWEST_CELLS = 240, 4


def tokens_of(cells: int) -> tuple[str, ...]:
    return (BOS, *VALUES, *(f"@{VALUES[address]}" for address in range(cells)), NOTHING, HALT)


def subleq(cells: int, context: int, frames: Sequence[Sequence[str]]) -> Blueprint:
    """For `cells` cells of memory. `frames` are the tokens of a specimen, as the machine should write them.

    Raises UsageError where memory or context are too small or too large.
    """
    if not FEWEST_CELLS <= cells <= MOST_CELLS:
        raise UsageError(f"--cells must be {FEWEST_CELLS} to {MOST_CELLS}; got {cells}.")
    size = cells + 2
    if context < 1 + 2 * size:
        raise UsageError(f"--context must hold two frames of {size} tokens; got {context}.")
    tokens, bits = tokens_of(cells), max(((context - 2) // size).bit_length(), 1)
    at = _allotted(bits)
    unit = torch.eye(sum(map(len, at.values())), dtype=torch.float64)

    def of(*names: str) -> Tensor:
        return torch.cat([at[f"{name}_{part}"] for name in names for part in PARTS])

    def look_up(address: str, into: str) -> LookUp:
        return LookUp(**_by_address(at, unit, address, bits, context), source=of("own"), into=of(into))

    place = torch.arange(context)
    counter, old = place // size * size - size + 2, place + 1 - size
    ahead = ("pc1", "pc2", "pc3")
    blocks = (
        Block(
            (
                Select(counter.clamp_min(0), of("own", *ahead), of("at_pc", *(f"at_{name}" for name in ahead))),
                Select(old.clamp_min(0), of("own"), of("old")),
            )
        ),
        Block((look_up("at_pc", "a"), look_up("at_pc1", "b"), look_up("at_pc2", "c")), _compare(at, unit, cells)),
        Block((look_up("a", "at_a"), look_up("b", "at_b")), _subtract(at, unit)),
        Block((), together(_put_out(at, unit), _count(at, unit), _cell(at, unit))),
    )
    number = {token: index for index, token in enumerate(tokens)}
    ids = torch.tensor([[0, *(number[token] for frame in frames for token in frame)]])
    asked = (torch.arange(ids.shape[1]) >= size)[None]
    return Blueprint(
        tokens=tokens,
        embedding=torch.stack([_token(token, at, unit, cells) for token in tokens]),
        blocks=blocks,
        unembedding=_unembedding(at, unit, tokens),
        length=context,
        specimens=ids[:, :-1],
        asked=asked[:, :-1],
        positions=_positions(at, unit, context, size, bits),
        crosstalk=2 / 3,  # another value with one digit in common
    )


def _allotted(bits: int) -> dict[str, Tensor]:
    def digits(*names: str) -> dict[str, int]:
        return {f"{name}_{part}": NONE + 1 for name in names for part in PARTS}

    return allot(
        **digits("own", "pc1", "pc2", "pc3"),  # of a token: a value or a counter, and the addresses after a counter
        first=1, later=1, slot=3, frame=2 * bits, before=2 * bits, **digits("address", "next"),  # of a position
        **digits("at_pc", "at_pc1", "at_pc2", "at_pc3", "old", "a", "b", "c", "at_a", "at_b"),  # fetched and looked up
        **dict.fromkeys(FLAGS, 2),  # no, yes
        low=NONE + 1, kept=NONE + 1, borrowed=NONE + 1,  # of the difference: high digits without and with a borrow
        say_high=16, say_low=16, say_counter=1, say_value=1, say_nothing=3, say_halt=2,
    )  # fmt: skip


def _token(token: str, at: Channels, unit: Tensor, cells: int) -> Tensor:
    """A counter knows the three addresses after it, as far as there are cells."""
    value = VALUES.index(token[-2:]) if token[-2:] in VALUES else None
    row = _digits(at, unit, "own", value)
    for ahead in range(1, 4):
        following = value + ahead if token[0] == "@" and value is not None else cells
        row = row + _digits(at, unit, f"pc{ahead}", following if following < cells else None)
    return row


def _digits(at: Channels, unit: Tensor, name: str, value: int | None) -> Tensor:
    high, low = (NONE, NONE) if value is None or value >= len(VALUES) else divmod(value, 16)
    return unit[at[f"{name}_high"][high]] + unit[at[f"{name}_low"][low]]


def _positions(at: Channels, unit: Tensor, context: int, size: int, bits: int) -> Tensor:
    """A place holds a token of one slot and writes the next: what goes out, the counter, or a cell. The first is in no frame."""
    unknown = sum(unit[at[flag][0]] for flag in FLAGS) + sum(
        unit[at[name][NONE]] for name in ("low", "kept", "borrowed")
    )
    rows = []
    for place in range(context):
        frame, slot = divmod(place, size)  # of the token that is written here
        holds, held = divmod(place - 1, size) if place else (0, 0)
        row = unknown + unit[at["later" if place else "first"]][0] + unit[at["slot"][min(slot, 2)]]
        row = row + _digits(at, unit, "next", slot - 2 if slot >= 2 else None)
        row = row + _digits(at, unit, "address", held - 2 if held >= 2 else None)
        for name, number in (("frame", holds), ("before", max(frame - 1, 0))):
            row = row + _signs(number, bits) @ unit[at[name]]
        rows.append(row)
    return torch.stack(rows)


def _signs(number: int, bits: int) -> Tensor:
    """Bits as ±1, and all with the other sign, so that their sum is 0."""
    code = signs(torch.tensor([number]), bits)[0]
    return torch.cat([code, -code])


def _by_address(at: Channels, unit: Tensor, address: str, bits: int, context: int) -> dict:
    """The cell of the frame before whose address has these two digits: a match is 2 and the frame's bits, a miss 1 and they at
    most. The first token is half way between, found where there is no such cell."""
    rank = 32 + bits + 1
    query, key = (torch.zeros(len(unit), rank, dtype=torch.float64) for _ in range(2))
    for start, part in ((0, "high"), (16, "low")):
        digit = torch.arange(16)
        query[at[f"{address}_{part}"][:NONE], start + digit] = 1.0
        key[at[f"address_{part}"][:NONE], start + digit] = 1.0
    bit = torch.arange(bits)
    query[at["before"][:bits], 32 + bit] = 1.0
    key[at["frame"][:bits], 32 + bit] = 1.0
    key[at["first"], 32 + bit] = -_signs(0, bits)[:bits]  # its own, taken away
    query_bias = torch.zeros(rank, dtype=torch.float64)
    query_bias[-1] = 1.0
    key[at["first"], -1] = bits + 1.5
    return dict(query=query, query_bias=query_bias, key=sharp(0.5, context) * key)


def _when(unit: Tensor, *conditions: Tensor, then: Tensor) -> Neurons:
    """A neuron for each row of `then`, which it writes when all its conditions hold."""
    return all_of(torch.stack([condition.expand(len(then), len(unit)) for condition in conditions]), then)


def _yes(at: Channels, unit: Tensor, flag: str) -> Tensor:
    """Written to turn a flag from no to yes."""
    return (unit[at[flag][1]] - unit[at[flag][0]])[None]


def _compare(at: Channels, unit: Tensor, cells: int) -> Neurons:
    """Whether b is the way out, whether its digits are those of the cell that comes next, and whether there is a cell at c."""
    found = [
        _when(unit, unit[at["b_high"][15]], unit[at["b_low"][15]], then=_yes(at, unit, "out")),
        *(
            _when(
                unit,
                unit[at[f"next_{part}"][:NONE]],
                unit[at[f"b_{part}"][:NONE]],
                then=_yes(at, unit, f"hit_{part}").expand(16, -1),
            )
            for part in PARTS
        ),
    ]
    high, low = divmod(cells, 16)
    found.append(_when(unit, unit[at["c_high"][:high]].sum(0), then=_yes(at, unit, "c_there")))
    if low:
        found.append(
            _when(unit, unit[at["c_high"][high]], unit[at["c_low"][:low]].sum(0), then=_yes(at, unit, "c_there"))
        )
    return together(*found)


def _subtract(at: Channels, unit: Tensor) -> Neurons:
    """The low digit of b − a and whether it borrows; the high one, with and without that."""
    a, b = (digit.flatten() for digit in torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij"))

    def known(name: str, digits: Tensor) -> Tensor:
        return unit[at[name][digits]] - unit[at[name][NONE]]

    low = known("low", (b - a) % 16) + (b < a).double()[:, None] * _yes(at, unit, "borrow")
    high = known("kept", (b - a) % 16) + known("borrowed", (b - a - 1) % 16)
    return together(
        _when(unit, unit[at["at_a_low"][a]], unit[at["at_b_low"][b]], then=low),
        _when(unit, unit[at["at_a_high"][a]], unit[at["at_b_high"][b]], then=high),
    )


def _put_out(at: Channels, unit: Tensor) -> Neurons:
    """The cell at a, where b is the way out and there is one; else nothing."""
    now, (no, yes) = unit[at["slot"][0]], unit[at["out"]]
    nothing = unit[at["say_nothing"]].sum(0)[None]  # as much as two digits and their kind
    return together(
        _when(unit, now, no, then=nothing),
        _when(unit, now, yes, unit[at["at_a_high"][NONE]], then=nothing),
        *(
            _when(unit, now, yes, unit[at[f"at_a_{part}"][:NONE]], then=unit[at[f"say_{part}"]] + kind)
            for part, kind in (("high", unit[at["say_value"]]), ("low", 0.0))
        ),
    )


def _count(at: Channels, unit: Tensor) -> Neurons:
    """The counter at c where the difference is 0 or less, three on where it is more or something went out; else it halts."""

    def digit(name: str, first: int, last: int = 0) -> Tensor:
        return unit[at[name][first : max(first, last) + 1]].sum(0)

    now, inside, out = unit[at["slot"][1]], *unit[at["out"]]
    whole, borrows = unit[at["borrow"]]
    jumps = [(whole, digit("kept", 8, 15)), (borrows, digit("borrowed", 8, 15)), (digit("kept", 0), digit("low", 0))]
    goes_on = [
        (inside, whole, digit("kept", 1, 7)),
        (inside, whole, digit("kept", 0), digit("low", 1, 15)),
        (inside, borrows, digit("borrowed", 0, 7)),
        (out, unit[at["at_a_high"][:NONE]].sum(0)),
    ]
    missing, there = unit[at["c_there"]]
    halts = unit[at["say_halt"]].sum(0)[None] + unit[at["say_counter"]]  # as much as two digits and their kind
    found = [
        _when(unit, now, inside, unit[at["kept"][NONE]], then=halts),
        _when(unit, now, out, unit[at["at_a_high"][NONE]], then=halts),
    ]
    for jump in jumps:
        found.append(_when(unit, now, inside, *jump, missing, then=halts))
        found += [
            _when(unit, now, inside, *jump, there, unit[at[f"c_{part}"][:NONE]], then=_said(at, unit, part))
            for part in PARTS
        ]
    for case in goes_on:
        found.append(_when(unit, now, *case, unit[at["at_pc3_high"][NONE]], then=halts))
        found += [
            _when(unit, now, *case, unit[at[f"at_pc3_{part}"][:NONE]], then=_said(at, unit, part)) for part in PARTS
        ]
    return together(*found)


def _said(at: Channels, unit: Tensor, part: str) -> Tensor:
    """A counter's digits; the high one says that it is a counter."""
    return unit[at[f"say_{part}"]] + (unit[at["say_counter"]] if part == "high" else 0.0)


def _cell(at: Channels, unit: Tensor) -> Neurons:
    """The difference where b is the address of this cell, else what it was."""
    now = unit[at["slot"][2]]
    (other_high, same_high), (other_low, same_low) = unit[at["hit_high"]], unit[at["hit_low"]]
    whole, borrows = unit[at["borrow"]]
    found = [
        _when(unit, now, then=unit[at["say_value"]]),
        _when(unit, now, same_high, same_low, unit[at["low"][:NONE]], then=unit[at["say_low"]]),
        _when(unit, now, same_high, same_low, whole, unit[at["kept"][:NONE]], then=unit[at["say_high"]]),
        _when(unit, now, same_high, same_low, borrows, unit[at["borrowed"][:NONE]], then=unit[at["say_high"]]),
    ]
    for part in PARTS:
        kept, say = unit[at[f"old_{part}"][:NONE]], unit[at[f"say_{part}"]]
        found += [_when(unit, now, other_high, kept, then=say), _when(unit, now, same_high, other_low, kept, then=say)]
    return together(*found)


def _unembedding(at: Channels, unit: Tensor, tokens: Sequence[str]) -> Tensor:
    """1 for two digits of the right kind; for nothing, and for halting."""
    columns = []
    for token in tokens:
        if token[-2:] in VALUES:
            high, low = divmod(VALUES.index(token[-2:]), 16)
            kind = unit[at["say_counter" if token[0] == "@" else "say_value"]][0]
            columns.append((unit[at["say_high"][high]] + unit[at["say_low"][low]] + kind) / 3)
        elif token == NOTHING:
            columns.append(unit[at["say_nothing"]].sum(0) / 3)
        elif token == HALT:
            columns.append((unit[at["say_halt"]].sum(0) + unit[at["say_counter"]][0]) / 3)
        else:
            columns.append(torch.zeros(len(unit), dtype=torch.float64))
    return torch.stack(columns, 1)
