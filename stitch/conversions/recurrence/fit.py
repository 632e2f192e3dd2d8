"""A recurrent form fitted to its donor, stage by stage, each kept if it helps on text that was not fitted on."""

import copy
from collections.abc import Mapping, Sequence

from torch import nn

from stitch.conversions.distil import distil
from stitch.conversions.donor import Donor
from stitch.conversions.recurrence.distil import HeadMoments, feature_parameters, fit_outputs, head_moments, initialise
from stitch.conversions.recurrence.forms import RecurrentForm
from stitch.errors import StitchError
from stitch.evaluation.scores import Scores, evaluate, whole_model
from stitch.modeling.modeling_recurrent import RecurrentForCausalLM
from stitch.progress import Progress
from stitch.text.windows import Windows

RATE, RATE_BY_LOGITS = 1e-2, 3e-3  # of Adam
TOKENS_PER_STEP = 1024
TOKENS_FOR_MOMENTS = 16_384
SWEEP_TOKENS = 8_192  # that stages are compared on


def fit(
    net: RecurrentForCausalLM,
    donor: Donor,
    form: RecurrentForm,
    sums: Sequence[HeadMoments],
    *,
    name: str = "converted",
    progress: Progress | None = None,
) -> dict:
    """Feature maps from the donor's moments, then `steps` by what attention gives, then `logit_steps` by the next token's
    distribution, each kept if KL(donor ‖ recurrent) on the sweep split is lower for it. Returns that KL after each stage, in nats
    per token; nothing where there are no steps.
    """
    if not feature_parameters(net):
        return {}
    initialise(net, sums, form.seed)
    if not (form.steps or form.logit_steps):
        return {}
    windows = donor.windows["fit"]
    batch = windows_per_step(windows)
    course = {"start": divergence(net, donor)}
    kept, least = copy.deepcopy(net.memories.state_dict()), course["start"]
    common = {"batch": batch, "seed": form.seed, "progress": progress}
    for stage, steps in (("outputs", form.steps), ("logits", form.logit_steps)):
        if not steps:
            continue
        if stage == "outputs":
            fit_outputs(net, windows, steps=steps, rate=RATE, task=f"{name}: by outputs (steps)", **common)
        else:
            task = f"{name}: by logits (steps)"
            of_maps = feature_parameters(net)
            distil(net, donor.model.net, windows, of_maps, steps=steps, rate=RATE_BY_LOGITS, task=task, **common)
        course[stage] = divergence(net, donor)
        if course[stage] < least:
            kept, least = copy.deepcopy(net.memories.state_dict()), course[stage]
        net.memories.load_state_dict(kept)
    return course


def windows_per_step(windows: Windows) -> int:
    return max(1, TOKENS_PER_STEP // windows.context)


def donor_moments(net: RecurrentForCausalLM, donor: Donor, progress: Progress | None = None) -> list[HeadMoments]:
    """Of the donor's text to fit on, for any recurrent form of it with a feature map in the same blocks as `net`."""
    windows = donor.windows["fit"]
    return head_moments(net, windows.first(TOKENS_FOR_MOMENTS), windows_per_step(windows), progress)


def divergence(net: RecurrentForCausalLM, donor: Donor) -> float:
    """KL(donor ‖ recurrent) on the sweep split, nats per token."""
    scores = scores_of({"net": net}, donor, donor.windows["sweep"].spread(SWEEP_TOKENS))["net"]
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
