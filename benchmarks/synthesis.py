"""Size, speed and exactness of compiled circuits: one JSON line per part.

    random      1,000 random automata of up to 16 states and 8 symbols, per architecture; the null is another automaton's answers
    sizes       one automaton of each size: parameters, seconds, margin at a length of 1,000, fp32 and bf16
    parallel    the word problem of A5 at full length, with and without saturating neurons
    vsa         nearly orthogonal vectors: predicted and measured margin by dimension, down to where it fails
    heads       attention outside the target token of positional heads at 4,096 tokens; the baseline weights all planes alike
    ranks       errors of soft patterns by rank, fitted in three ways
    turing      steps of random machines, teacher-forced and decoded greedily in batches
    subleq      the same for programs that rewrite themselves
    tasks       parity and balanced brackets, beside Tracr (`--tracr PYTHON`, an environment that has `tracr-pypi`) and ALTA
                (`--alta PYTHON CLONE`, one that has jax, scipy and absl-py, and a clone of google-deepmind/alta)

`python benchmarks/synthesis.py vsa ranks` measures only these. All parts take a quarter of an hour on two cores.
"""

import argparse
import dataclasses
import itertools
import json
import random
import shutil
import tempfile
import time
from pathlib import Path

import torch
from _lines import read
from _processes import last_line
from torch import Tensor

from stitch.synthesis import attention, checkpoint, kinds
from stitch.synthesis.automata.automaton import Automaton
from stitch.synthesis.automata.read import from_description
from stitch.synthesis.automata.stepwise import Codes, exact_codes, random_codes, stepwise
from stitch.synthesis.automata.trials import trials
from stitch.synthesis.blueprint import Blueprint, Neurons, back, one_hots, together
from stitch.synthesis.build import build
from stitch.synthesis.decode import decoded
from stitch.synthesis.machines import subleq_trials, turing_trials
from stitch.synthesis.machines.subleq import frames
from stitch.synthesis.machines.turing import EDGE, HALT
from stitch.synthesis.machines.turing_circuit import ID, TOKENS, ids_of
from stitch.synthesis.patterns.factorise import rank_curve
from stitch.synthesis.patterns.pattern import read_pattern
from stitch.synthesis.patterns.pattern_circuit import hard_pattern
from stitch.synthesis.rope_heads import HEAD, THETA, plane_head
from stitch.synthesis.trials import Outcome, outcome
from stitch.synthesis.write import MARGIN

ARCHS = ("gpt2", "llama")
FEWEST_STEPS = 10  # steps of a machine that is decoded, at least
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def random_automaton(generator: random.Random, states: int, symbols: int) -> Automaton:
    steps = tuple(tuple(generator.randrange(states) for _ in range(symbols)) for _ in range(states))
    says = tuple(tuple(f"<{to}>" for to in row) for row in steps)
    letters = tuple(chr(ord("a") + symbol) for symbol in range(symbols))
    return Automaton(tuple(map(str, range(states))), letters, generator.randrange(states), steps, says)


def saved(blueprint: Blueprint, arch: str, folder: Path) -> tuple[dict, float]:
    """Builds and saves a model. Returns its number of parameters and the seconds that building took."""
    start = time.perf_counter()
    model = build(blueprint, arch)
    seconds = time.perf_counter() - start
    shutil.rmtree(folder, ignore_errors=True)
    checkpoint.save(model, {"arch": arch}, folder)
    return {"parameters": model.net.num_parameters()}, seconds


def measured(folder: Path, tried: list, dtypes=DTYPES, attention_by: str = "sdpa") -> dict:
    found = {}
    for name in dtypes:
        net = checkpoint.load(folder, DTYPES[name], attention_by)
        outcomes = [outcome(net, trial) for trial in tried]
        found[name] = {
            "asked": sum(one.asked for one in outcomes),
            "wrong": sum(one.wrong for one in outcomes),
            "margin": min(one.margin for one in outcomes) / MARGIN,
        }
    return found


