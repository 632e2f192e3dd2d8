"""Errors of one line: what is needed, what was got, and what to do; and the one where an optional package is missing."""

import importlib.util
from pathlib import Path

# By extra, the module that is imported and the package that has it.
EXTRAS = {
    "automata": {"automata": "automata-lib"},
    "cluster": {"ray": "ray"},
    "eval": {"lm_eval": "lm-eval", "accelerate": "accelerate", "tqdm": "tqdm"},
    "gguf": {"gguf": "gguf", "accelerate": "accelerate"},
    "ot": {"ot": "POT"},
    "plot": {"matplotlib": "matplotlib"},
    "quantised": {
        "accelerate": "accelerate",
        "bitsandbytes": "bitsandbytes",
        "compressed_tensors": "compressed-tensors",
    },
}


class StitchError(Exception):
    """The work failed because of a file, the network or the numbers. The command line exits with `exit_code`."""

    exit_code = 1


class UsageError(StitchError):
    """The request cannot be met as given: a wrong layer, an unknown family, two different tokenizers."""

    exit_code = 2


class DiskError(StitchError):
    """The disk refused to write."""


class OutputError(StitchError):
    """Standard output refused to be written."""


class Interrupted(KeyboardInterrupt):
    """Stopped by Ctrl-C or a signal. `kept` is the folder with what is done; None where there is nothing to go on with."""

    exit_code = 130

    def __init__(self, kept: Path | None = None):
        super().__init__()
        self.kept = kept

    def __str__(self) -> str:
        return (
            f"what is done is in {self.kept}; the same call with `resume` goes on." if self.kept else "nothing is kept."
        )


class Terminated(Interrupted):
    """Stopped by SIGTERM."""

    exit_code = 143


def require_extra(extra: str, what: str) -> None:
    """Raises: UsageError where a package of `extra` is not installed. `what` needs it, and begins the message."""
    if missing := missing_of(extra):
        raise missing_extra(extra, what, missing)


def missing_of(extra: str) -> list[str]:
    """The packages of `extra` that are not installed."""
    return [package for module, package in EXTRAS[extra].items() if importlib.util.find_spec(module) is None]


def missing_extra(extra: str, what: str, packages: list[str]) -> UsageError:
    """The error where `packages` of `extra` are not installed."""
    are = "is" if len(packages) == 1 else "are"
    return UsageError(
        f"{what} needs the extra {extra}, of which {' and '.join(packages)} {are} not installed: "
        f"pip install '.[{extra}]' in a clone of the repository."
    )
