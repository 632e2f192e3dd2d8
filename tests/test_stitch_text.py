import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from stitch.api.given import text_named
from stitch.errors import StitchError, UsageError
from stitch.text.docstrings import documents as docstring_documents
from stitch.text.documents import read, select, split_of
from stitch.text.passages import LONGEST, SHORTEST, name_of, passages
from stitch.text.windows import sample


def test_splits_are_disjoint_and_have_their_shares():
    names = [f"module{number}" for number in range(4000)]
    counts = {split: sum(split_of(name) == split for name in names) for split in ("fit", "sweep", "report")}
    assert sum(counts.values()) == 4000
    assert 0.88 < counts["fit"] / 4000 < 0.92 and 0.04 < counts["sweep"] / 4000 < 0.06


def test_the_split_of_a_document_depends_on_its_name_alone():
    assert [split_of(name) for name in ("torch.nn.modules.linear", "a#15", "a#37")] == [
        split_of(name) for name in ("torch.nn.modules.linear", "a#15", "a#37")
    ]
    few = [(f"d{number}", "short") for number in range(200)]
    many = [(name, "another text") for name, _ in few] + [(f"e{number}", "x") for number in range(500)]
    for split in ("fit", "sweep", "report"):
        names = {name for name, _ in select(few, split)}
        assert names == {name for name, _ in select(many, split)} & {name for name, _ in few}


def test_the_order_within_a_split_does_not_depend_on_the_input_order():
    given = [(f"d{number}", str(number)) for number in range(100)]
    assert select(given, "fit") == select(reversed(given), "fit")
    assert select(given, "fit") != sorted(select(given, "fit"))


def test_a_plain_file_is_split_at_blank_lines_without_losing_text(tmp_path: Path):
    text = "\n\n".join(f"paragraph {number} " + "word " * 100 for number in range(30))
    (tmp_path / "book.txt").write_text(text)
    passages = [passage for _, passage in read(str(tmp_path / "book.txt"))]
    assert "\n\n".join(passages) == text
    assert all(len(passage) >= 2000 for passage in passages[:-1]) and len(passages) > 5


@pytest.mark.parametrize("separator", ["\n", " ", ""])
def test_text_without_blank_lines_is_cut_at_line_ends_or_at_spaces(separator):
    words = [f"word{number}" for number in range(20_000)]
    text = (separator or "-").join(words)
    found = list(passages(text))
    assert separator.join(found) == text
    assert all(SHORTEST <= len(passage) <= LONGEST for passage in found[:-1]) and len(found) > 10
    if separator:
        assert [word for passage in found for word in passage.split(separator)] == words


def test_a_line_end_goes_before_a_space():
    line = "some words in a line"
    found = list(passages("\n".join([line] * 1000)))
    assert len(found) > 5 and {one for passage in found for one in passage.split("\n")} == {line}


def test_the_split_of_plain_text_does_not_depend_on_the_name_of_its_file(tmp_path: Path):
    text = "\n\n".join(f"paragraph {number} " + "word " * 500 for number in range(200))
    (tmp_path / "book.txt").write_text(text)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "renamed.md").write_text(text)
    first, second = (list(read(str(tmp_path / name))) for name in ("book.txt", "inner"))
    for split in ("fit", "sweep", "report"):
        chosen = select(first, split)
        assert chosen == select(second, split) and len(chosen) > 2


def test_the_splits_of_other_sources_are_those_that_findings_were_made_with():
    names = ("torch.nn.modules.linear", "json", "mixture.jsonl#19", "mixture.jsonl#20", "mixture.jsonl#29")
    assert [split_of(name) for name in names] == ["fit", "report", "fit", "sweep", "report"]


def test_a_folder_gives_the_documents_of_all_its_files(tmp_path: Path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.jsonl").write_text("\n".join(json.dumps({"text": word}) for word in ("one", "two")))
    (tmp_path / "b.txt").write_text("three")
    assert dict(read(str(tmp_path))) == {"inner/a.jsonl#0": "one", "inner/a.jsonl#1": "two", name_of("three"): "three"}


def test_a_text_that_stands_several_times_is_given_once(tmp_path: Path):
    """Otherwise it would be fitted on and reported on."""
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(json.dumps({"text": word}) for word in ("one", "two", "one", "three", "two")))
    assert dict(read(str(file))) == {"a.jsonl#0": "one", "a.jsonl#1": "two", "a.jsonl#3": "three"}
    with text_named(["one"] * 50 + ["two"]) as name:
        assert [text for _, text in read(name)] == ["one", "two"]


def test_rows_of_a_dataset_that_stand_several_times_do_not_count(monkeypatch: pytest.MonkeyPatch):
    rows = [{"text": letter * 10} for letter in "aabbcd"]
    monkeypatch.setattr("datasets.load_dataset", lambda *arguments, **options: rows)
    assert [text[0] for _, text in read("someone/text", 30)] == ["a", "b", "c"]
    rows.insert(1, {"text": None})
    with pytest.raises(UsageError, match=r"must have strings; row 1 of someone/text is None"):
        list(read("someone/text", 30))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": 5}', r'line 2: the field "text" must be a string; got 5'),
        ("{broken", "line 2, is not valid JSON"),
        ('{"txt": "one"}', 'line 2, needs a JSON object with a field "text"'),
    ],
)
def test_a_wrong_line_is_named_with_its_fault(line: str, message: str, tmp_path: Path):
    (tmp_path / "bad.jsonl").write_text(f'{{"text": "fine"}}\n{line}')
    with pytest.raises(StitchError, match=message):
        list(read(str(tmp_path / "bad.jsonl")))


def test_unreadable_text_is_refused_in_one_line(tmp_path: Path):
    with pytest.raises(UsageError, match="there is no file"):
        list(read(str(tmp_path / "missing.txt")))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(StitchError, match="UTF-8"):
        list(read(str(tmp_path / "latin.txt")))


def test_a_repeated_paragraph_is_kept_once(tmp_path: Path, monkeypatch):
    package = tmp_path / "copies"
    package.mkdir()
    shared = "A paragraph that both modules carry, long enough to count as a document on its own. " * 4
    (package / "__init__.py").write_text(f'"""{shared}\n\nThe first module. {"x" * 200}"""')
    (package / "second.py").write_text(
        f'"""{shared}\n\nThe second module."""\ndef f():\n    """{"y" * 300}"""\n\ndef g():\n    "no triple"\n'
    )
    (package / "broken.py").write_text('"""text""" +')
    monkeypatch.syspath_prepend(str(tmp_path))
    found = dict(docstring_documents(("copies",)))
    assert list(found) == ["copies", "copies.second"]
    assert shared.strip() in found["copies"] and shared.strip() not in found["copies.second"]
    assert found["copies.second"] == f"The second module.\n\n{'y' * 300}\n\nno triple"


def test_a_tokenizer_that_makes_nothing_of_the_text_is_refused():
    """As a tokenizer of another family did, for which reading never ended."""
    silent = SimpleNamespace(encode=lambda text, **_: [], bos_token_id=0, eos_token_id=0)
    documents = [(f"d{number}", "some words " * 200) for number in range(4)]
    with pytest.raises(StitchError, match="gives no tokens"):
        sample(documents, silent, context=16, limit=64)
