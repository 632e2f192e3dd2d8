"""What `--help` prints: plain text in panels, within 80 columns.

Typer can draw its panels with rich, but importing that takes as long as everything else in `stitch --help` together, and its
boxes leave half of a line of 80 columns to the text. So the same panels are written here as headed sections.
"""

import os
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from stitch.commands.errors import reported
from stitch.commands.spelling import is_argument, spelling
from stitch.commands.streams import say_starting

SHORT = 40  # characters of a default that stays on one line
HEAD = 21  # columns for an option's name; a longer one has a line of its own
WORDS = "stitch.words"  # in a context: the command line as it was typed, after `stitch`
HARD_SPACE = "\N{NO-BREAK SPACE}"
PANELS = (
    *("Input", "Text", "SAE", "Circuit", "Graft", "Compiled model", "Conversion", "Translation"),
    *("Output", "Machine", "Shell"),
)  # fmt: skip


def command(group: typer.Typer, panel: str, examples: str, name: str | None = None) -> Callable:
    """The decorator of a command: its section in `stitch --help`, and its examples, one or more lines each."""
    return group.command(name, cls=Command, rich_help_panel=panel, epilog=textwrap.dedent(examples).strip())


class Command(TyperCommand):
    """A command with this page's help, whose errors are one line."""

    def invoke(self, ctx: Any) -> Any:
        say_starting(quiet=ctx.params.get("quiet", True))  # commands without --quiet take no time
        with reported(self.params, debug=bool(ctx.params.get("debug")), words=ctx.meta.get(WORDS, ())):
            return super().invoke(ctx)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return usage(self.params)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.format_usage(ctx, formatter)
        write_text(formatter, self.help or "")
        for panel, params in by_panel(self.get_params(ctx)):
            write_section(formatter, panel, [(head(param), explanation(param)) for param in params])
        write_examples(formatter, self.epilog)


class Group(TyperGroup):
    """A group that lists every command below it, however deep, in panels."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for param in self.get_params(ctx):
            if is_switch(param) and param.default is None:  # --help, and typer's switches for completion
                param.default = (
                    False  # to convert None typer would import pydantic, which takes as long as all the rest
                )
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return ["[OPTIONS]", "COMMAND", "..."]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.format_usage(ctx, formatter)
        write_text(formatter, self.help or "")
        panels: dict[str, list[tuple[str, str]]] = {}
        for words, found in leaves(self):
            panels.setdefault(found.rich_help_panel, []).append((" ".join(words), summary(found)))
        for panel, rows in panels.items():
            write_section(formatter, panel, rows)
        for panel, params in by_panel(self.get_params(ctx)):
            write_section(formatter, panel, [(head(param), explanation(param)) for param in params])
        write_examples(formatter, self.epilog)


def leaves(group: Any, before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command below a group, with the words that call it."""
    for name, found in group.commands.items():
        if hasattr(found, "commands"):
            yield from leaves(found, (*before, name))
        else:
            yield (*before, name), found


def summary(found: Any) -> str:
    """The first paragraph of a command's help."""
    return " ".join((found.help or "").split("\n\n")[0].split())


def by_panel(params: Iterable[Any]) -> list[tuple[str, list[Any]]]:
    """Parameters by panel, in the order of PANELS; --help, which belongs to no panel, stands with the output."""
    found: dict[str, list[Any]] = {}
    for param in params:
        found.setdefault(panel_of(param), []).append(param)
    return sorted(found.items(), key=lambda item: PANELS.index(item[0]))


def panel_of(param: Any) -> str:
    panel = getattr(param, "rich_help_panel", None)
    if panel is None:
        panel = "Shell" if "completion" in param.name else "Output"
    return panel


def usage(params: Iterable[Any]) -> list[str]:
    """What must be given, in brackets what may."""
    needed = [param for param in params if is_argument(param) or param.required]
    pieces = [head(param) if param.required else f"[{head(param)}]" for param in needed]
    return [*pieces, "[OPTIONS]"]


def is_switch(param: Any) -> bool:
    return bool(getattr(param, "is_flag", False))


def head(param: Any) -> str:
    if is_argument(param):
        return spelling(param)
    return ", ".join(sorted(param.opts, key=len)) + ("" if is_switch(param) else f" {param.metavar}")


def explanation(param: Any) -> str:
    """The help, with the default where there is one."""
    notes = [f"default: {default}"] if (default := default_of(param)) else []
    if param.required and not is_argument(param):
        notes.append("required")
    if getattr(param, "multiple", False):
        notes.append("may be repeated")
    if not notes:
        return param.help or ""
    note = f"[{'; '.join(notes)}]"
    return f"{param.help or ''} {unbroken(note) if len(note) <= SHORT else note}"


def default_of(param: Any) -> str:
    """As a reader would write it; what is worked out later is described where the option is declared."""
    value = param.default
    if isinstance(value, bool) or param.required:
        return ""
    if value is None:
        return param.show_default if isinstance(param.show_default, str) else ""
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)


def write_text(formatter: Any, text: str) -> None:
    for paragraph in text.strip().split("\n\n"):
        formatter.write("\n" + "\n".join(wrapped(paragraph, formatter.width, "  ", "  ")) + "\n")


def write_section(formatter: Any, title: str, rows: list[tuple[str, str]]) -> None:
    formatter.write(f"\n{styled(title, bold=True)}:\n")
    margin = " " * (2 + HEAD + 2)
    for name, text in rows:
        lines = wrapped(text, formatter.width, margin, margin)
        shown = "  " + styled(name, fg="cyan")
        if len(name) <= HEAD:
            lines[0] = shown + " " * (HEAD + 2 - len(name)) + lines[0].strip()
        else:
            lines = [shown, *lines]
        formatter.write("\n".join(lines) + "\n")


def write_examples(formatter: Any, examples: str | None) -> None:
    if examples:
        formatter.write(f"\n{styled('Examples', bold=True)}:\n{textwrap.indent(examples, '  ')}\n")


def wrapped(text: str, width: int, first: str, rest: str) -> list[str]:
    """Lines that break at spaces alone, so that no option's name is torn."""
    whole = re.sub(r"[ \n]+", " ", text)
    wrapper = textwrap.TextWrapper(width, first, rest, break_on_hyphens=False, break_long_words=False)
    lines = wrapper.wrap(whole)
    return [line.replace(HARD_SPACE, " ") for line in lines]


def unbroken(text: str) -> str:
    return text.replace(" ", HARD_SPACE)


def styled(text: str, **style: Any) -> str:
    """Typer takes colours away where the output is no terminal; here they go where a reader wants none."""
    return text if "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb" else typer.style(text, **style)
