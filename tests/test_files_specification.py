"""What users write in JSON and YAML: limits of the reader, and all faults of a file in one line with their places."""

from pathlib import Path

import pytest
from pydantic import Field

from stitch.errors import UsageError
from stitch.files.schema import Schema, checked, checked_lines
from stitch.files.specification import MOST_YAML, faulty, json_of, read_json, read_text, shown, yaml_of

LAUGHS = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{new}: &{new} [{','.join(['*' + old] * 10)}]\n" for old, new in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1, "b": {"c": 2, "c": 3}}', "has 'c' twice"),
        ("[NaN]", "must hold finite numbers; got NaN"),
        ("[1e999]", "must hold finite numbers; got 1e999"),
        ("[" + "9" * 5_000 + "]", "may hold whole numbers of 18 digits; got 999"),
        ("[" * 100_000 + "]" * 100_000, "may be nested 32 deep; it goes deeper"),
        ("[" * 33 + "]" * 33, "may be nested 32 deep; it goes deeper"),
        ('{"a": 1,\n "b" 2}', "must be JSON; line 2, column 6: Expecting ':' delimiter"),
        ('["\\ud800"]', r"must hold text that UTF-8 can encode; got '\ud800'"),
        ('{"\\udfff": 1}', "must hold text that UTF-8 can encode"),
    ],
)
def test_json_beyond_the_limits_is_refused(text, said):
    with pytest.raises(UsageError) as caught:
        json_of(text, "x.json")
    assert str(caught.value).startswith("x.json ") and said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3", "line 3, column 1: has 'a' twice"),
        (
            "a: !!python/object/apply:os.system [ls]",
            "line 1, column 4: `python/object/apply:os.system` is not read here",
        ),
        ("a: 2020-01-01", "`timestamp` is not read here; write text in quotation marks"),
        ("a: &x {b: 1}\nc: {<<: *x}", "a key must be text; got '<<'"),
        ("1: 2", "a key must be text; got '1'"),
        ("a: .nan", "must hold finite numbers; got nan"),
        ("a: " + "9" * 400, "may hold whole numbers of 18 digits"),
        ("a: " + "9" * 5_000, "must be a number of up to 18 digits"),
        ("a: !!int b", "must be a number of up to 18 digits; got 'b'"),
        ("a: &x [*x]", "may be nested 32 deep"),
        (LAUGHS, "may hold 100,000 values; its aliases stand for more"),
        ("a: " + "[" * 5_000, "may be nested 32 deep"),
        ("a: [1", "must be YAML; line 1, column 6: expected"),
        ("a: \x07", "must be YAML; unacceptable character"),
        ("a: b\n---\nc: d", "must be YAML; line 2, column 1: but found another document"),
    ],
)
def test_yaml_beyond_the_limits_is_refused(text, said):
    with pytest.raises(UsageError) as caught:
        yaml_of(text, "x.yaml")
    assert str(caught.value).startswith("x.yaml ") and said in str(caught.value)


def test_plain_documents_are_read():
    assert yaml_of("a: &x [1, 2.5, yes, ~, b]\nc: *x", "x.yaml") == {"a": (x := [1, 2.5, True, None, "b"]), "c": x}
    assert json_of('{"a": [1, -2.5e3, true, null, "b\u2028"]}', "x.json") == {"a": [1, -2500.0, True, None, "b\u2028"]}
    assert json_of("[" * 32 + "]" * 32, "x.json")


def test_a_file_must_be_there_small_and_utf_8(tmp_path: Path):
    file = tmp_path / "x.json"
    for content, said in (
        (None, "the program must be a file; there is no"),
        (b" " * (MOST_YAML + 1), f"the program may have {MOST_YAML:,} bytes; .*x.json has more"),
        (b'{"a": "\xff"}', "the program must be text in UTF-8; byte 7 of .*x.json is not"),
    ):
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(UsageError, match=said):
            read_text(file, "the program", MOST_YAML)
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(file, "the program") == {"a": 1}
    with pytest.raises(UsageError, match=r"must be a file; .* is a folder"):
        read_json(tmp_path, "the program")


class Inner(Schema):
    number: int = Field(ge=0, le=9)
    name: str = "x"


class Outer(Schema):
    inner: list[Inner] = Field(min_length=1)
    share: float = Field(0.5, gt=0, le=1)
    on: bool = False


def test_all_faults_are_in_one_line_with_their_places():
    found = {"inner": [{"number": True}, {"numbr": 1}, {"number": 10, "name": 3}, 5], "share": 0, "on": 1}
    with pytest.raises(UsageError) as caught:
        checked(Outer, found, "x.json")
    assert str(caught.value) == (
        "x.json must be corrected: inner[0].number must be a whole number, got True; inner[1] needs 'number'; "
        "inner[1] has 'numbr' (did you mean number?); inner[2].number must be at most 9, got 10; "
        "inner[2].name must be text, got 3; and 3 more."
    )
    with pytest.raises(UsageError, match=r"it must be an object with inner, share, on, got \[\]\."):
        checked(Outer, [], "x.json")
    assert checked(Outer, {"inner": [{"number": 3}], "share": 1}, "x.json").inner[0].number == 3


def test_lines_are_checked_together_and_split_at_newlines_only(tmp_path: Path):
    file = tmp_path / "x.jsonl"
    file.write_text('{"number": 1, "name": "a\u2028b"}\n\n{"number": 2}\n')
    assert [(line, one.number) for line, one in checked_lines(Inner, file, "the lines")] == [(1, 1), (3, 2)]
    file.write_text('{"number": -1}\n{"number": 1}\n{"name": "a"}\n')
    with pytest.raises(UsageError, match="line 1: number must be at least 0, got -1; line 3 needs 'number'"):
        checked_lines(Inner, file, "the lines")


def test_long_values_are_cut():
    assert shown("a" * 100) == "'" + "a" * 58 + "…" and shown("\x1b[31m") == r"'\x1b[31m'"
    assert str(faulty("x", list("abcdefg"))) == "x must be corrected: a; b; c; d; e; and 2 more."
