"""Nothing that a user's file says leads to more than a line of error, and what is accepted is sound: a sample of `make fuzz`.

The harness itself is tested on doors that do what doors must not do.
"""

import os
import re
from typing import Any

import pytest
from hypothesis import strategies as st

from fuzz.all_doors import doors
from fuzz.door import Door
from fuzz.trying import tried
from stitch.errors import StitchError

SAMPLE = 12  # cases per door


@pytest.mark.parametrize("door", doors(), ids=lambda door: door.name)
def test_nothing_at_this_door_is_hung_unexpected_or_nonsense(door):
    count = tried(door, SAMPLE)
    assert not count.bad, "\n".join(count.faults())
    assert count.of["accepted"], "a door whose inputs are all refused tries nothing: keep a valid case"


def refuses(message: str) -> Any:
    def call(_: Any) -> None:
        raise StitchError(message)

    return call


def hangs_in_c(_: Any) -> None:
    re.match("(a+)+b", "a" * 60)


def takes_memory(_: Any) -> bytes:
    return bytes(4 << 30)


def takes_memory_in_torch(_: Any) -> Any:
    import torch

    return torch.zeros(1 << 30)


def dies(_: Any) -> None:
    os._exit(3)


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        ("refused", refuses("x.json must hold a number; got none: write one.")),
        ("unclear", refuses("the file must hold a number; got none: write one.")),
        ("accepted", lambda _: "sound"),
        ("nonsense", lambda _: "unsound"),
        ("unexpected", lambda _: {}["key"]),
        ("unexpected", dies),
        ("hung", hangs_in_c),
        ("memory", takes_memory),
        ("memory", takes_memory_in_torch),
    ],
)
def test_the_harness_sees(kind, call):
    door = Door("x", st.just(b"{}"), call, sound=lambda _, result: result == "sound", file="x.json")
    count = tried(door, 1, seconds=0.5)
    assert dict(count.of) == {kind: 1}, count.faults()
