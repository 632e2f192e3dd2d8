"""What commands print: tables, notes, heat maps and progress."""

import json
import time

import pytest
from typer.main import get_command

from stitch.api import progress as progressing
from stitch.api.page import Page
from stitch.api.progress import progress
from stitch.commands import stitching
from stitch.commands.app import app
from stitch.commands.terminal import print_json
from stitch.progress import counted

main = get_command(app)
TABLE = (["", "CE"], [["a", "3.158"], ["composite (affine)", "3.073"]], "demo:gpt2, nats per token")


def test_tables_notes_and_places_are_separated_by_blank_lines(capsys):
    Page(tables=[TABLE, TABLE], notes=["One.", "Two."], written=["folder", "address"]).print()
    table = [
        "demo:gpt2, nats per token",
        "                       CE",
        "a                   3.158",
        "composite (affine)  3.073",
    ]
    shown = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert shown == [*table, "", *table, "", "One.", "Two.", "", "written to folder and address"]
    Page(tables=[TABLE]).print()
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == table


def test_with_json_nothing_else_is_printed(capsys):
    print_json({"name": "größer", "results": [1.5, float("-inf")], "pair": (float("nan"), 1)})

    def refused(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    read = json.loads(capsys.readouterr().out, parse_constant=refused)
    assert read == {"name": "größer", "results": [1.5, None], "pair": [None, 1]}


@pytest.mark.parametrize("high", [2.0, 1.0])
def test_a_heat_map_shows_every_number(high, capsys):
    Page(heats=[("CE", ["", "1", "2"], [["0", "1.00", "2.00"]], [[1.0, high]])]).print()
    shown = capsys.readouterr().out.split()
    assert shown == ["CE", "1", "2", "0", "1.00", "2.00"]


@pytest.mark.parametrize(
    "words, said", [((), "starting...\r"), (("--quiet",), ""), (("--resume", "--dry-run"), "starting...\r")]
)
def test_a_command_says_at_once_that_it_starts(words, said, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr(
        stitching, "or_estimate", lambda *given: seen.append(capsys.readouterr().err) or (lambda *a, **b: None)
    )
    monkeypatch.setattr(stitching, "print_result", lambda *given: None)
    main(["join", "demo:gpt2", "demo:llama", "--layer", "3", *words], standalone_mode=False)
    assert seen == [said]


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time, which only a test moves."""
    now = [0.0]
    monkeypatch.setattr(progressing.time, "monotonic", lambda: now[0])
    return now


def test_progress_prints_a_line_per_stage_and_half_minute(capsys, clock):
    with progress(quiet=False) as update:
        for clock[0], done in [(100, 0), (104, 400), (110, 1000), (139, 3900), (150, 5000), (160, 10_000)]:
            update("harvest", done, 10_000)
        update("harvest", 5, 10)  # the next split of the same stage
        update("fit", 0, 3)
        update("fit", 3, 3)
        update("fit", 3, 3)  # another, of one step
    assert capsys.readouterr().err.splitlines() == [
        "harvest: 1,000 of 10,000, 100/s, 90 s left",
        "harvest: 5,000 of 10,000, 100/s, 50 s left",
        "harvest: 10,000 of 10,000, 167/s",
        "harvest: 5 of 10",
        "fit: 3 of 3",
        "fit: 3 of 3",
    ]


def test_a_step_that_takes_long_is_not_silent(capsys, clock):
    lines = progressing._Lines()
    lines.update("solve", 0, 4)
    shown = []
    for clock[0] in (4, 6, 30, 37, 90):
        lines.remind()
        shown.append(capsys.readouterr().err)
    assert shown == [
        "",
        "solve: 0 of 4\n",
        "",
        "solve: 0 of 4, no step for 37 s\n",
        "solve: 0 of 4, no step for 90 s\n",
    ]
    clock[0] = 100
    lines.update("solve", 1, 4)
    clock[0] = 121
    lines.remind()
    assert capsys.readouterr().err == "solve: 1 of 4, 0.0083/s, 363 s left\n"
    lines.update("solve", 4, 4)
    clock[0] = 1000
    lines.remind()
    assert capsys.readouterr().err == "solve: 4 of 4, 0.033/s\n"


def test_a_stage_that_was_left_has_no_time_left(capsys, clock):
    lines = progressing._Lines()
    lines.update("next", 0, 5)
    clock[0] = 2
    lines.update("next", 2, 5)
    shown = []
    for clock[0] in (6, 40, 100):  # work that no stage tells of
        lines.remind()
        shown.append(capsys.readouterr().err)
    assert shown == [
        "next: 2 of 5, 0.33/s, 9 s left\n", "next: 2 of 5, no step for 38 s\n", "next: 2 of 5, no step for 98 s\n",
    ]  # fmt: skip
    lines.update("short", 0, 5)
    clock[0] = 102
    lines.update("short", 2, 5)
    clock[0] = 104
    lines.update("other", 0, 5)
    assert capsys.readouterr().err == "short: 2 of 5\n"
    lines.update("other", 0, 0)  # ended before its first step
    clock[0] = 1000
    lines.remind()
    assert capsys.readouterr().err == ""


def test_a_loop_left_by_an_error_says_nothing_after_it(capsys):
    with progress(quiet=False) as update:
        loop = counted("abc", "letters", update)
        next(loop), next(loop)
    loop.close()
    assert capsys.readouterr().err == ""


def test_without_a_standard_error_progress_is_quiet(monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    with progress(quiet=False) as update:
        update("harvest", 1, 1)


def test_progress_reminds_by_itself(capsys, monkeypatch):
    monkeypatch.setattr(progressing, "FIRST_LINE", 0.5)
    shown, until = "", time.monotonic() + 30
    with progress(quiet=False) as update:
        update("solve", 0, 4)
        assert capsys.readouterr().err == ""
        while not shown and time.monotonic() < until:
            time.sleep(0.1)
            shown = capsys.readouterr().err
    assert shown == "solve: 0 of 4\n"


def test_quiet_progress_prints_nothing(capsys):
    with progress(quiet=True) as update:
        update("harvest", 1, 1)
    assert capsys.readouterr() == ("", "")


def test_progress_bars_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress(quiet=False) as update:
        update("harvest", 1, 4)
        update("harvest", 4, 4)
        update("fit", 2, 2)
    shown = capsys.readouterr().err
    assert "harvest" in shown and "4/4" in shown and "2/2" in shown
