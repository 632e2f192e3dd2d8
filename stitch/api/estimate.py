"""`stitch.estimate`: what a call would take, without doing it."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stitch.api.page import Page
from stitch.api.result import Result
from stitch.errors import UsageError
from stitch.files.sizes import size_in_words

if TYPE_CHECKING:
    import pandas

    from stitch.estimates.plan import Plan


class Estimate(Result):
    """The stages of a call with their FLOPs and seconds, bytes on disk and in memory, and what earlier runs have left."""

    @property
    def rows(self) -> "pandas.DataFrame":
        """A row per stage, by name: `seconds` and `flops`."""
        import pandas

        return pandas.DataFrame(self.report["stages"]).set_index("name")


def estimate(function: Callable[..., Any], *arguments: Any, **options: Any) -> Estimate:
    """What `function(*arguments, **options)` would take, for `join`, `chain`, `sweep` or one of `convert`.

    Models are loaded and the text is read, so that a request that cannot be met fails here as it would there. The machine is then
    measured for about two seconds. Nothing is computed or written. Memory is an upper bound: the models, and `memory`.
    Raises: UsageError for another function, and what the function raises for its arguments.
    """
    from stitch.api import convert, stitching, sweeps

    planned = (
        stitching.join, stitching.chain, sweeps.sweep, convert.heads, convert.ngram, convert.recurrent, convert.consolidate,
    )  # fmt: skip
    if function not in planned:
        name = getattr(function, "__name__", repr(function))
        raise UsageError(f"join, chain, sweep and those of convert can be estimated; got {name}.")
    from stitch.estimates.work import Work
    from stitch.files.job import planning

    with planning() as plans:
        function(*arguments, **options)
    loading, plan = plans
    return _estimate(replace(plan, stages={"load": Work(seconds=loading), **plan.stages}))


def _estimate(plan: "Plan") -> Estimate:
    report = plan.to_dict()
    rows = [
        [name, f"{work.flops / 1e12:,.2f}" if work.flops else "", _duration(work.seconds)]
        for name, work in plan.stages.items()
    ]
    whole = plan.whole
    lead = f"About {_duration(whole.seconds)} on this machine."
    notes = [
        "Text: " + ", ".join(f"{count:,} tokens to {split}" for split, count in plan.tokens.items()) + ".",
        f"Disk: {size_in_words(plan.disk.scratch)} while it runs, {size_in_words(plan.disk.output)} in the end. "
        f"Memory: at most about {size_in_words(report['bytes']['memory'])}.",
    ]
    notes += [f"In the cache: {there} of {of} {kind}." for kind, (of, there) in plan.cached.items() if of]
    if plan.machine.was_busy:
        notes.append(
            f"The machine was busy while it was measured (its load was {plan.machine.load:.1f}, its cores are "
            f"{plan.machine.cores}): without other work it takes less time."
        )
    table = (
        ["stage", "TFLOP", "time"],
        [*rows, ["all", f"{whole.flops / 1e12:,.2f}", _duration(whole.seconds)]],
        "Estimate",
    )
    return Estimate(report, Page(lead=lead, tables=[table], notes=notes))


def _duration(seconds: float) -> str:
    """Such as 8 s, 2 min 30 s, or 3 h 20 min."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds:.1f} s"
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes} min {left:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
