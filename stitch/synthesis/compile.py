"""Compiles a specification to a checkpoint with a first, short certificate."""

import time
from pathlib import Path
from typing import Any

from stitch.errors import UsageError
from stitch.files.job import Job, run
from stitch.files.output import check_output
from stitch.files.recipe import recipe
from stitch.files.specification import shown
from stitch.models.provenance import described, versions
from stitch.models.sources import Source, resolve
from stitch.pages.card import card_files
from stitch.progress import Progress
from stitch.synthesis import checkpoint, kinds
from stitch.synthesis.automata.read import read_automaton
from stitch.synthesis.automata.stepwise import random_codes
from stitch.synthesis.bounds import LONGEST, LONGEST_SOFT, MOST_DIMENSIONS, MOST_SEED, within
from stitch.synthesis.build import build, check_architecture
from stitch.synthesis.card import compiled_card
from stitch.synthesis.certify import certify, page_of
from stitch.synthesis.kinds import MODES
from stitch.synthesis.machines.subleq_circuit import FEWEST_CELLS, MOST_CELLS
from stitch.synthesis.machines.turing_circuit import check_sizes
from stitch.synthesis.patterns.factorise import rank_curve
from stitch.synthesis.patterns.induction_circuit import FEWEST_TOKENS
from stitch.synthesis.patterns.pattern import read_pattern
from stitch.synthesis.patterns.pattern_circuit import TOKENS as LETTERS

MACHINES = {"turing": "llama", "subleq": "gpt2"}  # and their default architectures
POSITIONS = {"gpt2": "learned", "llama": "rope"}
FIRST_TOKENS = 10_000  # tokens per trial of the first certificate


