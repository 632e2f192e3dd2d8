"""The sentence that a report begins with."""

import pytest

from stitch.report.verdict import verdict_sentence

NAMES = {"models": {"a": "first", "b": "second"}, "site": {"a": 1, "b": 2}, "alternatives": {}}


def report(status: str, brief: bool) -> dict:
    verdict = {
        "status": status,
        "rivals": ["b"],
        "row": "b",
        "ce": 0.2,
        "ce_low": 0.1,
        "ce_high": 0.3,
        "flops": 0.9,
        "bytes": 1.0,
    }
    return {**NAMES, "verdict": verdict, "provenance": {"settings": {"brief": brief}}}


@pytest.mark.parametrize(
    ("status", "brief"), [("frontier", True), ("level", True), ("frontier", False), ("dominated", True)]
)
def test_a_brief_report_names_what_was_not_tried_where_it_might_change_the_verdict(status, brief):
    told = verdict_sentence(report(status, brief))
    assert ("Not tried, as the report is brief: reference:b-skip, null:untrained-a." in told) == (
        brief and status != "dominated"
    )
    assert "reference:own-tables" not in told and "b-shortened" not in told  # a brief report has them


def test_rows_that_these_models_cannot_have_are_not_missed():
    one = {
        **report("level", True),
        "models": {"a": "first", "b": "first"},
        "not_made": {"null:untrained-a": "it is large"},
    }
    told = verdict_sentence(one)
    assert "reference:passthrough" in told
    assert not [name for name in ("b-skip", "untrained-a", "linear-patch") if name in told]


def test_a_composite_without_rivals_is_on_the_frontier_by_its_cost():
    told = verdict_sentence({**NAMES, "verdict": {"rivals": []}, "provenance": {"settings": {"brief": True}}})
    assert told.startswith("On the frontier by its cost") and "Not tried" in told
