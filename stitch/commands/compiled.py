"""`stitch certify` and `run`: a compiled checkpoint tested, and at work."""

from typing import Annotated

import typer

import stitch
from sae.messages import printable
from stitch.commands import options as o
from stitch.commands.compile import PANEL
from stitch.commands.help import Group, command
from stitch.commands.terminal import print_result

commands = typer.Typer(cls=Group)


@command(commands, PANEL, "stitch certify dfa --tokens 500000")
def certify(
    folder: o.Folder,
    tokens: Annotated[
        int,
        o.option(
            "Input", "--tokens", "N", "Tokens to test, about as many for every kind of trial, dtype and attention."
        ),
    ] = 200_000,
    seed: o.Seed = 0,
    device: o.Device = "auto",
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Test a compiled checkpoint against an interpreter.

    The checkpoint is read from disk and tested in fp32 and bf16, with eager and with fused attention. The exit code is 1
    if an answer is wrong.
    """
    result = stitch.certify(folder, tokens=tokens, seed=seed, device=device, quiet=quiet)
    print_result(result, as_json)
    if not result.report["certified"]:
        raise typer.Exit(1)


@command(
    commands,
    PANEL,
    """
    stitch run dfa abbac
    stitch run machine examples/busy_beaver_4.json
    stitch run machine examples/binary_increment.json 1011 --steps 100
    """,
)
def run(
    folder: o.Folder,
    first: Annotated[
        str,
        o.argument("INPUT|PROGRAM.json", "Input string of an automaton, or a JSON file with the program of a machine."),
    ],
    tape: Annotated[
        str | None,
        o.argument("[TAPE]", "Tape of a Turing machine. Default: the tape that comes with the program."),
    ] = None,
    steps: Annotated[int, o.option("Input", "--steps", "N", "Stop a machine after this many steps.")] = 10_000,
    dtype: o.Dtype = "fp32",
    device: o.Device = "auto",
    debug: o.Debug = False,
) -> None:
    """Run a compiled checkpoint by greedy decoding.

    An automaton shows its state after each symbol, a machine its tape or memory after each step.
    """
    for line in stitch.run(folder, first, tape, steps=steps, dtype=dtype, device=device):
        print(printable(line), flush=True)
