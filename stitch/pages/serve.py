"""A page served on this machine: one file, over HTTP, to no other machine."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

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


def server_of(page: Path) -> ThreadingHTTPServer:
    """A server of `page` alone, at a free port of this machine's own address. It reads the file for every request."""
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

    return ThreadingHTTPServer((HERE, 0), OnePage)


def address(server: ThreadingHTTPServer) -> str:
    """Where a browser finds the page."""
    return f"http://{HERE}:{server.server_address[1]}/"
