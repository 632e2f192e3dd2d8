"""A universal machine with self-modifying programs: SUBLEQ, with its memory in the prompt. Four blocks of GPT-2.

SUBLEQ a b c subtracts the cell at a from the cell at b. If the result is 0 or less, the program continues at c, else at the next
instruction. A cell is two hexadecimal digits, negative from 80. With b = ff, the cell at a is put out instead. An instruction
that needs a cell that does not exist halts the machine. A frame is the output, the counter and all cells: `.@030aff…`. Learned
positions give every token its slot in the frame, and the frame's number.

Block 0 fetches the counter, and the cell that is to be written next. Block 1 looks up a, b and c; its neurons compare b with the
address of that cell. Block 2 looks up the cells at a and b; its neurons subtract digit by digit. Block 3 selects the next token.
Source of the instruction: Mavaddat & Parhami 1988.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from stitch.errors import UsageError
from stitch.synthesis.blueprint import Block, Blueprint, LookUp, Select, balanced_signs, bits_for, sharp
from stitch.synthesis.machines.subleq_channels import FLAGS, NONE, Stream
from stitch.synthesis.machines.subleq_neurons import compare, next_token, subtract
from stitch.synthesis.machines.subleq_tokens import HALT, NO_OUTPUT, VALUES, tokens_of

MOST_CELLS, FEWEST_CELLS = 240, 4


def subleq(cells: int, context: int, frames: Sequence[Sequence[str]]) -> Blueprint:
    """The blueprint for `cells` cells of memory. `frames` are the tokens of a specimen, as the machine should write them.

    Raises: UsageError when `cells` or `context` is too small or too large.
    """
    if not FEWEST_CELLS <= cells <= MOST_CELLS:
        raise UsageError(f"cells must be {FEWEST_CELLS} to {MOST_CELLS}; got {cells}.")
    size = cells + 2
    if context < 1 + 2 * size:
        raise UsageError(f"context must hold two frames of {size} tokens; got {context}.")
    bits = bits_for(-(-(context - 1) // size))
    stream, tokens = Stream.of(bits), tokens_of(cells)
    number = {token: index for index, token in enumerate(tokens)}
    ids = torch.tensor([[0, *(number[token] for frame in frames for token in frame)]])
    asked = (torch.arange(ids.shape[1]) >= size)[None]
    return Blueprint(
        tokens=tokens,
        embedding=torch.stack([_token(token, stream, cells) for token in tokens]),
        blocks=_blocks(stream, cells, context, bits),
        unembedding=_unembedding(stream, tokens),
        length=context,
        specimens=ids[:, :-1],
        asked=asked[:, :-1],
        positions=_positions(stream, context, size, bits),
        crosstalk=2 / 3,  # another value with one digit in common
    )


def _blocks(stream: Stream, cells: int, context: int, bits: int) -> tuple[Block, ...]:
    size, position = cells + 2, torch.arange(context)
    ahead = ("pc1", "pc2", "pc3")

    def look_up(address: str, into: str) -> LookUp:
        found = _by_address(stream, address, bits, context)
        return LookUp(**found, source=stream.both_digits("own"), into=stream.both_digits(into))

    counter = Select(
        (position // size * size - size + 2).clamp_min(0),
        stream.both_digits("own", *ahead),
        stream.both_digits("at_pc", *(f"at_{name}" for name in ahead)),
    )
    old_value = Select((position + 1 - size).clamp_min(0), stream.both_digits("own"), stream.both_digits("old"))
    return (
        Block((counter, old_value)),
        Block((look_up("at_pc", "a"), look_up("at_pc1", "b"), look_up("at_pc2", "c")), compare(stream, cells)),
        Block((look_up("a", "at_a"), look_up("b", "at_b")), subtract(stream)),
        Block((), next_token(stream)),
    )


def _token(token: str, stream: Stream, cells: int) -> Tensor:
    """The embedding of a token. That of a counter holds the three addresses after it, as far as these cells exist."""
    value = VALUES.index(token[-2:]) if token[-2:] in VALUES else None
    row = stream.byte("own", value)
    for ahead in range(1, 4):
        following = value + ahead if token[0] == "@" and value is not None else cells
        row = row + stream.byte(f"pc{ahead}", following if following < cells else None)
    return row


def _positions(stream: Stream, context: int, size: int, bits: int) -> Tensor:
    """Embeddings of positions: frame and address of the token there, slot and address of the next. The first is in no frame."""
    unknown = sum(stream.rows(flag, 0) for flag in FLAGS) + sum(
        stream.rows(name, NONE) for name in ("low", "kept", "borrowed")
    )
    rows = []
    for position in range(context):
        next_frame, next_slot = divmod(position, size)
        frame, slot = divmod(position - 1, size) if position else (0, 0)
        row = unknown + stream.rows("later" if position else "first", 0) + stream.rows("slot", min(next_slot, 2))
        row = row + stream.byte("next", next_slot - 2 if next_slot >= 2 else None)
        row = row + stream.byte("address", slot - 2 if slot >= 2 else None)
        for name, number in (("frame", frame), ("before", max(next_frame - 1, 0))):
            row = row + _number(number, bits) @ stream.rows(name)
        rows.append(row)
    return torch.stack(rows)


def _number(number: int, bits: int) -> Tensor:
    return balanced_signs(torch.tensor([number]), bits)[0]


def _by_address(stream: Stream, address: str, bits: int, context: int) -> dict:
    """Query and key of a head that finds the cell with an address, given by its digits, in the frame before.

    Scores are `bits` + 2 for a match and at most `bits` + 1 for other cells. That of the first token is half way between, so it
    is found where there is no such cell.
    """
    at, rank = stream.at, 32 + bits + 1
    query, key = (torch.zeros(stream.width, rank, dtype=torch.float64) for _ in range(2))
    for start, part in ((0, "high"), (16, "low")):
        digit = torch.arange(16)
        query[at[f"{address}_{part}"][:NONE], start + digit] = 1.0
        key[at[f"address_{part}"][:NONE], start + digit] = 1.0
    bit = torch.arange(bits)
    query[at["before"][:bits], 32 + bit] = 1.0
    key[at["frame"][:bits], 32 + bit] = 1.0
    key[at["first"], 32 + bit] = -_number(0, bits)[:bits]  # cancels the first token's own frame number
    query_bias = torch.zeros(rank, dtype=torch.float64)
    query_bias[-1] = 1.0
    key[at["first"], -1] = bits + 1.5
    return dict(query=query, query_bias=query_bias, key=sharp(0.5, context) * key)


def _unembedding(stream: Stream, tokens: Sequence[str]) -> Tensor:
    """Columns that are 1 for the three units of their token: two digits and their kind, no output, or halting."""
    return torch.stack([_reading(stream, token) for token in tokens], 1)


def _reading(stream: Stream, token: str) -> Tensor:
    if token[-2:] in VALUES:
        high, low = divmod(VALUES.index(token[-2:]), 16)
        kind = stream.rows("say_counter" if token[0] == "@" else "say_value", 0)
        return (stream.rows("say_high", high) + stream.rows("say_low", low) + kind) / 3
    if token == NO_OUTPUT:
        return stream.rows("say_nothing").sum(0) / 3
    if token == HALT:
        return (stream.rows("say_halt").sum(0) + stream.rows("say_counter", 0)) / 3
    return torch.zeros(stream.width, dtype=torch.float64)
