"""Programs of the compiled machines (`stitch run`), and the description that a compiled checkpoint keeps (`certify`, `run`)."""

from pathlib import Path
from typing import Any

from fuzz.documents import json_files, strictly, whole
from fuzz.door import Door

TURING = (
    {
        "about": "Busy beaver of 2 states.",
        "start": "A",
        "blank": "0",
        "rules": {"A": {"0": ["1", "R", "B"], "1": ["1", "L", "B"]}, "B": {"0": ["1", "L", "A"], "1": ["1", "R", "H"]}},
    },
    {"start": "s", "blank": "_", "tape": "ab", "head": 1, "rules": {"s": {"a": ["b", "S", "t"]}}},
    {"start": "s", "blank": 0, "tape": "01", "head": 0, "rules": {"s": {"0": [1, "R", "s"]}}},
)
SUBLEQ = ({"about": "Counts.", "memory": [3, 4, 0, 1, -5]}, {"memory": [0, 0, 3]}, {"memory": [255, -128, 1]})
WINDOW, CELLS, CONTEXT = 8, 16, 256
PRINTABLE = 100_000


def ready() -> None:
    import torch

    import stitch.synthesis.kinds
    import stitch.synthesis.machines.subleq_run
    import stitch.synthesis.machines.turing_run  # noqa: F401

    torch.optim.LBFGS([torch.zeros(1, requires_grad=True)])  # imports what takes seconds


def run_turing(path: Path) -> Any:
    from stitch.synthesis.machines.turing import read_turing
    from stitch.synthesis.machines.turing_run import run_turing

    machine = read_turing(path)
    return machine, next(run_turing(None, {"window": WINDOW, "context": CONTEXT}, machine, machine.tape, 1))


def turing_as_written(content: bytes, result: Any) -> bool:
    """Rules, start, blank and tape of the file; symbols are single characters, moves L, R or S, the head is on the tape."""
    machine, first = result
    document = strictly(content)
    rules = [(q, a, str(w), move, str(to)) for q, row in document["rules"].items() for a, (w, move, to) in row.items()]
    tape, head = document.get("tape", ""), document.get("head", 0)
    return (
        set(document) <= {"start", "blank", "rules", "tape", "head", "about", "kind"}
        and [tuple(rule) for rule in machine.rules] == rules
        and (machine.start, machine.blank) == (str(document["start"]), str(document["blank"]))
        and len(machine.blank) == 1
        and all(len(rule[1]) == len(rule[2]) == 1 and rule[3] in ("L", "R", "S") for rule in rules)
        and all(
            isinstance(one, (str, int)) and not isinstance(one, bool)
            for q in document["rules"].values()
            for a in q.values()
            for one in a
        )
        and all(name.isprintable() and name for rule in rules for name in rule)
        and isinstance(tape, str)
        and whole(head, 0, max(len(tape) - 1, 0))
        and isinstance(document.get("about", ""), str)
        and first.isprintable()
        and f"[{machine.start}]" in first
    )


def run_subleq(path: Path) -> Any:
    from stitch.synthesis.machines.subleq import read_subleq
    from stitch.synthesis.machines.subleq_run import run_subleq

    program = read_subleq(path)
    return program, next(run_subleq(None, {"cells": CELLS, "context": CONTEXT}, program, 1))


def subleq_as_written(content: bytes, result: Any) -> bool:
    """The bytes of the file, of which there are 1 to as many as the machine has cells."""
    document = strictly(content)
    memory = document["memory"]
    return (
        set(document) <= {"memory", "about"}
        and isinstance(memory, list)
        and 0 < len(memory) <= CELLS
        and all(whole(cell, -128, 255) for cell in memory)
        and list(result[0].memory) == [cell % 256 for cell in memory]
        and isinstance(document.get("about", ""), str)
    )


# The description of a compiled checkpoint

