"""Depth sweeps on pico models: cells agree with the models they stand for, the best is chosen, bytes repeat, refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import cli
import tiny
from jobs import write_text
from stitch.activations.harvest import Activations, harvest
from stitch.composite.bridges import fit_bridges
from stitch.composite.native import with_blocks
from stitch.composite.splice import Splice
from stitch.composite.surgery import bridged
from stitch.errors import UsageError
from stitch.evaluation.scores import evaluate, whole_model
from stitch.jobs.depth import sweep_depth
from stitch.layers.depth import score_depth, splices
from stitch.report.depth import best_in, best_table, heat
from stitch.text.documents import Split
from stitch.text.windows import Windows

ASKED: dict[str, Any] = dict(
    tokens=4096, held_out=1024, context=32, memory=2**28, device="cpu", lengths=[1, 3], repeat=True
)


@pytest.fixture(scope="module")
def donors(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("donors")
    return {"llama": tiny.save(root / "llama", "llama"), "text": write_text(root, documents=600)}


@pytest.fixture(scope="module")
def swept(donors, tmp_path_factory) -> tuple[dict, Path]:
    out = tmp_path_factory.mktemp("swept") / "depth"
    return sweep_depth(str(donors["llama"]), out, text=str(donors["text"]), **ASKED)


def windows(count: int, seed: int) -> Windows:
    ids = tiny.ids(count, 32, seed)
    return Windows(ids.int(), torch.arange(count)[:, None].expand(count, 32).int())


@pytest.mark.parametrize(
    "splice", [Splice(6, 2, 4), Splice(6, 4, 6), Splice(6, 4, 2), Splice(6, 6, 5), Splice(6, 2, 0)]
)
def test_a_splice_says_which_blocks_run_and_where_it_rejoins_the_whole_model(splice):
    rejoined = splice.order[splice.seam :]
    assert rejoined == list(range(splice.expected, 6))
    assert splice.order[: splice.shared] == list(range(splice.shared))
    assert splice.order[splice.seam - 1] == splice.early - 1
    assert len(splice.order) == 6 + len(splice.changed) * (-1 if splice.removes else 1)


@pytest.mark.parametrize("family", ["llama", pytest.param("gemma3_text", marks=pytest.mark.slow)])
def test_a_cell_has_the_loss_of_the_model_that_it_stands_for(family, tmp_path):
    """Scored from cached streams, against the new model run from token ids."""
    model, text = tiny.model(family), windows(6, 3)
    texts: dict[Split, Windows] = {"fit": windows(40, 1), "sweep": windows(8, 2), "report": text}
    streams: dict[Split, Activations] = {
        split: harvest(model, found, range(7), tmp_path / split) for split, found in texts.items()
    }
    tried = splices(6, [2], repeat=False) + splices(6, [1], repeat=True)
    found = score_depth(model, tried, streams, streams["report"], bridge=True, memory=2**28)
    assert len(tried) == 4 + 6
    for splice in (tried[0], tried[-1]):
        rows = {"passthrough": whole_model(with_blocks(model, splice.order).net)}
        bridges = fit_bridges(model, splice, streams, memory=2**28)
        rows["down-projection"] = whole_model(bridged(model, splice, bridges["translation:down-projection"]).net)
        expected = evaluate(rows, text, vocabulary=tiny.VOCABULARY)
        assert set(found[splice].scores) == set(rows)
        for name, row in expected.items():
            assert found[splice].scores[name].ce == pytest.approx(row.ce, abs=1e-5)


def test_every_range_is_tried_and_the_best_of_each_length_is_scored_on_the_report_split(swept):
    report, folder = swept
    assert json.loads((folder / "report.json").read_text()) == report
    assert len(report["cells"]) == (5 + 3) + (6 + 4)  # removed, block 0 never; repeated
    for kind, length in (("removed", 1), ("removed", 3), ("repeated", 1), ("repeated", 3)):
        cells = [one for one in report["cells"] if (one["change"], one["length"]) == (kind, length)]
        for row in ("passthrough", "down-projection"):
            lowest = min(cells, key=lambda cell, row=row: cell["sweep_ce"][row])["first"]
            assert [one["first"] for one in best_in(report, kind, row) if one["length"] == length] == [lowest]
        best = next(one for one in best_in(report, kind, "down-projection") if one["length"] == length)
        plain, fitted = best["rows"]
        assert fitted["minus_whole"]["ce"] == pytest.approx(fitted["ce"] - report["whole"]["ce"], abs=1e-9)
        assert fitted["minus_passthrough"]["ce"] == pytest.approx(fitted["ce"] - plain["ce"], abs=1e-9)
        assert fitted["null_minus"]["ce"] == pytest.approx(fitted["null_ce"] - fitted["ce"], abs=1e-9)
        assert len(best["null"]) in (2, 3) and best["first"] not in best["null"]
    assert (folder / "depth.png").stat().st_size > 10_000
    assert f"{best['first']} to {best['first'] + 2} repeated, down-projection" in (folder / "README.md").read_text()


def test_a_map_marks_the_best_and_leaves_out_ranges_that_do_not_exist(swept):
    report, _ = swept
    _, header, texts, values = heat(report, "removed", "down-projection")
    assert header == ["n \\ first", "1", "2", "3", "4", "5"]
    assert values[1][3] != values[1][3] and texts[1][4] == ""  # three blocks from block 4 on
    assert [sum(text.endswith("*") for text in line[1:]) for line in texts] == [1, 1]
    assert len(best_table(report)[1]) == 2 * 4  # rows × kinds and lengths


@pytest.mark.slow
def test_the_same_request_gives_the_same_bytes(swept, donors, tmp_path):
    again, folder = sweep_depth(str(donors["llama"]), tmp_path / "again", text=str(donors["text"]), **ASKED)
    assert again == swept[0]
    for name in ("report.json", "README.md", "depth.png"):
        assert (folder / name).read_bytes() == (swept[1] / name).read_bytes()


def invoke(*arguments: str | Path):
    return CliRunner().invoke(cli.app, ["sweep", *(str(argument) for argument in arguments), "--quiet"])


def test_the_command_prints_maps_and_the_best_ranges(swept, donors, tmp_path, monkeypatch):
    report, folder = swept
    monkeypatch.setattr("stitch.jobs.depth.sweep_depth", lambda *arguments, **more: (report, folder))
    shown = invoke(donors["llama"], "--depth", "--repeat", "--lengths", "1,3", "--out", tmp_path / "s")
    assert shown.exit_code == 0, shown.stderr
    for text in (
        "blocks (down) removed",
        "blocks (down) repeated",
        "Best range of each length",
        f"written to {folder}",
    ):
        assert text in shown.stdout, text
    assert json.loads(invoke(donors["llama"], "--depth", "--json").stdout) == report


@pytest.mark.parametrize(
    "more, message",
    [
        ([], "a sweep needs two models, or one model and --depth"),
        (["--depth", "--lengths", "1,x"], "--lengths must be whole numbers separated by commas"),
        (["--depth", "--lengths", "6"], "--lengths must be in 1..5"),
        (["--depth", "--cluster", "local"], "--cluster spreads pairs of layers"),
    ],
)
def test_impossible_depth_sweeps_are_refused_in_one_line(more, message, donors, tmp_path):
    done = invoke(donors["llama"], "--text", donors["text"], "--out", tmp_path / "s", *more)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("stitch: ") and done.stderr.count("\n") == 1 and message in done.stderr
    assert not list(tmp_path.iterdir())


def test_two_models_take_no_options_of_one(donors, tmp_path):
    done = invoke(donors["llama"], donors["llama"], "--repeat", "--out", tmp_path / "s")
    assert done.exit_code == 2 and "--repeat" in done.stderr


def test_lengths_out_of_range_are_refused_by_the_library(donors, tmp_path):
    with pytest.raises(UsageError, match=r"lengths must be in 1\.\.5"):
        sweep_depth(str(donors["llama"]), tmp_path / "s", lengths=[0], text=str(donors["text"]))
