"""`stitch retokenize`: a model that reads another model's tokenizer."""

from typing import Annotated

import typer

import stitch
from stitch.commands import options as o
from stitch.commands.convert import PANEL
from stitch.commands.help import Group, command
from stitch.commands.terminal import print_result

commands = typer.Typer(cls=Group)


@command(
    commands,
    PANEL,
    """
    stitch retokenize smollm2 --tokenizer demo:gpt2 --out retokenized
    stitch retokenize MODEL --tokenizer MODEL_B --donor-model MODEL_B --out new
    """,
)
def retokenize(
    model: o.Model,
    out: o.Out,
    tokenizer: Annotated[
        str,
        o.option(
            "Input",
            "--tokenizer",
            "MODEL",
            "Model whose tokenizer is to be read, or a folder that holds a tokenizer alone.",
        ),
    ],
    donor_model: Annotated[
        str | None,
        o.option(
            "Input",
            "--donor-model",
            "MODEL",
            "Model that reads that tokenizer. Its embedding says which shared tokens a missing one is like.",
            "no such rows",
        ),
    ] = None,
    text: o.Text = "docs",
    tokens: o.FitTokens = 16_384,
    documents: Annotated[
        int,
        o.option("Text", "--documents", "N", "Held-out documents to make choices on, and as many others to report on."),
    ] = 128,
    context: Annotated[
        int | None,
        o.option(
            "Text",
            "--context",
            "N",
            "Tokens that are read of a document at most.",
            "the longest that the model takes, at most 256",
        ),
    ] = None,
    seed: o.Seed = 0,
    device: o.Device = "auto",
    dtype: o.Dtype = "fp32",
    overwrite: o.Overwrite = False,
    trust_remote_code: o.RemoteCode = False,
    recipe: o.Recipe = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Make a model read another model's tokenizer.

    Embedding and head get new rows: copied for tokens with the same bytes, made in closed form for others. The result is a
    stock checkpoint. The report compares several ways, and nulls, in bits per byte.
    """
    result = stitch.retokenize(
        model, tokenizer, donor_model=donor_model, text=text, tokens=tokens, documents=documents, context=context, seed=seed,
        device=device, dtype=dtype, out=out, overwrite=overwrite, trust_remote_code=trust_remote_code, quiet=quiet,
    )  # fmt: skip
    print_result(result, as_json)