def random_automata(work: Path, count: int) -> dict:
    found = {}
    for arch in ARCHS:
        generator, asked, wrong, margin, null = random.Random(0), 0, 0, torch.inf, []
        for _ in range(count):
            automaton = random_automaton(generator, generator.randint(2, 16), generator.randint(1, 8))
            other = random_automaton(generator, len(automaton.states), len(automaton.symbols))
            net = build(stepwise(automaton, 40, exact_codes(automaton)), arch).net
            for number, trial in enumerate(trials(automaton, "stepwise", 40, 1_000, seed=1)):
                one = outcome(net, trial)
                asked, wrong, margin = asked + one.asked, wrong + one.wrong, min(margin, one.margin / MARGIN)
                if number == 1:
                    theirs = list(trials(other, "stepwise", 40, 1_000, seed=1))[1]
                    null.append(_agreement(net, trial.ids, automaton, theirs.answers, other))
        found[arch] = {
            "automata": count,
            "asked": asked,
            "wrong": wrong,
            "margin": margin,
            "null_right": sum(null) / len(null),
        }
    return found


def _agreement(net, ids: Tensor, automaton: Automaton, answers: Tensor, other: Automaton) -> float:
    """Share of answers that equal those of another automaton on the same strings, compared state by state."""
    with torch.inference_mode():
        said = net(ids).logits.argmax(-1)
    where = answers >= 0
    ours, theirs = list(automaton.said.values()), list(other.said.values())
    first = 1 + len(automaton.symbols)
    mine = torch.tensor([ours[token - first] if token >= first else -1 for token in said[where].tolist()])
    return float((mine == torch.tensor([theirs[token - first] for token in answers[where].tolist()])).float().mean())


def sizes(work: Path) -> list[dict]:
    rows = []
    for arch in ARCHS:
        for states, symbols in ((4, 2), (16, 8), (64, 8), (256, 16)):
            automaton = random_automaton(random.Random(states), states, symbols)
            blueprint = stepwise(automaton, 1_000, exact_codes(automaton))
            about, seconds = saved(blueprint, arch, work / "dfa")
            tried = list(trials(automaton, "stepwise", 1_000, 50_000, seed=0))
            rows.append(
                {
                    "arch": arch,
                    "states": states,
                    "symbols": symbols,
                    **about,
                    "seconds": seconds,
                    **measured(work / "dfa", tried),
                }
            )
    return rows


def acting(*generators: list[int]) -> Automaton:
    """An automaton whose symbols permute the states and that outputs its state.

    A 5-cycle and a 3-cycle generate A5, whose word problem is not solvable in constant depth unless TC0 = NC1
    (Barrington 1989).
    """
    states = range(len(generators[0]))
    letters = [chr(ord("a") + number) for number in range(len(generators))]
    transitions = {str(q): {a: str(moved[q]) for a, moved in zip(letters, generators, strict=True)} for q in states}
    return from_description({"transitions": transitions, "start": "0", "outputs": {str(q): str(q) for q in states}})


def parallel(work: Path) -> list[dict]:
    a5 = acting([1, 2, 3, 4, 0], [1, 2, 0, 3, 4])
    whole = [("llama", 4_095, a5), ("gpt2", 1_023, a5)]
    rows = [parallel_row(work, *one, saturating) for one in whole for saturating in (True, False)]
    swapped = {states: acting([*range(1, states), 0], [1, 0, *range(2, states)]) for states in (2, 4, 8)}
    smaller = [("llama", length, swapped[states]) for states in swapped for length in (63, 255, 1_023)]
    return rows + [parallel_row(work, *one, True) for one in smaller]


def parallel_row(work: Path, arch: str, length: int, automaton: Automaton, saturating: bool) -> dict:
    description = {"kind": "automaton", "mode": "parallel", "length": length, "automaton": automaton.as_json()}
    full, states = kinds.blueprint_of(description), len(automaton.states)
    about, seconds = saved(full if saturating else _without_saturation(full, states), arch, work / "parallel")
    tried = list(trials(automaton, "parallel", length, 20_000, seed=0))
    row = {"arch": arch, "states": states, "length": length, "blocks": len(full.blocks), "saturating": saturating}
    return {**row, **about, "seconds": seconds, **measured(work / "parallel", tried)}


def _without_saturation(blueprint: Blueprint, states: int) -> Blueprint:
    """The same circuit with compositions by relu(a + b − 1) alone."""
    width = 2 * states**2
    window, earlier = one_hots(torch.arange(width), width).view(2, states, states, width)
    q, r, s = (index.flatten() for index in torch.meshgrid(*[torch.arange(states)] * 3, indexing="ij"))
    old = torch.cat([earlier.flatten(0, 1), window.flatten(0, 1)])
    plain = together(
        Neurons((earlier[q, r] + window[r, s]).T, torch.ones(len(q), dtype=torch.float64), window[q, s]),
        Neurons(old.T, torch.zeros(len(old), dtype=torch.float64), -old),
    )
    return dataclasses.replace(
        blueprint, blocks=tuple(dataclasses.replace(block, neurons=plain) for block in blueprint.blocks)
    )


