"""`stitch convert heads`: a model with fewer key and value heads, compared with published baselines."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from transformers import PreTrainedModel

from stitch.conversions.distil import distil
from stitch.conversions.donor import Donor, read_donor
from stitch.conversions.heads import work
from stitch.conversions.heads.blocks import convert
from stitch.conversions.heads.contraction import predicted_error, predicted_value_error
from stitch.conversions.heads.grouping import best_partition
from stitch.conversions.heads.measured import ErrorLog
from stitch.conversions.heads.merge import Groups
from stitch.conversions.heads.methods import REFITTED, closed_form, methods, values
from stitch.conversions.heads.moments import AttentionMoments, group_of
from stitch.conversions.heads.rebuilt import with_heads
from stitch.conversions.heads.refine import AttentionRows
from stitch.conversions.heads.work import STREAMS
from stitch.conversions.plan import plan_conversion
from stitch.conversions.report import difference
from stitch.conversions.save import save
from stitch.errors import UsageError
from stitch.estimates.plan import Plan
from stitch.evaluation.documents import counted
from stitch.evaluation.scores import Scores, evaluate, whole_model
from stitch.files.job import Job, run
from stitch.internals import weights
from stitch.internals.weights import Attention
from stitch.models.model import Model
from stitch.progress import Progress

FAMILIES = (*weights.FAMILIES, weights.ONE_KEY_HEAD, "qwen3")
LONGER = 4  # windows of the report are at most so many times as long as those of the fit
SAMPLE = 8192  # tokens on whose attention keys are refined
RATE, BATCH = 2e-4, 8  # of fine-tuning


def convert_heads(
    name: str,
    out: Path,
    *,
    kv_heads: int,
    text: str = "docs",
    tokens: int = 32_768,
    held_out: int = 16_384,
    context: int | None = None,
    steps: int = 0,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "fp32",
    overwrite: bool = False,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> dict:
    """Writes `name` with `kv_heads` key heads per block to `out` and returns its report.

    The result is a stock checkpoint; for a composite it is a composite of stock parts. A part that already has `kv_heads` heads
    keeps them. Of the methods that are not baselines, the best on the sweep split is written. With `steps` above 0, it and every
    baseline are fine-tuned against the donor.
    Raises UsageError for a request that cannot be met, StitchError for weights or text that fail.
    """

    def plan() -> Job:
        donor = read_donor(
            name, text=text, tokens=tokens, held_out=held_out, context=context, report_factor=LONGER,
            seed=seed, device=device, dtype=dtype, trust_remote_code=trust_remote_code, progress=progress,
        )  # fmt: skip
        model = donor.model
        old = check_heads(model, kv_heads)

        def make(scratch: Path, output: Path) -> dict:
            grouping, errors = BestGrouping(kv_heads, seed), ErrorLog("contraction", "least squares")
            ids = {split: donor.windows[split].ids for split in ("fit", "sweep")}
            found = convert(
                model,
                grouping,
                methods(seed),
                ids,
                sample=max(1, SAMPLE // donor.context),
                seed=seed,
                observe=errors,
                progress=progress,
            )
            nets = {method: with_heads(model, attentions) for method, attentions in found.items()}
            chosen = _choose(donor, nets, progress)
            rows = {"donor": model.net, "converted": nets[chosen], **nets}
            if steps:
                rows |= fine_tuned(donor, found, chosen, steps, seed, progress)
                rows["converted"] = rows[_fine_tuned_name(chosen, steps)]
            scores = evaluate(
                {row: whole_model(net) for row, net in rows.items()}, donor.windows["report"], vocabulary=model.vocabulary,
                reference=whole_model(model.net), progress=progress,
            )  # fmt: skip
            settings = {"kv_heads": kv_heads, "steps": steps, "seed": seed}
            report = assemble_report(donor, old, grouping, errors, scores, rows, chosen, settings)
            save(rows["converted"], model, output, report)
            return report

        def planned() -> Plan:
            count = partial(work.stages, sample=SAMPLE, steps=steps, batch=BATCH)
            held = STREAMS * model.width * 4 * (tokens + held_out)
            return plan_conversion(donor, count, memory=held, progress=progress)

        return Job(make=make, plan=planned)

    return run("convert heads", plan, out, overwrite=overwrite)[0]


def check_heads(model: Model, kv_heads: int) -> list[int]:
    """The numbers of key heads of the model's parts. Raises UsageError if they cannot be reduced to `kv_heads`."""
    parts = [part for part in model.parts if part.depth]
    for part in parts:
        weights.check(part, "a model that gets fewer key heads", FAMILIES)
    old = [weights.attention(part, 0).k.shape[1] for part in parts]
    fitting = [count for count in range(1, max(old)) if not any(own % count for own in old)]
    if kv_heads not in fitting:
        which = f"{old[0]} key heads" if len(set(old)) == 1 else f"key heads of every part ({', '.join(map(str, old))})"
        raise UsageError(
            f"kv_heads must be a proper divisor of the {which} of {model.name}"
            + (
                f" ({', '.join(map(str, fitting))}); got {kv_heads}."
                if fitting
                else f"; got {kv_heads}: one head cannot become fewer."
            )
        )
    if kv_heads != 1 and any(part.config.model_type == "gpt2" for part in parts):
        raise UsageError(
            f"kv_heads must be 1 for a GPT-2; got {kv_heads}: GPTBigCode, the stock class for learned positions and fewer key "
            "heads, has one."
        )
    return old


