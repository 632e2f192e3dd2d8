"""`stitch compile pattern`, `tool` and `induction`: an attention head, a circuit inside a trained model, a circuit to graft."""

from typing import Annotated

import typer

import stitch
from stitch.commands import options as o
from stitch.commands.compile import PANEL
from stitch.commands.help import Group, command
from stitch.commands.terminal import print_result

commands = typer.Typer(cls=Group)


@command(
    commands,
    PANEL,
    """
    stitch compile pattern previous --out previous
    stitch compile pattern offset:5 --arch llama --length 256 --out five-back
    """,
)
def pattern(
    what: Annotated[
        str,
        o.argument(
            "PATTERN",
            "previous, self, first, parent, offset:K, block:K, random:R, or a .json or .npy file with one target per query or "
            "with a matrix whose rows sum to 1.",
        ),
    ],
    out: o.Out,
    arch: Annotated[str | None, o.arch("what --positions needs")] = None,
    positions: Annotated[
        str | None,
        o.option(
            "Compiled model",
            "--positions",
            "NAME",
            "learned (gpt2; any pattern) or rope (llama; fixed offsets only).",
            "what --arch has; learned without --arch",
        ),
    ] = None,
    length: Annotated[int, o.option("Compiled model", "--length", "N", "Context length in tokens.")] = 512,
    rank: Annotated[
        int, o.option("Compiled model", "--rank", "N", "Rank of queries and keys, for patterns given as a matrix.")
    ] = 16,
    seed: o.Seed = 0,
    device: o.Device = "auto",
    overwrite: o.Overwrite = False,
    recipe: o.Recipe = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Compile a head with a given attention pattern.

    The head attends in this way whatever the tokens are.
    """
    result = stitch.compile.pattern(
        what, arch=arch, positions=positions, length=length, rank=rank, seed=seed, device=device, out=out,
        overwrite=overwrite, quiet=quiet,
    )  # fmt: skip
    print_result(result, as_json)


@command(commands, PANEL, "stitch compile tool examples/automaton_depth.json --host demo:gpt2 --out tool")
def tool(
    spec: o.Automaton,
    host: Annotated[
        str,
        o.option("Input", "--host", "MODEL", "Trained model to put the automaton in; needs learned positions (gpt2)."),
    ],
    out: o.Out,
    normalise: o.Normalise = False,
    faint: Annotated[
        float,
        o.option(
            "Compiled model",
            "--faint",
            "X",
            "Norm of what is added to the residual stream, as a share of the smallest norm of the stream. A smaller value "
            "changes the host less; bf16 needs a larger one.",
        ),
    ] = 0.1,
    text: o.Text = "docs",
    tokens: o.ReportTokens = 50_000,
    device: o.Device = "auto",
    overwrite: o.Overwrite = False,
    recipe: o.Recipe = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Compile an automaton into a trained model.

    The automaton reads the characters of every token and starts again at a special token. Its state can be read from the
    last hidden state at every token, and the model predicts what it did before. The report compares with a linear probe
    on the unchanged model.
    """
    result = stitch.compile.tool(
        spec, host, normalise=normalise, faint=faint, text=text, tokens=tokens, device=device, out=out, overwrite=overwrite,
        quiet=quiet,
    )  # fmt: skip
    print_result(result, as_json)


@command(
    commands,
    PANEL,
    """
    stitch compile induction --out induction
    stitch compile induction --tokenizer demo:gpt2 --arch gpt2 --out donor
    """,
)
def induction(
    out: o.Out,
    tokenizer: Annotated[
        str | None, o.option("Input", "--tokenizer", "MODEL", "Model whose vocabulary to use.", "26 letters")
    ] = None,
    arch: Annotated[str, o.arch()] = "llama",
    context: Annotated[int, o.option("Compiled model", "--context", "N", "Context length in tokens.")] = 512,
    device: o.Device = "auto",
    overwrite: o.Overwrite = False,
    recipe: o.Recipe = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Compile the two-layer induction circuit.

    The result can be a donor for `stitch graft`.
    """
    result = stitch.compile.induction(
        tokenizer=tokenizer, arch=arch, context=context, device=device, out=out, overwrite=overwrite, quiet=quiet
    )
    print_result(result, as_json)
