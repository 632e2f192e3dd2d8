"""`stitch.certify` and `stitch.run`: a compiled checkpoint tested, and at work."""

from collections.abc import Iterator
from pathlib import Path

from stitch.api.given import PathLike
from stitch.api.page import Page
from stitch.api.progress import progress
from stitch.api.result import ModelResult, Result


def certify(
    folder: PathLike | ModelResult, *, tokens: int = 200_000, seed: int = 0, device: str = "auto", quiet: bool = False
) -> Result:
    """Tests a compiled checkpoint against an interpreter on about `tokens` tokens of every kind of trial.

    It is read from disk and tested in fp32 and bf16, with eager and with fused attention; `report["certified"]` says whether
    all answers are right, and certificate.json in the folder is replaced.
    Raises: UsageError when the folder holds no compiled checkpoint.

    >>> import stitch
    >>> copier = stitch.compile.induction(context=32, quiet=True)
    >>> stitch.certify(copier, tokens=500, quiet=True).report["certified"]
    True
    """
    from stitch.synthesis import certify as job
    from stitch.synthesis.report import notes, tables

    with progress(quiet) as update:
        report = job.certify(_path(folder), tokens=tokens, seed=seed, device=device, progress=update)
    return Result(report, Page(tables=[*tables(report)], notes=notes(report)))


def run(
    folder: PathLike | ModelResult,
    first: PathLike,
    tape: str | None = None,
    *,
    steps: int = 10_000,
    dtype: str = "fp32",
    device: str = "auto",
) -> Iterator[str]:
    """Lines of a run by greedy decoding: an automaton's states after each symbol of the string `first`, or a machine's tape or
    memory after each step of the program in the JSON file `first`, at most `steps` of them.

    Raises: UsageError for an input or a program that the checkpoint cannot run, StitchError when its output is not a frame.
    """
    from stitch.synthesis.run import trace

    return trace(_path(folder), str(first), tape, steps=steps, dtype=dtype, device=device)


def _path(folder: PathLike | ModelResult) -> Path:
    return folder.folder if isinstance(folder, ModelResult) else Path(folder)
