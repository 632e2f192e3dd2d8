"""`stitch circuit` and `graft`: where a behaviour lives in a model, and how another model gets it."""

from pathlib import Path
from typing import Annotated

import typer

import stitch
from stitch.api.given import NAMED
from stitch.commands import options as o
from stitch.commands.help import Group, command
from stitch.commands.terminal import print_result
from stitch.files.recipe import donor_and_behaviour, sae_by_block

commands = typer.Typer(cls=Group)
PANEL = "Find and move circuits"


@command(
    commands,
    PANEL,
    """
    stitch circuit demo:llama --behaviour brackets --out circuit.json
    stitch circuit demo:llama --behaviour brackets --circuit circuit.json
    """,
)
def circuit(
    model: o.Model,
    behaviour: o.Behaviour,
    circuit: o.CircuitFile = None,
    features: o.FeaturesInside = None,
    keep: o.Keep = 0.9,
    count: o.CircuitPrompts = 128,
    text: o.BehaviourText = "docs",
    seed: o.Seed = 0,
    device: o.Device = "auto",
    dtype: o.Dtype = "fp32",
    out: Annotated[
        Path | None,
        o.option(
            "Output",
            "--out",
            "FILE",
            "JSON file for the report and the circuit, which may be edited. Beside it come a page to look at (.html) and the "
            "circuit on one prompt as an attribution graph (.graph.json).",
            "no file",
        ),
    ] = None,
    trust_remote_code: o.RemoteCode = False,
    recipe: o.Recipe = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Find the heads and neurons behind a behaviour.

    Attention heads and MLP neurons are ranked by attribution (integrated gradients). The circuit is the fewest of them
    that keep the behaviour when all others are ablated to their mean output. It is then tested on other prompts, beside
    random circuits of the same size.
    """
    result = stitch.circuit(
        model, behaviour, circuit=circuit, features=sae_by_block(features), keep=keep, count=count, text=text, seed=seed,
        device=device, dtype=dtype, out=out, trust_remote_code=trust_remote_code, quiet=quiet,
    )  # fmt: skip
    print_result(result, as_json)


@command(
    commands,
    PANEL,
    """
    stitch graft demo:induction --behaviour induction \\
        --host examples/llama-tiny.json --out grafted
    stitch graft demo:induction --behaviour induction --host demo:gpt2 --dry-run
    """,
)
def graft(
    donor: Annotated[str, o.argument("DONOR", f"Model that has the behaviour: {o.MODELS}.")],
    behaviour: o.Behaviour,
    host: Annotated[
        str,
        o.option(
            "Input",
            "--host",
            "FILE.json|MODEL",
            "Model that gets the behaviour. FILE.json: config of a new model, with its model_type (gpt2, llama, mistral or "
            "qwen2), to be initialised at random. MODEL: a trained model, which gets additional channels, heads and neurons.",
        ),
    ],
    circuit: o.CircuitFile = None,
    requests: Annotated[
        list[str] | None,
        o.option(
            "Input",
            "--graft",
            "DONOR=BEHAVIOUR",
            "Another donor and its behaviour, written into the same host.",
            "none",
        ),
    ] = None,
    features: o.FeaturesInside = None,
    keep: o.Keep = 0.98,
    count: o.CircuitPrompts = 128,
    channels: Annotated[
        int | None,
        o.option(
            "Graft",
            "--channels",
            "N",
            "At most this many channels of the host for each donor's residual stream.",
            "the donor's width, or as many as are free",
        ),
    ] = None,
    strength: Annotated[
        float,
        o.option(
            "Graft",
            "--strength",
            "X",
            "In a trained host, factor on what the circuit adds to the logits.",
        ),
    ] = 1.0,
    text: Annotated[
        str,
        o.option(
            "Text",
            "--text",
            "SOURCE",
            "Text that `ngram` counts n-grams in and `natural-…` behaviours take passages from, and that a "
            f"trained host is evaluated on: {o.SOURCES}.",
        ),
    ] = "docs",
    seed: o.Seed = 0,
    device: o.Device = "auto",
    out: Annotated[Path | None, o.out_folder("DONOR-BEHAVIOUR")] = None,
    dry_run: o.DryGraft = False,
    overwrite: o.Overwrite = False,
    trust_remote_code: o.RemoteCode = False,
    recipe: o.Recipe = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Write a behaviour's circuit into another model.

    Its weights are written without training. The host may have another architecture. It is written as a stock checkpoint
    with the donor's tokenizer, and compared with the donor, with the donor's circuit alone, with the same host without
    the graft, and with controls that should fail.
    """
    result = stitch.graft(
        donor, behaviour, host, circuit=circuit, requests=[donor_and_behaviour(one) for one in requests or []],
        features=sae_by_block(features), keep=keep, count=count, channels=channels, strength=strength, text=text, seed=seed,
        device=device, out=out or NAMED, dry_run=dry_run, overwrite=overwrite, trust_remote_code=trust_remote_code,
        quiet=quiet,
    )  # fmt: skip
    print_result(result, as_json)
