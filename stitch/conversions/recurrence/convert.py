"""`stitch convert recurrent`: a softmax decoder becomes a recurrent network, compared with baselines of the same state size."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from stitch.conversions.donor import read_donor
from stitch.conversions.plan import plan_conversion
from stitch.conversions.recurrence import work
from stitch.conversions.recurrence.allocation import allocate
from stitch.conversions.recurrence.baselines import FITTED, baselines
from stitch.conversions.recurrence.fit import donor_moments, fit
from stitch.conversions.recurrence.forms import (
    RecurrentForm,
    check_convertible,
    sibling,
    wrap,
)
from stitch.conversions.recurrence.report import description, exact_keys, results_of
from stitch.conversions.save import save
from stitch.errors import UsageError
from stitch.estimates.plan import Plan
from stitch.files.job import Job, run
from stitch.modeling.modeling_recurrent import attentions, shape_of
from stitch.models.model import Model
from stitch.progress import Progress

FEATURES = ("taylor2", "random", "hedgehog", "hybrid")
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
                "title": f"{name} as a recurrent network ({features}, {exact_keys(form)})",
                "made": description(name, features, form),
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
