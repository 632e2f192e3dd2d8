"""`stitch compile automaton` and `machine`: weights written from a specification."""

from typing import Annotated

import typer

import stitch
from stitch.commands import options as o
from stitch.commands.help import Group, command
from stitch.commands.terminal import print_result

commands = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Write weights from a specification, with a certificate.",
)
PANEL = "Compile weights from a specification"


@command(
    commands,
    PANEL,
    """
    stitch compile automaton '(ab|ba)*c?' --out dfa
    stitch compile automaton examples/automaton_parity.json \\
        --mode parallel --out parity
    """,
)
def automaton(
    spec: o.Automaton,
    out: o.Out,
    alphabet: Annotated[
        str | None,
        o.option(
            "Input",
            "--alphabet",
            "SYMBOLS",
            "Alphabet of a regular expression.",
            "the symbols that the expression names",
        ),
    ] = None,
    normalise: o.Normalise = False,
    arch: Annotated[str, o.arch()] = "llama",
    mode: Annotated[
        str,
        o.option(
            "Compiled model",
            "--mode",
            "NAME",
            "stepwise: one block, which writes each state as a token and reads it again. vsa: the same, with states as nearly "
            "orthogonal vectors. parallel: the whole string at once, in log2(--length) blocks, rounded up; at most 8 states.",
        ),
    ] = "stepwise",
    length: Annotated[
        int, o.option("Compiled model", "--length", "N", "Length of the longest string, in symbols.")
    ] = 512,
    dimension: Annotated[
        int, o.option("Compiled model", "--dimension", "N", "Dimension of the state vectors of --mode vsa.")
    ] = 64,
    seed: o.Seed = 0,
    device: o.Device = "auto",
    overwrite: o.Overwrite = False,
    recipe: o.Recipe = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Compile a finite automaton into a transformer.

    The next token that the transformer predicts is the automaton's state, or its output.
    """
    result = stitch.compile.automaton(
        spec, alphabet=alphabet, normalise=normalise, arch=arch, mode=mode, length=length, dimension=dimension, seed=seed,
        device=device, out=out, overwrite=overwrite, quiet=quiet,
    )  # fmt: skip
    print_result(result, as_json)


@command(
    commands,
    PANEL,
    """
    stitch compile machine --out machine
    stitch compile machine --kind subleq --out subleq
    """,
)
def machine(
    out: o.Out,
    kind: Annotated[
        str,
        o.option(
            "Compiled model",
            "--kind",
            "NAME",
            "turing: runs any Turing machine of up to 16 states and 8 symbols. subleq: runs programs of the one-instruction "
            "computer SUBLEQ, which may rewrite themselves.",
        ),
    ] = "turing",
    arch: Annotated[str | None, o.arch("llama; gpt2 for subleq, which needs it")] = None,
    window: Annotated[
        int, o.option("Compiled model", "--window", "N", "Length of a Turing machine's tape, in cells.")
    ] = 32,
    cells: Annotated[int, o.option("Compiled model", "--cells", "N", "Size of the SUBLEQ memory, in cells.")] = 64,
    context: Annotated[
        int,
        o.option(
            "Compiled model",
            "--context",
            "N",
            "Context length in tokens. It holds the program, then one tape or memory per step.",
        ),
    ] = 2048,
    device: o.Device = "auto",
    overwrite: o.Overwrite = False,
    recipe: o.Recipe = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Compile a universal machine, which runs any program.

    The program is given as the prompt; see `stitch run`.
    """
    result = stitch.compile.machine(
        kind=kind, arch=arch, window=window, cells=cells, context=context, device=device, out=out, overwrite=overwrite,
        quiet=quiet,
    )  # fmt: skip
    print_result(result, as_json)
