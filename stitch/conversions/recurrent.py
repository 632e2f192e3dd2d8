"""A softmax decoder as a recurrent network with fast weights, beside what the same bytes do without them."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from stitch.activations import Progress
from stitch.circuits.score import answered
from stitch.circuits.spec import Prompts
from stitch.composite import copy_translations
from stitch.conversions.distil import begin, feature_parameters, fit_attention
from stitch.conversions.donor import Donor, read_donor
from stitch.conversions.recall import recall_prompts
from stitch.conversions.report import difference
from stitch.conversions.save import save
from stitch.conversions.teach import taught
from stitch.errors import StitchError, UsageError
from stitch.evaluate import Scores, evaluate, whole_model
from stitch.modeling_composite import parts_of, sliding_windows
from stitch.modeling_recurrent import Memory, RecurrentConfig, RecurrentForCausalLM, attentions, shape_of
from stitch.models import Model
from stitch.tokens import Windows

FEATURES = ("taylor2", "random", "hedgehog", "hybrid")
FITTED = ("hedgehog", "mean")
RATE, RATE_BY_LOGITS = 1e-2, 3e-3  # of Adam
TOKENS_PER_STEP = 1024
TOKENS_FOR_MOMENTS = 16_384
CHUNK = 64


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a recurrent form is made of, and how long it is fitted."""

    features: str  # of the modeling code
    window: int
    sinks: int
    slots: int = 0
    dimension: int | None = None
    hidden: int = 0
    layers: tuple[int, ...] | None = None
    steps: int = 0
    logit_steps: int = 0
    seed: int = 0

    def config(self, base) -> RecurrentConfig:
        return RecurrentConfig(
            base_config=base, features=self.features, window=self.window, sinks=self.sinks, slots=self.slots,
            dimension=self.dimension, hidden=self.hidden, layers=None if self.layers is None else list(self.layers), chunk=CHUNK,
        )  # fmt: skip


def check_convertible(model: Model, context: int) -> None:
    """Raises UsageError for attention that is not a plain causal softmax over the whole context."""
    for part in parts_of(model.config):
        _check_attention(model, part)
    windows = sliding_windows(model.config)
    if shortest := [window for window in windows if window is not None and window < context]:
        raise UsageError(
            f"attention must reach over the whole context of {context} tokens; blocks of {model.name} reach {min(shortest)}: "
            "lower --context or choose another model."
        )


def _check_attention(model: Model, config: PreTrainedConfig) -> None:
    if getattr(config, "attn_logit_softcapping", None):
        raise UsageError(
            f"scores must not be capped to become recurrent; those of {model.name} are: choose another model."
        )
    if getattr(config, "is_causal", True) is False:
        raise UsageError(
            f"attention must be causal to become recurrent; that of {model.name} is not: choose another model."
        )
    if getattr(config, "alibi", False) or getattr(config, "position_embedding_type", None) == "alibi":
        raise UsageError(f"scores must be products of queries and keys; {model.name} adds ALiBi: choose another model.")


def wrap(model: Model, recipe: Recipe) -> RecurrentForCausalLM:
    """The model with recurrent attention, weights copied, feature maps at zero."""
    with torch.device(model.device):
        net = RecurrentForCausalLM(recipe.config(model.config))
    net.base.load_state_dict(model.net.state_dict())
    net.base.to(model.dtype)
    copy_translations(model.net, net.base)
    net.base.requires_grad_(False)
    net.generation_config = copy.deepcopy(model.net.generation_config)
    if net.generation_config is not None:
        net.generation_config.cache_implementation = None
    return net.eval()


def beside(net: RecurrentForCausalLM, recipe: Recipe) -> RecurrentForCausalLM:
    """Another recurrent form of the same model; both share the stock model's weights."""
    twin = copy.copy(net)
    twin._modules = dict(net._modules)
    twin.config = recipe.config(net.config.base_config)
    shapes = [shape_of(module.config) for module in attentions(net.base)]
    memories = [Memory(twin.config, shape, layer) for layer, shape in enumerate(shapes)]
    twin.memories = nn.ModuleList(memories).to(net.device).eval()
    return twin


