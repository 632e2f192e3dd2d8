"""`stitch.evaluate` and `stitch.inspect`: one model scored or described."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stitch.api.given import ModelLike, PathLike, TextLike, byte_count, named, refuse_unread, text_named
from stitch.api.page import Page
from stitch.api.progress import progress
from stitch.api.result import Result
from stitch.errors import UsageError


def evaluate(
    model: ModelLike,
    *,
    against: ModelLike | None = None,
    behaviour: str | Path | None = None,
    count: int = 256,
    trace: PathLike | None = None,
    controls: int = 24,
    rate: float = 1e-4,
    tasks: str | Sequence[str] | None = None,
    task_folder: PathLike | None = None,
    alone: bool = False,
    text: TextLike = "docs",
    whole_text: bool = False,
    tokens: int = 50_000,
    context: int | None = None,
    seed: int = 0,
    memory: int | str = "4G",
    device: str = "auto",
    dtype: str = "fp32",
    trust_remote_code: bool = False,
    quiet: bool = False,
) -> Result:
    """Cross-entropy of a causal language model of any family on held-out text, in nats per token, with a 95 % interval.

    With `against` also KL(against ‖ model), top-1 agreement and the paired difference; a model that reads other tokens is scored
    in them on the same bytes, in bits per byte as well. Of the text the report split is read, a twentieth of its documents;
    with `whole_text` all, for text that no model was fitted on. With `behaviour` instead the share of right answers on `count`
    prompts. With `trace`, a text file, instead how fast copies of the model learn it, at learning rate `rate`, beside `controls`
    other documents and beside the model `against`. With `tasks`, names of lm-eval's or of files in `task_folder`, instead its
    scores there (extra `eval`), unless `alone` beside the models that `model` was made from. Options are those of `stitch eval`;
    models and `text` as in `join`.
    Raises: UsageError when the request cannot be met; StitchError when the model or the text fails.
    """
    with named(model, against) as (name, other), text_named(text) as source, progress(quiet) as update:
        common = {
            "text": source, "device": device, "dtype": dtype, "trust_remote_code": trust_remote_code, "progress": update,
        }  # fmt: skip
        from stitch.report.notes import text_notes

        if tasks is not None:
            if behaviour is not None or trace is not None:
                raise UsageError("`tasks` is measured by itself: leave out `behaviour` and `trace`.")
            refuse_unread(evaluate, "with `behaviour`", count=count)
            refuse_unread(evaluate, "with `trace`", controls=controls, rate=rate)
            refuse_unread(
                evaluate, "without `tasks`", text=text, whole_text=whole_text, tokens=tokens, context=context, seed=seed
            )
            common.pop("text")
            return _tasks(
                name, tasks, other, folder=task_folder and Path(task_folder), alone=alone, memory=byte_count(memory),
                **common,
            )  # fmt: skip
        refuse_unread(evaluate, "with `tasks`", task_folder=task_folder, alone=alone)
        if trace is not None:
            from stitch.jobs.trace import find_trace
            from stitch.report.trace import footnotes, lead, table

            if behaviour is not None:
                raise UsageError("`behaviour` and `trace` do not go together: measure one, then the other.")
            refuse_unread(evaluate, "with `behaviour`", count=count)
            refuse_unread(evaluate, "where cross-entropy is measured", whole_text=whole_text)
            report = find_trace(
                name, Path(trace), other, controls=controls, rate=rate, tokens=tokens, context=context, seed=seed,
                memory=byte_count(memory), **common,
            )  # fmt: skip
            page = Page(lead=lead(report), tables=[table(report)], notes=[*footnotes(report), *text_notes(report)])
            return Result(report, page)
        refuse_unread(evaluate, "with `trace`", controls=controls, rate=rate)
        if behaviour is None:
            refuse_unread(evaluate, "with `behaviour`", count=count)
            from stitch.evaluation.documents import warning
            from stitch.jobs.evaluate import evaluate_models
            from stitch.report.across import differences, eval_notes
            from stitch.report.card import table

            report = evaluate_models(
                name,
                other,
                whole_text=whole_text,
                tokens=tokens,
                context=context,
                seed=seed,
                memory=byte_count(memory),
                **common,
            )
            notes = [*eval_notes(report), *text_notes(report), *differences(report), *warning(report)]
            page = Page(tables=[table(report)], notes=notes)
        else:
            refuse_unread(
                evaluate, "without `behaviour`", against=against, whole_text=whole_text, tokens=tokens, context=context,
                memory=memory,
            )  # fmt: skip
            from stitch.circuits.report import SHOWN, beyond, tables
            from stitch.circuits.score import score_model

            report = score_model(name, str(behaviour), count=count, seed=seed, **common)
            page = Page(tables=tables(report), notes=beyond(report["results"], SHOWN))
    return Result(report, page)


def _tasks(name: str, tasks: str | Sequence[str], other: str | None, **options: Any) -> Result:
    from stitch.jobs.tasks import evaluate_tasks
    from stitch.report.tasks import table

    asked = [task.strip() for task in tasks.split(",")] if isinstance(tasks, str) else list(tasks)
    report = evaluate_tasks(name, asked, other, **options)
    return Result(report, Page(tables=[table(report)], notes=report["notes"]))


def inspect(
    model: ModelLike,
    *,
    heads: bool = False,
    sites: bool = False,
    text: TextLike = "docs",
    tokens: int = 32_768,
    context: int | None = None,
    seed: int = 0,
    memory: int | str = "4G",
    device: str = "auto",
    dtype: str = "fp32",
    trust_remote_code: bool = False,
    quiet: bool = False,
) -> Result:
    """Family, width, blocks, sites and vocabulary of a model. Weights are not loaded.

    With `heads` instead what each attention head looks at, and how many keys matter to it; with `sites` what the residual stream
    is like at every site. Both are measured on `tokens` held-out tokens of `text`; options are those of `stitch inspect`.
    Raises: UsageError for an unknown family, when there is no such model, and when the request cannot be met.

    >>> import stitch
    >>> found = stitch.inspect("demo:gpt2", quiet=True).report
    >>> found["family"], found["blocks"], found["width"]
    ('GPT-2', 6, 160)
    """
    if heads and sites:
        raise UsageError("`heads` and `sites` are reports of their own: choose one of them.")
    with named(model) as (name,), text_named(text) as source, progress(quiet) as update:
        if not heads and not sites:
            refuse_unread(
                inspect, "with `heads` or `sites`", text=text, tokens=tokens, context=context, seed=seed, memory=memory
            )
            return _described(name)
        common: dict = {
            "text": source, "tokens": tokens, "context": context, "seed": seed, "device": device, "dtype": dtype,
            "trust_remote_code": trust_remote_code, "progress": update,
        }  # fmt: skip
        common["memory"] = byte_count(memory)
        return _heads(name, common) if heads else _sites(name, common)


def _described(name: str) -> Result:
    from stitch.models.sources import look_ahead

    look_ahead(name)  # before torch is imported, which takes seconds
    from stitch.models.describe import describe

    facts = describe(name)
    rows = [[key, str(value)] for key, value in facts.items()]
    return Result(facts, Page(tables=[(["", ""], rows, facts["name"])]))


def _heads(name: str, common: dict) -> Result:
    from stitch.jobs.inspect import inspect_heads
    from stitch.layers import heads_report as shown

    report = inspect_heads(name, **common)
    tables = [shown.keys_table(report), shown.far_table(report)]
    return Result(
        report, Page(lead=shown.lead(report), heats=shown.maps(report), tables=tables, notes=_notes(shown, report))
    )


def _sites(name: str, common: dict) -> Result:
    from stitch.jobs.inspect import inspect_sites
    from stitch.layers import sites_report as shown

    report = inspect_sites(name, **common)
    return Result(report, Page(lead=shown.lead(report), tables=[shown.table(report)], notes=_notes(shown, report)))


def _notes(shown: Any, report: dict) -> list[str]:
    from stitch.report.notes import text_notes

    return [*shown.footnotes(report), *text_notes(report)]
