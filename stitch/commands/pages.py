"""`stitch open`: the page of a result, in the browser."""

import threading
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
    stitch open circuit.html --no-browser --port 8000
    """,
    name="open",
)
def open_page(
    folder: Annotated[Path, o.argument("FOLDER", "Folder that stitch wrote, with its report.html, or an HTML file.")],
    port: Annotated[
        int, o.option("Output", "--port", "N", "Port of this machine to serve at; 0 for any free one.")
    ] = 0,
    no_browser: Annotated[bool, o.switch("Output", "--no-browser", "Only print the address.")] = False,
    debug: o.Debug = False,
) -> None:
    """Show a result's page in the browser.

    Serves report.html on this machine until Ctrl-C, at an address that only this machine reaches. The file can as well be
    opened by a double click.
    """
    import webbrowser

    from stitch.pages.serve import address, page_in, server_of

    with server_of(page_in(folder), port) as server:
        print(address(server), flush=True)
        if not no_browser:
            # A browser of the terminal ends before this call returns, and must find the page served until then.
            threading.Thread(target=webbrowser.open, args=[address(server)], daemon=True).start()
        with suppress(KeyboardInterrupt):
            server.serve_forever()
