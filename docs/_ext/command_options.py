"""The options of a command, read from the command line itself: the directive `command-options` names a command.

A command that no page shows is a warning, and so an error of the strict build.
"""

from collections.abc import Sequence

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from stitch.commands.reference import CommandPage, Parameter, command_table

log = logging.getLogger(__name__)
# Read before autodoc looks at any function: where it keeps defaults as written, it changes the functions themselves.
PAGES = {page.path: page for page in command_table()}


class CommandOptions(SphinxDirective):
    """`{command-options} convert heads`: usage, then arguments and options by panel, as `--help` has them.

    What stands in the block is for readers of the source, and not shown.
    """

    required_arguments = 1
    final_argument_whitespace = True
    has_content = True

    def run(self) -> list[nodes.Node]:
        path = " ".join(self.arguments[0].split())
        if path not in PAGES:
            raise self.error(f"no command is called {path!r}; there are {', '.join(PAGES)}.")
        shown(self.env).setdefault(path, self.env.docname)
        return described(PAGES[path])


def described(page: CommandPage) -> list[nodes.Node]:
    usage = nodes.literal_block(page.usage, page.usage, language="text")
    found: list[nodes.Node] = [usage]
    for panel, parameters in page.panels().items():
        found += [nodes.rubric(text=panel), _list(parameters)]
    return found


def _list(parameters: Sequence[Parameter]) -> nodes.definition_list:
    entries = nodes.definition_list()
    for parameter in parameters:
        term = nodes.term("", "", *_term(parameter))
        text = nodes.paragraph("", "", *with_code(parameter.help))
        if parameter.default:
            is_prose = " " in parameter.default
            value = nodes.Text(parameter.default) if is_prose else nodes.literal(text=parameter.default)
            text += [nodes.Text(" Default: "), value, nodes.Text(".")]
        elif parameter.required:
            text += nodes.Text(" Required.")
        if parameter.repeats:
            text += nodes.Text(" May be given several times.")
        entries += nodes.definition_list_item("", term, nodes.definition("", text))
    return entries


def with_code(text: str) -> list[nodes.Node]:
    """Plain text in which `code` stands between backticks."""
    pieces = enumerate(text.split("`"))
    return [nodes.literal(text=piece) if number % 2 else nodes.Text(piece) for number, piece in pieces if piece]


def _term(parameter: Parameter) -> list[nodes.Node]:
    value = f" {parameter.value}" if parameter.value and not parameter.is_argument else ""
    found: list[nodes.Node] = []
    for spelling in parameter.spellings:
        found += [nodes.Text(", ")] if found else []
        found.append(nodes.literal(text=spelling))
    return [*found, nodes.emphasis(text=value)] if value else found


def shown(env: BuildEnvironment) -> dict[str, str]:
    """Which page shows each command."""
    if not hasattr(env, "stitch_commands"):
        env.stitch_commands = {}  # pyright: ignore[reportAttributeAccessIssue]
    return env.stitch_commands  # pyright: ignore[reportAttributeAccessIssue]


def forget(_: Sphinx, env: BuildEnvironment, docname: str) -> None:
    for path in [path for path, page in shown(env).items() if page == docname]:
        del shown(env)[path]


def check(_: Sphinx, env: BuildEnvironment) -> None:
    for path in PAGES:
        if path not in shown(env):
            log.warning("the command %r is on no page: add {command-options} %s.", path, path)


def setup(app: Sphinx) -> dict:
    app.add_directive("command-options", CommandOptions)
    app.connect("env-purge-doc", forget)
    app.connect("env-check-consistency", check)
    return {"version": "1", "parallel_read_safe": False}
