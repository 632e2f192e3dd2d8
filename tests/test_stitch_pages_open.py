"""`stitch open`: one page, served on this machine alone."""

import queue
import socket
import threading
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from typer.testing import CliRunner

import cli
from stitch.errors import UsageError
from stitch.pages import serve
from stitch.pages.serve import address, page_in, server_of


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "report.html").write_text("<p>ä page</p>", encoding="utf-8")
    (tmp_path / "report.json").write_text("{}")
    return tmp_path


def test_the_page_is_served_and_nothing_beside_it(folder):
    with server_of(page_in(folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with urlopen(address(server)) as answer:
            assert answer.read().decode() == "<p>ä page</p>"
            assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        with urlopen(address(server) + "report.html") as answer:
            assert answer.status == 200
        for other in ("report.json", "../report.json", "%2e%2e/report.json", "stitch.json"):
            with pytest.raises(HTTPError, match="404"):
                urlopen(address(server) + other)
        server.shutdown()


def test_only_this_machine_reaches_it(folder):
    with server_of(page_in(folder)) as server:
        assert server.server_address[0] == "127.0.0.1"


def test_a_page_may_be_named_itself(tmp_path):
    page = tmp_path / "circuit.html"
    page.write_text("<p>")
    assert page_in(page) == page


@pytest.mark.parametrize("name", ["empty", "report.json", "missing"])
def test_what_is_no_page_is_refused(folder, name):
    (folder / "empty").mkdir()
    with pytest.raises(UsageError, match=r"^open needs a folder that stitch wrote, or its page; got .*, which "):
        page_in(folder / name)


@pytest.fixture
def opened(monkeypatch) -> queue.Queue:
    """What the browser read at each address it was given. Serving ends when it has done so, as by Ctrl-C."""
    read = queue.Queue()

    def browser(address: str) -> None:
        with urlopen(address, timeout=10) as answer:
            read.put((address, answer.read().decode()))

    def served(server) -> None:
        threading.Thread(target=serve_forever, args=[server], daemon=True).start()
        read.put(read.get(timeout=20))
        server.shutdown()
        raise KeyboardInterrupt

    serve_forever = serve.ThreadingHTTPServer.serve_forever
    monkeypatch.setattr(serve.ThreadingHTTPServer, "serve_forever", served)
    monkeypatch.setattr("webbrowser.open", browser)
    return read


def test_a_browser_that_waits_for_the_page_finds_it(folder, opened):
    done = CliRunner().invoke(cli.app, ["open", str(folder)])
    assert done.exit_code == 0 and done.stdout.startswith("http://127.0.0.1:")
    assert opened.get_nowait() == (done.stdout.strip(), "<p>ä page</p>")


def test_without_a_browser_the_address_is_printed_alone(folder, opened):
    opened.put("Ctrl-C at once")
    CliRunner().invoke(cli.app, ["open", str(folder), "--no-browser"])
    assert opened.get_nowait() == "Ctrl-C at once" and opened.empty()


def test_a_port_may_be_chosen_and_one_that_is_taken_is_refused(folder, opened):
    with server_of(page_in(folder)) as first:
        taken = first.server_address[1]
        for port in (taken, 70_000):
            with pytest.raises(UsageError, match=f"`port` that is free; got {port}"):
                server_of(page_in(folder), port)
    done = CliRunner().invoke(cli.app, ["open", str(folder), "--port", str(taken)])
    assert done.stdout.strip() == f"http://127.0.0.1:{taken}/"


def test_a_client_that_leaves_early_is_not_reported(folder, capfd):
    (folder / "report.html").write_bytes(b"." * 10**7)
    with server_of(page_in(folder)) as server:
        server.daemon_threads, server.block_on_close = False, True  # closing waits for the answer that nobody reads
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with socket.create_connection(server.server_address) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            client.recv(1)
        server.shutdown()
    assert capfd.readouterr().err == ""


def test_the_command_refuses_in_one_line(tmp_path):
    done = CliRunner().invoke(cli.app, ["open", str(tmp_path)])
    assert done.exit_code == 2 and "report.html" in done.stderr and "Traceback" not in done.stderr
