"""report.json of `stitch convert recurrent`: rows, and notes in words."""

from stitch.circuits.behaviours.prompts import Prompts
from stitch.conversions.donor import Donor
from stitch.conversions.recurrence.fit import scores_of
from stitch.conversions.recurrence.fit_outputs import feature_parameters
from stitch.conversions.recurrence.forms import (
    RecurrentForm,
    cache_bytes,
    dimension_of,
    memories,
    state_bytes,
)
from stitch.conversions.recurrence.recall import recall, recall_prompts
from stitch.conversions.report import difference
from stitch.evaluation.documents import counted
from stitch.modeling.modeling_recurrent import RecurrentForCausalLM
from stitch.progress import Progress


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


def exact_keys(form: RecurrentForm) -> str:
    if form.keys is not None:
        return f"{form.window + form.slots} exact keys per head on average"
    return f"window {form.window}, {form.slots} slots"


def description(name: str, features: str, form: RecurrentForm) -> str:
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
