"""`stitch sweep`: where two models are best joined, or which blocks of one can go or run twice."""

from pathlib import Path
from typing import Annotated

import typer

from stitch.commands import options as o
from stitch.commands.help import Group, command
from stitch.commands.progress import progress
from stitch.commands.stitching import PANEL
from stitch.commands.terminal import print_heat, print_json, print_page
from stitch.commands.values import byte_count, whole_numbers
from stitch.errors import UsageError

commands = typer.Typer(cls=Group)


@command(
    commands,
    PANEL,
    """
    stitch sweep demo:gpt2 demo:llama --out sweep
    stitch sweep MODEL_A MODEL_B --tokens 200000 --cluster auto
    stitch sweep MODEL --depth --repeat --lengths 1,2,4
    """,
)
def sweep(
    model_a: o.ModelA,
    model_b: o.OptionalModelB = None,
    depth: Annotated[
        bool,
        o.switch(
            "Input",
            "--depth",
            "Of one model: remove every range of its blocks, as it is and with the down projection before the gap refitted.",
        ),
    ] = False,
    repeat: Annotated[
        bool, o.switch("Input", "--repeat", "With --depth: also run every range of blocks twice.")
    ] = False,
    lengths: Annotated[
        str | None,
        o.option(
            "Input",
            "--lengths",
            "N,N,…",
            "With --depth: how many blocks to remove or repeat.",
            "1 to a third of the blocks",
        ),
    ] = None,
    text: o.Text = "docs",
    tokens: Annotated[
        int | None,
        o.option(
            "Text",
            "--tokens",
            "N",
            "Tokens to fit on. A tenth as many, at most 16,384 but at least 128 windows, are held out to make choices "
            "on, and as many others to report on; with --depth 128 windows each.",
            "100,000; 20,000 with --depth",
        ),
    ] = None,
    context: o.Context = None,
    memory: o.Memory = "4G",
    device: o.Device = "auto",
    dtype: o.Dtype = "fp32",
    cluster: Annotated[
        str | None,
        o.option(
            "Machine",
            "--cluster",
            "ADDRESS",
            "Spread the work over a Ray cluster: its address, auto or local. All its machines must see the output folder.",
            "this machine alone",
        ),
    ] = None,
    out: Annotated[Path | None, o.out_folder("named after the models, such as gpt2-llama-sweep")] = None,
    overwrite: o.Overwrite = False,
    resume: o.Resume = False,
    trust_remote_code: o.RemoteCode = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Try every pair of layers, or every range of blocks.

    With two models, both directions are tried, with translations that are quick to fit. The report has the cross-entropy of
    every composite as a heat map, the best block of the other model for each number of early blocks (chosen as `stitch
    join --layer-b auto` does), and
    the front: models that no other beats in both cross-entropy and cost. Both models alone, with n-gram tables in
    place of their first blocks, stand beside the composites.

    With --depth and one model, the report has the loss by first block and number of blocks that are removed or repeated.
    """
    if depth != (model_b is None):
        raise UsageError("a sweep needs two models, or one model and `depth`.")
    common = {
        "text": text, "context": context, "memory": byte_count(memory), "device": device, "dtype": dtype,
        "trust_remote_code": trust_remote_code, "overwrite": overwrite, "resume": resume,
        **({} if tokens is None else {"tokens": tokens}),
    }  # fmt: skip
    if model_b is None:
        if cluster:
            raise UsageError(
                "`cluster` spreads pairs of layers; a sweep with `depth` runs on one machine: leave it out."
            )
        _depth(model_a, out, repeat, lengths, common, as_json, quiet)
        return
    if repeat or lengths:
        raise UsageError("`repeat` and `lengths` belong to `depth`: leave them out, or give one model and `depth`.")
    from stitch.jobs.sweep import sweep
    from stitch.report.sweep import best_table, footnotes, front_table, heat, swept_directions

    with progress(quiet) as update:
        report, folder = sweep(model_a, model_b, out, cluster=cluster, progress=update, **common)
    if as_json:
        print_json(report)
        return
    for source, _ in swept_directions(report):
        print_heat(*heat(report, source))
        print()
    tables = [best_table(report), front_table(report, "flops"), front_table(report, "bytes")]
    print_page(tables, footnotes(report), [folder])


def _depth(
    model: str, out: Path | None, repeat: bool, lengths: str | None, common: dict, as_json: bool, quiet: bool
) -> None:
    """Runs and prints the sweep over ranges of one model's blocks."""
    from stitch.jobs.depth import sweep_depth
    from stitch.report.depth import best_table, footnotes, heat, kinds, rows

    chosen = None if lengths is None else whole_numbers("lengths", lengths)
    with progress(quiet) as update:
        report, folder = sweep_depth(model, out, repeat=repeat, lengths=chosen, progress=update, **common)
    if as_json:
        print_json(report)
        return
    for kind in kinds(report):
        for row in rows(report):
            print_heat(*heat(report, kind, row))
            print()
    print_page([best_table(report)], footnotes(report), [folder])
