"""`stitch convert recurrent`: a softmax decoder becomes a recurrent network, compared with baselines of the same state size."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from stitch.circuits.behaviours.prompts import Prompts
from stitch.conversions.donor import Donor, read_donor
from stitch.conversions.plan import plan_conversion
from stitch.conversions.recurrence import work
from stitch.conversions.recurrence.allocation import allocate, shuffled_sizes
from stitch.conversions.recurrence.fit import donor_moments, fit, scores_of
from stitch.conversions.recurrence.fit_outputs import feature_parameters
from stitch.conversions.recurrence.forms import (
    RecurrentForm,
    cache_bytes,
    check_convertible,
    dimension_of,
    matching_bytes,
    memories,
    sibling,
    state_bytes,
    wrap,
)
from stitch.conversions.recurrence.head_moments import HeadMoments
from stitch.conversions.recurrence.recall import recall, recall_prompts
from stitch.conversions.report import difference
from stitch.conversions.save import save
from stitch.errors import UsageError
from stitch.estimates.plan import Plan
from stitch.evaluation.documents import counted
from stitch.files.job import Job, run
from stitch.modeling.modeling_recurrent import RecurrentForCausalLM, attentions, shape_of
from stitch.models.model import Model
from stitch.progress import Progress

FEATURES = ("taylor2", "random", "hedgehog", "hybrid")
FITTED = ("hedgehog", "mean")
ALLOCATIONS = ("measured", "uniform")


def convert_recurrent(
    name: str,
    out: Path,
    *,
    features: str = "hybrid",
    window: int | None = None,
    sinks: int = 1,
    slots: int | None = None,
    allocation: str = "measured",
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

    `features`: taylor2 and random are closed-form, hedgehog is fitted. hybrid has a window, `slots` for older keys chosen by a
    learned priority, and hedgehog features for all other keys or, with a `multiple` of 0, the mean of their values.
    `window`, `slots`: exact keys per head. Default: 0; for hybrid 1/32 and 5/32 of the context.
    `multiple`: D / d, features per dimension of a head, for random and hedgehog features. Default: 2; for hybrid 0, as at equal
    bytes exact keys reduce the divergence more than features.
    `hidden`: units of the MLPs in feature maps and priorities. Default: 2 d.
    `allocation` of exact keys in fitted forms: uniform, or measured (`allocation.py`), with `window` + `slots` on average.
    `layers`: the blocks to convert, "all" or numbers and ranges such as "0,2-4".

    Baselines and nulls in the report have at least as large a state as the converted model. Raises UsageError for a request that
    cannot be met, StitchError for weights, text or a denominator that fail.
    """

    def plan() -> Job:
        _check_choices(features, allocation)
        _check_counts(
            window=window, sinks=sinks, slots=slots, hidden=hidden, steps=steps, logit_steps=logit_steps, seed=seed
        )
        donor = read_donor(
            name, text=text, tokens=tokens, held_out=held_out, context=context, seed=seed, device=device, dtype=dtype,
            trust_remote_code=trust_remote_code, progress=progress,
        )  # fmt: skip
        model = donor.model
        check_convertible(model, donor.context)

        asked = _form(
            model, features, donor.context, window=window, sinks=sinks, slots=slots, multiple=multiple, hidden=hidden,
            layers=layers, steps=steps, logit_steps=logit_steps, seed=seed,
        )  # fmt: skip
        allocated = allocation == "measured" and asked.features in FITTED and asked.window + asked.slots > 1

        def make(scratch: Path, output: Path) -> dict:
            form, net = asked, wrap(model, asked)
            sums = donor_moments(net, donor, progress)
            if allocated:
                form = replace(form, keys=allocate(net, donor, form, sums, progress))
                net = sibling(net, form)
            divergences = fit(net, donor, form, sums, progress=progress)
            # With defaults filled in; `multiple` and `layers` as options have them.
            options = {
                **form.__dict__, "features": features, "allocation": allocation, "multiple": multiple, "layers": layers,
            }  # fmt: skip
            nets = {"converted": net, **baselines(net, donor, form, sums, progress)}
            report = {
                "conversion": "recurrent",
                "model": name,
                "title": f"{name} as a recurrent network ({features}, {_exact_keys(form)})",
                "made": _description(name, features, form),
                "tokens": {split: found.tokens for split, found in donor.windows.items()},
                "context": donor.context,
                **results_of(nets, donor, progress),
                "fit": divergences,
                **donor.origin("convert recurrent", options, without=("keys", "dimension")),
            }
            save(net, model, output, report)
            return report

        def planned() -> Plan:
            fitted = 1 + (asked.features in FITTED) + allocated  # with those nulls that are fitted as well
            blocks = range(model.depth) if asked.layers is None else asked.layers
            stages = partial(
                work.stages, steps=asked.steps, logit_steps=asked.logit_steps, fitted=fitted, allocated=allocated,
                blocks=blocks,
            )  # fmt: skip
            return plan_conversion(donor, stages, progress=progress)

        return Job(make=make, plan=planned)

    return run("convert recurrent", plan, out, overwrite=overwrite)[0]


