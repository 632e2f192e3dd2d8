"""Every command and its options as data, read from the commands themselves: for the documentation and for tests."""

from dataclasses import dataclass
from typing import Any

import typer

from stitch.commands import help as shown
from stitch.commands.app import app
from stitch.commands.spelling import is_argument, spelling


@dataclass(frozen=True)
class Parameter:
    """An option or an argument, as `--help` shows it."""

    name: str  # in Python: "layer_b"
    spellings: tuple[str, ...]  # ("--quiet", "-q"); of an argument its name in the usage: ("MODEL_A",)
    value: str  # what follows an option: "N", "NAME|FILE"; nothing after a switch
    default: str
    required: bool
    repeats: bool
    help: str
    panel: str
    is_argument: bool


@dataclass(frozen=True)
class CommandPage:
    words: tuple[str, ...]  # ("convert", "heads")
    panel: str  # the section of `stitch --help`
    usage: str
    summary: str  # one line
    description: str  # paragraphs apart by a blank line; the first is the summary
    examples: tuple[str, ...]  # whole commands
    example_text: str  # the same with comments, as `--help` shows them
    parameters: tuple[Parameter, ...]  # in the order of `--help`
    file: str  # of stitch/commands/, without .py

    @property
    def path(self) -> str:
        return " ".join(self.words)

    @property
    def writes_folder(self) -> bool:
        """Whether the command writes an output folder, which is what --overwrite is for."""
        return any("--overwrite" in parameter.spellings for parameter in self.parameters)

    def panels(self) -> dict[str, list[Parameter]]:
        """The parameters by panel, in the order of `--help`."""
        found: dict[str, list[Parameter]] = {}
        for parameter in self.parameters:
            found.setdefault(parameter.panel, []).append(parameter)
        return found


def command_table() -> list[CommandPage]:
    """A page for each command, in the order of `stitch --help`."""
    return [_page(words, found) for words, found in shown.leaves(typer.main.get_command(app))]


def _page(words: tuple[str, ...], found: Any) -> CommandPage:
    examples = found.epilog or ""
    ordered = [param for _, params in shown.by_panel(found.params) for param in params]
    return CommandPage(
        words=words,
        panel=found.rich_help_panel,
        usage=" ".join(["stitch", *words, *shown.usage(found.params)]),
        summary=shown.summary(found),
        description="\n\n".join(" ".join(paragraph.split()) for paragraph in (found.help or "").split("\n\n")),
        examples=tuple(_commands(examples)),
        example_text=examples,
        parameters=tuple(_parameter(param) for param in ordered),
        file=found.callback.__module__.rpartition(".")[2],
    )


def _commands(examples: str) -> list[str]:
    """Whole commands, comments left out; a line that ends in a backslash goes on in the next."""
    found: list[str] = []
    for line in examples.splitlines():
        if found and found[-1].endswith("\\"):
            found[-1] += "\n" + line
        elif line and not line.startswith("#"):
            found.append(line)
    return found


def _parameter(param: Any) -> Parameter:
    positional = is_argument(param)
    return Parameter(
        name=param.name,
        spellings=(spelling(param),) if positional else tuple(sorted(param.opts, key=len, reverse=True)),
        value="" if positional or shown.is_switch(param) else param.metavar,
        default=shown.default_of(param),
        required=param.required,
        repeats=bool(getattr(param, "multiple", False)),
        help=param.help or "",
        panel=shown.panel_of(param),
        is_argument=positional,
    )
