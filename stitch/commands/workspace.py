"""`stitch workspace list`, `size` and `clean`: what interrupted runs left, wherever it lies."""

import time
from pathlib import Path
from typing import Annotated

import typer

from sae.messages import printable
from stitch.commands import options as o
from stitch.commands.cache import Everything
from stitch.commands.help import Group, command
from stitch.commands.terminal import print_json
from stitch.errors import UsageError
from stitch.files.sizes import size_in_words
from stitch.files.workspaces import Found, remove_workspace, workspaces

commands = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Look at what interrupted runs left beside their outputs.",
)
PANEL = "Keep between runs"
Places = Annotated[
    list[Path] | None, o.argument("[FOLDER...]", "Folders of outputs to look in, besides those where runs are known.")
]
Chosen = Annotated[
    list[Path] | None, o.argument("[FOLDER...]", "Workspaces to remove, as `stitch workspace list` shows them.")
]
OlderThan = Annotated[
    float | None, o.option("Input", "--older-than", "DAYS", "Remove those that were begun so long ago.", "no limit")
]


@command(commands, PANEL, "stitch workspace list", name="list")
def list_(places: Places = None, as_json: o.Json = False, debug: o.Debug = False) -> None:
    """List unfinished runs, the latest first."""
    found = workspaces(places or ())
    if as_json:
        print_json([described(one) for one in found])
        return
    for one in found:
        print(printable(f"{one.left.folder}\n  stitch {one.left.command}, {one.left.in_words}; {state(one)}"))
    print(summary(found))


@command(commands, PANEL, "stitch workspace size")
def size(places: Places = None, debug: o.Debug = False) -> None:
    """Show how much unfinished runs take."""
    print(summary(workspaces(places or ())))


@command(
    commands,
    PANEL,
    """
    stitch workspace clean --older-than 30
    stitch workspace clean .joined.partial
    """,
)
def clean(
    places: Chosen = None, everything: Everything = False, older_than: OlderThan = None, debug: o.Debug = False
) -> None:
    """Remove what interrupted runs left.

    Those runs then cannot go on. A workspace in which a process works is never removed, not by --all either. What a run had
    moved away to replace it is put back.
    """
    if bool(places) + everything + (older_than is not None) != 1:
        raise UsageError("give workspaces, --all or --older-than, one of them.")
    if places:
        chosen = places
    else:
        oldest = time.time() - 24 * 3600 * (older_than or 0)
        chosen = [one.left.folder for one in workspaces() if one.owner is None and one.left.began <= oldest]
    for folder in chosen:
        remove_workspace(folder)
        print(printable(f"removed {folder}"))
    print(f"{len(chosen):,} workspace{'' if len(chosen) == 1 else 's'} removed")


def described(one: Found) -> dict:
    """A workspace as `--json` shows it; `pid` and `host` are those of the living process."""
    left, owner = one.left, one.owner
    return {
        "folder": str(left.folder), "out": str(left.out), "command": left.command, "stage": left.stage, "began": left.began,
        "bytes": left.bytes, "resumable": left.can_go_on, "pid": owner.process.pid if owner else None,
        "host": owner.process.host if owner else None,
    }  # fmt: skip


def state(one: Found) -> str:
    if one.owner is not None:
        return f"runs, process {one.owner.process.pid}"
    return "interrupted" if one.left.can_go_on else "interrupted, cannot go on"


def summary(found: list[Found]) -> str:
    runs = sum(one.owner is not None for one in found)
    return (
        f"{len(found):,} workspaces, {size_in_words(sum(one.left.bytes for one in found))}; processes work in {runs:,}"
    )