@dataclass
class BestGrouping:
    """Called for every block: the grouping with the least predicted error of the closed form, scores plus outputs.

    `found` collects the groupings.
    """

    kv_heads: int
    seed: int
    found: list[Groups] = field(default_factory=list)

    def __call__(self, model: Model, block: int, moments: AttentionMoments, context: int) -> Groups:
        def cost(members: tuple[int, ...]) -> float:
            group = group_of(model, block, members, moments, _no_rows, context)
            merged = values(group)
            return predicted_error(closed_form(group), group.keys, offsets=16) + predicted_value_error(
                merged, group.values, group.output, group.head_of
            )

        old = weights.attention(model, block).k.shape[1]
        self.found.append(best_partition(old, self.kv_heads, cost, self.seed))
        return self.found[-1]


def _no_rows() -> AttentionRows:
    raise AssertionError("closed forms use only moments")


def fine_tuned(
    donor: Donor, found: dict[str, list[Attention]], chosen: str, steps: int, seed: int, progress: Progress | None
) -> dict[str, PreTrainedModel]:
    """The chosen method and every baseline after `steps` steps of fine-tuning, by row name."""
    nets = {}
    for method in (chosen, *_baselines(found)):
        nets[_fine_tuned_name(method, steps)] = net = with_heads(donor.model, found[method])
        fine_tune(net, donor, steps, seed, progress)
    return nets


def _fine_tuned_name(method: str, steps: int) -> str:
    return f"{method}, {steps:,} steps"


def fine_tune(net: PreTrainedModel, donor: Donor, steps: int, seed: int, progress: Progress | None = None) -> None:
    """Fine-tunes the attentions of `net` against the donor, in place."""
    of_attention = [value for name, value in net.named_parameters() if ".self_attn." in name or ".attn." in name]
    for value in net.parameters():
        value.requires_grad_(False)
    for value in of_attention:
        value.requires_grad_(True)
    windows = donor.windows["fit"]
    distil(
        net, donor.model.net, windows, of_attention, steps=steps, rate=RATE, batch=BATCH, seed=seed, progress=progress
    )


def _choose(donor: Donor, nets: dict[str, PreTrainedModel], progress: Progress | None) -> str:
    """The best method that is not a baseline, on the sweep split in windows of the report's length."""
    scores = evaluate(
        {method: whole_model(nets[method]) for method in nets if ":" not in method}, donor.to_choose_on,
        vocabulary=donor.model.vocabulary, progress=progress, task="choice (tokens)",
    )  # fmt: skip
    return min(scores, key=lambda method: scores[method].ce)


def _baselines(methods: Iterable[str]) -> list[str]:
    """Baselines and the null, with refitted output weights."""
    return [method for method in methods if ":" in method and method.endswith(REFITTED)]


def cache_bytes(model: Model, kv_heads: int | None) -> int:
    """Bytes of keys and values per token, with `kv_heads` key heads in every block. None: with the model's own."""
    shapes = [weights.attention(*model.in_part(block)).k.shape for block in range(model.depth)]
    return sum(2 * (kv_heads or heads) * d for _, heads, d in shapes) * model.dtype.itemsize


def assemble_report(
    donor: Donor,
    old: list[int],
    grouping: BestGrouping,
    errors: ErrorLog,
    scores: dict[str, Scores],
    rows: dict[str, PreTrainedModel],
    chosen: str,
    settings: dict,
) -> dict:
    """report.json, see `stitch.conversions.report`. `old` are the numbers of key heads of the donor's parts."""
    model, steps, kv_heads = donor.model, settings["steps"], settings["kv_heads"]
    sizes = {name: cache_bytes(model, None if name == "donor" else kv_heads) for name in scores}
    results = [{**found.row(name), "cache_bytes": sizes[name]} for name, found in scores.items()]
    before = " and ".join(str(count) for count in dict.fromkeys(old))
    ending = f", {steps:,} steps" if steps else REFITTED
    same = [name for name in scores if name.startswith(("baseline:", "null:")) and name.endswith(ending)]
    method = _fine_tuned_name(chosen, steps) if steps else chosen
    longer = donor.windows["report"].context
    shares = {key: [row[key] for row in errors.rows] for key in errors.rows[0]}
    means = {key: sum(values) / len(values) for key, values in shares.items()}
    notes = [
        f"converted: {method}, the best method on the sweep split.",
        f"Fitted on {donor.windows['fit'].tokens:,} tokens in windows of {donor.context}"
        + (f", reported in windows of {longer}." if longer != donor.context else "."),
        f"Errors, mean over blocks, as a share of variance. Attention scores: {means['keys_predicted']:.3f} predicted for the "
        f"contraction, {means['keys_measured']:.3f} measured on held-out text, {means['keys_refined']:.3f} measured with least "
        f"squares. Head outputs: {means['values_predicted']:.3f} predicted, {means['values_measured']:.3f} measured.",
    ]
    return {
        "conversion": "heads",
        "model": model.name,
        "title": f"{model.name} with {kv_heads} of {before} key heads",
        "made": f"{model.name} with {before} key and value heads per block merged into {kv_heads} ({method}). "
        f"A {'stock ' if len(model.parts) == 1 else ''}{type(rows['converted']).__name__}.",
        "tokens": {split: windows.tokens for split, windows in donor.windows.items()},
        "documents": counted(scores["donor"]),
        "context": longer,
        "fitted_context": donor.context,
        "results": results,
        "differences": [difference(scores, "converted", name) for name in ("donor", *same)],
        "groups": [[list(group) for group in groups] for groups in grouping.found],
        "by_block": errors.rows,
        "notes": notes,
        **donor.origin("convert heads", settings),
    }
