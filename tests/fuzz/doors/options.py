"""Numbers and names on the command line of `stitch compile …`, `certify` and `run`."""

import contextlib
import functools
import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from fuzz.documents import ESCAPES, whole
from fuzz.door import Door
from fuzz.doors.machines import AUTOMATON

LARGE = (-1, 0, 1, 10**9, 10**12, 2**31, 2**63, 2**64, 10**20, -(10**20))
SMALL = (2, 3, 4, 5, 7, 8, 16, 31, 64, 100, 128, 300, 1_000)
SHARES = (0.1, 1.0, 0.5, 0.0, -1.0, float("nan"), float("inf"), -float("inf"), 1e300, 1e-300)
WORDS = ("", "x", ESCAPES, "a" * 20_000, "auto ", "None")
LONGEST = 32_768  # tokens of context, as docs/compile.md says


class Accepted(BaseException):
    """Raised in the place of the work that begins when all has been checked."""


def numbers() -> st.SearchStrategy[int]:
    return st.one_of(st.sampled_from(SMALL), st.sampled_from(SMALL), st.sampled_from(LARGE), st.integers(-3, 300))


def one_of(*names: str) -> st.SearchStrategy[str]:
    return st.one_of(st.sampled_from(names), st.sampled_from(names), st.sampled_from(WORDS))


