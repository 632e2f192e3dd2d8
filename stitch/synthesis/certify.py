"""A certificate of a compiled checkpoint: its answers, read back from disk, against those of a reference interpreter."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from transformers import PreTrainedModel

from stitch.models.device import torch_device, torch_dtype
from stitch.pages.certificate import certificate_page
from stitch.pages.page import NAME, Page, html
from stitch.progress import Progress
from stitch.synthesis import checkpoint, kinds
from stitch.synthesis.attention import apart, safe_context, selection
from stitch.synthesis.bounds import MOST_SEED, MOST_TOKENS, within
from stitch.synthesis.report import notes, tables, title
from stitch.synthesis.trials import Trial, outcome
from stitch.synthesis.write import MARGIN

FILE = "certificate.json"
ROUNDING = 1e-3  # largest difference in attention that counts as rounding error
# Parts of a description that the report leaves out, as they are large or have a place of their own.
LEFT_OUT = ("matrix", "targets", "tokens", "provenance", "recipe")
SETTINGS = (("fp32", "sdpa"), ("fp32", "eager"), ("bf16", "sdpa"), ("bf16", "eager"))


def certify(
    folder: Path,
    *,
    tokens: int = 200_000,
    settings: Sequence[tuple[str, str]] = SETTINGS,
    seed: int = 0,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict:
    """Runs about `tokens` tokens of every trial in each of `settings` (dtype, attention); writes `certificate.json` to `folder`.

    In the report, `ideal` is the margin without rounding errors, and `certified` says whether all answers were correct.

    Raises: UsageError when the folder holds no compiled checkpoint, and for more tokens than fit into memory.
    """
    within("tokens", tokens, 1, MOST_TOKENS)
    within("seed", seed, 0, MOST_SEED)
    description, blueprint = kinds.compiled(folder)
    trials = list(kinds.trials_of(description, tokens, seed))
    rows, parameters = [], 0
    for dtype, attention in settings:
        net = checkpoint.load(folder, torch_dtype(dtype), attention, str(torch_device(device)))
        parameters = sum(parameter.numel() for parameter in net.parameters())
        for row in _tried(net, trials, f"{dtype}, {attention}", progress):
            rows.append({"dtype": dtype, "attention": attention, **row})
    report = {
        "description": {name: value for name, value in description.items() if name not in LEFT_OUT},
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
        **{name: description[name] for name in ("provenance", "recipe") if name in description},
    }
    if "matrix" in description:
        pattern = kinds.pattern_of(description).matrix
        assert pattern is not None
        report["apart"] = apart(folder, blueprint, pattern)
        # The error of the factors follows from the rank; the weights may add no more than rounding errors.
        report["certified"] = report["apart"]["fp32"]["max"] <= description["rank_curve"][-1]["max"] + ROUNDING
    (folder / FILE).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    (folder / NAME).write_bytes(html(page_of(report)))
    return report


def page_of(report: dict) -> Page:
    """The page of a certificate."""
    return certificate_page(report, title(report), tables(report), notes(report))


def _tried(net: PreTrainedModel, trials: list[Trial], stage: str, progress: Progress | None) -> Iterable[dict]:
    done, total = 0, sum(len(trial.ids) for trial in trials)

    def step(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(stage, done, total)

    for trial in trials:
        found = outcome(net, trial, step)
        yield {
            "trial": trial.name,
            "prompts": len(trial.ids),
            "asked": found.asked,
            "wrong": found.wrong,
            "margin": found.margin,
        }
