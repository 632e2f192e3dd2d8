"""The blueprint and the trials that follow from the description of a compiled checkpoint."""

import random
from collections.abc import Iterator
from pathlib import Path

import torch

from stitch.errors import UsageError
from stitch.synthesis.automata import trials
from stitch.synthesis.automata.automaton import Automaton
from stitch.synthesis.automata.parallel import parallel
from stitch.synthesis.automata.stepwise import exact_codes, random_codes, stepwise
from stitch.synthesis.blueprint import Blueprint
from stitch.synthesis.description import FILE, described
from stitch.synthesis.machines import subleq_trials, turing_trials
from stitch.synthesis.machines.subleq import frames
from stitch.synthesis.machines.subleq_circuit import subleq
from stitch.synthesis.machines.turing_circuit import check_sizes, turing_machine
from stitch.synthesis.patterns import induction_circuit, pattern_circuit
from stitch.synthesis.patterns.factorise import factorise
from stitch.synthesis.patterns.induction_circuit import induction
from stitch.synthesis.patterns.pattern import Pattern
from stitch.synthesis.patterns.pattern_circuit import hard_pattern, soft_pattern
from stitch.synthesis.trials import Trial

MODES = ("stepwise", "parallel", "vsa")


def compiled(folder: Path) -> tuple[dict, Blueprint]:
    """The description of a compiled checkpoint, and its blueprint.

    Raises: UsageError when the folder holds none, or a description that gives no blueprint.
    """
    description = described(folder)
    try:
        return description, blueprint_of(description)
    except UsageError as error:
        raise UsageError(f"{folder / FILE} must describe what was compiled; {error}") from None


def blueprint_of(description: dict) -> Blueprint:
    """The blueprint of a description.

    Raises: UsageError when its sizes do not allow one.
    """
    generator = random.Random(0)
    match description["kind"]:
        case "turing":
            window, context = description["window"], description["context"]
            check_sizes(window, context)
            drawn = turing_trials.random_machine(generator, min(turing_trials.most_rules(window, context), 16))
            cells = generator.choices(drawn.symbols, k=window)
            return turing_machine(window, context, turing_trials.texts(drawn, cells, window // 2, context)[:1])
        case "subleq":
            cells, context = description["cells"], description["context"]
            counting = [2, 2, 0, *[0] * (cells - 3)]  # never halts
            return subleq(cells, context, frames(counting, max((context - 1) // (cells + 2), 1)))
        case "pattern":
            pattern = pattern_of(description)
            if pattern.matrix is not None:
                return soft_pattern(*factorise(pattern.matrix, description["rank"]))
            assert pattern.targets is not None
            return hard_pattern(pattern.targets)
        case "induction":
            return induction(tuple(description["tokens"]), description["context"])
    automaton, length = Automaton.from_json(description["automaton"]), description["length"]
    if description["mode"] == "parallel":
        return parallel(automaton, length)
    coded = description["mode"] == "vsa"
    codes = random_codes(automaton, description["dimension"], description["seed"]) if coded else exact_codes(automaton)
    return stepwise(automaton, length, codes)


def pattern_of(description: dict) -> Pattern:
    """The pattern as it was read; the description holds it, so its file is not needed any more."""
    if "matrix" in description:
        return Pattern(None, torch.tensor(description["matrix"], dtype=torch.float64))
    return Pattern(torch.tensor(description["targets"]), None)


def trials_of(description: dict, tokens: int, seed: int) -> Iterator[Trial]:
    """Trials of about `tokens` tokens each."""
    match description["kind"]:
        case "turing":
            return turing_trials.trials(description["window"], description["context"], tokens, seed)
        case "subleq":
            return subleq_trials.trials(description["cells"], description["context"], tokens, seed)
        case "pattern":
            targets = pattern_of(description).targets
            return iter([] if targets is None else [pattern_circuit.trials(targets, tokens, seed)])
        case "induction":
            return iter([induction_circuit.trials(len(description["tokens"]), description["context"], tokens, seed)])
    automaton = Automaton.from_json(description["automaton"])
    return trials.trials(automaton, description["mode"], description["length"], tokens, seed)
