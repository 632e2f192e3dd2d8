"""`stitch inspect`, `eval` and `push`: one model looked at, scored, uploaded."""

from pathlib import Path
from typing import Annotated

import typer

import stitch
from stitch.commands import options as o
from stitch.commands.help import Group, command
from stitch.commands.terminal import print_result

commands = typer.Typer(cls=Group)
PANEL = "Evaluate and share"


@command(
    commands,
    PANEL,
    """
    stitch eval joined --against demo:llama
    stitch eval demo:induction --behaviour induction
    stitch eval unlearned --trace note.txt --against original
    stitch eval joined --tasks arc_easy,hellaswag
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
            "A second model to compare with, of any tokenizer: adds KL(against ‖ model), top-1 and the difference.",
            "no comparison",
        ),
    ] = None,
    behaviour: o.OptionalBehaviour = None,
    count: Annotated[int, o.option("Input", "--prompts", "N", "Prompts of the behaviour to score.")] = 256,
    trace: Annotated[
        Path | None,
        o.option(
            "Input",
            "--trace",
            "FILE",
            "A text file. Measures how fast the model learns it, beside other documents and beside --against.",
            "cross-entropy on text is measured instead",
        ),
    ] = None,
    controls: Annotated[
        int, o.option("Input", "--controls", "N", "Documents that --trace is compared with, of the same length.")
    ] = 24,
    rate: Annotated[
        float, o.option("Input", "--rate", "X", "Learning rate at which copies of the model learn --trace.")
    ] = 1e-4,
    tasks: Annotated[
        str | None,
        o.option(
            "Input",
            "--tasks",
            "NAMES",
            "Tasks of lm-eval, with commas between them (extra eval). Shows the scores of the model, of --against, and of the "
            "models that it was made from.",
            "cross-entropy on text is measured instead",
        ),
    ] = None,
    task_folder: Annotated[
        Path | None,
        o.option(
            "Input",
            "--task-folder",
            "FOLDER",
            "Task files of your own, as lm-eval reads them. They can run code, so --trust-remote-code is needed.",
            "lm-eval's tasks alone",
        ),
    ] = None,
    alone: Annotated[
        bool, o.switch("Input", "--alone", "With --tasks, leave out the models that this one was made from.")
    ] = False,
    text: o.TextToRead = "docs",
    whole_text: Annotated[
        bool,
        o.switch(
            "Text", "--whole-text", "Read all of the text, not its report split: for text that no model was fitted on."
        ),
    ] = False,
    tokens: o.ReportTokens = 50_000,
    context: o.Context = None,
    seed: o.Seed = 0,
    memory: o.Memory = "4G",
    device: o.Device = "auto",
    dtype: o.Dtype = "fp32",
    trust_remote_code: o.RemoteCode = False,
    recipe: o.Recipe = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Measure cross-entropy, a behaviour, a trace, or tasks.

    Shows cross-entropy (nats per token) and perplexity of any causal language model on held-out text, with a 95% interval
    over documents. With --behaviour, shows the share of right answers, beside that on corrupted prompts and beside chance.
    With --trace, shows whether the model learns a document faster than one that it never saw. The model itself is not changed.
    With --tasks, shows its scores in the evaluation harness beside those of the models that it was made from.
    """
    result = stitch.evaluate(
        model, against=against, behaviour=behaviour, count=count, trace=trace, controls=controls, rate=rate, tasks=tasks,
        task_folder=task_folder, alone=alone, text=text, whole_text=whole_text, tokens=tokens, context=context, seed=seed,
        memory=memory, device=device, dtype=dtype, trust_remote_code=trust_remote_code, quiet=quiet,
    )  # fmt: skip
    print_result(result, as_json)


@command(
    commands,
    PANEL,
    """
    stitch inspect demo:gpt2
    stitch inspect HuggingFaceTB/SmolLM2-135M --json
    stitch inspect demo:llama --heads
    stitch inspect smollm2 --sites
    """,
)
def inspect(
    model: o.Model,
    heads: Annotated[
        bool,
        o.switch(
            "Input",
            "--heads",
            "Show what each attention head looks at, how many keys matter to it, and what fewer cost.",
        ),
    ] = False,
    sites: Annotated[
        bool,
        o.switch(
            "Input", "--sites", "Show what the residual stream is like at every site: outliers, sinks, effective rank."
        ),
    ] = False,
    text: o.Text = "docs",
    tokens: o.ReportTokens = 32_768,
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
    """Show a model's family, width, blocks and vocabulary.

    The weights are not loaded. The list of sites says which numbers --layer takes. With --heads or --sites the model is run on
    held-out text, and the report is on its attention heads, or on its residual stream at every site.
    """
    result = stitch.inspect(
        model, heads=heads, sites=sites, text=text, tokens=tokens, context=context, seed=seed, memory=memory, device=device,
        dtype=dtype, trust_remote_code=trust_remote_code, quiet=quiet,
    )  # fmt: skip
    print_result(result, as_json)


@command(commands, PANEL, "stitch push joined USER/REPO --private")
def push(
    folder: Annotated[Path, o.argument("FOLDER", "Folder of a model, as `stitch` wrote it.")],
    repo: Annotated[str, o.argument("USER/REPO", "Repository on the Hub; created if it does not exist.")],
    private: Annotated[bool, o.switch("Output", "--private", "Make a new repository private.")] = False,
    debug: o.Debug = False,
) -> None:
    """Upload a model to the Hugging Face Hub.

    The access token comes from HF_TOKEN or `hf auth login`.
    """
    print(stitch.push(folder, repo, private=private, quiet=True))
