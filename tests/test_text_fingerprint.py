"""What reports say of the text: its fingerprint and the version of the default corpus."""

import json
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from jobs import gpt2_and_qwen3
from stitch.jobs.depth import sweep_depth
from stitch.jobs.evaluate import evaluate_models
from stitch.text import recorded
from stitch.text.corpus import versions
from stitch.text.fingerprint import sha256_of, text_read

ROOT = Path(__file__).parent.parent
DOCUMENTS = [(f"d{number}", f"text {number}") for number in range(100)]


def test_a_fingerprint_changes_with_the_text_and_not_with_the_order_of_its_files():
    found = text_read("a text", DOCUMENTS)
    assert (found.name, found.documents, found.characters) == ("a text", 100, sum(len(text) for _, text in DOCUMENTS))
    assert found.to_dict() == {
        "name": "a text",
        "documents": 100,
        "characters": found.characters,
        "sha256": sha256_of(DOCUMENTS[::-1]),
    }
    others = ([*DOCUMENTS[1:], ("d0", "text 0.")], DOCUMENTS[1:], [*DOCUMENTS, ("new", "x")])
    assert len({found.sha256, *map(sha256_of, others)}) == 4


def test_text_moved_from_one_document_to_the_next_is_another_text():
    assert sha256_of([("a", "one two"), ("b", "three")]) != sha256_of([("a", "one twothree"), ("b", "")])


def test_the_recorded_versions_of_the_default_corpus_are_those_of_the_constraints():
    record = json.loads(recorded.RECORD.read_text())
    lines = re.sub(r"\s*#.*", "", (ROOT / "constraints.txt").read_text()).split("\n")
    pinned = {}
    for requirement in map(Requirement, filter(None, lines)):
        if requirement.marker is None or requirement.marker.evaluate(
            {"python_version": record["versions"]["python"][:4]}
        ):
            pinned[requirement.name.replace("-", "_")] = str(requirement.specifier).removeprefix("==")
    for package, version in record["versions"].items():
        assert package == "python" or pinned[package] == version, "run `python -m stitch.text.recorded`"


def test_a_corpus_that_is_not_the_recorded_one_is_said_to_be_so(monkeypatch):
    record = json.loads(recorded.RECORD.read_text())
    assert recorded.difference(record["sha256"]) is None
    monkeypatch.setattr("stitch.text.corpus.versions", lambda: {**record["versions"], "numpy": "1.0"})
    found = recorded.difference("0" * 64)
    assert (
        found is not None and f"numpy 1.0 instead of {record['versions']['numpy']}." in found and "torch" not in found
    )
    monkeypatch.setattr("stitch.text.corpus.versions", lambda: record["versions"])
    assert "files of the packages were changed" in str(recorded.difference("0" * 64))
    assert text_read("docs", DOCUMENTS).note is not None and text_read("other", DOCUMENTS).note is None


@pytest.mark.slow
def test_the_default_corpus_is_the_recorded_one_where_the_versions_are():
    from stitch.text.corpus import cached_documents

    record = json.loads(recorded.RECORD.read_text())
    if versions() != record["versions"]:
        pytest.skip("other versions are installed")
    assert sha256_of(cached_documents()) == record["sha256"]


def test_a_cached_corpus_says_what_it_was_made_from(tmp_path, monkeypatch):
    import gzip

    from stitch.text import corpus

    monkeypatch.setenv("STITCH_CACHE", str(tmp_path))
    monkeypatch.setattr("stitch.text.docstrings.documents", lambda progress: DOCUMENTS)
    assert corpus.cached_documents() == corpus.cached_documents() == DOCUMENTS
    (file,) = tmp_path.glob("docstrings-*.jsonl.gz")
    with gzip.open(file, "rt") as lines:
        assert json.loads(next(lines)) == {"versions": versions()}


@pytest.fixture(scope="module")
def donors(tmp_path_factory) -> dict[str, Path]:
    return gpt2_and_qwen3(tmp_path_factory.mktemp("donors"))


@pytest.mark.slow
def test_reports_say_what_was_read(donors, tmp_path):
    from stitch.text.documents import read

    text, model = str(donors["text"]), str(donors["gpt2"])
    expected = text_read(text, list(read(text))).to_dict()
    assert expected["documents"] == 260
    evaluated = evaluate_models(model, text=text, tokens=64, context=32)
    whole = evaluate_models(model, text=text, whole_text=True, tokens=10**6, context=32)
    assert (
        whole["documents"]["number"]
        > 10 * evaluate_models(model, text=text, tokens=10**6, context=32)["documents"]["number"]
    )
    assert evaluated["provenance"]["text"] == expected
    swept, _ = sweep_depth(model, tmp_path / "depth", lengths=[1], text=text, tokens=4096, context=32)
    assert swept["provenance"]["text"] == expected
