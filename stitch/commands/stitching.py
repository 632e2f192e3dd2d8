"""`stitch join` and `chain`: two or more models made into one."""

from pathlib import Path
from typing import Annotated

import typer

import stitch
from stitch.api.given import NAMED
from stitch.commands import options as o
from stitch.commands.help import Group, command
from stitch.commands.terminal import or_estimate, print_result
from stitch.commands.values import block_or_auto
from stitch.composite.parts import Part, parts_of

commands = typer.Typer(cls=Group)
PANEL = "Join models"


def sae_of(model: str) -> str:
    return f"Trained SAE to use for {model}: a folder of SAELens, sparsify or dictionary_learning, or release:sae_id."


@command(
    commands,
    PANEL,
    """
    stitch demo:gpt2 demo:llama --layer 3 --layer-b 4 --out joined
    stitch MODEL_A MODEL_B --layer 12 --layer-b auto --brief
    stitch MODEL MODEL --layer 12 --layer-b 18 --native
    stitch MODEL MODEL --layer 18 --layer-b 12 --native
    """,
)
def join(
    model_a: o.ModelA,
    model_b: o.AnyModelB,
    layer: Annotated[
        int,
        o.option(
            "Input",
            "--layer",
            "N",
            "Blocks of MODEL_A to keep: 0 to N-1 run. The residual stream entering its block N is translated for MODEL_B.",
        ),
    ],
    layer_b: Annotated[
        str | None,
        o.option(
            "Input",
            "--layer-b",
            "N|auto",
            "First block of MODEL_B that runs. auto: tries every block but the first, leaves out those where the composite costs "
            "more FLOPs per token than the costlier model, and takes the one with the lowest cross-entropy (if none is left, the "
            "cheapest block).",
            "the same relative depth as --layer",
        ),
    ] = None,
    native: Annotated[
        bool,
        o.switch(
            "Input",
            "--native",
            "Depth surgery: give the same model twice. With --layer-b above --layer the blocks between are removed, with "
            "--layer-b below --layer they run twice. The translation is folded into the weights, and the result is a stock "
            "checkpoint.",
        ),
    ] = False,
    text: o.Text = "docs",
    tokens: Annotated[int | None, o.fit_tokens("1,000,000; 100,000 with --native")] = None,
    held_out: o.OptionalHeldOut = None,
    context: o.Context = None,
    features: o.Features = None,
    k: o.ActiveFeatures = 32,
    architecture: o.Architecture = "batchtopk",
    sae_a: Annotated[str | None, o.option("SAE", "--sae-a", "SAE", sae_of("MODEL_A"), "train one")] = None,
    sae_b: Annotated[str | None, o.option("SAE", "--sae-b", "SAE", sae_of("MODEL_B"), "train one")] = None,
    sae_any_hook: o.AnyHook = False,
    sae_passes: o.SaePasses = 2.0,
    matching: o.Matching = "hungarian",
    translation: o.Translation = "auto",
    seam_bytes: o.SeamBytes = 10.0,
    ngrams: o.Ngrams = 32_768,
    routes: o.Routes = None,
    reference_steps: o.ReferenceSteps = None,
    brief: o.Brief = False,
    seed: o.Seed = 0,
    memory: o.Memory = "4G",
    cache_size: o.CacheSize = "10G",
    device: o.Device = "auto",
    dtype: o.Dtype = "fp32",
    out: Annotated[Path | None, o.out_folder("named after models and blocks, such as gpt2-3-llama-4")] = None,
    push: o.Push = None,
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
    """Join two models at a layer.

    The first blocks of MODEL_A run, then the last blocks of MODEL_B. The residual stream between them is translated by a
    map that is fitted on text without gradient descent. The result is written as a checkpoint, with a report that
    compares it with both models, baselines and controls. The word `join` may be left out.
    """
    first_b = None if layer_b is None else block_or_auto("layer_b", layer_b)
    result = or_estimate(stitch.join, dry_run)(
        model_a, model_b, layer, layer_b=first_b, native=native, text=text, tokens=tokens, held_out=held_out,
        context=context, features=features, k=k, architecture=architecture, sae_a=sae_a, sae_b=sae_b,
        sae_any_hook=sae_any_hook, sae_passes=sae_passes, matching=matching, translation=translation, seam_bytes=seam_bytes,
        ngrams=ngrams, routes=routes, reference_steps=reference_steps, brief=brief, seed=seed, memory=memory,
        cache_size=cache_size, device=device, dtype=dtype, out=out or NAMED, push=push, overwrite=overwrite, resume=resume,
        restart=restart,
        trust_remote_code=trust_remote_code, quiet=quiet,
    )  # fmt: skip
    print_result(result, as_json)


@command(
    commands,
    PANEL,
    """
    stitch chain chain.yaml --out chained

    # chain.yaml: blocks 0 to 2 of one model, 4 and 5 of another, 5 to the last
    # parts:
    #   - {model: demo:gpt2, to: 3}
    #   - {model: demo:llama, from: 4, to: 6}
    #   - {model: demo:gpt2, from: 5}
    """,
)
def chain(
    parts: Annotated[
        Path,
        o.argument(
            "FILE",
            "YAML file with a list `parts` of {model, from, to}. Of each model, the blocks `from` to `to` - 1 run. The first "
            "part needs no `from`, the last no `to`; where the last begins after its model's last block, its head alone runs. "
            "Later models may read other tokens than the first.",
        ),
    ],
    text: o.Text = "docs",
    tokens: Annotated[int | None, o.fit_tokens("1,000,000")] = None,
    held_out: o.OptionalHeldOut = None,
    context: o.Context = None,
    features: o.Features = None,
    k: o.ActiveFeatures = 32,
    architecture: o.Architecture = "batchtopk",
    sae_passes: o.SaePasses = 2.0,
    matching: o.Matching = "hungarian",
    translation: o.Translation = "auto",
    seam_bytes: o.SeamBytes = 10.0,
    ngrams: o.Ngrams = 32_768,
    routes: o.Routes = None,
    reference_steps: o.ReferenceSteps = 0,
    brief: o.Brief = False,
    seed: o.Seed = 0,
    memory: o.Memory = "4G",
    cache_size: o.CacheSize = "10G",
    device: o.Device = "auto",
    dtype: o.Dtype = "fp32",
    out: Annotated[Path | None, o.out_folder("named after the models, such as gpt2-llama-gpt2")] = None,
    push: o.Push = None,
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
    """Join parts of any number of models.

    A translation is fitted at each seam, on the stream that the composite so far computes there. The options are those of
    `stitch join` and apply to every seam.
    """
    result = or_estimate(stitch.chain, dry_run)(
        named_parts(parts, recipe), text=text, tokens=tokens, held_out=held_out, context=context, features=features, k=k,
        architecture=architecture, sae_passes=sae_passes, matching=matching, translation=translation, seam_bytes=seam_bytes,
        ngrams=ngrams, routes=routes, reference_steps=reference_steps, brief=brief, seed=seed, memory=memory,
        cache_size=cache_size, device=device, dtype=dtype, out=out or NAMED, push=push, overwrite=overwrite,
        resume=resume, restart=restart, trust_remote_code=trust_remote_code, quiet=quiet,
    )  # fmt: skip
    print_result(result, as_json)


def named_parts(file: Path, recipe: Path | None) -> Path | list[Part]:
    """The file that names the parts, or the parts that a recipe lists among its options."""
    if file != recipe:
        return file
    from stitch.files.recipe import read_recipe

    return parts_of(read_recipe(file)["parts"], str(file))
