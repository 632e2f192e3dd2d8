"""What was compiled, as `synthesis.json` in its folder says, and what follows from it: the blueprint, and trials of it."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import torch

from stitch.errors import StitchError, UsageError
from stitch.synthesis.automata import trials
from stitch.synthesis.automata.automaton import Automaton
from stitch.synthesis.automata.parallel import parallel
from stitch.synthesis.automata.stepwise import exact_codes, random_codes, stepwise
from stitch.synthesis.blueprint import Blueprint
from stitch.synthesis.machines import subleq_trials, turing_trials
from stitch.synthesis.machines.subleq import frames
from stitch.synthesis.machines.subleq_circuit import subleq
from stitch.synthesis.machines.turing_circuit import turing_machine
from stitch.synthesis.patterns import induction_circuit, pattern_circuit
from stitch.synthesis.patterns.factorise import factorise
from stitch.synthesis.patterns.induction_circuit import induction
from stitch.synthesis.patterns.pattern import Pattern
from stitch.synthesis.patterns.pattern_circuit import hard_pattern, soft_pattern
from stitch.synthesis.trials import Trial

FILE = "synthesis.json"
MODES = ("stepwise", "parallel", "vsa")


def described(folder: Path) -> dict:
    """Raises UsageError for a folder that holds nothing compiled."""
    path = folder / FILE
    if not path.is_file():
        raise UsageError(f"{folder} must be a folder that `stitch compile` wrote; it has no {FILE}.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StitchError(f"{path} must be JSON; {error}: compile again.") from error


def blueprint_of(description: dict) -> Blueprint:
    """Raises UsageError where it cannot be built as asked for."""
    generator = random.Random(0)
    match description["kind"]:
        case "turing":
            window, context = description["window"], description["context"]
            drawn = turing_trials.random_machine(generator, min(turing_trials.most_rules(window, context), 16))
            cells = generator.choices(drawn.symbols, k=window)
            return turing_machine(window, context, turing_trials.texts(drawn, cells, window // 2, context)[:1])
        case "subleq":
            cells, context = description["cells"], description["context"]
            counting = [2, 2, 0, *[0] * (cells - 3)]  # goes on for ever
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
    """What the head is to attend to: kept as it was read, so that its file may go."""
    if "matrix" in description:
        return Pattern(None, torch.tensor(description["matrix"], dtype=torch.float64))
    return Pattern(torch.tensor(description["targets"]), None)


def trials_of(description: dict, tokens: int, seed: int) -> Iterator[Trial]:
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
