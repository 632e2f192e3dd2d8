"""Fits a recurrent form to its donor in stages. A stage is kept only if it lowers the divergence on the sweep split."""

import copy
from collections.abc import Mapping, Sequence

from torch import nn

from stitch.conversions.distil import distil
from stitch.conversions.donor import Donor
from stitch.conversions.recurrence.fit_outputs import feature_parameters, fit_outputs
from stitch.conversions.recurrence.forms import RecurrentForm
from stitch.conversions.recurrence.head_moments import HeadMoments, head_moments
from stitch.conversions.recurrence.initialise import initialise
from stitch.errors import StitchError
from stitch.evaluation.scores import Scores, evaluate, whole_model
from stitch.modeling.modeling_recurrent import RecurrentForCausalLM
from stitch.progress import Progress
from stitch.text.windows import Windows

RATE, RATE_BY_LOGITS = 1e-2, 3e-3  # of Adam, in the two stages
TOKENS_PER_STEP = 1024
TOKENS_FOR_MOMENTS = 16_384
SWEEP_TOKENS = 8_192  # on which stages are compared


def fit(
    net: RecurrentForCausalLM,
    donor: Donor,
    form: RecurrentForm,
    sums: Sequence[HeadMoments],
    *,
    name: str = "converted",
    progress: Progress | None = None,
) -> dict:
    """Initialises feature maps from the donor's moments, then fits them in two stages.

    The first takes `form.steps` steps on attention outputs, the second `form.logit_steps` on the next token's distribution. A
    stage is kept if it lowers KL(donor ‖ recurrent) on the sweep split. Returns that divergence after initialisation ("start")
    and after each stage, in nats per token; an empty dict if there are no steps.
    """
    if not feature_parameters(net):
        return {}
    initialise(net, sums, form.seed)
    if not (form.steps or form.logit_steps):
        return {}
    windows = donor.windows["fit"]
    batch = windows_per_step(windows)
    divergences = {"start": divergence(net, donor)}
    kept, least = copy.deepcopy(net.memories.state_dict()), divergences["start"]
    common = {"batch": batch, "seed": form.seed, "progress": progress}
    for stage, steps in (("outputs", form.steps), ("logits", form.logit_steps)):
        if not steps:
            continue
        if stage == "outputs":
            fit_outputs(net, windows, steps=steps, rate=RATE, task=f"{name}: by outputs (steps)", **common)
        else:
            task = f"{name}: by logits (steps)"
            parameters = feature_parameters(net)
            distil(net, donor.model.net, windows, parameters, steps=steps, rate=RATE_BY_LOGITS, task=task, **common)
        divergences[stage] = divergence(net, donor)
        if divergences[stage] < least:
            kept, least = copy.deepcopy(net.memories.state_dict()), divergences[stage]
        net.memories.load_state_dict(kept)
    return divergences


def windows_per_step(windows: Windows) -> int:
    return max(1, TOKENS_PER_STEP // windows.context)


def donor_moments(net: RecurrentForCausalLM, donor: Donor, progress: Progress | None = None) -> list[HeadMoments]:
    """Moments on the fit split, for any recurrent form of the donor with a feature map in the same blocks as `net`."""
    windows = donor.windows["fit"]
    return head_moments(net, windows.first(TOKENS_FOR_MOMENTS), windows_per_step(windows), progress)


def divergence(net: RecurrentForCausalLM, donor: Donor) -> float:
    """KL(donor ‖ recurrent) on the sweep split, in nats per token."""
    scores = scores_of({"net": net}, donor, donor.windows["sweep"].first(SWEEP_TOKENS))["net"]
    assert scores.kl is not None
    return float(scores.kl.sum() / scores.tokens.sum())


def scores_of(
    nets: Mapping[str, nn.Module], donor: Donor, windows: Windows, progress: Progress | None = None
) -> dict[str, Scores]:
    """Scores of `nets` by name, with the donor as the reference. Raises StitchError for logits or denominators that fail."""
    model = donor.model
    rows = {name: whole_model(net) for name, net in nets.items()}
    try:
        return evaluate(rows, windows, vocabulary=model.vocabulary, reference=whole_model(model.net), progress=progress)
    except ValueError as error:
        raise StitchError(f"{error}") from error