def vsa(work: Path) -> list[dict]:
    """Margins in units of the answer's own logit; 1 without crosstalk."""
    rows = []
    for states in (16, 64, 256):
        automaton = random_automaton(random.Random(states), states, 4)
        for dimension in (8, 12, 16, 24, 32, 48, 64, 96, 128, 256):
            codes = _drawn(automaton, dimension)
            # In fewer dimensions two vectors coincide and cannot be told apart.
            if codes.coherence > 1 - 1e-9:
                rows.append({"states": states, "dimension": dimension, "coherence": codes.coherence})
                continue
            blueprint = stepwise(automaton, 250, codes)
            saved(blueprint, "llama", work / "vsa")
            found = measured(work / "vsa", list(trials(automaton, "stepwise", 250, 10_000, seed=0)))
            scale = 1 - blueprint.crosstalk
            row = {"states": states, "dimension": dimension, "coherence": codes.coherence, "predicted": scale}
            rows.append({**row, **{name: {**one, "margin": scale * one["margin"]} for name, one in found.items()}})
    return rows


def _drawn(automaton: Automaton, dimension: int) -> Codes:
    """`random_codes` without its limit on coherence."""
    from stitch.synthesis.automata import stepwise as module

    limit, module.HIGHEST_COHERENCE = module.HIGHEST_COHERENCE, 2.0
    try:
        return random_codes(automaton, dimension)
    finally:
        module.HIGHEST_COHERENCE = limit


def heads(work: Path) -> list[dict]:
    rows, length = [], 4_096
    frequencies = THETA ** -(torch.arange(0, HEAD, 2, dtype=torch.float64) / HEAD)
    for offset in (1, 7, 64, 2_048):
        found = plane_head(offset, length)
        others = torch.tensor([delta for delta in range(-offset, length - offset) if delta], dtype=torch.float64)
        alike = float((1 - (others[:, None] * frequencies).cos().mean(1)).min())
        row = {"offset": offset, "length": length, "gap": found.gap, "gap_of_planes_alike": alike}
        for arch in ARCHS:
            blueprint = hard_pattern(back(offset, length))
            saved(blueprint, arch, work / "head")
            row[arch] = attention.selection(work / "head", blueprint, arch)["off_mass"]
        rows.append(row)
    return rows


def ranks(work: Path) -> list[dict]:
    noise = torch.rand(256, 256, generator=torch.Generator().manual_seed(0), dtype=torch.float64).pow(4).tril()
    low = read_pattern("random:8", 256).matrix
    assert low is not None
    return [
        {"pattern": "random:8", "length": 256, "curve": rank_curve(low, 32)},
        {"pattern": "noise", "length": 256, "curve": rank_curve(noise / noise.sum(1, keepdim=True), 64)},
    ]


def turing(work: Path, steps: int, decoded: int) -> dict:
    window, context = 32, 1_024
    description = {"kind": "turing", "arch": "llama", "window": window, "context": context}
    about, seconds = saved(kinds.blueprint_of(description), "llama", work / "turing")
    net = checkpoint.load(work / "turing", torch.float32, "sdpa")
    found, seed = Outcome(0, 0, torch.inf), 0
    while found.asked < steps * (window + 1):
        (trial,) = turing_trials.trials(window, context, 200_000, seed=seed)
        one = outcome(net, trial)
        found = Outcome(found.asked + one.asked, found.wrong + one.wrong, min(found.margin, one.margin))
        seed += 1
    half = measured(work / "turing", list(turing_trials.trials(window, context, 50_000, seed=seed)), ["bf16"])
    start = time.perf_counter()
    greedy = decoded_in_batches(net, window, context, decoded)
    return {
        **about,
        "seconds": seconds,
        "teacher_forced": {"steps": found.asked / (window + 1), "wrong": found.wrong, "margin": found.margin / MARGIN},
        **half,
        "decoded": {**greedy, "seconds": time.perf_counter() - start},
    }


