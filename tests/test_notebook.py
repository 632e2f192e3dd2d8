"""The notebooks in examples/: their cells run one after another, as written."""

import json
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
NOTEBOOKS = sorted(file.name for file in EXAMPLES.glob("*.ipynb"))


def cells(name: str) -> list[dict]:
    return [cell for cell in json.loads((EXAMPLES / name).read_text())["cells"] if cell["cell_type"] == "code"]


def names_after(name: str) -> dict:
    """The variables of a notebook once all of its cells have run."""
    names: dict = {}
    for cell in cells(name):
        exec(compile("".join(cell["source"]), name, "exec"), names)
    return names


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_cells_were_run_in_order_on_no_particular_machine(name):
    found = cells(name)
    assert [cell["execution_count"] for cell in found] == list(range(1, len(found) + 1)) and len(found) >= 9
    shown = json.dumps([cell["outputs"] for cell in found])
    assert "/tmp/" not in shown and "/home/" not in shown and "Traceback" not in shown


def test_all_notebooks_are_tested_and_have_a_page():
    assert NOTEBOOKS == ["parts.ipynb", "tour.ipynb"]
    for name in NOTEBOOKS:
        page = (EXAMPLES.parent / "docs/notebooks" / Path(name).with_suffix(".md")).read_text()
        title = json.loads((EXAMPLES / name).read_text())["cells"][0]["source"][0]
        assert page.startswith(title) and f"```{{notebook}} ../../examples/{name}\n" in page


@pytest.mark.slow
def test_the_tour_shows_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = names_after("tour.ipynb")
    assert names["result"].rows.loc["composite", "ce"] < 4 and (tmp_path / "joined" / "report.html").exists()
    assert names["carried"].rows.loc["transferred", "fvu"] < names["carried"].rows.loc["null:random-map", "fvu"]
    assert names["found"].pairs.scores.mean() > 2 * names["found"].pairs.null_scores.mean()


@pytest.mark.slow
def test_parts_shows_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = names_after("parts.ipynb")
    (rows,) = [one["results"] for one in names["grafted"].report["grafts"]]
    right = {row["name"]: row["right"] for row in rows}
    assert right["host, grafted"] > 0.9 > 0.1 > right["host without the graft"]
    assert names["tables"].rows.loc["converted", "ce"] < names["tables"].rows.loc["null:random-table", "ce"]
    assert names["parity"].report["certified"]
