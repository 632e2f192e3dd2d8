"""The command `stitch`: all commands in the order of its help, `--version`, and what to do with a word that is no command."""

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer

from stitch.commands import (
    cache,
    circuits,
    compile,
    compile_parts,
    compiled,
    convert,
    models,
    pages,
    recurrent,
    retokenize,
    stitching,
    sweep,
    transfer,
    workspace,
)
from stitch.commands.help import WORDS, Group, leaves

SIMILAR = 2 / 3  # of a mistyped command to the one that is meant: `rnu` and `run`
EXAMPLES = """\
stitch demo:gpt2 demo:llama --layer 3 --layer-b 4 --brief --out joined
stitch eval joined --against demo:llama
stitch --anatomy my.yaml COMMAND …    # a family of your own
stitch COMMAND --help"""


class JoinByDefault(Group):
    """`stitch A B --layer 3` means `stitch join A B --layer 3`; a mistyped command is answered with the one that is close."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[WORDS] = list(args)
        if args[:1] == ["--anatomy"] and not ctx.resilient_parsing:
            read_anatomy(args[1:2])
            args = args[2:]
        if args and args[0] not in self.commands and args[0] not in self.own_options(ctx):
            if not ctx.resilient_parsing:  # as in completion, where what is typed may be half a word
                self.refuse_mistyped(ctx, args)
            args = ["join", *args]
        return super().parse_args(ctx, args)

    def own_options(self, ctx: Any) -> set[str]:
        return {spelling for param in self.get_params(ctx) for spelling in param.opts}

    def refuse_mistyped(self, ctx: Any, args: list[str]) -> None:
        """Ends with exit code 2 where the first word can be no model, or no option of `join`."""
        word = args[0]
        if word.startswith("-"):
            joining = {spelling for param in self.commands["join"].params for spelling in param.opts}
            close = get_close_matches(word.partition("=")[0], joining | self.own_options(ctx), n=1, cutoff=SIMILAR)
            if close and close[0] not in joining:
                ctx.fail(f"No such option: {word}. Did you mean {close[0]}?")
        elif not may_be_model(word):
            paths = {words[-1]: " ".join(words) for words, _ in leaves(self)} | {name: name for name in self.commands}
            if close := get_close_matches(word, paths, n=1, cutoff=SIMILAR):
                ctx.fail(f"No such command '{word}'. Did you mean '{paths[close[0]]}'?")
            if len(args) == 1:
                ctx.fail(f"No such command '{word}'. To join two models: stitch MODEL_A MODEL_B --layer N.")

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        super().format_usage(ctx, formatter)
        formatter.write(f"       {ctx.command_path} MODEL_A MODEL_B --layer N [OPTIONS]\n")


def read_anatomy(file: list[str]) -> None:
    """`stitch --anatomy FILE COMMAND …`. It is no option of typer's, which would import pydantic to read its value."""
    from stitch.commands.errors import reported
    from stitch.errors import UsageError

    with reported((), debug=False):
        if not file:
            raise UsageError("--anatomy needs a YAML file: stitch --anatomy my.yaml join A B --layer 12")
        from stitch.models.anatomy_file import read_anatomies

        read_anatomies(Path(file[0]))


def may_be_model(word: str) -> bool:
    """Whether a word looks like a model even if it is close to a command's name: a path, user/repo, demo:…, x.gguf."""
    return any(sign in word for sign in "/\\:.~") or Path(word).exists()


app = typer.Typer(
    cls=JoinByDefault,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog=EXAMPLES,
)
app.add_typer(stitching.commands)
app.add_typer(sweep.commands)
app.add_typer(models.commands)
app.add_typer(pages.commands)
app.add_typer(circuits.commands)
compile.commands.add_typer(compile_parts.commands)
app.add_typer(compile.commands, name="compile")
app.add_typer(compiled.commands)
convert.commands.add_typer(recurrent.commands)
app.add_typer(convert.commands, name="convert")
app.add_typer(retokenize.commands)
app.add_typer(transfer.commands, name="transfer")
app.add_typer(cache.commands, name="cache")
app.add_typer(workspace.commands, name="workspace")


def print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"stitch {version('stitch-lm')}")
        except PackageNotFoundError:  # a checkout that is not installed
            print("stitch, version unknown")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Show the version.",
            rich_help_panel="Output",
            callback=print_version,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Take language models apart and build new ones from the parts."""
