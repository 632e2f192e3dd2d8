"""A page served on this machine: one file, over HTTP, to no other machine."""

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from stitch.errors import UsageError
from stitch.pages.page import NAME

HERE = "127.0.0.1"


def page_in(place: Path) -> Path:
    """The page of a folder that stitch wrote, or `place` itself if it is an HTML file. Raises: UsageError where there is none."""
    if place.is_dir() and (place / NAME).is_file():
        return place / NAME
    if place.is_file() and place.suffix == ".html":
        return place
    what = (
        f"which has no {NAME}" if place.is_dir() else "which is no page" if place.exists() else "which does not exist"
    )
    raise UsageError(f"open needs a folder that stitch wrote, or its page; got {place}, {what}.")


class Server(ThreadingHTTPServer):
    """Says nothing of a client that leaves before it has the page."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def server_of(page: Path, port: int = 0) -> ThreadingHTTPServer:
    """A server of `page` alone, at a port (0: any free one) of this machine's own address. It reads the file for every request.

    Raises: UsageError where the port cannot be had.
    """
    paths = ("/", f"/{page.name}")

    class OnePage(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.partition("?")[0] not in paths:
                self.send_error(404)
                return
            content = page.read_bytes()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing is printed for a request."""

    try:
        return Server((HERE, port), OnePage)
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"open needs a `port` that is free; got {port}: {error}. Give another, or 0 for any."
        ) from error


def address(server: ThreadingHTTPServer) -> str:
    """Where a browser finds the page."""
    return f"http://{HERE}:{server.server_address[1]}/"