def fit(
    net: RecurrentForCausalLM,
    donor: Donor,
    recipe: Recipe,
    *,
    name: str = "converted",
    progress: Progress | None = None,
) -> dict:
    """Feature maps from moments, then `steps` by attention, then `logit_steps` by the next token's distribution, each kept if
    KL(donor ‖ recurrent) on the sweep split is lower for it. Returns that KL after each stage, in nats per token.
    """
    if not feature_parameters(net):
        return {}
    windows = donor.windows["fit"]
    batch = max(1, TOKENS_PER_STEP // windows.context)
    begin(net, windows.first(TOKENS_FOR_MOMENTS), seed=recipe.seed, batch=batch)
    course = {"start": _divergence(net, donor)}
    kept, least = copy.deepcopy(net.memories.state_dict()), course["start"]
    common = {"batch": batch, "seed": recipe.seed, "progress": progress}
    for stage, steps in (("attention", recipe.steps), ("logits", recipe.logit_steps)):
        if not steps:
            continue
        if stage == "attention":
            fit_attention(net, windows, steps=steps, rate=RATE, task=f"{name}: by attention (steps)", **common)
        else:
            task = f"{name}: by logits (steps)"
            of_maps = feature_parameters(net)
            taught(net, donor.model.net, windows, of_maps, steps=steps, rate=RATE_BY_LOGITS, task=task, **common)
        course[stage] = _divergence(net, donor)
        if course[stage] < least:
            kept, least = copy.deepcopy(net.memories.state_dict()), course[stage]
        net.memories.load_state_dict(kept)
    return course


def _divergence(net: RecurrentForCausalLM, donor: Donor) -> float:
    scores = scores_of({"net": net}, donor, donor.windows["sweep"])["net"]
    assert scores.kl is not None
    return float(scores.kl.sum() / scores.tokens.sum())


def scores_of(
    nets: Mapping[str, nn.Module], donor: Donor, windows: Windows, progress: Progress | None = None
) -> dict[str, Scores]:
    model = donor.model
    rows = {name: whole_model(net) for name, net in nets.items()}
    try:
        return evaluate(
            rows, windows, vocabulary=model.config.vocab_size, reference=whole_model(model.net), progress=progress
        )
    except ValueError as error:
        raise StitchError(f"{error}") from error


@torch.no_grad()
def state_bytes(net: RecurrentForCausalLM, tokens: int) -> int:
    """Of one sequence of so many tokens, as the cache holds it."""
    ids = torch.zeros(1, tokens, dtype=torch.long, device=net.device)
    return net(ids, use_cache=True, logits_to_keep=1).past_key_values.bytes()


def cache_bytes(model: Model, tokens: int) -> int:
    """Of the keys and values that the stock model keeps for so many tokens."""
    shapes = [shape_of(module.config) for module in attentions(model.net)]
    return sum(2 * shape.groups * shape.width for shape in shapes) * tokens * model.dtype.itemsize


def dimension_of(net: RecurrentForCausalLM) -> float | None:
    """D / d: features per dimension of a head."""
    memories: list[Any] = list(net.memories)
    found = [memory.map.dimension / memory.shape.width for memory in memories if memory.map is not None]
    return found[0] if found else None


def as_many_bytes(net: RecurrentForCausalLM, model: Model, recipe: Recipe, context: int) -> Recipe:
    """`recipe` with the least window at which its state is as large as that of `net`."""
    wanted = state_bytes(net, context)
    at = [state_bytes(beside(net, _with(recipe, window)), 1) for window in (1, 2)]
    blocks = recipe.layers
    if blocks is not None:  # the others keep all keys, in either
        at = [state_bytes(beside(net, _with(recipe, window)), context) for window in (1, 2)]
    window = 1 + max(0, -(-(wanted - at[0]) // (at[1] - at[0])))
    return _with(recipe, min(window, context - 1))


def _with(recipe: Recipe, window: int) -> Recipe:
    return Recipe(**{**recipe.__dict__, "window": window})


def convert_recurrent(
    name: str,
    out: Path,
    *,
    features: str = "hybrid",
    window: int | None = None,
    sinks: int = 1,
    slots: int | None = None,
    multiple: float | None = None,
    hidden: int | None = None,
    layers: str = "all",
    text: str = "docs",
    tokens: int = 65_536,
    held_out: int = 32_768,
    context: int | None = None,
    steps: int = 400,
    logit_steps: int = 200,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "fp32",
    overwrite: bool = False,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> dict:
    """Writes the recurrent form of a model to the folder `out` and returns its report.

    `features`: taylor2 and random in closed form; hedgehog fitted; hybrid is hedgehog with a window (default: 1/32 of the
    context) and `slots` for older keys, which a learned priority fills (default: 5/32 of the context). `multiple` is D / d for
    random and hedgehog features (default: 2, for hybrid 1/8: at equal bytes more keys that are exact are worth more than more
    features); `hidden` the units of the MLPs in feature maps and priorities (default: 2 d).
    Every row has as many bytes as `converted`.

    Raises UsageError when the request cannot be met, StitchError when weights, text or a denominator fail.
    """
    if out.exists() and not overwrite:
        raise UsageError(f"{out} must not exist; it does: choose another --out or pass --overwrite.")
    if features not in FEATURES:
        raise UsageError(f"--features must be one of {', '.join(FEATURES)}; got {features!r}.")
    if min(steps, logit_steps, sinks, window or 0, slots or 0, hidden or 0, seed) < 0:
        raise UsageError("--window, --sinks, --slots, --hidden, --steps, --logit-steps and --seed must be 0 or more.")
    donor = read_donor(
        name, text=text, tokens=tokens, held_out=held_out, context=context, device=device, dtype=dtype,
        trust_remote_code=trust_remote_code, progress=progress,
    )  # fmt: skip
    model, length = donor.model, donor.context
    check_convertible(model, length)
    recipe = _recipe(
        model, features, length, window=window, sinks=sinks, slots=slots, multiple=multiple, hidden=hidden,
        layers=layers, steps=steps, logit_steps=logit_steps, seed=seed,
    )  # fmt: skip
    net = wrap(model, recipe)
    course = fit(net, donor, recipe, progress=progress)
    nets = {"converted": net, **nulls(net, donor, recipe, progress)}
    report = {
        "conversion": "recurrent",
        "model": name,
        "title": f"{name} as a recurrent network ({features}, window {recipe.window}, {recipe.slots} slots)",
        "made": _made(name, features, recipe),
        "tokens": {split: found.tokens for split, found in donor.windows.items()},
        "context": length,
        **table_of(nets, donor, progress),
        "fit": course,
        "provenance": donor.provenance({**recipe.__dict__, "features": features}),
    }
    save(model, out, report, net.save_pretrained)
    return report


def _recipe(
    model: Model,
    features: str,
    context: int,
    *,
    window: int | None,
    sinks: int,
    slots: int | None,
    multiple: float | None,
    hidden: int | None,
    layers: str,
    steps: int,
    logit_steps: int,
    seed: int,
) -> Recipe:
    """The options of the command checked against the model. Raises UsageError."""
    shape = shape_of(attentions(model.net)[0].config)
    is_hybrid, is_fitted = features == "hybrid", features in ("hedgehog", "hybrid")
    window = (max(1, context // 32) if is_hybrid else 0) if window is None else window
    slots = (5 * context // 32 if is_hybrid else 0) if slots is None else slots
    multiple = (max(1 / 8, 1 / shape.width) if is_hybrid else 2.0) if multiple is None else multiple
    if is_hybrid and not window:
        raise UsageError("hybrid features need a --window of 1 or more; got 0: take hedgehog for none.")
    if slots and not is_fitted:
        raise UsageError(f"--slots needs features that are fitted, as priorities are; got {features}: take hybrid.")
    if window + slots >= context:
        raise UsageError(
            f"--window and --slots must together be below the context of {context} tokens; got {window + slots}: nothing would "
            "be converted, and that it is lossless would say nothing."
        )
    dimension = round(multiple * shape.width)
    if dimension < 1:
        raise UsageError(f"--multiple must leave at least one feature; got {multiple:g} of {shape.width}.")
    return Recipe(
        features="hedgehog" if is_fitted else features,
        window=window,
        sinks=sinks,
        slots=slots,
        dimension=None if features == "taylor2" else dimension,
        hidden=(2 * shape.width if hidden is None else hidden) if is_fitted else 0,
        layers=_blocks(layers, model),
        steps=steps if is_fitted else 0,
        logit_steps=logit_steps if is_fitted else 0,
        seed=seed,
    )


def _blocks(layers: str, model: Model) -> tuple[int, ...] | None:
    """`all`, or numbers and ranges such as 0,2-4. Raises UsageError."""
    if layers == "all":
        return None
    try:
        found = set()
        for part in layers.split(","):
            first, _, last = part.partition("-")
            found |= set(range(int(first), int(last or first) + 1))
    except ValueError:
        raise UsageError(f"--layers must be all, or blocks such as 0,2-4; got {layers!r}.") from None
    if not found or not found <= set(range(model.depth)):
        raise UsageError(f"--layers must name blocks in 0..{model.depth - 1} of {model.name}; got {layers}.")
    return tuple(sorted(found))


def nulls(
    net: RecurrentForCausalLM, donor: Donor, recipe: Recipe, progress: Progress | None = None
) -> dict[str, RecurrentForCausalLM]:
    """At the bytes of `net`: a window alone; a window, the first key and one feature for all others, fitted as long. And `net`'s
    feature maps without their fit.
    """
    length = donor.context
    tail = Recipe(**{**recipe.__dict__, "features": "mean", "sinks": 1, "slots": 0, "dimension": None})
    tail = as_many_bytes(net, donor.model, tail, length)
    plain = Recipe(**{**recipe.__dict__, "features": "none", "sinks": 0, "slots": 0, "dimension": None, "hidden": 0})
    found = {"baseline:window": beside(net, as_many_bytes(net, donor.model, plain, length))}
    found["null:window+first+mean"] = beside(net, tail)
    fit(found["null:window+first+mean"], donor, tail, name="null", progress=progress)
    if recipe.features in FITTED:
        unfitted = Recipe(**{**recipe.__dict__, "steps": 0, "logit_steps": 0})
        found["null:unfitted"] = beside(net, unfitted)
        fit(found["null:unfitted"], donor, unfitted)
    return found


def table_of(nets: dict[str, RecurrentForCausalLM], donor: Donor, progress: Progress | None = None) -> dict:
    """`results`, `differences` and `notes` of the report: the donor and every net on the report split, with what they keep."""
    model, length = donor.model, donor.context
    scores = scores_of({"donor": model.net, **nets}, donor, donor.windows["report"], progress)
    asked = recall_prompts(model.tokenizer, length // 2)
    full = cache_bytes(model, length)
    results = []
    for name, score in scores.items():
        net = nets.get(name)
        kept = full if net is None else state_bytes(net, length)
        figures: dict = {"state_bytes": kept, "cache_share": kept / full, "recall": recall(net or model.net, asked)}
        if net is not None:
            figures["window"], figures["slots"] = net.config.window, net.config.slots
            figures["map_parameters"] = sum(part.numel() for part in feature_parameters(net))
            if (multiple := dimension_of(net)) is not None:
                figures["multiple"] = multiple
        results.append({**score.row(name), **figures})
    rivals = [name for name in nets if name != "converted"]
    chance = recall(model.net, asked, corrupt=True)
    converted = nets["converted"]
    return {
        "results": results,
        "differences": [difference(scores, "converted", name) for name in rivals],
        "notes": [*_state_notes(converted, length, full), _recall_note(asked, chance)],
    }


def recall(net: nn.Module, asked: Prompts, corrupt: bool = False) -> float:
    device = next(net.parameters()).device
    ids = asked.corrupt if corrupt else asked.clean
    return answered(lambda ids: net(input_ids=ids.to(device), use_cache=False).logits.cpu(), ids, asked)["right"]


def _recall_note(asked: Prompts, chance: float) -> str:
    length, places = asked.clean.shape[1], int(asked.asked[0].sum())
    return (
        f"Recall: {places} tokens that followed the same token {length - places - 2} tokens earlier, in {len(asked.clean)} "
        f"random prompts of {length}; where they had not come before, the donor has {chance:.1%}."
    )


def _state_notes(net: RecurrentForCausalLM, length: int, full: int) -> list[str]:
    kept = state_bytes(net, length)
    constant = kept == state_bytes(net, 1)
    multiple = dimension_of(net)
    what = "" if multiple is None else f", {multiple:g} × d features per head"
    grows = "at any length" if constant else f"at {length} tokens (blocks that are not recurrent keep all keys)"
    return [
        f"State: {kept:,} bytes per sequence {grows}{what}, {kept / full:.0%} of the donor's cache at {length} tokens."
    ]


def _made(name: str, features: str, recipe: Recipe) -> str:
    steps = f", fitted in {recipe.steps} + {recipe.logit_steps} steps" if recipe.steps or recipe.logit_steps else ""
    kept = [
        f"the last {recipe.window}" if recipe.window else "",
        f"the first {recipe.sinks}" if recipe.sinks else "",
        f"{recipe.slots} others that a learned priority chooses" if recipe.slots else "",
    ]
    kept = [one for one in kept if one]
    exact = f"{', '.join(kept)} are exact, the rest" if kept else "all"
    return f"{name} with fast weights in place of its cache: of the keys {exact} are remembered by {features} features{steps}."
