"""The notebook in examples/: its cells run one after another, as written."""

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parent.parent / "examples" / "tour.ipynb"


def cells() -> list[dict]:
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def test_there_are_ten_cells_that_were_run_in_order_on_no_particular_machine():
    assert [cell["execution_count"] for cell in cells()] == list(range(1, 11))
    shown = json.dumps([cell["outputs"] for cell in cells()])
    assert "/tmp/" not in shown and "/home/" not in shown and "Traceback" not in shown


@pytest.mark.slow
def test_the_cells_run_and_show_what_they_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for cell in cells():
        exec(compile(source(cell), str(NOTEBOOK), "exec"), names)
    assert names["result"].rows.loc["composite", "ce"] < 4 and (tmp_path / "joined" / "report.html").exists()
    assert names["carried"].rows.loc["transferred", "fvu"] < names["carried"].rows.loc["null:random-map", "fvu"]
    assert names["found"].pairs.scores.mean() > 2 * names["found"].pairs.null_scores.mean()
