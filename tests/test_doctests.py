"""Examples in docstrings do what they show."""

import doctest
import importlib
from pathlib import Path

import pytest

from stitch.models.anatomy import ANATOMIES

ROOT = Path(__file__).parent.parent
MODULES = [
    ".".join(file.relative_to(ROOT).with_suffix("").parts)
    for package in ("stitch", "sae", "matching")
    for file in sorted((ROOT / package).rglob("*.py"))
    if ">>> " in file.read_text()
]


def test_every_package_has_examples():
    assert {module.partition(".")[0] for module in MODULES} == {"stitch", "sae", "matching"}


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_of_a_module(module, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("stitch.models.anatomy.ANATOMIES", dict(ANATOMIES))  # one example registers a family
    found = doctest.testmod(importlib.import_module(module))
    assert found.attempted and not found.failed