def _check_choices(features: str, allocation: str) -> None:
    if features not in FEATURES:
        raise UsageError(f"features must be one of {', '.join(FEATURES)}; got {features!r}.")
    if allocation not in ALLOCATIONS:
        raise UsageError(f"allocation must be one of {', '.join(ALLOCATIONS)}; got {allocation!r}.")


def _check_counts(**counts: int | None) -> None:
    for parameter, value in counts.items():
        if value is not None and value < 0:
            raise UsageError(f"{parameter} must be 0 or more; got {value}.")


def _form(
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
) -> RecurrentForm:
    """Fills in defaults and checks the request against the model. Raises UsageError."""
    shape = shape_of(attentions(model.net)[0].config)
    is_hybrid, is_fitted = features == "hybrid", features in ("hedgehog", "hybrid")
    window = (max(1, context // 32) if is_hybrid else 0) if window is None else window
    slots = (5 * context // 32 if is_hybrid else 0) if slots is None else slots
    multiple = (0.0 if is_hybrid else 2.0) if multiple is None else multiple
    if is_hybrid and not window:
        raise UsageError("window must be 1 or more with hybrid features; got 0: choose hedgehog features or raise it.")
    if slots and not is_fitted:
        raise UsageError(
            f"slots must be 0 unless features are fitted; got {slots} with {features}: choose hybrid or hedgehog features."
        )
    if window + slots >= context:
        raise UsageError(
            f"`window` and `slots` must together be below the context of {context} tokens; got {window + slots}: nothing "
            "would be converted, lower one of them."
        )
    dimension, is_mean = round(multiple * shape.width), is_hybrid and multiple == 0
    if dimension < 1 and not is_mean:
        raise UsageError(
            f"multiple must leave at least one feature; got {multiple:g} of {shape.width} dimensions: raise it."
        )
    return RecurrentForm(
        features="mean" if is_mean else "hedgehog" if is_fitted else features,
        window=window,
        sinks=sinks,
        slots=slots,
        dimension=None if is_mean or features == "taylor2" else dimension,
        hidden=(2 * shape.width if hidden is None else hidden) if is_fitted else 0,
        layers=_blocks(layers, model),
        steps=steps if is_fitted else 0,
        logit_steps=logit_steps if is_fitted else 0,
        seed=seed,
    )


def _blocks(layers: str, model: Model) -> tuple[int, ...] | None:
    """The blocks that `layers` names; None: all. Raises UsageError."""
    if layers == "all":
        return None
    try:
        found = set()
        for part in layers.split(","):
            first, _, last = part.partition("-")
            blocks = range(int(first), int(last or first) + 1)
            if not blocks:
                raise UsageError(f"layers must name the first block of a range first; got {part} in {layers!r}.")
            found |= set(blocks)
    except ValueError:
        raise UsageError(f"layers must be all, or blocks such as 0,2-4; got {layers!r}.") from None
    if not found or not found <= set(range(model.depth)):
        raise UsageError(f"layers must name blocks in 0..{model.depth - 1} of {model.name}; got {layers}.")
    return tuple(sorted(found))


def baselines(
    net: RecurrentForCausalLM,
    donor: Donor,
    form: RecurrentForm,
    sums: Sequence[HeadMoments],
    progress: Progress | None = None,
) -> dict[str, RecurrentForCausalLM]:
    """Recurrent forms to compare with `net`, by the names of their rows.

    With at least the bytes of `net`: a window alone; a window, the first key and one feature for all other keys. If `form.keys`
    differ by head: the same numbers permuted at random among heads. These are fitted with as many steps as `net`. The last row is
    `net` with feature maps that are initialised but not fitted.
    """
    length = donor.context
    mean = replace(form, features="mean", sinks=1, slots=0, dimension=None, keys=None)
    mean = matching_bytes(net, donor.model, mean, length)
    window = replace(mean, features="none", sinks=0, hidden=0)
    found = {"baseline:window": sibling(net, matching_bytes(net, donor.model, window, length))}
    found["null:window+first+mean"] = sibling(net, mean)
    fit(found["null:window+first+mean"], donor, mean, sums, name="null", progress=progress)
    if form.keys is not None:
        shuffled = replace(form, keys=shuffled_sizes(net, form.keys, form.seed))
        found["null:keys at random"] = sibling(net, shuffled)
        fit(found["null:keys at random"], donor, shuffled, sums, name="null", progress=progress)
    if form.features in FITTED:
        unfitted = replace(form, steps=0, logit_steps=0)
        found["null:unfitted"] = sibling(net, unfitted)
        fit(found["null:unfitted"], donor, unfitted, sums)
    return found


def results_of(nets: dict[str, RecurrentForCausalLM], donor: Donor, progress: Progress | None = None) -> dict:
    """`results`, `differences` and `notes` of the report: scores of the donor and of every net, with the bytes of their state."""
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
            figures["window"], figures["slots"], figures["keys"] = net.config.window, net.config.slots, net.config.keys
            figures["map_parameters"] = sum(part.numel() for part in feature_parameters(net))
            if (multiple := dimension_of(net)) is not None:
                figures["multiple"] = multiple
        results.append({**score.row(name), **figures})
    rivals = [name for name in nets if name != "converted"]
    chance = recall(model.net, asked, corrupt=True)
    converted = nets["converted"]
    return {
        "documents": counted(scores["donor"]),
        "results": results,
        "differences": [difference(scores, "converted", name) for name in rivals],
        "notes": [*_state_notes(converted, length, full), _recall_note(asked, chance)],
    }


def _recall_note(asked: Prompts, chance: float) -> str:
    length, places = asked.clean.shape[1], int(asked.asked[0].sum())
    return (
        f"Recall: share of {places} repeated tokens, {length - places - 2} tokens after their first occurrence, that are "
        f"predicted in {len(asked.clean)} random prompts of {length} tokens. Without the first occurrence the donor predicts "
        f"{chance:.1%}."
    )


def _state_notes(net: RecurrentForCausalLM, length: int, full: int) -> list[str]:
    kept = state_bytes(net, length)
    constant = kept == state_bytes(net, 1)
    multiple = dimension_of(net)
    what = "" if multiple is None else f", {multiple:g} × d features per head"
    what = ", one feature per head" if net.config.features == "mean" else what
    grows = "at any length" if constant else f"at {length} tokens (blocks that are not recurrent keep all keys)"
    notes = [
        f"State: {kept:,} bytes per sequence {grows}{what}, {kept / full:.0%} of the donor's cache at {length} tokens."
    ]
    if net.config.keys is not None:
        converted = [keys for memory, keys in zip(memories(net), net.config.keys, strict=True) if memory.recurrent]
        sizes = sorted(keys for block in converted for keys in block)
        notes.append(
            f"Exact keys by key head: {sizes[0]} to {sizes[-1]}; half of the {len(sizes)} heads have at most "
            f"{sizes[(len(sizes) - 1) // 2]}. They were allocated on the fit and sweep splits."
        )
    return notes


def _exact_keys(form: RecurrentForm) -> str:
    if form.keys is not None:
        return f"{form.window + form.slots} exact keys per head on average"
    return f"window {form.window}, {form.slots} slots"


def _description(name: str, features: str, form: RecurrentForm) -> str:
    by_head = form.keys is not None
    kept = [
        f"{'up to ' if by_head else ''}the last {form.window}" if form.window else "",
        f"the first {form.sinks}" if form.sinks else "",
        f"{'others' if by_head else f'{form.slots} others'} chosen by a learned priority" if form.slots else "",
    ]
    kept = ", ".join(one for one in kept if one)
    steps = f", fitted in {form.steps} + {form.logit_steps} steps" if form.steps or form.logit_steps else ""
    return (
        f"{name} with a recurrent state instead of a key-value cache. "
        + (f"Exact keys of each head: {kept}. All other keys are stored" if kept else "All keys are stored")
        + f" as {features} features{steps}."
    )
