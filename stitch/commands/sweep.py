"""`stitch sweep`: where two models are best joined."""

from pathlib import Path
from typing import Annotated

import typer

from stitch.commands import options as o
from stitch.commands.help import Group, command
from stitch.commands.progress import progress
from stitch.commands.stitching import PANEL
from stitch.commands.terminal import print_heat, print_json, print_page
from stitch.commands.values import byte_count

commands = typer.Typer(cls=Group)


@command(
    commands,
    PANEL,
    """
    stitch sweep demo:gpt2 demo:llama --out sweep
    stitch sweep MODEL_A MODEL_B --tokens 200000 --cluster auto
    """,
)
def sweep(
    model_a: o.ModelA,
    model_b: o.ModelB,
    text: o.Text = "docs",
    tokens: Annotated[
        int,
        o.option(
            "Text",
            "--tokens",
            "N",
            "Tokens to fit on. A tenth as many, at most 16,384 but at least 128 windows, are held out to make choices "
            "on, and as many others to report on.",
        ),
    ] = 100_000,
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
    """Try every pair of layers of two models.

    Both directions are tried, with translations that are quick to fit. The report has the cross-entropy of
    every composite as a heat map, the best block of the other model for each number of early blocks (chosen as `stitch
    join --layer-b auto` does), and
    the front: models that no other beats in both cross-entropy and cost. Both models alone, with n-gram tables in
    place of their first blocks, stand beside the composites.
    """
    from stitch.jobs.sweep import sweep
    from stitch.report.sweep import best_table, footnotes, front_table, heat, swept_directions

    with progress(quiet) as update:
        report, folder = sweep(
            model_a, model_b, out, text=text, tokens=tokens, context=context, memory=byte_count(memory),
            device=device, dtype=dtype, trust_remote_code=trust_remote_code, overwrite=overwrite, resume=resume,
            cluster=cluster, progress=update,
        )  # fmt: skip
    if as_json:
        print_json(report)
        return
    for source, _ in swept_directions(report):
        print_heat(*heat(report, source))
        print()
    tables = [best_table(report), front_table(report, "flops"), front_table(report, "bytes")]
    print_page(tables, footnotes(report), [folder])
