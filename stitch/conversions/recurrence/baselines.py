"""Recurrent forms that a converted model is compared with: of at least as many bytes, with sizes at random, and unfitted."""

from collections.abc import Sequence
from dataclasses import replace

from stitch.conversions.donor import Donor
from stitch.conversions.recurrence.allocation import shuffled_sizes
from stitch.conversions.recurrence.fit import fit
from stitch.conversions.recurrence.forms import (
    RecurrentForm,
    matching_bytes,
    sibling,
)
from stitch.conversions.recurrence.head_moments import HeadMoments
from stitch.modeling.modeling_recurrent import RecurrentForCausalLM
from stitch.progress import Progress

FITTED = ("hedgehog", "mean")  # features that are fitted


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
