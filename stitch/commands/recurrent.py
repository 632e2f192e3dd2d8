"""`stitch convert recurrent`: a decoder without a growing cache."""

from typing import Annotated

import typer

import stitch
from stitch.commands import options as o
from stitch.commands.convert import PANEL
from stitch.commands.help import Group, command
from stitch.commands.terminal import or_estimate, print_result, require_out

commands = typer.Typer(cls=Group)


@command(
    commands,
    PANEL,
    """
    stitch convert recurrent demo:gpt2 --held-out 16384 --out rnn
    stitch convert recurrent MODEL --features taylor2 --layers 0,2-4 --out rnn
    """,
)
def recurrent(
    model: o.Model,
    features: Annotated[
        str,
        o.option(
            "Conversion",
            "--features",
            "NAME",
            "Feature maps of the fast weights. taylor2, random: fixed maps, in closed form. hedgehog: fitted by gradient "
            "descent. hybrid: recent and selected keys stay exact; the rest is a mean of values, or hedgehog features.",
        ),
    ] = "hybrid",
    window: Annotated[
        int | None,
        o.option(
            "Conversion",
            "--window",
            "N",
            "Most recent keys that stay exact.",
            "1/32 of the context for hybrid, else 0",
        ),
    ] = None,
    sinks: Annotated[int, o.option("Conversion", "--sinks", "N", "First keys of a text that stay exact.")] = 1,
    slots: Annotated[
        int | None,
        o.option(
            "Conversion",
            "--slots",
            "N",
            "Older keys that stay exact, selected by a fitted priority.",
            "5/32 of the context for hybrid, else 0",
        ),
    ] = None,
    allocation: Annotated[
        str,
        o.option(
            "Conversion",
            "--allocation",
            "NAME",
            "How exact keys are divided among heads. measured: more for heads whose output depends on more keys, with --window "
            "plus --slots on average. uniform: the same number for all.",
        ),
    ] = "measured",
    multiple: Annotated[
        float | None,
        o.option(
            "Conversion",
            "--multiple",
            "X",
            "Features per dimension of a head. 0: the mean of the values instead of features.",
            "2; 0 for hybrid",
        ),
    ] = None,
    hidden: Annotated[
        int | None,
        o.option(
            "Conversion",
            "--hidden",
            "N",
            "Hidden units of the fitted feature maps and priorities, which do not make the state larger. 0: linear maps.",
            "2 per dimension of a head",
        ),
    ] = None,
    layers: Annotated[
        str,
        o.option("Conversion", "--layers", "BLOCKS", "Blocks to convert: all, or numbers and ranges such as 0,2-4."),
    ] = "all",
    steps: Annotated[
        int, o.steps("Gradient steps of fitting feature maps to the attention output of each block.")
    ] = 400,
    logit_steps: Annotated[
        int,
        o.option(
            "Conversion",
            "--logit-steps",
            "N",
            "Gradient steps, after those of --steps, of fitting them to the model's logits.",
        ),
    ] = 200,
    text: o.Text = "docs",
    tokens: o.FitTokens = 65_536,
    held_out: o.HeldOut = 32_768,
    context: o.LongContext = None,
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
    """Replace the KV cache by a state of constant size.

    The result is a recurrent network: each head keeps some keys exactly, and of the others the mean of their values, or fast
    weights with --multiple. The report compares with a plain window and other controls of the same size in bytes.
    """
    require_out(out, dry_run)
    result = or_estimate(stitch.convert.recurrent, dry_run)(
        model, features=features, window=window, sinks=sinks, slots=slots, allocation=allocation, multiple=multiple,
        hidden=hidden, layers=layers, steps=steps, logit_steps=logit_steps, text=text, tokens=tokens, held_out=held_out,
        context=context, seed=seed, device=device, dtype=dtype, out=out, overwrite=overwrite,
        trust_remote_code=trust_remote_code, quiet=quiet,
    )  # fmt: skip
    print_result(result, as_json)
