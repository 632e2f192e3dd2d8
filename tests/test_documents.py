"""README and documentation are tested: commands parse and run, their output has the shape shown, links exist, Python
runs.

Every ```console block is collected. Its `$ stitch …` lines are parsed by the real command line, and those whose models
come with the package are run at small sizes. The output shown below a command is then compared in shape with the
printed output.
"""

import json
import random
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.main import get_command
from typer.testing import CliRunner

import cli
import tiny
from stitch.translation.rows import ROWS

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
LINKED = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*/*.md"))]

# Sizes that are small but show the shape of the output. When an option is given twice, the last value counts.
SMALL = {
    "join": "--brief --tokens 8192 --held-out 2048 --context 64 --features 256 --k 8 --sae-passes 0.5 --ngrams 512 --routes 2",
    "chain": "--tokens 8192 --held-out 2048 --context 64 --features 256 --k 8 --sae-passes 0.5 --ngrams 64 --routes 2",
    "sweep": "--tokens 4096 --context 8",
    "eval": "--tokens 2048 --context 64",
    "eval --behaviour": "--prompts 16",
    "eval --tasks": "--quiet",
    "inspect --heads": "--tokens 2048 --context 64",
    "eval --trace": "--tokens 2048 --controls 10",
    "circuit": "--prompts 64",
    "graft": "--prompts 16",
    "convert heads": "--tokens 4096 --held-out 1024 --context 64",
    "convert ngram": "--tokens 4096 --held-out 1024 --context 64 --rows 256",
    "convert recurrent": "--tokens 4096 --held-out 1024 --context 64 --steps 2 --logit-steps 2",
    "convert consolidate": "--tokens 4096 --held-out 2048",
    "compile tool": "--tokens 4096",
    **dict.fromkeys(
        ("transfer sae", "transfer probe", "transfer vector"), "--tokens 4096 --held-out 1024 --context 64"
    ),
    "certify": "--tokens 2000",
}
SLOW_ROWS = {row.name for row in ROWS if not row.brief}  # of the table; `--brief` leaves them out
# Commands that need other models, the Hub or a cluster are parsed but not run.
ELSEWHERE = re.compile(r"\b(MODEL_A|MODEL_B|MODEL|USER/REPO|HOST:PORT|smollm2|gemma3)\b")
# Commands that take a few seconds are run with the other tests, the rest by `make test-slow`.
FAST = ("inspect", "compile automaton", "compile pattern", "compile induction", "certify", "run")


@dataclass(frozen=True)
class Command:
    """One `$ …` line and the lines shown below it."""

    line: str
    shown: tuple[str, ...]

    @property
    def args(self) -> list[str]:
        """The arguments of `stitch`; for `make TARGET` those in its recipe. Empty for any other program."""
        words = shlex.split(self.line, comments=True)
        if words[:1] == ["make"]:
            return recipe(words[1])
        return words[1:] if words[:1] == ["stitch"] else []

    @property
    def runs_here(self) -> bool:
        is_endless = self.args[:1] == ["open"]  # it serves until it is stopped
        return bool(self.args) and not is_endless and not ELSEWHERE.search(self.line)

    @property
    def name(self) -> str:
        """`join`, `convert heads`, `eval --behaviour`, `eval --trace`, `eval --tasks`, `inspect --heads`."""
        first, second = self.args[:2]
        if first in ("convert", "compile", "transfer"):
            return f"{first} {second}"
        if first.startswith("demo:"):
            return "join"  # the word may be omitted
        kinds = {"eval": ("--behaviour", "--trace", "--tasks"), "inspect": ("--heads", "--sites")}
        return next((f"{first} {kind}" for kind in kinds.get(first, ()) if kind in self.args), first)


@dataclass(frozen=True)
class Block:
    """A ```console block: its commands run one after another in one folder."""

    page: Path
    line: int
    commands: tuple[Command, ...]

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def runs_here(self) -> bool:
        return any(command.runs_here for command in self.commands)

    @property
    def is_fast(self) -> bool:
        return all(command.name in FAST for command in self.commands if command.runs_here)


def recipe(target: str) -> list[str]:
    """The arguments of the `stitch` line of a make target; empty if it has no such line."""
    makefile = (ROOT / "Makefile").read_text()
    found = re.search(rf"^{re.escape(target)}:.*\n\t\$\(BIN\)/stitch (.*)$", makefile, re.MULTILINE)
    return shlex.split(found[1]) if found else []


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text()
    found = []
    for block in re.finditer(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        commands: list[Command] = []
        for part in re.split(r"^\$ ", block[1].replace("\\\n", " "), flags=re.MULTILINE)[1:]:
            line, *shown = part.splitlines()
            commands.append(Command(line, tuple(shown)))
        found.append(Block(page, text[: block.start()].count("\n") + 1, tuple(commands)))
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
COMMANDS = [(f"{block} {command.line}", command) for block in BLOCKS for command in block.commands if command.args]


def skeleton(line: str) -> tuple[str, ...]:
    """The part that must be equal at other sizes: the cells of a header; of other lines the text before the first
    number or bracket.
    """
    cells = re.split(r"\s{2,}", line.strip())
    is_header = line.startswith("  ") and not re.search(r"\d\d", line.replace("95 %", ""))
    if is_header and len(cells) > 1:
        return tuple(cells)
    beginning = re.split(r"(?<![\w:.])[-+−<]?\d|[(\[]", cells[0])[0]
    return (beginning.strip(" :,'"),)


def test_a_skeleton_keeps_names_and_drops_numbers():
    assert skeleton("       CE  95 % interval  top-1") == ("CE", "95 % interval", "top-1")
    assert skeleton("composite (routed+tables)  3.073  2.547 – 3.389") == ("composite",)
    assert skeleton("baseline:1-grams  3.82  3.013 – 4.130") == ("baseline:1-grams",)
    assert skeleton("composite − b: +0.138 nats (+0.086 to +0.183, paired).") == ("composite − b",)
    assert skeleton("     0  0000[A]0000") == ("",)


def in_order(shown: list[tuple[str, ...]], printed: list[tuple[str, ...]]) -> tuple[str, ...] | None:
    """The first line of `shown` that `printed` does not have after the lines before it; None if all are there."""
    rest = iter(printed)
    return next((one for one in shown if one not in rest), None)


@pytest.mark.parametrize("command", [command for _, command in COMMANDS], ids=[name for name, _ in COMMANDS])
def test_every_shown_command_can_be_parsed(command, tmp_path, monkeypatch):
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    if "--recipe" in command.args and not Path(command.args[command.args.index("--recipe") + 1]).exists():
        pytest.skip("the recipe is made by the command before")
    here, name, args = get_command(cli.app), "stitch", command.args
    context = None
    while True:
        context = here.make_context(name, list(args), parent=context)
        if not hasattr(here, "resolve_command"):
            return
        name, here, args = here.resolve_command(context, [*context._protected_args, *context.args])


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(one, id=str(one), marks=[] if one.is_fast else [pytest.mark.slow])
        for one in BLOCKS
        if one.runs_here
    ],
)
def test_printed_output_has_the_shape_shown(block, tmp_path, monkeypatch):
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    for command in block.commands:
        if not command.runs_here:
            continue
        result = CliRunner().invoke(cli.app, small(command))
        assert result.exit_code == 0, (command.line, result.output)
        left_out = SLOW_ROWS if "--brief" in SMALL.get(command.name, "") else set()
        shown = [skeleton(line) for line in command.shown if line.strip() not in ("", "…")]
        shown = [line for line in shown if line[0] not in left_out]
        printed = [skeleton(line) for line in result.stdout.splitlines()]
        missing = in_order(shown, printed)
        assert missing is None, f"{block}: {command.line} does not print {missing}, or not there:\n{result.stdout}"


def prepare(folder: Path) -> None:
    """The files that commands read besides models: the examples, and files that a page describes."""
    shutil.copytree(ROOT / "examples", folder / "examples")
    recipe = re.search(r"```yaml\n(model_a:.*?)```", (ROOT / "docs/start.md").read_text(), re.DOTALL)
    assert recipe is not None
    (folder / "recipe.yaml").write_text(recipe[1])
    chain = re.search(r"```yaml\n(parts:.*?)```", (ROOT / "docs/stitching.md").read_text(), re.DOTALL)
    assert chain is not None
    (folder / "chain.yaml").write_text(chain[1])


def small(command: Command) -> list[str]:
    """The command's arguments, at a small size."""
    return [*command.args, *shlex.split(SMALL.get(command.name, ""))]


def test_every_block_has_a_command():
    assert not [str(block) for block in BLOCKS if not block.commands]


def test_the_readme_is_short():
    assert len(README.read_text().split()) <= 1200


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_make_targets_exist(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, _ = link.partition("#")
        assert link.startswith(("http://", "https://")) or not path or (page.parent / path).exists(), link
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`(?:PYTHON=\S+ )?make ([a-z-]+)`", text):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def test_shown_python_compiles():
    for page in PAGES:
        for block in python_blocks(page):
            compile(block, str(page), "exec")


def test_the_python_examples_run(tmp_path, monkeypatch):
    """The blocks of the page on Python, one after another, at a small size."""
    small = tmp_path / "text.jsonl"
    words = random.Random(0)
    lines = [" ".join(words.choices("the model reads text and says what comes next".split(), k=25)) for _ in range(260)]
    small.write_text("\n".join(json.dumps({"text": line}) for line in lines))
    a, b = tiny.save(tmp_path / "gpt2", "gpt2"), tiny.save(tmp_path / "qwen3", "qwen3")
    monkeypatch.chdir(tmp_path)
    codes = np.random.default_rng(0).exponential(size=(400, 8))
    names: dict = {"features_a": codes, "features_b": codes[:, ::-1], "activations": torch.randn(600, 16)}
    replaced = {
        '"demo:gpt2", "demo:llama", layer=3, brief=True': f'"{a}", "{b}", layer=3, brief=True, text="{small}", tokens=8192, '
        'context=32, features=64, k=8, sae_passes=0.3, device="cpu", quiet=True',
        'against="demo:llama", text=["…", "…"]': f'against="{b}", text={lines * 2}, tokens=64, context=32, quiet=True',
        "features=4096, k=32": "features=64, k=8",
    }
    blocks = "".join(python_blocks(ROOT / "docs/python.md"))
    for shown, run in replaced.items():
        assert shown in blocks
        blocks = blocks.replace(shown, run)
    exec(blocks, names)
    assert names["result"].rows.loc["composite", "ce"] > 0 and (tmp_path / "joined" / "report.json").exists()
    assert names["found"].pairs.scores.min() > 0.999 and names["trained"].cfg.d_sae == 64
