"""Where an optional package is missing, the error names the extra that brings it and the command that installs it."""

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import tiny
from stitch.errors import EXTRAS, UsageError, missing_extra, require_extra
from stitch.models.gguf import dequantised
from stitch.models.quantised import NEEDS as OF_METHODS
from stitch.models.quantised import require_dequantisable
from stitch.synthesis.automata.read import read_automaton

ROOT = Path(__file__).parent.parent
SENTENCE = re.compile(
    r".+ needs the extra ([\w-]+), of which .+ (is|are) not installed: "
    r"pip install '\.\[\1\]' in a clone of the repository\."
)


def hide(monkeypatch, extra: str) -> None:
    for module in EXTRAS[extra]:
        monkeypatch.setitem(sys.modules, module, None)


def gguf_file(folder: Path) -> Path:
    (folder / "a.gguf").write_bytes(b"GGUF")
    return folder / "a.gguf"


def join_with_transport(folder: Path) -> None:
    from stitch.config import Settings
    from stitch.jobs.pair.settings import check

    model = tiny.model("gpt2")
    check(Settings(model_a="a", model_b="b", layer=2, matching="ot"), model, model)


def connect(folder: Path) -> None:
    from stitch.jobs.cluster import connected

    with connected("local"):
        pass


def picture(folder: Path) -> None:
    from stitch.report.no_picture import no_picture

    [sentence] = no_picture()
    raise UsageError(sentence)


def quantised(folder: Path) -> None:
    require_dequantisable({"quantization_config": {"quant_method": "bitsandbytes"}}, "model")


def tasks(folder: Path) -> None:
    import stitch

    stitch.evaluate("no/such/model", tasks="arc_easy", quiet=True)


NEEDS: list[tuple[str, Callable[[Path], object]]] = [
    ("automata", lambda folder: read_automaton("a*b")),
    ("gguf", lambda folder: dequantised(gguf_file(folder), "a.gguf")),
    ("ot", join_with_transport),
    ("cluster", connect),
    ("plot", picture),
    ("quantised", quantised),
    ("eval", tasks),
]


@pytest.mark.parametrize("extra, use", NEEDS, ids=[extra for extra, _ in NEEDS])
def test_what_needs_an_extra_says_which(extra, use, monkeypatch, tmp_path):
    monkeypatch.setenv("STITCH_CACHE", str(tmp_path / "cache"))
    hide(monkeypatch, extra)
    with pytest.raises(UsageError) as caught:
        use(tmp_path)
    found = SENTENCE.fullmatch(str(caught.value))
    assert found and found[1] == extra, str(caught.value)
    modules = OF_METHODS["bitsandbytes"] if extra == "quantised" else EXTRAS[extra]  # each method needs some of them
    assert all(EXTRAS[extra][module] in str(caught.value) for module in modules)


def test_every_extra_is_tried():
    assert {extra for extra, _ in NEEDS} == set(EXTRAS)


def test_what_is_installed_is_not_complained_about(monkeypatch):
    monkeypatch.setitem(EXTRAS, "plot", {"numpy": "numpy", "absent_module": "absent"})
    with pytest.raises(UsageError, match=r"of which absent is not installed"):
        require_extra("plot", "a test")
    monkeypatch.setitem(EXTRAS, "plot", {"numpy": "numpy"})
    require_extra("plot", "a test")


def test_the_table_is_that_of_the_package():
    tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra, packages in EXTRAS.items():
        assert {re.split(r"[<>=]", one)[0] for one in declared[extra]} == set(packages.values())


def test_start_has_a_line_for_every_extra():
    tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    listed = re.findall(r"^\| `([\w-]+)` \|", (ROOT / "docs" / "start.md").read_text(), re.MULTILINE)
    assert listed and set(declared) <= set(listed)


def test_the_package_matching_says_the_same(monkeypatch):
    """It knows nothing of `stitch`, so the sentence stands there a second time."""
    from matching.errors import MatchError
    from matching.transport import _import_pot

    hide(monkeypatch, "ot")
    with pytest.raises(MatchError) as caught:
        _import_pot()
    assert str(caught.value) == str(missing_extra("ot", "balanced transport", ["POT"]))


@pytest.mark.parametrize("page", ["compile automaton", "compile tool", "join", "sweep", "eval"])
def test_help_names_the_extras_of_a_command(page):
    from typer.testing import CliRunner

    import cli

    shown = " ".join(CliRunner().invoke(cli.app, [*page.split(), "--help"], env={"COLUMNS": "200"}).output.split())
    extras = {
        "compile automaton": ["automata"],
        "compile tool": ["automata"],
        "join": ["ot"],
        "sweep": ["cluster", "plot"],
        "eval": ["eval"],
    }
    for extra in extras[page]:
        assert f"extra {extra}" in shown
