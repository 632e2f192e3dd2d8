"""`stitch cache list`, `size`, `remove` and `verify`: what earlier runs left for later ones."""

import time
from typing import Annotated

import typer

from sae.messages import printable
from stitch.api.page import Page
from stitch.commands import options as o
from stitch.commands.help import Group, command
from stitch.commands.terminal import print_json
from stitch.errors import UsageError
from stitch.files.store import Entry, Store

commands = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Look at the activations, SAEs and written texts that runs keep for later ones.",
)
PANEL = "Keep between runs"
Everything = Annotated[bool, o.switch("Input", "--all", "Remove everything.")]
Key = Annotated[str | None, o.argument("[KEY]", "First letters of an entry's key, as `stitch cache list` shows it.")]
SHOWN = 12  # letters of a key


@command(commands, PANEL, "stitch cache list", name="list")
def list_(as_json: o.Json = False, debug: o.Debug = False) -> None:
    """List what is kept, the entry needed last first."""
    entries = Store().entries()
    if as_json:
        print_json(
            [
                {"kind": one.kind, "key": one.key, "of": one.about, "bytes": one.bytes, "used": one.used}
                for one in entries
            ]
        )
        return
    rows = [[one.key[:SHOWN], one.kind, one.about, f"{one.bytes / 1e6:,.1f}", _when(one)] for one in entries]
    Page(tables=[(["key", "kind", "of", "MB", "last needed"], rows, _summary(entries))]).print()


@command(commands, PANEL, "stitch cache size")
def size(debug: o.Debug = False) -> None:
    """Show where the cache is and how large."""
    print(_summary(Store().entries()))


@command(commands, PANEL, "stitch cache remove --all")
def remove(key: Key = None, everything: Everything = False, debug: o.Debug = False) -> None:
    """Remove an entry, or all of them."""
    if (key is None) != everything:
        raise UsageError("give the key of an entry, or --all.")
    store = Store()
    chosen = [entry for entry in store.entries() if everything or entry.key.startswith(str(key))]
    if not chosen and not everything:
        raise UsageError(f"no entry has a key that begins with {key}: `stitch cache list` shows them.")
    for entry in chosen:
        store.remove(entry)
    print(f"removed {len(chosen):,} entries, {sum(entry.bytes for entry in chosen) / 1e6:,.1f} MB")


@command(commands, PANEL, "stitch cache verify")
def verify(debug: o.Debug = False) -> None:
    """Check every file, and remove damaged entries.

    The exit code is 1 if there are any. A run also checks what it takes.
    """
    store = Store()
    damaged = store.damaged()
    for entry in damaged:
        store.remove(entry)
        print(
            printable(f"removed {entry.kind} {entry.key[:SHOWN]} ({entry.about}): its files are not as they were kept")
        )
    print(f"{len(store.entries()):,} entries are whole")
    if damaged:
        raise typer.Exit(1)


def _summary(entries: list[Entry]) -> str:
    return f"{len(entries):,} entries, {sum(entry.bytes for entry in entries) / 1e6:,.1f} MB in {Store().folder}"


def _when(entry: Entry) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
