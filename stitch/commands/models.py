"""`stitch inspect`, `eval` and `push`: one model looked at, scored, uploaded."""

from pathlib import Path
from typing import Annotated

import typer

from stitch.commands import options as o
from stitch.commands.help import Group, command
from stitch.commands.progress import progress
from stitch.commands.terminal import print_json, print_page
from stitch.commands.values import byte_count

commands = typer.Typer(cls=Group)
PANEL = "Evaluate and share"


@command(
    commands,
    PANEL,
    """
    stitch eval joined --against demo:llama
    stitch eval demo:induction --behaviour induction
    """,
    name="eval",
)
def evaluate(
    model: o.Model,
    against: Annotated[
        str | None,
        o.option(
            "Input",
            "--against",
            "MODEL",
            "A second model to compare with: adds KL(against ‖ model) in nats per token, and top-1 agreement.",
            "no comparison",
        ),
    ] = None,
    behaviour: o.OptionalBehaviour = None,
    count: Annotated[int, o.option("Input", "--prompts", "N", "Prompts of the behaviour to score.")] = 256,
    text: o.Text = "docs",
    tokens: o.ReportTokens = 50_000,
    context: o.Context = None,
    seed: o.Seed = 0,
    memory: o.Memory = "4G",
    device: o.Device = "auto",
    dtype: o.Dtype = "fp32",
    trust_remote_code: o.RemoteCode = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Measure cross-entropy on text, or a behaviour.

    Shows cross-entropy (nats per token) and perplexity of any causal language model on held-out text, with a 95% interval
    over documents. With --behaviour, shows the share of right answers, beside that on corrupted prompts and beside chance.
    """
    with progress(quiet) as update:
        if behaviour is None:
            from stitch.jobs.evaluate import evaluate_models
            from stitch.report.card import table

            report = evaluate_models(
                model, against, text=text, tokens=tokens, context=context, memory=byte_count(memory), device=device,
                dtype=dtype, trust_remote_code=trust_remote_code, progress=update,
            )  # fmt: skip
        else:
            from stitch.circuits.report import table
            from stitch.circuits.score import score_model

            report = score_model(
                model, behaviour, count=count, seed=seed, text=text, device=device, dtype=dtype,
                trust_remote_code=trust_remote_code, progress=update,
            )  # fmt: skip
    if as_json:
        print_json(report)
    else:
        print_page([table(report)])


@command(
    commands,
    PANEL,
    """
    stitch inspect demo:gpt2
    stitch inspect HuggingFaceTB/SmolLM2-135M --json
    """,
)
def inspect(model: o.Model, as_json: o.Json = False, debug: o.Debug = False) -> None:
    """Show a model's family, width, blocks and vocabulary.

    The weights are not loaded. The list of sites says which numbers --layer takes.
    """
    from stitch.models.describe import describe

    facts = describe(model)
    if as_json:
        print_json(facts)
    else:
        print_page([(["", ""], [[name, str(value)] for name, value in facts.items()], facts["name"])])


@command(commands, PANEL, "stitch push joined USER/REPO --private")
def push(
    folder: Annotated[Path, o.argument("FOLDER", "Folder of a composite, as `stitch` wrote it.")],
    repo: Annotated[str, o.argument("USER/REPO", "Repository on the Hub; created if it does not exist.")],
    private: Annotated[bool, o.switch("Output", "--private", "Make a new repository private.")] = False,
    debug: o.Debug = False,
) -> None:
    """Upload a composite to the Hugging Face Hub.

    The access token comes from HF_TOKEN or `hf auth login`.
    """
    from stitch.models.hub import push

    print(push(folder, repo, private=private))
