"""The `stitch` command: parses, calls one library function, prints. Heavy imports happen inside the command that needs them."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup


class DefaultsToStitch(TyperGroup):
    """`stitch A B --layer 3` works literally: what is no other command's name goes to `join`."""

    def parse_args(self, ctx, args: list[str]) -> list[str]:
        if (
            args
            and args[0] not in self.commands
            and args[0] not in {"--help", "--version", "--install-completion", "--show-completion"}
        ):
            args = ["join", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=DefaultsToStitch,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its help costs more time than all the rest
    help="Take language models apart and build new ones from the parts.\n\n`stitch MODEL_A MODEL_B --layer N` joins two models.",
)

Model = Annotated[str, typer.Argument(help="Hub id, local folder, .gguf file, demo:gpt2, demo:llama or smollm2.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps … ; auto takes an accelerator if there is one.")]
Dtype = Annotated[str, typer.Option(help="fp32, bf16 or fp16: what the models run in.")]
Text = Annotated[str, typer.Option(help="`docs` (docstrings of installed packages), a file, a folder, or a dataset.")]
Memory = Annotated[str, typer.Option(help="Budget for statistics and buffers, such as 4G.")]
RemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run modeling code that a checkpoint brings along.")
]
Tokens = Annotated[int | None, typer.Option(help="Tokens to fit on. Default: 1,000,000; 100,000 with --native.")]
HeldOut = Annotated[
    int | None,
    typer.Option(help="Tokens to choose on, and as many to report on. Default: a tenth of --tokens, at most 65,536."),
]
Context = Annotated[int | None, typer.Option(help="Window length. Default: what the models take, at most 1024.")]
Features = Annotated[int | None, typer.Option(help="Features per SAE. Default: 8 times the width.")]
ActiveFeatures = Annotated[int, typer.Option("--k", help="Active features per token.")]
Architecture = Annotated[str, typer.Option(help="batchtopk, topk, jumprelu, standard or matryoshka.")]
Behaviour = Annotated[
    str,
    typer.Option(
        metavar="NAME|FILE",
        help="induction, iid-induction, previous-token, duplicate-token, brackets, ngram, or a .jsonl file of clean, corrupt "
        "and answer.",
    ),
]
Passes = Annotated[float, typer.Option(help="Passes over the tokens when training SAEs.")]
Matching = Annotated[str, typer.Option(help="hungarian, ot (balanced transport) or unbalanced (transport).")]
Translation = Annotated[str, typer.Option(help="Write this one; auto takes the best on the sweep split.")]
Ngrams = Annotated[int, typer.Option(help="Rows of the n-gram tables of the best translations; 0: none.")]
Routes = Annotated[int | None, typer.Option(help="Classes of tokens that have a matrix of their own; 0: none.")]
ReferenceSteps = Annotated[
    int | None,
    typer.Option(
        help="Gradient steps of the trained reference that the table compares with; 0: none. Default: 100; none with "
        "--brief and in chains."
    ),
]
Seed = Annotated[int, typer.Option(help="Same inputs and seed: the same bytes.")]
Push = Annotated[str | None, typer.Option(metavar="USER/REPO", help="Upload the composite to the Hub.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output folder.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run of the same command.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
Json = Annotated[bool, typer.Option("--json", help="Print the report as JSON, alone on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on standard error.")]


@app.command()
def join(
    model_a: Annotated[str, typer.Argument(metavar="MODEL_A", help="The source: its early blocks run first.")],
    model_b: Annotated[str, typer.Argument(metavar="MODEL_B", help="The target: its late blocks finish.")],
    layer: Annotated[
        int, typer.Option(help="Blocks 0 to N-1 of A are kept; the stream entering block N is translated.")
    ],
    layer_b: Annotated[
        str | None,
        typer.Option(
            metavar="N|auto",
            help="B goes on at this block. Default: the same relative depth. auto: the block from 1 to depth-1 with the lowest "
            "cross-entropy among those with which the composite costs no more block FLOPs per token (translation included) "
            "than the costlier model; the cheapest where none does.",
        ),
    ] = None,
    text: Text = "docs",
    tokens: Tokens = None,
    held_out: HeldOut = None,
    context: Context = None,
    features: Features = None,
    k: ActiveFeatures = 32,
    architecture: Architecture = "batchtopk",
    sae_a: Annotated[str | None, typer.Option(help="Use this SAE for A: a SAELens folder or release:id.")] = None,
    sae_b: Annotated[str | None, typer.Option(help="Use this SAE for B.")] = None,
    sae_passes: Passes = 2.0,
    matching: Matching = "hungarian",
    translation: Translation = "auto",
    ngrams: Ngrams = 32_768,
    routes: Routes = None,
    reference_steps: ReferenceSteps = None,
    native: Annotated[
        bool,
        typer.Option(
            "--native",
            help="MODEL_A twice and --layer-b above --layer: remove the blocks between, fold the bridge into the weights, "
            "write a stock checkpoint.",
        ),
    ] = False,
    brief: Annotated[
        bool,
        typer.Option(
            "--brief",
            help="Fit and report less: the default translations, the affine baseline, matched features, a floor, the ceiling, "
            "the null without a source. Every number is that of the whole report.",
        ),
    ] = False,
    seed: Seed = 0,
    memory: Memory = "4G",
    device: Device = "auto",
    dtype: Dtype = "fp32",
    out: Annotated[Path | None, typer.Option(help="Folder for the composite. Default: A-N-B-M.")] = None,
    push: Push = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    trust_remote_code: RemoteCode = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Join two models (the word `join` may be left out).

    Blocks of A, a translation fitted without training, blocks of B: written as a checkpoint, with a report of what it is worth.
    """

    def work(progress):
        from stitch.config import Settings
        from stitch.jobs.join import stitch

        settings = Settings(
            model_a=model_a, model_b=model_b, layer=layer, layer_b=_layer(layer_b), text=text, tokens=tokens, held_out=held_out,
            context=context, features=features, k=k, architecture=architecture, sae_a=sae_a, sae_b=sae_b, sae_passes=sae_passes,
            matching=matching, translation=translation, ngrams=ngrams, routes=routes, reference_steps=reference_steps,
            seed=seed, memory=_bytes(memory),
            device=device, dtype=dtype, trust_remote_code=trust_remote_code, native=native, brief=brief,
        )  # fmt: skip
        report, folder = stitch(settings, out, overwrite=overwrite, resume=resume, progress=progress)
        return report, folder, _pushed(folder, push)

    report, folder, url = _guarded(work, quiet=quiet, debug=debug)
    _print_stitch(report, folder, url, as_json)


@app.command()
def chain(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="YAML: a list `parts` of {model: demo:llama, from: 4, to: 6}.")
    ],
    text: Text = "docs",
    tokens: Tokens = None,
    held_out: HeldOut = None,
    context: Context = None,
    features: Features = None,
    k: ActiveFeatures = 32,
    architecture: Architecture = "batchtopk",
    sae_passes: Passes = 2.0,
    matching: Matching = "hungarian",
    translation: Translation = "auto",
    ngrams: Ngrams = 32_768,
    routes: Routes = None,
    reference_steps: ReferenceSteps = 0,
    seed: Seed = 0,
    memory: Memory = "4G",
    device: Device = "auto",
    dtype: Dtype = "fp32",
    out: Annotated[Path | None, typer.Option(help="Folder for the composite. Default: A-B-C.")] = None,
    push: Push = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    trust_remote_code: RemoteCode = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Join parts of any number of models, one after another, as a file names them.

    The first part needs `to`, the last `from`, those between both: blocks `from` to `to` - 1 run. Every translation is fitted on
    what the composite before it computes. Options are those of the main job, for every seam the same.
    """

    def work(progress):
        from stitch.composite.parts import read_parts
        from stitch.jobs.chain import chain

        report, folder = chain(
            read_parts(file), out, text=text, tokens=tokens, held_out=held_out, context=context, features=features, k=k,
            architecture=architecture, sae_passes=sae_passes, matching=matching, translation=translation, ngrams=ngrams,
            routes=routes, reference_steps=reference_steps, seed=seed, memory=_bytes(memory), device=device, dtype=dtype,
            trust_remote_code=trust_remote_code, overwrite=overwrite, resume=resume, progress=progress,
        )  # fmt: skip
        return report, folder, _pushed(folder, push)

    report, folder, url = _guarded(work, quiet=quiet, debug=debug)
    _print_stitch(report, folder, url, as_json)


def _pushed(folder: Path, repo: str | None) -> str | None:
    """The composite's address on the Hub, if it is to be there."""
    if not repo:
        return None
    from stitch.models.hub import push as upload

    return upload(folder, repo)


def _print_stitch(report: dict, folder: Path, url: str | None, as_json: bool) -> None:
    if as_json:
        print(json.dumps(report, indent=2))
        return
    from stitch.report.card import footnotes, table

    _print_table(*table(report))
    print("", *footnotes(report), f"\nwritten to {folder}" + (f" and {url}" if url else ""), sep="\n")


@app.command()
def sweep(
    model_a: Annotated[str, typer.Argument(metavar="MODEL_A", help="One model.")],
    model_b: Annotated[str, typer.Argument(metavar="MODEL_B", help="The other; both directions are tried.")],
    text: Text = "docs",
    tokens: Annotated[
        int,
        typer.Option(
            help="Tokens to fit on; a tenth more, at most 16,384, is held out twice, to choose and to report."
        ),
    ] = 100_000,
    context: Annotated[
        int | None, typer.Option(help="Window length. Default: what both models take, at most 1024.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the intervals' bootstrap.")] = 0,
    memory: Memory = "4G",
    device: Device = "auto",
    dtype: Dtype = "fp32",
    out: Annotated[Path | None, typer.Option(help="Folder for report and picture. Default: A-B-sweep.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output folder.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep the activations of an interrupted run of the same command.")
    ] = False,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="Spread the work on a Ray cluster: its address, auto or local. All its machines must see --out's folder."
        ),
    ] = None,
    trust_remote_code: RemoteCode = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Try every pair of layers of two models in both directions, with fast translations: which are worth their cost?

    For every number of early blocks i it names the best block j of the other model: that with the lowest cross-entropy among 1 to
    depth-1 with which the composite costs no more block FLOPs per token (translation included) than the costlier model, the
    cheapest where none does.
    """

    def work(progress):
        from stitch.jobs.sweep import sweep

        return sweep(
            model_a, model_b, out, text=text, tokens=tokens, context=context, seed=seed, memory=_bytes(memory),
            device=device, dtype=dtype, trust_remote_code=trust_remote_code, overwrite=overwrite, resume=resume,
            cluster=cluster, progress=progress,
        )  # fmt: skip

    report, folder = _guarded(work, quiet=quiet, debug=debug)
    if as_json:
        print(json.dumps(report, indent=2))
        return
    from stitch.report.sweep import best_table, directions, footnotes, front_table, heat

    for source, _ in directions(report):
        _print_heat(*heat(report, source))
        print()
    for table in (best_table(report), front_table(report, "flops"), front_table(report, "parameters")):
        _print_table(*table)
        print()
    print(*footnotes(report), f"\nwritten to {folder}", sep="\n")


@app.command()
def inspect(model: Model, as_json: Json = False, debug: Debug = False) -> None:
    """Show a model's family, width, blocks, sites and vocabulary, without loading its weights."""

    def work(progress):
        from stitch.models.describe import describe

        return describe(model)

    facts = _guarded(work, quiet=True, debug=debug)
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        _print_table(["", ""], [[name, str(value)] for name, value in facts.items()], facts["name"])


@app.command(name="eval")
def evaluate(
    model: Model,
    against: Annotated[
        str | None, typer.Option(help="A second model: adds KL(against ‖ model) and top-1 agreement.")
    ] = None,
    text: Text = "docs",
    tokens: Annotated[int, typer.Option(help="Tokens of the report split.")] = 50_000,
    context: Annotated[
        int | None, typer.Option(help="Window length. Default: what the model takes, at most 1024.")
    ] = None,
    behaviour: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Score this behaviour instead: induction, iid-induction, previous-token, duplicate-token, brackets, ngram, or "
            "a .jsonl file of clean, corrupt and answer.",
        ),
    ] = None,
    prompts: Annotated[int, typer.Option(help="Prompts of the behaviour.")] = 256,
    seed: Seed = 0,
    memory: Memory = "4G",
    device: Device = "auto",
    dtype: Dtype = "fp32",
    trust_remote_code: RemoteCode = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Cross-entropy and perplexity of any causal language model on held-out text, with a 95 % interval by document.

    With --behaviour: how often it gives the right answer, beside prompts that lack what the answer follows from, and chance.
    """

    def work(progress):
        if behaviour is not None:
            from stitch.circuits.score import score_model

            return score_model(
                model, behaviour, count=prompts, seed=seed, text=text, device=device, dtype=dtype,
                trust_remote_code=trust_remote_code, progress=progress,
            )  # fmt: skip
        from stitch.jobs.evaluate import evaluate_models

        return evaluate_models(
            model, against, text=text, tokens=tokens, context=context, memory=_bytes(memory), device=device, dtype=dtype,
            trust_remote_code=trust_remote_code, progress=progress,
        )  # fmt: skip

    report = _guarded(work, quiet=quiet, debug=debug)
    if as_json:
        print(json.dumps(report, indent=2))
        return
    if behaviour is None:
        from stitch.report.card import table
    else:
        from stitch.circuits.report import table
    _print_table(*table(report))


FeaturesInside = Annotated[
    list[str] | None,
    typer.Option(
        "--features",
        metavar="BLOCK=SAE",
        help="Features in the place of a block's neurons: of a transcoder, or of an SAE on what the MLP writes; a folder in "
        "SAELens's format or release:sae_id. Once per block.",
    ),
]


@app.command()
def circuit(
    model: Model,
    behaviour: Behaviour,
    out: Annotated[Path | None, typer.Option(help="Write the report with the circuit here, as JSON to edit.")] = None,
    given: Annotated[
        Path | None, typer.Option("--circuit", metavar="FILE", help="Try this circuit; do not look for one.")
    ] = None,
    features: FeaturesInside = None,
    keep: Annotated[float, typer.Option(help="Share of the right answers that the circuit alone must keep.")] = 0.9,
    prompts: Annotated[int, typer.Option(help="Prompts to choose on, and as many to report on.")] = 128,
    text: Text = "docs",
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "fp32",
    trust_remote_code: RemoteCode = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Find the heads and neurons that a behaviour rests on: by attribution, confirmed by ablation on other prompts."""

    def work(progress):
        from stitch.circuits.find import find_circuit

        return find_circuit(
            model, behaviour, circuit=given, features=_by_block(features), keep=keep, count=prompts, seed=seed, text=text,
            device=device, dtype=dtype, trust_remote_code=trust_remote_code, progress=progress,
        )  # fmt: skip

    report = _guarded(work, quiet=quiet, debug=debug)
    from stitch.circuits.report import footnotes, table, to_json

    if out is not None:
        out.write_text(to_json(report))
    if as_json:
        print(to_json(report), end="")
        return
    _print_table(*table(report))
    print()
    for line in footnotes(report):
        print(line)


@app.command()
def graft(
    donor: Annotated[str, typer.Argument(metavar="DONOR", help="The model that has the behaviour.")],
    behaviour: Behaviour,
    host: Annotated[
        str,
        typer.Option(
            metavar="FILE.json|MODEL",
            help="Config of a fresh host with its model_type (gpt2, llama, mistral, qwen2); or a trained model, which gets new "
            "channels, heads and neurons.",
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for the grafted host. Default: DONOR-BEHAVIOUR.")] = None,
    given: Annotated[
        Path | None,
        typer.Option(
            "--circuit", metavar="FILE", help="Write this circuit, or that of a graft.json; do not look for one."
        ),
    ] = None,
    features: FeaturesInside = None,
    more: Annotated[
        list[str] | None,
        typer.Option(
            "--graft", metavar="DONOR=BEHAVIOUR", help="Another donor's behaviour into the same host; repeat at will."
        ),
    ] = None,
    keep: Annotated[float, typer.Option(help="Share of the right answers that the circuit alone must keep.")] = 0.98,
    channels: Annotated[
        int | None, typer.Option(help="Channels for each donor's stream, at most. Default: its width, or what is free.")
    ] = None,
    strength: Annotated[
        float,
        typer.Option(help="In a trained host: how much of what the circuit brings to the donor's logits is added."),
    ] = 1.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan and what each part will lose; write nothing.")
    ] = False,
    prompts: Annotated[int, typer.Option(help="Prompts to choose and fit on, and as many to report on.")] = 128,
    text: Text = "docs",
    seed: Annotated[int, typer.Option(help="Of the host's initialisation and of the prompts.")] = 0,
    device: Device = "auto",
    overwrite: Overwrite = False,
    trust_remote_code: RemoteCode = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a behaviour's circuit into a model of another architecture, freshly initialised or trained, without training.

    The host is a stock checkpoint with the donor's tokenizer. It is scored beside the donor, the donor's circuit alone, the same
    host without the graft, and grafts that should not work.
    """

    def work(progress):
        from stitch.errors import UsageError
        from stitch.grafts.graft import Wish, graft

        pairs = [one.partition("=") for one in more or []]
        if wrong := [name for name, _, wanted in pairs if not wanted]:
            raise UsageError(f"--graft must be DONOR=BEHAVIOUR; got {wrong[0]}.")
        wishes = [
            Wish(donor, behaviour, given, _by_block(features)),
            *(Wish(name, wanted) for name, _, wanted in pairs),
        ]
        folder = None if dry_run else out or Path(f"{_plain(donor)}-{_plain(behaviour)}")
        report = graft(
            wishes, host, folder, keep=keep, channels=channels, strength=strength, count=prompts, seed=seed, text=text,
            device=device, overwrite=overwrite, trust_remote_code=trust_remote_code, progress=progress,
        )  # fmt: skip
        return report, folder

    report, folder = _guarded(work, quiet=quiet, debug=debug)
    if as_json:
        print(json.dumps(report, indent=2))
        return
    from stitch.grafts.report import plan_notes, plan_tables, result_notes, result_tables

    for table in plan_tables(report) if dry_run else result_tables(report):
        _print_table(*table)
        print()
    print(*(plan_notes(report) if dry_run else [*result_notes(report), f"\nwritten to {folder}"]), sep="\n")


def _by_block(sources: list[str] | None) -> dict[int, str]:
    """From BLOCK=SAE."""
    from stitch.errors import UsageError

    found = {}
    for one in sources or []:
        block, _, source = one.partition("=")
        if not block.isdecimal() or not source or int(block) in found:
            raise UsageError(f"--features must be BLOCK=SAE, once per block; got {one}.")
        found[int(block)] = source
    return found


def _plain(name: str) -> str:
    """As part of a folder's name."""
    return "-".join(part for part in Path(name).stem.replace(":", "-").split())


compiler = typer.Typer(
    rich_markup_mode=None, no_args_is_help=True, help="Write weights from a specification, with a certificate."
)
app.add_typer(compiler, name="compile")
CompiledFor = Annotated[str, typer.Option(help="gpt2 or llama: stock checkpoints of either.")]
CompiledTo = Annotated[Path, typer.Option(metavar="FOLDER", help="Where the checkpoint goes.")]


@compiler.command()
def automaton(
    spec: Annotated[
        str, typer.Argument(metavar="REGEX|FILE.json", help="A regular expression, or a DFA, Moore or Mealy machine.")
    ],
    out: CompiledTo,
    arch: CompiledFor = "llama",
    mode: Annotated[
        str,
        typer.Option(
            help="stepwise: one block, says every state and reads it again. vsa: likewise, states as nearly orthogonal vectors. "
            "parallel: a whole string at once, in as many blocks as its length has bits; 8 states at most."
        ),
    ] = "stepwise",
    length: Annotated[int, typer.Option(help="Symbols of the longest string.")] = 512,
    dimension: Annotated[int, typer.Option(help="Of the vectors of vsa.")] = 64,
    alphabet: Annotated[
        str | None, typer.Option(help="Symbols of a regular expression, where there are more than it names.")
    ] = None,
    normalise: Annotated[
        bool, typer.Option("--normalise", help="Determinise, complete and minimise the automaton first.")
    ] = False,
    seed: Seed = 0,
    device: Device = "auto",
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """A finite automaton as a transformer that says its state, or output, as the next token."""

    def work(progress):
        from stitch.synthesis.compile import compile_automaton

        return compile_automaton(
            spec, out, arch=arch, mode=mode, length=length, dimension=dimension, alphabet=alphabet, normalise=normalise,
            seed=seed, device=device, overwrite=overwrite, progress=progress,
        )  # fmt: skip

    _print_certificate(_guarded(work, quiet=quiet, debug=debug), as_json)


@compiler.command()
def machine(
    out: CompiledTo,
    kind: Annotated[
        str,
        typer.Option(
            help="turing: runs any machine of up to 16 states and 8 symbols. subleq: programs that may rewrite themselves."
        ),
    ] = "turing",
    arch: Annotated[
        str | None, typer.Option(help="gpt2 or llama. Default: llama; gpt2 for subleq, which runs on no other.")
    ] = None,
    window: Annotated[int, typer.Option(help="Cells of a Turing machine's tape.")] = 32,
    cells: Annotated[int, typer.Option(help="Cells of subleq's memory.")] = 64,
    context: Annotated[
        int, typer.Option(help="Tokens that the model takes: the program, and tapes or memories one after another.")
    ] = 2048,
    device: Device = "auto",
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """A universal machine: one checkpoint that runs any program from its prompt."""

    def work(progress):
        from stitch.synthesis.compile import compile_machine

        return compile_machine(
            out, kind=kind, arch=arch, window=window, cells=cells, context=context, device=device, overwrite=overwrite,
            progress=progress,
        )  # fmt: skip

    _print_certificate(_guarded(work, quiet=quiet, debug=debug), as_json)


@compiler.command()
def pattern(
    what: Annotated[
        str,
        typer.Argument(
            metavar="PATTERN",
            help="previous, self, first, parent, offset:K, block:K, random:R, or a .json or .npy file.",
        ),
    ],
    out: CompiledTo,
    arch: Annotated[str | None, typer.Option(help="gpt2 or llama. Default: what --positions say.")] = None,
    positions: Annotated[str | None, typer.Option(help="learned (gpt2) or rope (llama). Default: learned.")] = None,
    length: Annotated[int, typer.Option(help="Tokens of the context.")] = 512,
    rank: Annotated[int, typer.Option(help="Of queries and keys, for soft patterns.")] = 16,
    seed: Seed = 0,
    device: Device = "auto",
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """A head that has the attention asked for, whatever the tokens: any on learned positions (gpt2), offsets on RoPE (llama).

    A file holds a target for each query, or a matrix whose rows sum to 1.
    """

    def work(progress):
        from stitch.synthesis.compile import compile_pattern

        return compile_pattern(
            what, out, arch=arch, positions=positions, length=length, rank=rank, seed=seed, device=device, overwrite=overwrite,
            progress=progress,
        )  # fmt: skip

    _print_certificate(_guarded(work, quiet=quiet, debug=debug), as_json)


@compiler.command()
def tool(
    spec: Annotated[str, typer.Argument(metavar="REGEX|FILE.json", help="An automaton that reads characters.")],
    host: Annotated[str, typer.Option(metavar="MODEL", help="A trained model with learned positions (gpt2).")],
    out: CompiledTo,
    text: Text = "docs",
    tokens: Annotated[int, typer.Option(help="Of held-out text, to report on.")] = 50_000,
    faint: Annotated[
        float,
        typer.Option(
            help="Length of what is added, beside the stream where that is shortest: less costs less, bf16 needs it."
        ),
    ] = 0.1,
    normalise: Annotated[
        bool, typer.Option("--normalise", help="Determinise, complete and minimise the automaton first.")
    ] = False,
    device: Device = "auto",
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """A trained model with an automaton beside its stream, whose state can be read at every token; what it says stays the same.

    Every token's characters are read; a special token starts afresh. The table compares with a probe on the model as it was.
    """

    def work(progress):
        from stitch.synthesis.tool.report import compile_tool

        return compile_tool(
            spec, host, out, text=text, tokens=tokens, faint=faint, device=device, normalise=normalise, overwrite=overwrite,
            progress=progress,
        )  # fmt: skip

    report = _guarded(work, quiet=quiet, debug=debug)
    if as_json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
        return
    from stitch.synthesis.report import tool_notes, tool_table

    _print_table(*tool_table(report))
    print(*["", *tool_notes(report), f"\nwritten to {out}"], sep="\n")


@compiler.command()
def induction(
    out: CompiledTo,
    arch: CompiledFor = "llama",
    context: Annotated[int, typer.Option(help="Tokens that the model takes.")] = 512,
    tokenizer: Annotated[
        str | None, typer.Option(help="A model whose vocabulary is used. Default: 26 letters.")
    ] = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """The two-layer induction circuit, a donor for `stitch graft`."""

    def work(progress):
        from stitch.synthesis.compile import compile_induction

        return compile_induction(
            out, arch=arch, context=context, tokenizer=tokenizer, device=device, overwrite=overwrite, progress=progress
        )

    _print_certificate(_guarded(work, quiet=quiet, debug=debug), as_json)


@app.command()
def certify(
    folder: Annotated[Path, typer.Argument(help="What `stitch compile` wrote.")],
    tokens: Annotated[
        int, typer.Option(help="About how many to try of every kind, per dtype and attention.")
    ] = 200_000,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Try a compiled checkpoint, read back from disk, against a reference interpreter: fp32 and bf16, eager and fused attention.

    Exit code 1 where an answer is wrong.
    """

    def work(progress):
        from stitch.synthesis.certify import certify as certified

        return certified(folder, tokens=tokens, seed=seed, device=device, progress=progress)

    report = _guarded(work, quiet=quiet, debug=debug)
    _print_certificate(report, as_json)
    if not report["certified"]:
        raise typer.Exit(1)


@app.command()
def run(
    folder: Annotated[Path, typer.Argument(help="What `stitch compile` wrote.")],
    first: Annotated[
        str, typer.Argument(metavar="INPUT|PROGRAM.json", help="A string for an automaton; a program for a machine.")
    ],
    tape: Annotated[
        str | None, typer.Argument(metavar="[TAPE]", help="What a machine runs on. Default: the program's own.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Of a machine, at most.")] = 10_000,
    dtype: Dtype = "fp32",
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Run a compiled checkpoint by plain greedy decoding, and show the trace."""

    def work(progress):
        from stitch.synthesis.run import trace

        for line in trace(folder, first, tape, steps=steps, dtype=dtype, device=device):
            print(line, flush=True)

    _guarded(work, quiet=True, debug=debug)


def _print_certificate(report: dict, as_json: bool) -> None:
    if as_json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
        return
    from stitch.synthesis.report import notes, tables

    for table in tables(report):
        _print_table(*table)
    print(*["", *notes(report)], sep="\n")


converter = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    help="A trained model in another form, written as a checkpoint, with a table of what that costs.",
)
app.add_typer(converter, name="convert")
Converted = Annotated[Path, typer.Option(metavar="FOLDER", help="Where the converted model goes.")]


@converter.command()
def heads(
    model: Model,
    out: Converted,
    kv_heads: Annotated[int, typer.Option(help="Key and value heads per block; divides what the model has.")],
    text: Text = "docs",
    tokens: Annotated[int, typer.Option(help="Tokens to fit on.")] = 32_768,
    held_out: Annotated[int, typer.Option(help="Tokens to choose on, and as many to report on.")] = 16_384,
    context: Annotated[
        int | None,
        typer.Option(
            help="Tokens of the windows that are fitted on; the report's are up to 4 times as long, at most 1024. Default: "
            "what the model takes, at most 1024."
        ),
    ] = None,
    steps: Annotated[
        int, typer.Option(help="Steps of fine-tuning the attention against the donor, baselines included.")
    ] = 0,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "fp32",
    overwrite: Overwrite = False,
    trust_remote_code: RemoteCode = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Merge key and value heads, by contraction and least squares, into a stock checkpoint whose cache is as much smaller.

    The table has mean pooling and other baselines with the same refits. A GPT-2 becomes a GPTBigCode, which has one key head.
    """

    def work(progress):
        from stitch.conversions.heads.convert import convert_heads

        return convert_heads(
            model, out, kv_heads=kv_heads, text=text, tokens=tokens, held_out=held_out, context=context, steps=steps, seed=seed,
            device=device, dtype=dtype, overwrite=overwrite, trust_remote_code=trust_remote_code, progress=progress,
        )  # fmt: skip

    _print_conversion(_guarded(work, quiet=quiet, debug=debug), out, as_json)


def _print_conversion(report: dict, out: Path, as_json: bool) -> None:
    if as_json:
        print(json.dumps(report, indent=2))
        return
    from stitch.conversions.report import footnotes, table

    _print_table(*table(report))
    print("", *footnotes(report), f"\nwritten to {out}", sep="\n")


@converter.command()
def ngram(
    model: Model,
    out: Converted,
    drop: Annotated[
        str, typer.Option(metavar="L|auto", help="Blocks 0 to L-1 become tables; auto: as many as --tolerance allows.")
    ],
    order: Annotated[int, typer.Option(help="Longest n-gram that has rows of its own.")] = 3,
    rows: Annotated[int, typer.Option(help="Rows of all tables of n-grams together; 0: none.")] = 65_536,
    skips: Annotated[int, typer.Option(help="How many tokens back single tokens are looked up.")] = 4,
    tolerance: Annotated[float, typer.Option(help="Nats on the sweep split that --drop auto may cost.")] = 0.05,
    text: Text = "docs",
    tokens: Annotated[int, typer.Option(help="Tokens to make tables of.")] = 300_000,
    held_out: Annotated[int, typer.Option(help="Tokens to choose on, and as many to report on.")] = 32_768,
    context: Context = None,
    seed: Annotated[int, typer.Option(help="Of the random table.")] = 0,
    memory: Memory = "4G",
    device: Device = "auto",
    dtype: Dtype = "fp32",
    overwrite: Overwrite = False,
    trust_remote_code: RemoteCode = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Look the first blocks' work up in tables of tokens and n-grams, fitted in closed form, instead of computing it."""

    def work(progress):
        from stitch.conversions.ngrams.convert import convert_ngram
        from stitch.conversions.ngrams.memory import Shape

        return convert_ngram(
            model, out, drop=int(drop) if drop.lstrip("-").isdigit() else drop,
            shape=Shape(order=order, rows=rows, skips=skips), tolerance=tolerance, text=text, tokens=tokens,
            held_out=held_out, context=context, seed=seed, memory=_bytes(memory), device=device, dtype=dtype,
            trust_remote_code=trust_remote_code, overwrite=overwrite, progress=progress,
        )  # fmt: skip

    _print_conversion(_guarded(work, quiet=quiet, debug=debug), out, as_json)


@converter.command()
def recurrent(
    model: Model,
    out: Converted,
    features: Annotated[
        str,
        typer.Option(
            help="taylor2, random: in closed form. hedgehog: fitted. hybrid: last keys exact, slots, and a mean or features."
        ),
    ] = "hybrid",
    window: Annotated[
        int | None,
        typer.Option(help="Last keys that are seen exactly. Default: 1/32 of the context for hybrid, else 0."),
    ] = None,
    sinks: Annotated[int, typer.Option(help="First keys that are seen exactly.")] = 1,
    slots: Annotated[
        int | None,
        typer.Option(
            help="Older keys seen exactly, chosen by a learned priority. Default: 5/32 of the context for hybrid, else 0."
        ),
    ] = None,
    allocation: Annotated[
        str,
        typer.Option(
            help="measured: heads that need more exact keys have more, --window and --slots on average. uniform: all as many."
        ),
    ] = "measured",
    multiple: Annotated[
        float | None,
        typer.Option(help="Features per dimension of a head; 0: the mean of the rest. Default: 2; for hybrid 0."),
    ] = None,
    hidden: Annotated[
        int | None,
        typer.Option(
            help="Hidden units of the fitted feature maps, which make no state larger; 0: linear. Default: 2 per dimension."
        ),
    ] = None,
    layers: Annotated[str, typer.Option(help="all, or the blocks to convert, such as 0,2-4.")] = "all",
    text: Text = "docs",
    tokens: Annotated[int, typer.Option(help="Tokens to fit on.")] = 65_536,
    held_out: Annotated[int, typer.Option(help="Tokens to choose on, and as many to report on.")] = 32_768,
    context: Context = None,
    steps: Annotated[int, typer.Option(help="Of fitting feature maps by what each block's attention gives.")] = 400,
    logit_steps: Annotated[int, typer.Option(help="Of fitting them by what the whole model says next.")] = 200,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "fp32",
    overwrite: Overwrite = False,
    trust_remote_code: RemoteCode = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """A recurrent network with fast weights: a state of constant size in place of the cache that grows."""

    def work(progress):
        from stitch.conversions.recurrence.convert import convert_recurrent

        return convert_recurrent(
            model, out, features=features, window=window, sinks=sinks, slots=slots, allocation=allocation,
            multiple=multiple, hidden=hidden, layers=layers, text=text, tokens=tokens, held_out=held_out, context=context,
            steps=steps, logit_steps=logit_steps, seed=seed, device=device, dtype=dtype, overwrite=overwrite,
            trust_remote_code=trust_remote_code, progress=progress,
        )  # fmt: skip

    _print_conversion(_guarded(work, quiet=quiet, debug=debug), out, as_json)


@converter.command()
def consolidate(
    model: Model,
    context: Annotated[
        Path, typer.Option(metavar="FILE", help="The document, a text file that fits into the model's context.")
    ],
    out: Converted,
    queries: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Text about the document to report on. Default: what the donor writes after it."
        ),
    ] = None,
    cost: Annotated[float, typer.Option(help="Nats per token that other text may lose.")] = 0.02,
    text: Text = "docs",
    tokens: Annotated[int, typer.Option(help="Tokens of other text to fit on.")] = 40_000,
    held_out: Annotated[
        int, typer.Option(help="Tokens of other text that what edits are scaled and reported on is spread over.")
    ] = 65_536,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "fp32",
    trust_remote_code: RemoteCode = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """A document from the context into the MLPs' weights: the model then answers as if it had read it.

    The table compares with training on the document, with another document and with noise, all at the same cost on other text.
    """

    def work(progress):
        from stitch.conversions.consolidation.convert import consolidate as convert

        return convert(
            model, context, out, queries=queries, cost=cost, text=text, tokens=tokens, held_out=held_out, seed=seed,
            device=device, dtype=dtype, trust_remote_code=trust_remote_code, overwrite=overwrite, progress=progress,
        )  # fmt: skip

    _print_conversion(_guarded(work, quiet=quiet, debug=debug), out, as_json)


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="A composite's folder.")],
    repo: Annotated[str, typer.Argument(metavar="USER/REPO")],
    private: Annotated[bool, typer.Option("--private")] = False,
    debug: Debug = False,
) -> None:
    """Upload a composite to the Hugging Face Hub. The token comes from HF_TOKEN or `hf auth login`."""

    def work(progress):
        from stitch.models.hub import push as upload

        return upload(folder, repo, private=private)

    print(_guarded(work, quiet=True, debug=debug))


def _guarded(work: Callable, *, quiet: bool, debug: bool):
    """Runs `work(progress)`; a known failure becomes one line on standard error and the exit code that it asks for."""
    from stitch.errors import StitchError

    try:
        with _Progress(quiet) as progress:
            return work(progress.update)
    except KeyboardInterrupt:
        print("\nstopped; the same command with --resume goes on from here.", file=sys.stderr)
        raise typer.Exit(130) from None
    except Exception as error:
        if debug:
            raise
        known = isinstance(error, StitchError) or type(error).__name__ in {"SAEError", "MatchError"}
        text = str(error) if known else f"unexpected {type(error).__name__}: {error} (--debug shows where)"
        print("stitch: " + " ".join(text.split()), file=sys.stderr)
        raise typer.Exit(getattr(error, "exit_code", 1)) from None


class _Progress:
    """Bars with rate and time left on a terminal, one line per stage and minute elsewhere; both on standard error."""

    def __init__(self, quiet: bool) -> None:
        self.quiet, self.terminal = quiet, sys.stderr.isatty()
        self.bars, self.stage, self.done, self.said = None, None, 0, 0.0

    def __enter__(self) -> "_Progress":
        if self.terminal and not self.quiet:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = [
                TextColumn("{task.description:<36}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
            ]
            self.bars = Progress(*columns, console=Console(stderr=True))
            self.bars.start()
        return self

    def __exit__(self, *_) -> None:
        if self.bars:
            self.bars.stop()

    def update(self, stage: str, done: int, total: int) -> None:
        if self.quiet:
            return
        import time

        now = time.monotonic()
        if stage != self.stage or done < self.done:  # the next split of the same stage starts over
            self.stage, self.began, self.first, self.said = stage, now, done, 0.0
            if self.bars:
                self.task = self.bars.add_task(stage, total=total, rate="")
        self.done = done
        rate = (done - self.first) / (now - self.began) if now - self.began > 1 else 0.0
        if self.bars:
            self.bars.update(self.task, completed=done, rate=f"{rate:,.0f}/s" if rate else "")
        elif done >= total or now - self.said > 30:
            self.said = now
            left = f", {(total - done) / rate:,.0f} s left" if rate and done < total else ""
            print(
                f"{stage}: {done:,} of {total:,}" + (f", {rate:,.0f}/s" if rate else "") + left,
                file=sys.stderr,
                flush=True,
            )


def _print_table(header: list[str], rows: list[list[str]], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(header_style="bold", show_header=any(header), box=None, pad_edge=False)
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row, style="bold" if row[0].startswith(("composite", "converted")) else None)
    # Without emoji: `demo:llama:` is no animal.
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False, emoji=False)
    console.print(title, style="bold", soft_wrap=True)
    console.print(table)


def _print_heat(title: str, header: list[str], rows: list[list[str]], values: list[list[float]]) -> None:
    """A table of numbers on a background from light (lowest) to dark (highest)."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text as Styled

    # Five steps of cividis, which rise evenly to the eye, and what can be read on them.
    steps = ["black on #fee838", "black on #bcae6c", "white on #7d7c78", "white on #414d6b", "white on #00224e"]
    least, most = min(map(min, values)), max(map(max, values))
    table = Table(header_style="bold", box=None, pad_edge=False)
    for name in header:
        table.add_column(name, justify="right", no_wrap=True)
    for row, line in zip(rows, values, strict=True):
        shades = [round((value - least) / max(most - least, 1e-12) * (len(steps) - 1)) for value in line]
        table.add_row(row[0], *(Styled(text, steps[shade]) for text, shade in zip(row[1:], shades, strict=True)))
    console = Console(width=None if sys.stdout.isatty() else max(120, 8 * len(header)), highlight=False)
    console.print(title, style="bold", soft_wrap=True)
    console.print(table)


def _layer(text: str | None) -> int | str | None:
    if text is None or text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        from stitch.errors import UsageError

        raise UsageError(f"--layer-b must be a block's number or auto; got {text!r}.") from None


def _bytes(text: str) -> int:
    from stitch.errors import UsageError

    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    try:
        return int(float(number) * (units[unit] if unit else 1))
    except (ValueError, KeyError):
        raise UsageError(f"--memory needs a size such as 512M or 4G; got {text!r}.") from None


def main() -> None:
    app()


if __name__ == "__main__":
    main()
