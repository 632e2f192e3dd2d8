"""`stitch transfer sae`, `probe` and `vector`: what was made for one model rewritten for another."""

from pathlib import Path
from typing import Annotated

import typer

import stitch
from stitch.api.given import NAMED
from stitch.commands import options as o
from stitch.commands.help import Group, command
from stitch.commands.terminal import print_result

commands = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Rewrite an SAE, a probe or steering vectors of one model for another.",
)
PANEL = "Carry over"
Layer = Annotated[int, o.option("Input", "--layer", "N", "Site of MODEL_A: the residual stream entering its block N.")]
LayerB = Annotated[
    int | None,
    o.option("Input", "--layer-b", "N", "Site of MODEL_B, in the same way.", "the same relative depth as --layer"),
]
Tokens = Annotated[int, o.option("Text", "--tokens", "N", "Tokens to fit the maps between the sites on.")]
Out = Annotated[Path | None, o.out_folder("named after the models, such as gpt2-to-llama-sae")]


@command(commands, PANEL, "stitch transfer sae demo:gpt2 demo:llama joined/sae-a --layer 3")
def sae(
    model_a: o.ModelA,
    model_b: o.AnyModelB,
    file: Annotated[
        str,
        o.argument("SAE", "SAE of MODEL_A: a folder of SAELens, sparsify or dictionary_learning, or release:sae_id."),
    ],
    layer: Layer,
    layer_b: LayerB = None,
    native: Annotated[
        str | None,
        o.option(
            "SAE", "--native", "SAE", "An SAE of MODEL_B to compare with, besides the one that is trained.", "none"
        ),
    ] = None,
    sae_any_hook: o.AnyHook = False,
    text: o.Text = "docs",
    tokens: Tokens = 100_000,
    held_out: o.OptionalHeldOut = None,
    context: o.Context = None,
    sae_passes: Annotated[
        float, o.option("SAE", "--sae-passes", "X", "Passes over the text for the SAE that is trained on MODEL_B.")
    ] = 20.0,
    seed: o.Seed = 0,
    memory: o.Memory = "4G",
    cache_size: o.CacheSize = "10G",
    device: o.Device = "auto",
    dtype: o.Dtype = "fp32",
    out: Out = None,
    overwrite: o.Overwrite = False,
    trust_remote_code: o.RemoteCode = False,
    recipe: o.Recipe = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Rewrite a sparse autoencoder for another model.

    Its encoder reads MODEL_B's stream through a map fitted by ridge regression, its decoder writes through another. The
    result is an SAE in SAELens's format. The report compares it with an SAE trained on MODEL_B and with other maps.
    """
    result = stitch.transfer.sae(
        model_a, model_b, file, layer, layer_b=layer_b, native=native, sae_any_hook=sae_any_hook, text=text, tokens=tokens,
        held_out=held_out, context=context, sae_passes=sae_passes, seed=seed, memory=memory, cache_size=cache_size,
        device=device, dtype=dtype, out=out or NAMED,
        overwrite=overwrite, trust_remote_code=trust_remote_code, quiet=quiet,
    )  # fmt: skip
    print_result(result, as_json)


@command(commands, PANEL, "stitch transfer probe demo:gpt2 demo:llama probe.safetensors --layer 3")
def probe(
    model_a: o.ModelA,
    model_b: o.AnyModelB,
    file: Annotated[
        Path, o.argument("PROBE", "safetensors file with `weight` [classes, width of MODEL_A] and `bias` [classes].")
    ],
    layer: Layer,
    layer_b: LayerB = None,
    labels: Annotated[
        Path | None,
        o.option(
            "Input",
            "--labels",
            "FILE",
            'A .jsonl file to score on; a line is {"text": …, "labels": [[start, end, class], …]}, in characters.',
            "what the probe predicts on MODEL_A",
        ),
    ] = None,
    text: o.Text = "docs",
    tokens: Tokens = 100_000,
    held_out: o.OptionalHeldOut = None,
    context: o.Context = None,
    seed: o.Seed = 0,
    memory: o.Memory = "4G",
    cache_size: o.CacheSize = "10G",
    device: o.Device = "auto",
    dtype: o.Dtype = "fp32",
    out: Out = None,
    overwrite: o.Overwrite = False,
    trust_remote_code: o.RemoteCode = False,
    recipe: o.Recipe = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Rewrite a linear probe for another model.

    The new probe reads MODEL_B's stream through a map fitted by ridge regression. With --labels half of the texts train a
    probe on MODEL_B to compare with, and all are scored on the other half.
    """
    result = stitch.transfer.probe(
        model_a, model_b, file, layer, layer_b=layer_b, labels=labels, text=text, tokens=tokens, held_out=held_out,
        context=context, seed=seed, memory=memory, cache_size=cache_size,
        device=device, dtype=dtype, out=out or NAMED, overwrite=overwrite,
        trust_remote_code=trust_remote_code, quiet=quiet,
    )  # fmt: skip
    print_result(result, as_json)


@command(commands, PANEL, "stitch transfer vector demo:gpt2 demo:llama steer.safetensors --layer 3")
def vector(
    model_a: o.ModelA,
    model_b: o.AnyModelB,
    file: Annotated[
        Path, o.argument("VECTORS", "safetensors file of tensors [width of MODEL_A] or [n, width of MODEL_A].")
    ],
    layer: Layer,
    layer_b: LayerB = None,
    strength: Annotated[
        float, o.option("Input", "--strength", "X", "Factor on the vectors where their effects are measured.")
    ] = 1.0,
    text: o.Text = "docs",
    tokens: Tokens = 100_000,
    held_out: o.OptionalHeldOut = None,
    context: o.Context = None,
    seed: o.Seed = 0,
    memory: o.Memory = "4G",
    cache_size: o.CacheSize = "10G",
    device: o.Device = "auto",
    dtype: o.Dtype = "fp32",
    out: Out = None,
    overwrite: o.Overwrite = False,
    trust_remote_code: o.RemoteCode = False,
    recipe: o.Recipe = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Rewrite steering vectors for another model.

    The report compares what they do to the next token in both models, and what they cost in cross-entropy.
    """
    result = stitch.transfer.vector(
        model_a, model_b, file, layer, layer_b=layer_b, strength=strength, text=text, tokens=tokens, held_out=held_out,
        context=context, seed=seed, memory=memory, cache_size=cache_size,
        device=device, dtype=dtype, out=out or NAMED, overwrite=overwrite,
        trust_remote_code=trust_remote_code, quiet=quiet,
    )  # fmt: skip
    print_result(result, as_json)
