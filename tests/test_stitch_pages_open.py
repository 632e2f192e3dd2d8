"""`stitch open`: one page, served on this machine alone."""

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


def test_the_command_prints_the_address_and_ends_with_control_c(folder, monkeypatch):
    def interrupted(server):
        raise KeyboardInterrupt

    opened = []
    monkeypatch.setattr(serve.ThreadingHTTPServer, "serve_forever", interrupted)
    monkeypatch.setattr("webbrowser.open", opened.append)
    done = CliRunner().invoke(cli.app, ["open", str(folder)])
    assert done.exit_code == 0 and done.stdout.startswith("http://127.0.0.1:")
    assert opened == [done.stdout.strip()]
    CliRunner().invoke(cli.app, ["open", str(folder), "--no-browser"])
    assert len(opened) == 1


def test_the_command_refuses_in_one_line(tmp_path):
    done = CliRunner().invoke(cli.app, ["open", str(tmp_path)])
    assert done.exit_code == 2 and "report.html" in done.stderr and "Traceback" not in done.stderr
