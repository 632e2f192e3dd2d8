"""Help texts, as data and as printed: every option is explained, spelt once, and fits 80 columns."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import cli
from stitch.commands.help import PANELS
from stitch.commands.reference import CommandPage, Parameter, command_table

ROOT = Path(__file__).parent.parent
PAGES = command_table()
GROUPS = [(), ("compile",), ("convert",), ("transfer",), ("cache",)]

# Options that mean different things in different commands. All others have the same help everywhere.
DIFFERENT = {
    *("--context", "--dry-run", "--features", "--held-out", "--host", "--length", "--out"),
    *("--prompts", "--steps", "--text", "--tokenizer", "--tokens", "--window"),
    *("--layer", "--layer-b", "--native", "--sae-passes", "--strength"),
}  # fmt: skip


def shown(*words: str) -> str:
    done = CliRunner().invoke(cli.app, [*words, "--help"], env={"COLUMNS": "80", "TERM": "dumb"}, prog_name="stitch")
    assert done.exit_code == 0, done.output
    return done.stdout


def options() -> list[tuple[CommandPage, Parameter]]:
    return [(page, parameter) for page in PAGES for parameter in page.parameters]


def test_cli_is_the_entry_alone():
    assert len((ROOT / "cli.py").read_text().splitlines()) <= 90


def test_the_table_has_every_command():
    assert {page.path for page in PAGES} == {
        *("join", "chain", "sweep", "eval", "inspect", "push", "open", "circuit", "graft", "certify", "run"),
        *("compile automaton", "compile machine", "compile pattern", "compile tool", "compile induction"),
        *("convert heads", "convert ngram", "convert recurrent", "convert consolidate", "convert undo", "retokenize"),
        *("transfer sae", "transfer probe", "transfer vector"),
        *("cache list", "cache size", "cache remove", "cache verify"),
        *("workspace list", "workspace size", "workspace clean"),
    }
    assert {page.path for page in PAGES if not page.writes_folder} == {
        *("eval", "inspect", "push", "open", "circuit", "certify", "run"),
        *("cache list", "cache size", "cache remove", "cache verify"),
        *("workspace list", "workspace size", "workspace clean"),
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path)
def test_help_fits_80_columns_and_names_every_option(page):
    text = shown(*page.words)
    assert [line for line in text.splitlines() if len(line) > 80] == []
    names = {line.split()[0].strip(",") for line in text.splitlines() if line.startswith("  ") and line.strip()}
    names |= {line.split()[1] for line in text.splitlines() if line.startswith("  -q, ")}
    for parameter in page.parameters:
        assert parameter.spellings[0] in names
    assert page.summary in text and all(example.splitlines()[0] in text for example in page.examples)


@pytest.mark.parametrize("group", GROUPS, ids=" ".join)
def test_a_group_lists_its_commands_on_a_line_each(group):
    lines = shown(*group).splitlines()
    assert [line for line in lines if len(line) > 80] == []
    for page in PAGES:
        if page.words[: len(group)] == group:
            name = " ".join(page.words[len(group) :])
            assert any(line.split("  ")[1:2] == [name] and line.endswith(page.summary) for line in lines), page.path
            assert not group or f"{page.panel}:" in lines


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path)
def test_every_parameter_is_explained_in_a_panel(page):
    assert page.description.startswith(page.summary) and page.summary.endswith(".") and page.examples
    for parameter in page.parameters:
        assert parameter.help.endswith("."), parameter
        assert parameter.panel in PANELS, parameter
    valued = [one for one in page.parameters if one.value]
    assert [one.spellings for one in valued if not one.required and not one.default] == []


def test_an_option_means_the_same_in_every_command():
    found: dict[str, set[tuple]] = {}
    for _, parameter in options():
        if not parameter.is_argument:
            meaning = (parameter.spellings, parameter.value, parameter.help, parameter.panel)
            found.setdefault(parameter.spellings[0], set()).add(meaning)
    assert {name for name, meanings in found.items() if len(meanings) > 1} == DIFFERENT


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path)
def test_examples_can_be_parsed(page):
    for example in page.examples:
        words = shlex.split(example.replace("\\\n", " "))
        assert words[0] == "stitch"
        group = typer.main.get_command(cli.app)
        context = group.make_context("stitch", words[1:])
        used = []
        while hasattr(group, "commands"):
            name, group, rest = group.resolve_command(context, [*context._protected_args, *context.args])
            used.append(name)
            context = group.make_context(name, rest, parent=context)
        assert tuple(used) == page.words


@pytest.mark.parametrize("words", [(), ("join",), ("convert", "heads")], ids=" ".join)
def test_help_is_quick_and_imports_nothing_heavy(words):
    """Measured in processor time, which other jobs hardly affect. Best of three, because the first run may compile
    bytecode.
    """
    code = f"import sys, cli; sys.argv = {['stitch', *words, '--help']}\n"
    code += "try: cli.main()\nexcept SystemExit: pass\nprint(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "dumb", "COLUMNS": "80"}
    seconds = []
    for _ in range(3):
        before = os.times()
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        after = os.times()
        seconds.append(after.children_user - before.children_user + after.children_system - before.children_system)
    text, _, modules = done.stdout.rstrip().rpartition("\n")
    assert f"Usage: stitch {' '.join(words)}" in text
    assert {"torch", "numpy", "transformers", "rich", "pydantic"}.isdisjoint(modules.split())
    assert min(seconds) < 0.6, f"help takes {min(seconds):.2f} s of processor time: what do commands import?"


def test_a_model_that_is_not_there_is_said_before_anything_heavy_is_imported():
    code = "import sys, cli; sys.argv = ['stitch', 'inspect', 'absent.gguf']\n"
    code += "try: cli.main()\nexcept SystemExit as end: print(end.code, *sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    ended, *modules = done.stdout.split()
    assert ended == "2" and done.stderr.startswith("stitch: no such file or folder: 'absent.gguf'")
    assert {"torch", "numpy", "transformers"}.isdisjoint(modules)


def test_version():
    done = CliRunner().invoke(cli.app, ["--version"])
    assert done.exit_code == 0 and done.stdout.startswith("stitch ") and done.stdout.count("\n") == 1


@pytest.mark.parametrize(
    "typed, offered",
    [
        ("jo", "join"),
        ("convert rec", "recurrent"),
        ("demo:gpt2 demo:llama --layer-", "--layer-b"),
        ("join --arch", "--architecture"),
    ],
)
def test_completion_offers_commands_and_options(typed, offered):
    words = f"stitch {typed}"
    environment = {"_STITCH_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    done = CliRunner().invoke(cli.app, [], env=environment, prog_name="stitch")
    assert offered in done.stdout.split()


def test_completion_can_be_installed():
    assert "--install-completion" in shown() and "--show-completion" in shown()
    done = CliRunner().invoke(cli.app, [], env={"_STITCH_COMPLETE": "source_bash"}, prog_name="stitch")
    assert "_STITCH_COMPLETE=complete_bash" in done.stdout
