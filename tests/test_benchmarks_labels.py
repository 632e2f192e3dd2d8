"""The rules of `benchmarks/_labels.py` that give classes to lines and words."""

import json

from _labels import SENTIMENT, code_or_prose, sentiment, with_sentiment, write_labels

TEXT = """The first line of this text is prose.

    >>> first = example(1)
    ... + 2
    3
Parameters
An example of the use of it, as a block::

    block = here

    more = 1
This line is prose again, and long enough.

```
x = fenced
```
"""


def marked(text: str, which: int) -> list[str]:
    return [text[start:end].strip() for start, end, found in code_or_prose(text) if found == which]


def test_lines_of_code_and_of_prose_are_told_apart():
    assert marked(TEXT, 1) == [">>> first = example(1)", "... + 2", "block = here", "more = 1", "x = fenced"]
    assert marked(TEXT, 0) == [
        "The first line of this text is prose.",
        "An example of the use of it, as a block::",
        "This line is prose again, and long enough.",
    ]


def test_a_text_of_one_kind_has_no_labels():
    assert code_or_prose("The first line of this text is prose.") == code_or_prose(">>> one = 1\n") == []


def test_words_have_the_sentiment_of_the_lexicon():
    text = "A Useful way, but slow to use"
    assert {text[start:end]: which for start, end, which in sentiment(text) if which} == {"Useful": 1, "slow": 2}
    assert len(sentiment(text)) == 7
    words = [set(words.split()) for words in SENTIMENT.values()]
    assert not words[0] & words[1] and all(len(some) > 40 for some in words)


def test_paragraphs_without_sentiment_are_left_out(tmp_path):
    text = "It is a way.\n\nA useful way.\n\nIt fails."
    assert with_sentiment(text) == "A useful way.\n\nIt fails."
    write_labels([("one", "It is a way."), ("two", text)], "sentiment", 5, tmp_path / "labels")
    (line,) = [json.loads(line) for line in (tmp_path / "labels").read_text().splitlines()]
    assert line["text"] == with_sentiment(text) and [2, 8, 1] in line["labels"]
