"""The models that `healing.py` trains further: composites, their alternatives without A, and fresh weights.

    composite       the early half of A, a seam in closed form, the late half of B
    own tables      B with its first blocks replaced by n-gram tables, no A (`stitch convert ngram`)
    shortened       B without two blocks, with its bridge in closed form (`stitch B B --native`)
    random blocks   B's late half, head and embedding behind random blocks
    fresh           random weights alone
    whole B         B with all its blocks, which costs the most: what the same training does to the untouched donor

All but the composite and B itself have six of B's eight blocks or as many in their place, so none costs more than the composite.
"""

import copy
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from stitch.composite.native import config_with_blocks
from stitch.config import Settings
from stitch.conversions.ngrams.convert import convert_ngram
from stitch.demo.train import held_out
from stitch.jobs.join import stitch
from stitch.models.loading import load
from stitch.models.model import Model
from stitch.models.sources import resolve

A, B, SITES, REMOVED = "demo:gpt2", "demo:llama", (3, 4), 2
CUTS = (1, 2, 3, 4, 5, 6)  # first removed block, chosen on the sweep split
SEAMS = {"composite": "translation.", "own tables": ("translation.", "a.")}  # of the two, what is not a donor's block
SEAM_ONLY = {f"{name}, seam only": name for name in SEAMS}
WHOLE = "whole B"
ARMS = (*SEAMS, "shortened", "fresh", "random blocks", WHOLE, *SEAM_ONLY)


def prepare(work: Path, tokens: int, sweep: Tensor) -> None:
    """Writes the checkpoints that are fitted in closed form, on `tokens` tokens, unless they are there.

    `sweep` are windows on which the cut of the shortened model is chosen.
    """
    layer, layer_b = SITES
    if not (composite := work / "composite").exists():
        stitch(Settings(model_a=A, model_b=B, layer=layer, layer_b=layer_b, tokens=tokens, brief=True), composite)
    if not (tables := work / "own tables").exists():
        convert_ngram(B, tables, drop=REMOVED, tokens=tokens)
    if not (shortened := work / "shortened").exists():
        tried = {}
        for start in CUTS:
            cut = Settings(model_a=B, model_b=B, layer=start, layer_b=start + REMOVED, native=True, tokens=tokens)
            _, folder = stitch(cut, work / f"cut-{start}", overwrite=True)
            tried[start] = held_out(load(folder, dtype=torch.float32).net, sweep)
        (work / f"cut-{min(tried, key=tried.__getitem__)}").rename(shortened)


def make(arm: str, seed: int, work: Path, b: Model) -> PreTrainedModel:
    """The model of an arm before its first step, in float32, with the parameters to train marked."""
    whole = SEAM_ONLY.get(arm, arm)
    if arm == WHOLE:
        net = load(resolve(B).folder, dtype=torch.float32).net
    elif whole not in ("random blocks", "fresh"):
        net = load(work / whole, dtype=torch.float32).net
    else:
        torch.manual_seed(seed)
        net = AutoModelForCausalLM.from_config(
            config_with_blocks(b.config, range(REMOVED, b.depth)), dtype=torch.float32
        )
        if arm == "random blocks":
            give_late_half(net, b)
    if arm in SEAM_ONLY:
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(name.startswith(SEAMS[whole]))
    return net


def give_late_half(net: PreTrainedModel, b: Model) -> None:
    """Writes B's blocks from the composite's site on, its final norm, head and embedding into `net`, as its last blocks."""
    short = Model("fresh", net, b.tokenizer, b.anatomy, Path())
    late = b.depth - SITES[1]
    pairs = [*zip(short.blocks[-late:], b.blocks[-late:], strict=True), (short.final_norm, b.final_norm)]
    for new, old in [*pairs, (short.embedding, b.embedding), (short.head, b.head)]:
        new.load_state_dict(copy.deepcopy(old.state_dict()))
