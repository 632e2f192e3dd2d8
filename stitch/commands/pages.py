"""`stitch open`: the page of a result, in the browser."""

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from stitch.commands import options as o
from stitch.commands.help import Group, command
from stitch.commands.models import PANEL

commands = typer.Typer(cls=Group)


@command(
    commands,
    PANEL,
    """
    stitch open joined
    stitch open circuit.html --no-browser
    """,
    name="open",
)
def open_page(
    folder: Annotated[Path, o.argument("FOLDER", "Folder that stitch wrote, with its report.html, or an HTML file.")],
    no_browser: Annotated[bool, o.switch("Output", "--no-browser", "Only print the address.")] = False,
    debug: o.Debug = False,
) -> None:
    """Show a result's page in the browser.

    Serves report.html on this machine until Ctrl-C, at an address that only this machine reaches. The file can as well be
    opened by a double click.
    """
    import webbrowser

    from stitch.pages.serve import address, page_in, server_of

    with server_of(page_in(folder)) as server:
        print(address(server), flush=True)
        if not no_browser:
            webbrowser.open(address(server))
        with suppress(KeyboardInterrupt):
            server.serve_forever()
