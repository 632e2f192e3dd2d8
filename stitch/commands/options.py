"""Options and arguments that several commands share, each spelt once.

A parameter is called as in the library, so that an error about `layer_b` can be shown as one about `--layer-b`. Defaults
stand in the commands' signatures; `default` describes one that is worked out later, where the signature says None.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from stitch.commands.recipes import use_recipe
from stitch.translation import rows

SOURCES = (
    "`docs` (the docstrings of installed Python packages), `self` (written by the model; of two models, by the second), a file, "
    "a folder, or a Hugging Face dataset (name or name:config)"
)
MODELS = (
    "a Hub id (user/repo), a folder, a .gguf file, demo:gpt2, demo:llama, demo:neox, demo:induction, "
    "demo:induction-llama, smollm2 or gemma3"
)
LONGEST, LONGEST_OF_CONVERSIONS = (f"the longest that every model takes, at most {most}" for most in ("512", "1,024"))


def argument(metavar: str, help: str) -> Any:
    return typer.Argument(metavar=metavar, help=help, rich_help_panel="Input")


def option(panel: str, spelling: str, metavar: str, help: str, default: str = "") -> Any:
    return typer.Option(spelling, metavar=metavar, help=help, rich_help_panel=panel, show_default=default or True)


def switch(panel: str, spelling: str, help: str) -> Any:
    return typer.Option(*spelling.split(), help=help, rich_help_panel=panel)


def out_folder(default: str = "") -> Any:
    return option("Output", "--out", "FOLDER", "Folder to write.", default)


def arch(default: str = "") -> Any:
    return option("Compiled model", "--arch", "NAME", "Architecture of the checkpoint: gpt2 or llama.", default)


def fit_tokens(default: str = "") -> Any:
    return option("Text", "--tokens", "N", "Tokens to fit on.", default)


def steps(help: str) -> Any:
    return option("Conversion", "--steps", "N", help)


# Input
Model = Annotated[str, argument("MODEL", f"Model to read: {MODELS}.")]
ModelA = Annotated[str, argument("MODEL_A", f"First model: {MODELS}.")]
MODEL_B = argument("MODEL_B", "Second model, given in the same ways. Both must use the same token ids.")
ModelB = Annotated[str, MODEL_B]
OptionalModelB = Annotated[str | None, MODEL_B]
AnyModelB = Annotated[str, argument("MODEL_B", "Second model, given in the same ways. It may read other tokens.")]
Folder = Annotated[Path, argument("FOLDER", "Folder that `stitch compile` wrote.")]
Automaton = Annotated[
    str,
    argument(
        "REGEX|FILE.json",
        "A regular expression (extra automata), or a JSON file with a DFA, Moore or Mealy machine.",
    ),
]
Normalise = Annotated[
    bool,
    switch(
        "Input", "--normalise", "Determinise, complete and minimise the automaton before compiling it (extra automata)."
    ),
]
BEHAVIOUR = option(
    "Input",
    "--behaviour",
    "NAME|FILE",
    "Behaviour to score: induction, iid-induction, previous-token, duplicate-token, brackets, ngram, natural-ngram, "
    "natural-copying, natural-brackets, or a .jsonl file whose lines have the fields clean, corrupt and answer.",
    "cross-entropy on text is measured instead",
)
Behaviour = Annotated[str, BEHAVIOUR]
OptionalBehaviour = Annotated[str | None, BEHAVIOUR]
CircuitFile = Annotated[
    Path | None,
    option(
        "Input",
        "--circuit",
        "FILE",
        "Use the circuit in this JSON file, which `stitch circuit --out` wrote, or a graft.json.",
        "search for one",
    ),
]

Recipe = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        metavar="FILE",
        help="YAML file with any of these options, or the folder of an earlier run. Options given here go before the file's.",
        rich_help_panel="Input",
        show_default="no file",
        callback=use_recipe,
        is_eager=True,
    ),
]

# Text
Text = Annotated[str, option("Text", "--text", "SOURCE", f"Text to fit and evaluate on: {SOURCES}.")]
TextToRead = Annotated[str, option("Text", "--text", "SOURCE", f"Text to evaluate on: {SOURCES}.")]
BehaviourText = Annotated[
    str,
    option(
        "Text",
        "--text",
        "SOURCE",
        f"Text that `ngram` counts n-grams in and `natural-…` behaviours take passages from: {SOURCES}.",
    ),
]
FitTokens = Annotated[int, fit_tokens()]
ReportTokens = Annotated[int, option("Text", "--tokens", "N", "Tokens of held-out text to evaluate on.")]
HELD_OUT = option(
    "Text",
    "--held-out",
    "N",
    "Held-out tokens to make choices on, and as many others to report on.",
    "a tenth of --tokens, at most 65,536, but at least 128 windows",
)
HeldOut = Annotated[int, HELD_OUT]
OptionalHeldOut = Annotated[int | None, HELD_OUT]
Context = Annotated[int | None, option("Text", "--context", "N", "Window length in tokens.", LONGEST)]
LongContext = Annotated[
    int | None, option("Text", "--context", "N", "Window length in tokens.", LONGEST_OF_CONVERSIONS)
]

# SAE
Features = Annotated[
    int | None,
    option("SAE", "--features", "N", "Number of features per SAE.", "8 times its model's width, or half of TOKENS"),
]
ActiveFeatures = Annotated[int, option("SAE", "--k", "N", "Active features per token in each SAE.")]
Architecture = Annotated[
    str,
    option("SAE", "--architecture", "NAME", "Type of SAE: batchtopk, topk, jumprelu, standard or matryoshka."),
]
SaePasses = Annotated[float, option("SAE", "--sae-passes", "X", "Passes over the fit tokens when an SAE is trained.")]
AnyHook = Annotated[
    bool,
    switch(
        "SAE", "--sae-any-hook", "Use given SAEs also where they say that they are of another hook or another model."
    ),
]
FeaturesInside = Annotated[
    list[str] | None,
    option(
        "SAE",
        "--features",
        "BLOCK=SAE",
        "Replace the neurons of one block by features: those of a transcoder, or of an SAE on the MLP's output. A folder in "
        "SAELens's format, or release:sae_id. Once per block.",
        "the model's own neurons",
    ),
]

# Translation
Matching = Annotated[
    str,
    option(
        "Translation",
        "--matching",
        "NAME",
        "How SAE features are matched: hungarian (one to one), ot (balanced optimal transport; extra ot) or unbalanced "
        "(unbalanced optimal transport).",
    ),
]
Translation = Annotated[
    str,
    option(
        "Translation",
        "--translation",
        "NAME",
        "Translation to write. auto: the one with the lowest cross-entropy on the tokens held out for choices. Or a name from "
        f"the report: {', '.join(rows.translations())}.",
    ),
]
Ngrams = Annotated[
    int,
    option(
        "Translation",
        "--ngrams",
        "N",
        "Rows in the n-gram tables of the translations `…+tables`, as far as `--memory` holds them. 0: no tables.",
    ),
]
SeamBytes = Annotated[
    float,
    option(
        "Translation",
        "--seam-bytes",
        "PERCENT",
        "Bytes of the composite's translation, in percent of those of the blocks, embedding and head that are kept. Its tables "
        "are cut and packed to 8 bits to keep within them.",
    ),
]
Routes = Annotated[
    int | None,
    option(
        "Translation",
        "--routes",
        "N",
        "Token classes with a matrix of their own in the translation `routed`. 0: no such translation.",
        "as many as make the matrices as large as 32,768 table rows",
    ),
]
ReferenceSteps = Annotated[
    int | None,
    option(
        "Translation",
        "--reference-steps",
        "N",
        "Gradient steps of the affine map that is trained for comparison. 0: no such row.",
        "100; 0 with --brief",
    ),
]

Brief = Annotated[
    bool,
    switch(
        "Translation",
        "--brief",
        "Fit and report fewer rows: the default translations, the affine baseline, matched features, one floor, the "
        "ceiling, and two nulls. Each number is the same as in the full report.",
    ),
]

# Circuit
CircuitPrompts = Annotated[
    int, option("Circuit", "--prompts", "N", "Prompts to choose the circuit on, and as many others to report on.")
]
Keep = Annotated[
    float,
    option(
        "Circuit", "--keep", "SHARE", "Share of the model's right answers that the circuit alone must keep, 0 to 1."
    ),
]

# Output
Out = Annotated[Path, out_folder()]
OutUnlessDry = Annotated[Path | None, out_folder("none; only --dry-run needs no folder")]
Push = Annotated[
    str | None,
    option(
        "Output",
        "--push",
        "USER/REPO",
        "Upload the written folder to this repository on the Hugging Face Hub.",
        "no upload",
    ),
]
Overwrite = Annotated[bool, switch("Output", "--overwrite", "Replace an existing output folder that stitch wrote.")]
Resume = Annotated[bool, switch("Output", "--resume", "Continue an interrupted run of the same command.")]
Restart = Annotated[
    bool, switch("Output", "--restart", "Remove what an interrupted run of the same command has left, and begin again.")
]
DryRun = Annotated[
    bool,
    switch(
        "Output",
        "--dry-run",
        "Write nothing, and show what would be done: time by stage, disk, memory and what the cache has.",
    ),
]
DryGraft = Annotated[
    bool, switch("Output", "--dry-run", "Write nothing, and show where every head and neuron of the circuit would go.")
]
Json = Annotated[bool, switch("Output", "--json", "Print the report as JSON, and nothing else, on standard output.")]
Quiet = Annotated[bool, switch("Output", "--quiet -q", "Show no progress on standard error.")]
# Read by `help.Command.invoke`, which handles the errors of all commands.
Debug = Annotated[bool, switch("Output", "--debug", "Show the traceback of an error.")]

# Machine
CacheSize = Annotated[
    str,
    option(
        "Machine",
        "--cache-size",
        "SIZE",
        "Keep activations and SAEs for later runs, at most this much of them. 0: keep and use none.",
    ),
]
Device = Annotated[
    str,
    option("Machine", "--device", "NAME", "cpu, cuda, cuda:1 and so on. auto: cuda if there is one."),
]
Dtype = Annotated[
    str, option("Machine", "--dtype", "NAME", "Number format that the models run in: fp32, bf16 or fp16.")
]
Memory = Annotated[
    str,
    option(
        "Machine",
        "--memory",
        "SIZE",
        "Memory for statistics and buffers, such as 512M or 4G (1K is 1,024 bytes). A plain number is in bytes.",
    ),
]
Seed = Annotated[
    int, option("Machine", "--seed", "N", "Random seed. The same inputs and seed give the same output files.")
]
RemoteCode = Annotated[
    bool, switch("Machine", "--trust-remote-code", "Run modeling code that comes with a checkpoint. Trust its author.")
]
