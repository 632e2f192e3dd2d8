"""A certificate: a compiled checkpoint, read back from disk, tried against a reference interpreter in every way it may be run."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from stitch.models.device import torch_device, torch_dtype
from stitch.synthesis import checkpoint, kinds
from stitch.synthesis.attention import apart, safe_context, selection
from stitch.synthesis.build import MARGIN
from stitch.synthesis.trials import outcome

FILE = "certificate.json"
ROUNDING = 1e-3  # of attention
LARGE = ("matrix", "targets", "tokens")  # of a description; they are in the folder's synthesis.json
SETTINGS = (("fp32", "sdpa"), ("fp32", "eager"), ("bf16", "sdpa"), ("bf16", "eager"))


def certify(
    folder: Path,
    *,
    tokens: int = 200_000,
    settings: Sequence[tuple[str, str]] = SETTINGS,
    seed: int = 0,
    device: str = "auto",
    progress: Callable[[str, int, int], None] | None = None,
) -> dict:
    """Tries about `tokens` tokens of every kind in each of `settings` (dtype, attention); writes `certificate.json` beside the
    weights. `ideal` is the margin without any error; `certified` whether no answer was wrong.

    Raises: UsageError for a folder that holds nothing compiled.
    """
    description = kinds.described(folder)
    blueprint = kinds.blueprint_of(description)
    trials = list(kinds.trials_of(description, tokens, seed))
    place = str(torch_device(device))
    rows, parameters = [], 0
    for dtype, attention in settings:
        net = checkpoint.load(folder, torch_dtype(dtype), attention, place)
        parameters = sum(parameter.numel() for parameter in net.parameters())
        done, total = 0, sum(len(trial.ids) for trial in trials)

        def step(count: int, stage: str = f"{dtype}, {attention}", total: int = total) -> None:
            nonlocal done
            done += count
            if progress:
                progress(stage, done, total)

        for trial in trials:
            found = outcome(net, trial, step)
            rows.append(
                {
                    "dtype": dtype,
                    "attention": attention,
                    "trial": trial.name,
                    "prompts": len(trial.ids),
                    "asked": found.asked,
                    "wrong": found.wrong,
                    "margin": found.margin,
                }
            )
    report = {
        "folder": str(folder),
        "description": {name: value for name, value in description.items() if name not in LARGE},
        "context": blueprint.length,
        "blocks": len(blueprint.blocks),
        "parameters": parameters,
        "ideal": MARGIN,
        "results": rows,
        "margin": min((row["margin"] for row in rows), default=None),
        "certified": not any(row["wrong"] for row in rows),
        "crosstalk": blueprint.crosstalk,
        **selection(folder, blueprint, description["arch"]),
        "safe_context": safe_context(blueprint, description["arch"]),
        "seed": seed,
    }
    if "matrix" in description:
        pattern = kinds.pattern_of(description).matrix
        assert pattern is not None
        report["apart"] = apart(folder, blueprint, pattern)
        # What the factors lose is chosen with the rank; what weights lose beyond that must be rounding.
        report["certified"] = report["apart"]["fp32"]["max"] <= description["rank_curve"][-1]["max"] + ROUNDING
    (folder / FILE).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    return report