def decoded_in_batches(net, window: int, context: int, steps: int, rows: int = 32) -> dict:
    """Decodes machines with the same number of rules in batches, greedily, and compares token by token with the
    reference.
    """
    generator, done, wrong, ended = random.Random(99), 0, 0, 0
    while done < steps:
        texts = []
        while len(texts) < rows:
            drawn = turing_trials.random_machine(generator, 24)
            if len(drawn.rules) == 24:
                cells = generator.choices(drawn.symbols, k=window)
                text = turing_trials.texts(drawn, cells, generator.randrange(window), context, generator)[0]
                if text.count("|") > FEWEST_STEPS:  # a batch takes as long as its longest run
                    texts.append(text)
        wanted = [ids_of(text) for text in texts]
        prompt = 1 + 3 * 24 + 1 + window + 1
        ids = torch.tensor([row[:prompt] for row in wanted])
        with torch.inference_mode():
            said = net.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=max(map(len, wanted)) - prompt, do_sample=False,
                eos_token_id=[ID[HALT], ID[EDGE]], pad_token_id=0,
            )  # fmt: skip
        for row, want in zip(said.tolist(), wanted, strict=True):
            wrong += row[: len(want)] != want
            done += -(-(len(want) - prompt) // (window + 1))
            ended += TOKENS[want[-1]] in (HALT, EDGE)
    return {"steps": done, "machines_wrong": wrong, "machines_that_ended": ended}


def subleq(work: Path, tokens: int) -> dict:
    cells, context = 64, 1_024
    description = {"kind": "subleq", "arch": "gpt2", "cells": cells, "context": context}
    about, seconds = saved(kinds.blueprint_of(description), "gpt2", work / "subleq")
    tried = list(subleq_trials.trials(cells, context, tokens, seed=0))
    net = checkpoint.load(work / "subleq", torch.float32, "sdpa")
    generator, programs, wrong, steps = random.Random(7), 0, 0, 0
    number = {token: index for index, token in enumerate(kinds.blueprint_of(description).tokens)}
    while steps < 100:
        found = frames(subleq_trials.random_memory(cells, generator), 12, generator.randrange(cells - 2))
        want = [0, *(number[token] for frame in found for token in frame)]
        size = cells + 2
        said = decoded(net, want[: 1 + size], len(want) - 1 - size, [number["!"]])
        wrong, steps, programs = wrong + (said != want[1 + size :]), steps + len(found) - 1, programs + 1
    return {
        **about,
        "seconds": seconds,
        **measured(work / "subleq", tried),
        "decoded": {"programs": programs, "steps": steps, "wrong": wrong},
    }


def same_tasks(work: Path, tracr: str | None, alta: list[str] | None) -> list[dict]:
    """Parity and balanced brackets, compiled here, by Tracr and by ALTA (run by Pythons of their own), on the same strings.

    The answer is the output after the last symbol. For parity, every number of ones is equally frequent; half of the
    bracket words are balanced, and half have one bracket flipped.
    """
    rows = []
    for task, length in itertools.product(("parity", "brackets"), (8, 16, 32)):
        cases = (_parities if task == "parity" else _brackets)(random.Random(0), length)
        (work / "cases.json").write_text(json.dumps(cases))
        automaton = acting([1, 0], [0, 1]) if task == "parity" else _depths(length // 2)
        modes = ("parallel", "stepwise") if task == "parity" else ("stepwise",)
        for mode in modes:
            description = {"kind": "automaton", "mode": mode, "length": length, "automaton": automaton.as_json()}
            blueprint = kinds.blueprint_of(description)
            about, seconds = saved(blueprint, "llama", work / "task")
            row = {
                "task": task,
                "length": length,
                "by": f"stitch, {mode}",
                **about,
                "blocks": len(blueprint.blocks),
                "seconds": seconds,
            }
            for name, dtype in DTYPES.items():
                net = checkpoint.load(work / "task", dtype, "sdpa")
                row[f"wrong_{name}"] = _wrong(net, automaton, mode, cases)
            rows.append({**row, "strings": len(cases)})
        for exactness in (100, 10_000) if tracr else ():
            script = Path(__file__).with_name("_tracr_peer.py")
            found = last_line([tracr, script, task, length, exactness, work / "cases.json"])
            rows.append({"task": task, "length": length, "by": f"Tracr, mlp_exactness {exactness}", **found})
        for scalar in (100, 10_000) if alta else ():
            python, clone = alta
            script = Path(__file__).with_name("_alta_peer.py")
            found = last_line([python, script, clone, task, length, scalar, work / "cases.json"])
            rows += [
                {"task": task, "length": length, "by": f"ALTA, {row.pop('program')}, scalar {scalar:,}", **row}
                for row in found["programs"]
            ]
    return rows


def _parities(generator: random.Random, length: int) -> list[tuple[str, int]]:
    cases = []
    for number in range(500):
        ones = number % (length + 1)
        letters = ["a"] * ones + ["b"] * (length - ones)
        generator.shuffle(letters)
        cases.append(("".join(letters), ones % 2))
    return cases


def _brackets(generator: random.Random, length: int) -> list[tuple[str, int]]:
    cases = []
    for number in range(500):
        depth, letters = 0, []
        for left in range(length, 0, -1):
            opening = depth == 0 or (depth < left and generator.random() < 0.5)
            depth += 1 if opening else -1
            letters.append("(" if opening else ")")
        if number % 2:
            flipped = generator.randrange(length)
            letters[flipped] = "(" if letters[flipped] == ")" else ")"
        cases.append(("".join(letters), int(not number % 2)))
    return cases


def _depths(deepest: int) -> Automaton:
    """An automaton that counts open brackets. Below 0, and above the greatest depth of a balanced word of twice as
    many letters, it goes to a rejecting state.
    """
    states = [str(depth) for depth in range(deepest + 1)]
    transitions = {
        q: {"(": str(int(q) + 1) if int(q) < deepest else "no", ")": str(int(q) - 1) if int(q) else "no"}
        for q in states
    }
    return from_description(
        {"transitions": {**transitions, "no": {"(": "no", ")": "no"}}, "start": "0", "accept": ["0"]}
    )


def _wrong(net, automaton: Automaton, mode: str, cases: list[tuple[str, int]]) -> int:
    """Number of strings after which the model, which reads back its own output, answers wrongly."""
    texts = torch.tensor([[1 + automaton.symbols.index(letter) for letter in text] for text, _ in cases])
    ids = torch.zeros(len(texts), 1, dtype=torch.long)
    with torch.inference_mode():
        for column in texts.T[:, :, None]:
            ids = torch.cat([ids, column], 1)
            if mode == "stepwise":
                ids = torch.cat([ids, net(ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
        last = net(ids).logits[:, -1].argmax(-1) if mode == "parallel" else ids[:, -1]
    words = list(automaton.said)
    said = [words[number - 1 - len(automaton.symbols)] for number in last.tolist()]
    right = [word == "<0+>" if "+" in "".join(words) else word.startswith("<1") for word in said]
    return sum(one != bool(answer) for one, (_, answer) in zip(right, cases, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*")
    parser.add_argument("--automata", type=int, default=1_000)
    parser.add_argument("--steps", type=int, default=100_000, help="Teacher-forced steps of Turing machines.")
    parser.add_argument("--decoded", type=int, default=10_000, help="Decoded steps of Turing machines.")
    parser.add_argument("--tracr", help="Python of an environment that has tracr-pypi, to compare with.")
    parser.add_argument(
        "--alta",
        nargs=2,
        metavar=("PYTHON", "CLONE"),
        help="Python of an environment that has what ALTA needs, and its code.",
    )
    parser.add_argument("--lines", type=Path, help="File of finished parts, which are not measured again.")
    given = parser.parse_args()
    found: dict = {}
    if given.lines and given.lines.is_file():
        found = {row["part"]: row["results"] for row in read(given.lines)}
    measure = {
        "random": lambda work: random_automata(work, given.automata),
        "sizes": sizes,
        "parallel": parallel,
        "vsa": vsa,
        "heads": heads,
        "ranks": ranks,
        "turing": lambda work: turing(work, given.steps, given.decoded),
        "subleq": lambda work: subleq(work, 50_000),
        "tasks": lambda work: same_tasks(work, given.tracr, given.alta),
    }
    with tempfile.TemporaryDirectory() as folder:
        for part in given.parts or measure:
            if part in found:
                continue
            start = time.perf_counter()
            found[part] = measure[part](Path(folder))
            line = {
                "benchmark": "synthesis",
                "part": part,
                "took": round(time.perf_counter() - start, 1),
                "results": found[part],
            }
            print(json.dumps(line), flush=True)
            if given.lines:
                with given.lines.open("a") as file:
                    file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
