"""What was compiled, as `synthesis.json` in its folder says, and what follows from it: the blueprint, and trials of it."""

import json
from collections.abc import Iterator
from pathlib import Path

from stitch.errors import StitchError, UsageError
from stitch.synthesis import automaton_trials, machine_trials
from stitch.synthesis.automaton import Automaton
from stitch.synthesis.blueprint import Blueprint
from stitch.synthesis.machine import machine
from stitch.synthesis.parallel import parallel
from stitch.synthesis.stepwise import exact_codes, random_codes, stepwise
from stitch.synthesis.trials import Trial

FILE = "synthesis.json"
MODES = ("stepwise", "parallel", "vsa")
SPECIMEN = "A0B1>B1A0=|"  # a program, and some tapes as it writes them


def described(folder: Path) -> dict:
    """Raises UsageError for a folder that holds nothing compiled."""
    path = folder / FILE
    if not path.is_file():
        raise UsageError(f"{folder} must be a folder that `stitch compile` wrote; it has no {FILE}.")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise StitchError(f"{path} must be JSON; {error}: compile again.") from error


def blueprint_of(description: dict) -> Blueprint:
    """Raises UsageError where it cannot be built as asked for."""
    if description["kind"] == "machine":
        window, context = description["window"], description["context"]
        return machine(window, context, _specimens(window, context))
    automaton = Automaton.from_json(description["automaton"])
    if description["mode"] == "parallel":
        return parallel(automaton, description["length"])
    coded = description["mode"] == "vsa"
    codes = random_codes(automaton, description["dimension"], description["seed"]) if coded else exact_codes(automaton)
    return stepwise(automaton, description["length"], codes)


def trials_of(description: dict, tokens: int, seed: int) -> Iterator[Trial]:
    if description["kind"] == "machine":
        return machine_trials.trials(description["window"], description["context"], tokens, seed)
    automaton = Automaton.from_json(description["automaton"])
    return automaton_trials.trials(automaton, description["mode"], description["length"], tokens, seed)


def _specimens(window: int, context: int) -> list[str]:
    import random

    generator = random.Random(0)
    drawn = machine_trials.random_machine(generator)
    return machine_trials.texts(drawn, generator.choices(drawn.symbols, k=window), window // 2, context)[:1]
