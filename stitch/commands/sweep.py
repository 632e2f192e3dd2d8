"""`stitch sweep`: where two models are best joined, or which blocks of one can go or run twice."""

from pathlib import Path
from typing import Annotated

import typer

import stitch
from stitch.api.given import NAMED
from stitch.commands import options as o
from stitch.commands.help import Group, command
from stitch.commands.stitching import PANEL
from stitch.commands.terminal import or_estimate, print_result
from stitch.commands.values import whole_numbers

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
    cache_size: o.CacheSize = "10G",
    device: o.Device = "auto",
    dtype: o.Dtype = "fp32",
    cluster: Annotated[
        str | None,
        o.option(
            "Machine",
            "--cluster",
            "ADDRESS",
            "Spread the work over a Ray cluster (extra cluster): its address, auto or local. All its machines must see the "
            "output folder. The cache of activations is not used.",
            "this machine alone",
        ),
    ] = None,
    out: Annotated[Path | None, o.out_folder("named after the models, such as gpt2-llama-sweep")] = None,
    overwrite: o.Overwrite = False,
    resume: o.Resume = False,
    restart: o.Restart = False,
    trust_remote_code: o.RemoteCode = False,
    recipe: o.Recipe = None,
    dry_run: o.DryRun = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Try every pair of layers, or every range of blocks.

    With two models, both directions are tried, with translations that are quick to fit. The report has the cross-entropy of
    every composite as a heat map (extra plot), the best block of the other model for each number of early blocks (chosen as
    `stitch join --layer-b auto` does), and the front: models that no other beats in both cross-entropy and cost. Both models
    alone, with n-gram tables in place of their first blocks, stand beside the composites.

    With --depth and one model, the report has the loss by first block and number of blocks that are removed or repeated.
    """
    result = or_estimate(stitch.sweep, dry_run)(
        model_a, model_b, depth=depth, repeat=repeat, lengths=None if lengths is None else whole_numbers("lengths", lengths),
        text=text, tokens=tokens, context=context, memory=memory, cache_size=cache_size, device=device, dtype=dtype,
        cluster=cluster, out=out or NAMED, overwrite=overwrite, resume=resume, restart=restart,
        trust_remote_code=trust_remote_code, quiet=quiet,
    )  # fmt: skip
    print_result(result, as_json)