def options(**given: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Some of these options; the others keep their defaults."""
    return st.fixed_dictionaries({}, optional=given)


SEED = numbers()
AUTOMATA = options(
    mode=one_of("stepwise", "parallel", "vsa"),
    arch=one_of("gpt2", "llama"),
    length=numbers(),
    dimension=numbers(),
    seed=SEED,
)
MACHINES = options(
    kind=one_of("turing", "subleq"), arch=one_of("gpt2", "llama"), window=numbers(), cells=numbers(), context=numbers()
)
PATTERNS = options(
    arch=one_of("gpt2", "llama"), positions=one_of("learned", "rope"), length=numbers(), rank=numbers(), seed=SEED
)  # fmt: skip
INDUCTION = options(arch=one_of("gpt2", "llama"), context=numbers())
CERTIFY = options(tokens=numbers(), seed=SEED)
RUN = options(steps=numbers())


def ready() -> None:
    import torch

    import stitch.synthesis.compile
    import stitch.synthesis.run
    import stitch.synthesis.tool.report  # noqa: F401

    folder()
    with contextlib.suppress(Accepted):
        call_pattern({"length": 8, "what": "random:2"})
    torch.optim.LBFGS([torch.zeros(1, requires_grad=True)])


def stopped(*_: Any, **__: Any) -> Any:
    raise Accepted


@contextlib.contextmanager
def instead_of_work(*places: str) -> Any:
    """What takes long once all is checked accepts instead."""
    from unittest.mock import patch

    with contextlib.ExitStack() as stack:
        for place in places:
            stack.enter_context(patch(place, stopped))
        yield


def accepted(call: Any) -> Any:
    @functools.wraps(call)
    def called(case: dict[str, Any]) -> Any:
        try:
            with tempfile.TemporaryDirectory() as out:
                call(case, Path(out) / "new")
        except Accepted:
            return "accepted"
        return "returned"

    return called


def call_automaton(case: dict[str, Any], out: Path) -> None:
    from stitch.synthesis.compile import compile_automaton

    with instead_of_work("stitch.synthesis.compile.build"):
        compile_automaton(str(folder() / "automaton.json"), out, device="cpu", **case)


def call_machine(case: dict[str, Any], out: Path) -> None:
    from stitch.synthesis.compile import compile_machine

    with instead_of_work("stitch.synthesis.compile.build"):
        compile_machine(out, device="cpu", **case)


def call_pattern(case: dict[str, Any], out: Path = Path("new")) -> None:
    from stitch.synthesis.compile import compile_pattern

    with instead_of_work("stitch.synthesis.compile.build"):
        compile_pattern(
            case.get("what", "previous"),
            out,
            device="cpu",
            **{name: one for name, one in case.items() if name != "what"},
        )


def call_induction(case: dict[str, Any], out: Path) -> None:
    from stitch.synthesis.compile import compile_induction

    with instead_of_work("stitch.synthesis.compile.build"):
        compile_induction(out, device="cpu", **case)


def call_tool(case: dict[str, Any], out: Path) -> None:
    from stitch.synthesis.tool.report import compile_tool

    with instead_of_work("stitch.synthesis.tool.report.resolve"):
        compile_tool(str(folder() / "automaton.json"), "demo:gpt2", out, device="cpu", **case)


def call_certify(case: dict[str, Any], _: Path) -> None:
    from stitch.synthesis.certify import certify

    with instead_of_work("stitch.synthesis.checkpoint.load"):
        certify(folder(), device="cpu", **case)


def call_run(case: dict[str, Any], _: Path) -> None:
    from stitch.synthesis.run import trace

    with instead_of_work("stitch.synthesis.checkpoint.load"):
        for _line in trace(folder(), "ab", None, **{"steps": 10, "device": "cpu", **case}):
            pass


@functools.cache
def folder() -> Path:
    """A folder with an automaton, and the description that a compiled checkpoint of it has."""
    place = Path(tempfile.mkdtemp(prefix="stitch-fuzz-"))
    steps = {"0": {"a": "0", "b": "1"}, "1": {"a": "1", "b": "0"}}
    (place / "automaton.json").write_text(json.dumps({"start": "0", "accept": ["1"], "transitions": steps}))
    about = {
        "kind": "automaton",
        "source": "a",
        "arch": "llama",
        "mode": "stepwise",
        "length": 16,
        "automaton": AUTOMATON,
    }
    (place / "synthesis.json").write_text(json.dumps(about))
    return place


def automaton_sound(case: dict[str, Any], _: Any) -> bool:
    mode, length = case.get("mode", "stepwise"), case.get("length", 512)
    context = length + 1 if mode == "parallel" else 2 * length + 1
    return (
        mode in ("stepwise", "parallel", "vsa")
        and case.get("arch", "llama") in ("gpt2", "llama")
        and length >= 2
        and context <= LONGEST
        and (mode != "vsa" or (whole(case.get("dimension", 64), 2, 4_096) and case.get("dimension", 64) % 2 == 0))
        and seed_sound(case)
    )


def seed_sound(case: dict[str, Any]) -> bool:
    return whole(case.get("seed", 0), 0, 2**63 - 1)


def machine_sound(case: dict[str, Any], _: Any) -> bool:
    kind, context = case.get("kind", "turing"), case.get("context", 2048)
    if kind == "turing":
        fits = case.get("window", 32) >= 4 and context >= 3 * (case.get("window", 32) + 1)
    else:
        fits = whole(case.get("cells", 64), 4, 240) and context >= 1 + 2 * (case.get("cells", 64) + 2)
    return (
        kind in ("turing", "subleq") and fits and context <= LONGEST and case.get("arch", "gpt2") in ("gpt2", "llama")
    )


def pattern_sound(case: dict[str, Any], _: Any) -> bool:
    arch, positions = case.get("arch"), case.get("positions")
    return (
        arch in (None, "gpt2", "llama")
        and positions in (None, "learned", "rope")
        and (arch, positions) not in (("gpt2", "rope"), ("llama", "learned"))
        and whole(case.get("length", 512), 2, LONGEST)
        and whole(case.get("rank", 16), 1, 2_048)
        and seed_sound(case)
    )


def door(name: str, cases: Any, call: Any, sound: Any, *kept: dict[str, Any]) -> Door:
    return Door(name, cases, accepted(call), sound, ready=ready, kept=({}, *kept))


DOORS = [
    door(
        "compile automaton",
        AUTOMATA,
        call_automaton,
        automaton_sound,
        {"length": 10**9},
        {"mode": "vsa", "dimension": 10**9},
    ),
    door(
        "compile machine",
        MACHINES,
        call_machine,
        machine_sound,
        {"context": 10**9},
        {"window": 10**9},
        {"kind": "subleq", "cells": 10**9},
    ),
    door(
        "compile pattern", PATTERNS, call_pattern, pattern_sound, {"length": 10**9}, {"rank": 10**20}, {"seed": 2**64}
    ),
    door(
        "compile induction",
        INDUCTION,
        call_induction,
        lambda case, _: case.get("arch", "llama") in ("gpt2", "llama") and whole(case.get("context", 512), 5, LONGEST),
        {"context": 10**9},
    ),
    door(
        "compile tool",
        options(faint=st.sampled_from(SHARES), tokens=numbers()),
        call_tool,
        lambda case, _: 0 < case.get("faint", 0.1) <= 10 and whole(case.get("tokens", 1), 1, 10**9),
        {"faint": float("nan")},
    ),
    door(
        "certify",
        CERTIFY,
        call_certify,
        lambda case, _: whole(case.get("tokens", 1), 1, 10**7) and seed_sound(case),
        {"tokens": 10**9},
    ),
    door("run", RUN, call_run, lambda case, _: whole(case.get("steps", 1), 1, 10**9)),
]
