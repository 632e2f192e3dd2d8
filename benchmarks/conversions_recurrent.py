"""KL to the donor against the bytes of a recurrent state: one JSON line per row, and a picture with `--figure`.

    window      the last keys alone: 16 to 128 of them
    tail        the same with the first key and one feature for all others, fitted: the null of every fitted row
    hedgehog    features and the first key alone: twice and four times as many as a head has dimensions
    hybrid      twice as many and the last 16 or 32 keys; half as many and the last 41, which are the bytes of 16 and twice
    linear      hybrid without MLPs in its feature maps
    closed      Taylor-2 and random features, raw and beside 16 keys
    exact       parallel against recurrent form of a fitted model, and the state at 32,768 tokens (RoPE only)

`python benchmarks/conversions_recurrent.py demo:gpt2 --rows window tail hybrid` measures these alone. All rows of a model share
windows, fit tokens and steps; what comes first does not change what follows.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from stitch.conversions.donor import Donor, read_donor
from stitch.conversions.recall import recall_prompts
from stitch.conversions.recurrent import (
    Recipe,
    beside,
    cache_bytes,
    check_convertible,
    dimension_of,
    fit,
    recall,
    scores_of,
    state_bytes,
    wrap,
)
from stitch.modeling_recurrent import RecurrentForCausalLM, attentions, shape_of

COLOURS = {"window": "#9a9a9a", "tail": "black", "hedgehog": "#3b6fb6", "hybrid": "#c0504d", "linear": "#d99a3a"}
MARKS = {"taylor2": "s", "random": "^"}


def recipes(width: int, steps: int, logit_steps: int) -> dict[str, list[Recipe]]:
    """Rows by kind for heads of this width."""
    fitted: dict[str, Any] = {"steps": steps, "logit_steps": logit_steps, "hidden": 2 * width}

    def hedgehog(multiple: float, window: int, **changes) -> Recipe:
        options = {**fitted, "features": "hedgehog", "dimension": round(multiple * width), "window": window, "sinks": 1}
        return Recipe(**{**options, **changes})

    return {
        "window": [Recipe(features="none", window=window, sinks=0) for window in (16, 32, 49, 64, 128)],
        "tail": [Recipe(features="mean", window=window, sinks=1, **fitted) for window in (16, 49, 64)],
        "hedgehog": [hedgehog(multiple, 0) for multiple in (2, 4)],
        "hybrid": [hedgehog(2, window) for window in (16, 32)] + [hedgehog(0.5, 41)],
        "linear": [hedgehog(2, 16, hidden=0)],
        "closed": [
            Recipe(features=features, window=window, sinks=min(window, 1), dimension=dimension)
            for window in (0, 16)
            for features, dimension in (("taylor2", None), ("random", 2 * width), ("random", 4 * width))
        ],
    }


def row(net: RecurrentForCausalLM, donor: Donor, recipe: Recipe, kind: str) -> dict:
    """A net fitted and scored on the report split."""
    began = time.perf_counter()
    course = fit(net, donor, recipe)
    seconds = time.perf_counter() - began
    score = scores_of({"net": net}, donor, donor.windows["report"])["net"]
    kept = state_bytes(net, donor.context)
    asked = recall_prompts(donor.model.tokenizer, donor.context // 2)
    return {
        "kind": kind, **score.row(recipe.features), "window": recipe.window, "sinks": recipe.sinks, "hidden": recipe.hidden,
        "multiple": dimension_of(net), "state_bytes": kept, "share": kept / cache_bytes(donor.model, donor.context),
        "recall": recall(net, asked), "fit": course, "seconds": seconds,
    }  # fmt: skip


@torch.no_grad()
def exact(net: RecurrentForCausalLM, donor: Donor) -> dict:
    """max |Δlogit| of the two forms at lengths 1, w, w + 1, 4 w, and the bytes of a long text's state."""
    window, ids = net.config.window, donor.windows["report"].ids.long()
    worst = {}
    for length in (1, window, window + 1, 4 * window):
        text, cache, found = ids[:4, :length].to(net.device), None, []
        for column in text.split(1, 1):
            out = net(column, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            found.append(out.logits)
        worst[length] = float((torch.cat(found, 1) - net(text).logits).abs().max())
    sizes = {}
    if donor.model.anatomy.positions is None:
        cache = None
        for tokens in range(1024, 2**15 + 1, 1024):
            piece = ids.flatten()[tokens - 1024 : tokens][None].to(net.device)
            cache = net(piece, past_key_values=cache, use_cache=True, logits_to_keep=1).past_key_values
            sizes[tokens] = cache.bytes()
    return {"kind": "exact", "worst": worst, "bytes_at": sizes}


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("model")
    options.add_argument(
        "--rows", nargs="*", default=["window", "tail", "hedgehog", "hybrid", "linear", "closed", "exact"]
    )
    options.add_argument("--tokens", type=int, default=65_536)
    options.add_argument("--held-out", type=int, default=16_384)
    options.add_argument("--context", type=int)
    options.add_argument("--steps", type=int, default=100)
    options.add_argument("--logit-steps", type=int, default=0)
    options.add_argument("--figure", type=Path, help="Draw the lines of --lines here; measure nothing.")
    options.add_argument("--lines", type=Path)
    given = options.parse_args()
    if given.figure:
        return draw(given.lines, given.figure)
    donor = read_donor(given.model, text="docs", tokens=given.tokens, held_out=given.held_out, context=given.context)
    check_convertible(donor.model, donor.context)
    wanted = recipes(shape_of(attentions(donor.model.net)[0].config).width, given.steps, given.logit_steps)
    common = {"benchmark": "conversions_recurrent", "model": given.model, "context": donor.context}
    common["tokens"] = {split: windows.tokens for split, windows in donor.windows.items()}
    first = wrap(donor.model, wanted["hybrid"][1])
    for kind in (kind for kind in wanted if kind in given.rows):
        for recipe in wanted[kind]:
            print(json.dumps({**common, **row(beside(first, recipe), donor, recipe, kind)}), flush=True)
    if "exact" in given.rows:
        fit(first, donor, wanted["hybrid"][1])
        print(json.dumps({**common, **exact(first, donor)}), flush=True)


def draw(lines: Path, out: Path) -> None:
    import matplotlib.pyplot as plt

    rows = [line for line in map(json.loads, lines.read_text().splitlines()) if line["kind"] != "exact"]
    models = list(dict.fromkeys(one["model"] for one in rows))
    figure, axes = plt.subplots(1, len(models), figsize=(6.5 * len(models), 4.6), squeeze=False)
    for axis, model in zip(axes[0], models, strict=True):
        ours = [one for one in rows if one["model"] == model]
        for kind, colour in COLOURS.items():
            points = sorted((one["state_bytes"], one["kl_to_b"]) for one in ours if one["kind"] == kind)
            if points:
                axis.plot(*zip(*points, strict=True), "o-", color=colour, label=kind)
        for features, mark in MARKS.items():
            points = [
                (one["state_bytes"], one["kl_to_b"])
                for one in ours
                if one["kind"] == "closed" and one["name"] == features
            ]
            if points:
                axis.plot(*zip(*points, strict=True), mark, color="#8a63b0", label=features)
        axis.set(
            xscale="log",
            yscale="log",
            xlabel="bytes of state per sequence",
            ylabel="KL to the donor, nats",
            title=model,
        )
        axis.legend()
    figure.tight_layout()
    figure.savefig(out, dpi=120)


if __name__ == "__main__":
    main()