def compile_to(
    description: dict,
    out: Path,
    command: str,
    settings: dict,
    *,
    tokenizer: Any = None,
    models: dict[str, Source] | None = None,
    overwrite: bool = False,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict:
    """Writes the checkpoint of a `description` (the content of `synthesis.json`), and certifies it on few tokens in fp32.

    It has a tokenizer of its own vocabulary unless another one is given. `settings` are the options of `command`, and `models`
    those that they name. Returns the certificate, and in `seconds` how long compiling took.

    Raises: UsageError when the circuit cannot be built.
    """
    named = {role: described(source) for role, source in (models or {}).items()}
    provenance = {"settings": {**settings, "device": device}, "models": named, "versions": versions()}
    description = {**description, "provenance": provenance, "recipe": recipe(f"compile {command}", provenance)}

    def make(scratch: Path, output: Path) -> dict:
        began = time.perf_counter()
        model = build(kinds.blueprint_of(description), description["arch"], tokenizer=tokenizer)
        checkpoint.save(model, description, output)
        seconds = time.perf_counter() - began
        first = {"tokens": FIRST_TOKENS, "settings": [("fp32", "sdpa")]}
        report = certify(output, **first, device=device, progress=progress)
        for name, content in card_files(compiled_card(report), page_of(report)).items():
            (output / name).write_bytes(content)
        return {**report, "seconds": seconds}

    return run("compile", lambda: Job(make=make), out, overwrite=overwrite)[0]


def compile_automaton(
    spec: str,
    out: Path,
    *,
    arch: str = "llama",
    mode: str = "stepwise",
    length: int = 512,
    dimension: int = 64,
    alphabet: str | None = None,
    normalise: bool = False,
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict:
    """Compiles an automaton, given as a regular expression or a JSON file, for strings of up to `length` symbols.

    In mode `vsa`, states and symbols are random vectors of `dimension` numbers drawn from `seed`.

    Raises: UsageError for an automaton, a mode or a length that cannot be compiled, and how to change it.
    """
    check_output(out, overwrite)
    if mode not in MODES:
        raise UsageError(f"mode must be one of {', '.join(MODES)}; got {shown(mode)}.")
    check_architecture(arch)
    within("length", length, 2, LONGEST // 2 - 1)  # each symbol is followed by a state
    within("seed", seed, 0, MOST_SEED)
    automaton = read_automaton(spec, alphabet=alphabet, normalise=normalise)
    description = {"kind": "automaton", "source": spec, "arch": arch, "mode": mode, "length": length}
    if mode == "vsa":
        within("dimension", dimension, 2, MOST_DIMENSIONS)
        codes = random_codes(automaton, dimension, seed)
        description |= {"dimension": dimension, "seed": seed, "coherence": codes.coherence}
    description["automaton"] = automaton.as_json()
    settings = {
        "spec": spec, "alphabet": alphabet, "normalise": normalise, "arch": arch, "mode": mode, "length": length,
        "dimension": dimension, "seed": seed,
    }  # fmt: skip
    return compile_to(description, out, "automaton", settings, overwrite=overwrite, device=device, progress=progress)


def compile_machine(
    out: Path,
    *,
    kind: str = "turing",
    arch: str | None = None,
    window: int = 32,
    cells: int = 64,
    context: int = 2048,
    device: str = "auto",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict:
    """Compiles a universal machine: `turing` with a tape of `window` cells, or `subleq` with a memory of `cells` bytes.

    Raises: UsageError for another kind, and when two frames do not fit the context.
    """
    check_output(out, overwrite)
    if kind not in MACHINES:
        raise UsageError(f"kind must be one of {', '.join(MACHINES)}; got {shown(kind)}.")
    arch = MACHINES[kind] if arch is None else arch
    check_architecture(arch)
    within("context", context, 2, LONGEST)
    if kind == "turing":
        check_sizes(window, context)
    else:
        within("cells", cells, FEWEST_CELLS, MOST_CELLS)
    size = {"window": window} if kind == "turing" else {"cells": cells}
    description = {"kind": kind, "arch": arch, **size, "context": context}
    return compile_to(description, out, "machine", description, overwrite=overwrite, device=device, progress=progress)


def compile_pattern(
    what: str,
    out: Path,
    *,
    arch: str | None = None,
    positions: str | None = None,
    length: int = 512,
    rank: int = 16,
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict:
    """Compiles a head with a given attention pattern (`read_pattern`).

    A soft pattern is factorised at `rank`; its report compares lower ranks and other methods. Positions are `learned` (gpt2) or
    `rope` (llama); `arch` or `positions` selects one, by default learned.

    Raises: UsageError for an invalid pattern, or one that the architecture's positions cannot express.
    """
    check_output(out, overwrite)
    if positions not in (None, *POSITIONS.values()):
        raise UsageError(f"positions must be one of {', '.join(POSITIONS.values())}; got {shown(positions)}.")
    if arch is None:
        arch = next((name for name, kind in POSITIONS.items() if kind == positions), "gpt2")
    check_architecture(arch)
    if positions and POSITIONS.get(arch, positions) != positions:
        raise UsageError(
            f"positions must be {POSITIONS[arch]} for {arch}; got {positions}. Give only one of `arch` and `positions`."
        )
    within("length", length, 2, LONGEST)
    within("rank", rank, 1, LONGEST_SOFT)
    within("seed", seed, 0, MOST_SEED)
    pattern = read_pattern(what, length, seed)
    description: dict = {"kind": "pattern", "source": what, "arch": arch, "context": length}
    if pattern.targets is not None:
        description["targets"] = pattern.targets.tolist()
    if pattern.matrix is not None:
        description |= {"rank": rank, "rank_curve": rank_curve(pattern.matrix, rank), "matrix": pattern.matrix.tolist()}
    settings = {"what": what, "arch": arch, "length": length, "rank": rank, "seed": seed}
    return compile_to(description, out, "pattern", settings, overwrite=overwrite, device=device, progress=progress)


def compile_induction(
    out: Path,
    *,
    arch: str = "llama",
    context: int = 512,
    tokenizer: str | None = None,
    device: str = "auto",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict:
    """Compiles the induction circuit, with the vocabulary of the model `tokenizer` or, by default, of letters.

    Raises: UsageError when the vocabulary cannot be read, or has more bits than heads can compare over the context.
    """
    check_output(out, overwrite)
    check_architecture(arch)
    within("context", context, FEWEST_TOKENS, LONGEST)
    description = {
        "kind": "induction",
        "arch": arch,
        "context": context,
        "tokens": list(LETTERS),
        "tokenizer": tokenizer,
    }
    loaded, models = None, {}
    if tokenizer is not None:
        from transformers import AutoTokenizer

        models["tokenizer"] = resolve(tokenizer, for_tokenizer=True)
        loaded = AutoTokenizer.from_pretrained(models["tokenizer"].folder, trust_remote_code=False)
        names = {number: token for token, number in loaded.get_vocab().items()}
        description["tokens"] = [names.get(number, f"<{number}>") for number in range(max(names) + 1)]
    settings = {"tokenizer": tokenizer, "arch": arch, "context": context}
    return compile_to(
        description, out, "induction", settings, tokenizer=loaded, models=models, overwrite=overwrite, device=device,
        progress=progress,
    )  # fmt: skip
