"""The README keeps its word: its Python runs as printed, and the commands it names exist."""

import re
from pathlib import Path

import pytest

import tiny
from test_stitch_pipeline import write_text

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_library_example_runs_as_printed(tmp_path, monkeypatch):
    block = next(block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "stages" in block)
    small = (
        f'model_a="{tiny.save(tmp_path / "gpt2", "gpt2")}", model_b="{tiny.save(tmp_path / "qwen3", "qwen3")}", layer=3, '
        f'layer_b=4, text="{write_text(tmp_path)}", tokens=8192, context=32, features=64, k=8, sae_passes=0.3, device="cpu"'
    )
    shown = 'model_a="demo:gpt2", model_b="demo:llama", layer=3'
    assert shown in block
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(block.replace(shown, small), names)
    scores = names["scores"]
    assert scores["composite"].ce == pytest.approx(scores["translation:affine+free"].ce, abs=1e-6)


def test_the_make_targets_and_files_it_names_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make ([a-z-]+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for path in re.findall(r"\]\(([^)#]+)\)", README):
        assert path.startswith("http") or (ROOT / path).exists(), path
