"""Optional packages: which extra of this package brings which, and what is said where one is missing."""

import importlib.util

from stitch.errors import UsageError

# By extra, the module that is imported and the package that has it.
EXTRAS = {
    "automata": {"automata": "automata-lib"},
    "cluster": {"ray": "ray"},
    "gguf": {"gguf": "gguf", "accelerate": "accelerate"},
    "ot": {"ot": "POT"},
    "plot": {"matplotlib": "matplotlib"},
}


def require_extra(extra: str, what: str) -> None:
    """Raises: UsageError where a package of `extra` is not installed. `what` needs it, and begins the message."""
    missing = [package for module, package in EXTRAS[extra].items() if importlib.util.find_spec(module) is None]
    if missing:
        raise missing_extra(extra, what, missing)


def missing_extra(extra: str, what: str, packages: list[str]) -> UsageError:
    """The error where `packages` of `extra` are not installed."""
    are = "is" if len(packages) == 1 else "are"
    return UsageError(
        f"{what} needs the extra {extra}, of which {' and '.join(packages)} {are} not installed: "
        f"pip install 'stitch-lm[{extra}]'."
    )