AUTOMATON = {
    "states": ["0", "1"],
    "symbols": ["a", "b"],
    "start": 0,
    "steps": [[0, 1], [1, 0]],
    "says": [["<0>", "<1+>"], ["<1+>", "<0>"]],
}
RANK = {name: {"max": 0.0, "mean": 0.0} for name in ("naive", "completed")} | {"rank": 1, "max": 0.0, "mean": 0.0}
DESCRIPTIONS = (
    {"kind": "automaton", "source": "a", "arch": "llama", "mode": "stepwise", "length": 4, "automaton": AUTOMATON},
    {"kind": "automaton", "source": "a", "arch": "gpt2", "mode": "parallel", "length": 4, "automaton": AUTOMATON},
    {
        "kind": "automaton",
        "source": "a",
        "arch": "llama",
        "mode": "vsa",
        "length": 4,
        "dimension": 32,
        "seed": 0,
        "coherence": 0.5,
        "automaton": AUTOMATON,
    },
    {"kind": "turing", "arch": "llama", "window": 8, "context": 128},
    {"kind": "subleq", "arch": "gpt2", "cells": 8, "context": 64},
    {"kind": "pattern", "source": "self", "arch": "gpt2", "context": 4, "targets": [0, 1, 1, 2]},
    {
        "kind": "pattern",
        "source": "m.npy",
        "arch": "gpt2",
        "context": 2,
        "rank": 1,
        "rank_curve": [RANK],
        "matrix": [[1.0, 0.0], [0.5, 0.5]],
    },
    {"kind": "induction", "arch": "llama", "context": 16, "tokens": ["<s>", "a", "b", "c"], "tokenizer": None},
)


def read_description(path: Path) -> Any:
    """As `stitch certify` does before it loads the model."""
    from stitch.synthesis import kinds

    found, blueprint = kinds.compiled(path.parent)
    return blueprint, list(kinds.trials_of(found, 100, 0))


def description_sound(content: bytes, result: Any) -> bool:
    """A blueprint with a context of the size that is described, and trials in its vocabulary."""
    blueprint, trials = result
    document = strictly(content)
    kind = document["kind"]
    length = (
        document.get("context")
        if kind != "automaton"
        else document["length"] * (1 if document["mode"] == "parallel" else 2) + 1
    )
    return (
        kind in ("automaton", "turing", "subleq", "pattern", "induction")
        and document["arch"] in ("gpt2", "llama")
        and whole(length, 2, 1_000_000)
        and blueprint.length == length
        and bool(blueprint.embedding.isfinite().all())
        and all(int(trial.ids.min()) >= 0 and int(trial.ids.max()) < len(blueprint.tokens) for trial in trials)
        and all(int(trial.answers.max()) < len(blueprint.tokens) for trial in trials)
        and len(set(blueprint.tokens)) == len(blueprint.tokens)
    )


DOORS = [
    Door(
        name="Turing program",
        file="program.json",
        cases=json_files(TURING, names=("start", "blank", "rules", "tape", "head", "about", "kind")),
        call=run_turing,
        sound=turing_as_written,
        ready=ready,
        kept=(
            b'{"start": "A", "blank": "0", "rules": {"A": {"0": ["1", "R", "B"]}}}',
            b'{"start": "A", "blank": "0", "rules": {"A": {"00": ["1", "R", "B"]}}}',
            b'{"start": "A", "blank": 0, "tape": [0], "rules": {"A": 1e-320}}',
            b'{"start": 1e999, "blank": "0", "rules": {}}',
            b"[3]",
        ),
    ),
    Door(
        name="SUBLEQ program",
        file="program.json",
        cases=json_files(SUBLEQ, names=("memory", "about")),
        call=run_subleq,
        sound=subleq_as_written,
        ready=ready,
        kept=(
            b'{"memory": [3, 4, 0, 1, -5]}',
            b'{"memory": -360}',
            b'{"memory": [true, 1.0]}',
            b'{"about": [], "memory": [1]}',
        ),
    ),
    Door(
        name="synthesis.json",
        file="synthesis.json",
        cases=json_files(
            DESCRIPTIONS, names=("kind", "arch", "mode", "length", "context", "window", "cells", "rank", "seed")
        ),
        call=read_description,
        sound=description_sound,
        ready=ready,
        kept=(
            b'{"kind": "turing", "arch": "llama", "window": 8, "context": 128}',
            b'{"kind": "turing", "arch": "llama", "window": 8, "context": 1000000000}',
            b'{"kind": "turing", "arch": "llama", "window": 1000, "context": 8}',
            b'{"kind": "induction", "arch": "llama", "context": 16, "tokens": ["a", "b", "b"], "tokenizer": null}',
            b'{"kind": []}',
        ),
    ),
]
