"""`stitch convert heads`, `ngram`, `consolidate` and `undo`: a trained model in another form."""

from pathlib import Path
from typing import Annotated

import typer

import stitch
from stitch.commands import options as o
from stitch.commands.help import Group, command
from stitch.commands.terminal import or_estimate, print_result, require_out
from stitch.commands.values import block_or_auto

commands = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Convert a trained model to another form, with a table of what that costs.",
)
PANEL = "Convert a trained model"


@command(commands, PANEL, "stitch convert heads demo:gpt2 --kv-heads 1 --out mqa")
def heads(
    model: o.Model,
    kv_heads: Annotated[
        int,
        o.option(
            "Conversion",
            "--kv-heads",
            "N",
            "Key and value heads per block afterwards; a divisor of the present number.",
        ),
    ],
    steps: Annotated[
        int,
        o.steps("Gradient steps of fine-tuning the attention against the original model, also for the baselines."),
    ] = 0,
    text: o.Text = "docs",
    tokens: o.FitTokens = 32_768,
    held_out: o.HeldOut = 16_384,
    context: Annotated[
        int | None,
        o.option(
            "Text",
            "--context",
            "N",
            "Window length for fitting, in tokens. Windows of the report are up to 4 times as long, at most 1,024 tokens.",
            o.LONGEST_OF_CONVERSIONS,
        ),
    ] = None,
    seed: o.Seed = 0,
    device: o.Device = "auto",
    dtype: o.Dtype = "fp32",
    out: o.OutUnlessDry = None,
    overwrite: o.Overwrite = False,
    trust_remote_code: o.RemoteCode = False,
    recipe: o.Recipe = None,
    dry_run: o.DryRun = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Merge key and value heads, for a smaller KV cache.

    Heads are merged by low-rank approximation and least squares, and written as a stock checkpoint. The report compares
    with mean pooling and other baselines that are refitted in the same way. A GPT-2 becomes a GPTBigCode, which has a single key
    head.
    """
    require_out(out, dry_run)
    result = or_estimate(stitch.convert.heads, dry_run)(
        model, kv_heads, steps=steps, text=text, tokens=tokens, held_out=held_out, context=context, seed=seed, device=device,
        dtype=dtype, out=out, overwrite=overwrite, trust_remote_code=trust_remote_code, quiet=quiet,
    )  # fmt: skip
    print_result(result, as_json)


@command(
    commands,
    PANEL,
    """
    stitch convert ngram demo:llama --drop 2 --tokens 100000 --out tables
    stitch convert ngram MODEL --drop auto --tolerance 0.1 --out tables
    """,
)
def ngram(
    model: o.Model,
    drop: Annotated[
        str,
        o.option(
            "Conversion",
            "--drop",
            "N|auto",
            "Blocks to replace: 0 to N-1. auto: as many as --tolerance allows.",
        ),
    ],
    tolerance: Annotated[
        float,
        o.option(
            "Conversion",
            "--tolerance",
            "NATS",
            "With --drop auto, largest increase of cross-entropy on the tokens held out for choices, in nats per token.",
        ),
    ] = 0.05,
    order: Annotated[
        int, o.option("Conversion", "--order", "N", "Length of the longest n-gram with a table, in tokens.")
    ] = 3,
    rows: Annotated[
        int, o.option("Conversion", "--rows", "N", "Rows of all n-gram tables together. 0: no n-grams.")
    ] = 65_536,
    skips: Annotated[
        int, o.option("Conversion", "--skips", "N", "Number of preceding tokens that are also looked up one by one.")
    ] = 4,
    table_bytes: Annotated[
        float,
        o.option(
            "Conversion",
            "--table-bytes",
            "PERCENT",
            "Bytes of the tables, in percent of those of the blocks that they replace. They are cut and packed to 8 bits to keep "
            "within them. inf: tables of any size.",
        ),
    ] = 100.0,
    text: o.Text = "docs",
    tokens: o.FitTokens = 300_000,
    held_out: o.HeldOut = 32_768,
    context: o.LongContext = None,
    seed: o.Seed = 0,
    memory: o.Memory = "4G",
    device: o.Device = "auto",
    dtype: o.Dtype = "fp32",
    out: o.OutUnlessDry = None,
    overwrite: o.Overwrite = False,
    trust_remote_code: o.RemoteCode = False,
    recipe: o.Recipe = None,
    dry_run: o.DryRun = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Replace the first blocks by n-gram look-up tables.

    Instead of being computed, the residual stream after these blocks is looked up by the last tokens. The tables are
    fitted in closed form. The result is a composite, which can also be a model for `stitch join`.
    """
    require_out(out, dry_run)
    result = or_estimate(stitch.convert.ngram, dry_run)(
        model, block_or_auto("drop", drop), tolerance=tolerance, order=order, rows=rows, skips=skips,
        table_bytes=table_bytes, text=text, tokens=tokens, held_out=held_out, context=context, seed=seed, memory=memory,
        device=device, dtype=dtype, out=out, overwrite=overwrite, trust_remote_code=trust_remote_code, quiet=quiet,
    )  # fmt: skip
    print_result(result, as_json)


@command(
    commands,
    PANEL,
    """
    stitch convert consolidate demo:gpt2 --context examples/note.txt \\
        --queries examples/queries.txt --out with-note
    """,
)
def consolidate(
    model: o.Model,
    document: Annotated[
        list[Path],
        o.option(
            "Input",
            "--context",
            "FILE",
            "A text file that fits into the model's context. Several, each with --context, are written together.",
        ),
    ],
    queries: Annotated[
        list[Path] | None,
        o.option(
            "Input",
            "--queries",
            "FILE",
            "Text about the document to evaluate on; one for each --context.",
            "continuations of the document that the model writes",
        ),
    ] = None,
    cost: Annotated[
        float,
        o.option(
            "Conversion",
            "--cost",
            "NATS",
            "Allowed increase of cross-entropy on other text, in nats per token, above 0, below 1.",
        ),
    ] = 0.02,
    text: o.Text = "docs",
    tokens: o.FitTokens = 40_000,
    held_out: Annotated[
        int,
        o.option(
            "Text",
            "--held-out",
            "N",
            "Held-out tokens of --text to sample from, to scale the edit by --cost and to report on.",
        ),
    ] = 65_536,
    seed: o.Seed = 0,
    device: o.Device = "auto",
    dtype: o.Dtype = "fp32",
    out: o.OutUnlessDry = None,
    overwrite: o.Overwrite = False,
    trust_remote_code: o.RemoteCode = False,
    recipe: o.Recipe = None,
    dry_run: o.DryRun = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Write documents into the MLP weights.

    The model then answers much as if the document were in its context. Several are best written together: one that is written
    later makes the earlier ones fade. The report compares with training on the document,
    with another document and with noise, each at the same cost on other text.
    """
    require_out(out, dry_run)
    result = or_estimate(stitch.convert.consolidate, dry_run)(
        model, document, queries=queries, cost=cost, text=text, tokens=tokens, held_out=held_out, seed=seed, device=device,
        dtype=dtype, out=out, overwrite=overwrite, trust_remote_code=trust_remote_code, quiet=quiet,
    )  # fmt: skip
    print_result(result, as_json)


@command(commands, PANEL, "stitch convert undo with-note --out donor-again")
def undo(
    model: Annotated[str, o.argument("MODEL", "Folder that `stitch convert consolidate` wrote.")],
    out: o.Out,
    overwrite: o.Overwrite = False,
    recipe: o.Recipe = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Take the last document out of the MLP weights again.

    MODEL is a folder that `stitch convert consolidate` wrote. The result has the donor's tensors, bit for bit, in the number
    format that the conversion ran in. Documents that were written together come out together. A model that has changed since is
    refused.
    """
    print_result(stitch.convert.undo(model, out=out, overwrite=overwrite, quiet=quiet), as_json)
