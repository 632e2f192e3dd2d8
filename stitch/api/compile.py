"""`stitch.compile`: weights written from a specification, with a certificate."""

from stitch.api.given import ModelLike, Output, PathLike, TextLike, named, text_named
from stitch.api.page import Page
from stitch.api.progress import progress
from stitch.api.result import ModelResult


class Compiled(ModelResult):
    """A compiled model and its certificate."""


def automaton(
    spec: PathLike,
    *,
    alphabet: str | None = None,
    normalise: bool = False,
    arch: str = "llama",
    mode: str = "stepwise",
    length: int = 512,
    dimension: int = 64,
    seed: int = 0,
    device: str = "auto",
    out: PathLike | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> Compiled:
    """A transformer whose next token is the state of an automaton, a regular expression or a JSON file.

    Options are those of `stitch compile automaton`; `out` as in `stitch.join`.
    Raises: UsageError for an automaton, a mode or a length that cannot be compiled.

    After each symbol the model says the state, with + where it accepts:

    >>> import stitch
    >>> dfa = stitch.compile.automaton("(ab)*", length=16, quiet=True)
    >>> list(stitch.run(dfa, "abba")), dfa.report["certified"]
    (['a <1> b <0+> b <2> a <2>'], True)
    """
    from stitch.synthesis.compile import compile_automaton

    place = Output(out)
    with progress(quiet) as update:
        report = compile_automaton(
            str(spec), place.path, arch=arch, mode=mode, length=length, dimension=dimension, alphabet=alphabet,
            normalise=normalise, seed=seed, device=device, overwrite=overwrite, progress=update,
        )  # fmt: skip
    return _compiled(report, place)


def machine(
    *,
    kind: str = "turing",
    arch: str | None = None,
    window: int = 32,
    cells: int = 64,
    context: int = 2048,
    device: str = "auto",
    out: PathLike | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> Compiled:
    """A universal machine, which runs the program in its prompt: see `stitch.run`.

    Options are those of `stitch compile machine`; `out` as in `stitch.join`.
    Raises: UsageError for another kind, and when two frames do not fit the context.
    """
    from stitch.synthesis.compile import compile_machine

    place = Output(out)
    with progress(quiet) as update:
        report = compile_machine(
            place.path, kind=kind, arch=arch, window=window, cells=cells, context=context, device=device,
            overwrite=overwrite, progress=update,
        )  # fmt: skip
    return _compiled(report, place)


def pattern(
    what: PathLike,
    *,
    arch: str | None = None,
    positions: str | None = None,
    length: int = 512,
    rank: int = 16,
    seed: int = 0,
    device: str = "auto",
    out: PathLike | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> Compiled:
    """A head that attends as the pattern `what` says, whatever the tokens are.

    Options are those of `stitch compile pattern`; `out` as in `stitch.join`.
    Raises: UsageError for an invalid pattern, or one that the architecture's positions cannot express.

    >>> import stitch
    >>> previous = stitch.compile.pattern("previous", length=16, quiet=True)
    >>> previous.model.config.model_type, sum(row["wrong"] for row in previous.report["results"])
    ('gpt2', 0)
    """
    from stitch.synthesis.compile import compile_pattern

    place = Output(out)
    with progress(quiet) as update:
        report = compile_pattern(
            str(what), place.path, arch=arch, positions=positions, length=length, rank=rank, seed=seed, device=device,
            overwrite=overwrite, progress=update,
        )  # fmt: skip
    return _compiled(report, place)


def induction(
    *,
    tokenizer: ModelLike | None = None,
    arch: str = "llama",
    context: int = 512,
    device: str = "auto",
    out: PathLike | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> Compiled:
    """The two-layer induction circuit, with the vocabulary of the model `tokenizer` or of 26 letters.

    Options are those of `stitch compile induction`; `out` as in `stitch.join`.
    Raises: UsageError when the vocabulary cannot be read, or has more bits than heads can compare over the context.
    """
    from stitch.synthesis.compile import compile_induction

    place = Output(out)
    with named(tokenizer) as (name,), progress(quiet) as update:
        report = compile_induction(
            place.path, arch=arch, context=context, tokenizer=name, device=device, overwrite=overwrite, progress=update
        )
    return _compiled(report, place)


def tool(
    spec: PathLike,
    host: ModelLike,
    *,
    normalise: bool = False,
    faint: float = 0.1,
    text: TextLike = "docs",
    tokens: int = 50_000,
    device: str = "auto",
    out: PathLike | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> Compiled:
    """The trained model `host` with an automaton inside, whose state can be read from the last hidden state.

    Options are those of `stitch compile tool`; models, `text` and `out` as in `stitch.join`.
    Raises: UsageError when the automaton does not fit the host.
    """
    from stitch.synthesis.report import tool_notes, tool_table
    from stitch.synthesis.tool.report import compile_tool

    place = Output(out)
    with named(host) as (name,), text_named(text) as source, progress(quiet) as update:
        report = compile_tool(
            str(spec), name, place.path, text=source, tokens=tokens, faint=faint, device=device, normalise=normalise,
            overwrite=overwrite, progress=update,
        )  # fmt: skip
    page = Page(tables=[tool_table(report)], notes=tool_notes(report), written=place.written(place.path))
    return Compiled(report, page, place, place.path)


def _compiled(report: dict, place: Output) -> Compiled:
    from stitch.synthesis.report import notes, tables

    return Compiled(report, Page(tables=[*tables(report)], notes=notes(report)), place, place.path)
