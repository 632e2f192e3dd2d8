"""Neurons of the SUBLEQ machine: comparisons of addresses, the subtraction, and the next token.

Streams must have equal norms. Therefore every result has a channel that is 1 until the result is known, and 0 afterwards. Each
next token is written as three units: two digits and their kind, or three others.
"""

import torch
from torch import Tensor

from stitch.synthesis.blueprint import Neurons, all_of, together
from stitch.synthesis.machines.subleq_channels import NONE, PARTS, Stream


def compare(stream: Stream, cells: int) -> Neurons:
    """Flags: b is the output address; b's digits equal those of the address of the next cell; there is a cell at address c."""
    output = _when(stream, stream.rows("b_high", 15), stream.rows("b_low", 15), then=stream.set_flag("out"))
    equal = [
        _when(
            stream,
            stream.digits(f"next_{part}"),
            stream.digits(f"b_{part}"),
            then=stream.set_flag(f"hit_{part}").expand(16, -1),
        )
        for part in PARTS
    ]
    high, low = divmod(cells, 16)
    exists = [_when(stream, stream.rows("c_high", slice(high)).sum(0), then=stream.set_flag("c_there"))]
    if low:
        last_row = stream.rows("c_high", high), stream.rows("c_low", slice(low)).sum(0)
        exists.append(_when(stream, *last_row, then=stream.set_flag("c_there")))
    return together(output, *equal, *exists)


def subtract(stream: Stream) -> Neurons:
    """The low digit of b − a and its borrow; the high digit without and with the borrow."""
    a, b = (digit.flatten() for digit in torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij"))

    def known(name: str, digits: Tensor) -> Tensor:
        return stream.rows(name, digits) - stream.rows(name, NONE)

    low = known("low", (b - a) % 16) + (b < a).double()[:, None] * stream.set_flag("borrow")
    high = known("kept", (b - a) % 16) + known("borrowed", (b - a - 1) % 16)
    return together(
        _when(stream, stream.rows("at_a_low", a), stream.rows("at_b_low", b), then=low),
        _when(stream, stream.rows("at_a_high", a), stream.rows("at_b_high", b), then=high),
    )


def next_token(stream: Stream) -> Neurons:
    """The next token for each slot of a frame: output, counter, or cell."""
    return together(_output(stream), _counter(stream), _cell(stream))


def _output(stream: Stream) -> Neurons:
    """The value of the cell at a, when b is the output address and that cell exists; otherwise the mark for no output."""
    now, (no, yes) = stream.rows("slot", 0), stream.rows("out")
    nothing = stream.rows("say_nothing").sum(0)[None]
    return together(
        _when(stream, now, no, then=nothing),
        _when(stream, now, yes, stream.rows("at_a_high", NONE), then=nothing),
        *(
            _when(stream, now, yes, stream.digits(f"at_a_{part}"), then=stream.rows(f"say_{part}") + kind)
            for part, kind in (("high", stream.rows("say_value")), ("low", 0.0))
        ),
    )


def _counter(stream: Stream) -> Neurons:
    """The next counter: c when the difference is at most 0, the counter plus 3 when it is positive or there was output.

    The machine halts when an address that is needed does not exist.
    """
    now, (subtracts, outputs) = stream.rows("slot", 1), stream.rows("out")
    missing, there = stream.rows("c_there")
    halts = stream.rows("say_halt").sum(0)[None] + stream.rows("say_counter")
    found = [
        _when(stream, now, subtracts, stream.rows("kept", NONE), then=halts),
        _when(stream, now, outputs, stream.rows("at_a_high", NONE), then=halts),
    ]
    for case in _jumps(stream):
        found.append(_when(stream, now, subtracts, *case, missing, then=halts))
        found += _counter_from(stream, (now, subtracts, *case, there), "c")
    for case in _continues(stream, subtracts, outputs):
        found.append(_when(stream, now, *case, stream.rows("at_pc3_high", NONE), then=halts))
        found += _counter_from(stream, (now, *case), "at_pc3")
    return together(*found)


def _jumps(stream: Stream) -> list[tuple[Tensor, ...]]:
    """Conditions of which one holds when the difference is negative or 0."""
    whole, borrows = stream.rows("borrow")
    return [
        (whole, stream.any_of("kept", 8, 15)),
        (borrows, stream.any_of("borrowed", 8, 15)),
        (stream.any_of("kept", 0), stream.any_of("low", 0)),
    ]


def _continues(stream: Stream, subtracts: Tensor, outputs: Tensor) -> list[tuple[Tensor, ...]]:
    """Conditions of which one holds when the difference is positive, or the value of an existing cell was put out."""
    whole, borrows = stream.rows("borrow")
    return [
        (subtracts, whole, stream.any_of("kept", 1, 7)),
        (subtracts, whole, stream.any_of("kept", 0), stream.any_of("low", 1, 15)),
        (subtracts, borrows, stream.any_of("borrowed", 0, 7)),
        (outputs, stream.digits("at_a_high").sum(0)),
    ]


def _counter_from(stream: Stream, conditions: tuple[Tensor, ...], name: str) -> list[Neurons]:
    """Copies both digits of a byte to the next token, and its kind, a counter, with the high digit."""
    found = []
    for part in PARTS:
        digit = stream.rows(f"say_{part}") + (stream.rows("say_counter") if part == "high" else 0.0)
        found.append(_when(stream, *conditions, stream.digits(f"{name}_{part}"), then=digit))
    return found


def _cell(stream: Stream) -> Neurons:
    """The difference, when b is the address of this cell; otherwise the cell's old value."""
    now = stream.rows("slot", 2)
    (other_high, same_high), (other_low, same_low) = stream.rows("hit_high"), stream.rows("hit_low")
    whole, borrows = stream.rows("borrow")
    say_low, say_high = stream.rows("say_low"), stream.rows("say_high")
    found = [
        _when(stream, now, then=stream.rows("say_value")),
        _when(stream, now, same_high, same_low, stream.digits("low"), then=say_low),
        _when(stream, now, same_high, same_low, whole, stream.digits("kept"), then=say_high),
        _when(stream, now, same_high, same_low, borrows, stream.digits("borrowed"), then=say_high),
    ]
    for part in PARTS:
        old, say = stream.digits(f"old_{part}"), stream.rows(f"say_{part}")
        found.append(_when(stream, now, other_high, old, then=say))
        found.append(_when(stream, now, same_high, other_low, old, then=say))
    return together(*found)


def _when(stream: Stream, *conditions: Tensor, then: Tensor) -> Neurons:
    """A neuron for each row of `then`, which it writes when all its conditions hold."""
    return all_of(torch.stack([condition.expand(len(then), stream.width) for condition in conditions]), then)
