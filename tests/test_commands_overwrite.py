"""`--overwrite` of every command that writes a folder, taken from the command table: it deletes only folders that
stitch wrote.
"""

from pathlib import Path

import pytest
from typer.testing import CliRunner

import cli
from stitch.commands.reference import CommandPage, Parameter, command_table

WRITING = [page for page in command_table() if page.writes_folder]


def arguments(page: CommandPage, out: Path) -> list[str]:
    """A call with a value for every required parameter. The values may be invalid, because the guard comes before
    they are read.
    """

    def value(parameter: Parameter) -> str:
        return "3" if parameter.value in ("N", "L|auto", "N|auto") else "something"

    call = list(page.words)
    both = page.path == "sweep"  # whose second model is optional, but only with --depth
    call += [value(one) for one in page.parameters if one.is_argument and (one.required or both)]
    for one in page.parameters:
        if one.required and not one.is_argument and one.name != "out":
            call += [one.spellings[0], value(one)]
    return [*call, "--out", str(out), "--overwrite"]


def test_the_table_has_every_command_that_writes_a_folder():
    paths = {page.path for page in WRITING}
    assert paths >= {"join", "chain", "sweep", "graft", "convert heads", "convert ngram", "convert recurrent",
                     "convert consolidate", "retokenize", "compile automaton", "compile machine", "compile pattern",
                     "compile tool", "compile induction"}  # fmt: skip


@pytest.mark.parametrize("page", WRITING, ids=lambda page: page.path)
def test_a_folder_with_other_files_is_refused_before_any_work(page: CommandPage, tmp_path: Path):
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    (folder / "report.json").write_text("{}")
    result = CliRunner().invoke(cli.app, arguments(page, folder))
    assert result.exit_code == 2, result.output
    assert "thesis.tex, which stitch did not write: choose another folder for --out." in result.output
    assert (folder / "thesis.tex").read_text() == "years of work" and len(list(tmp_path.rglob("*"))) == 3


@pytest.mark.parametrize("page", WRITING, ids=lambda page: page.path)
def test_without_overwrite_nothing_is_replaced(page: CommandPage, tmp_path: Path):
    result = CliRunner().invoke(cli.app, arguments(page, tmp_path)[:-1])
    assert result.exit_code == 2 and "--out must not exist" in result.output, result.output
    assert "or set --overwrite." in result.output
