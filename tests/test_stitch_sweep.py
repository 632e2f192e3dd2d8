"""Sweeps over layers on pico models: planted ground truth, agreement with the main job, refusals, reproducible
bytes.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import cli
import tiny
from jobs import settings, write_text
from matching.procrustes import random_rotation
from stitch.composite.compose import compose
from stitch.composite.costs import Costs
from stitch.errors import UsageError
from stitch.evaluation.scores import evaluate, whole_model
from stitch.jobs.join import stitch
from stitch.jobs.sweep import all_cells, sweep
from stitch.jobs.sweep_folder import write_sweep
from stitch.layers import cells as cells_module
from stitch.layers.cells import _groups_within, needed_products, score_cells
from stitch.layers.choose import choose_layer
from stitch.layers.streams import Cell, Side, harvest_all
from stitch.models.loading import load
from stitch.models.model import Model
from stitch.pages.sweep import sweep_page
from stitch.report import sweep as sweep_report
from stitch.report.sweep_card import sweep_card
from stitch.report.sweep_figure import draw_sweep
from stitch.text.documents import Split
from stitch.text.windows import Windows
from stitch.translation.token_tables import token_tables
from stitch.translation.types import Residual, Term, Token, Translation
from turned import rotated_copy

SAMPLES: dict[Split, int] = {"fit": 250, "sweep": 40, "report": 40}
ASKED: dict[str, Any] = dict(tokens=4096, context=32, memory=2**28, device="cpu")


@pytest.fixture(scope="module")
def donors(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("donors")
    return {
        "gpt2": tiny.save(root / "gpt2", "gpt2", num_hidden_layers=3),
        "qwen3": tiny.save(root / "qwen3", "qwen3", seed=1, hidden_size=48, num_hidden_layers=4),
        "text": write_text(root),
    }


def run(donors: dict[str, Path], out: Path, **changes) -> dict:
    arguments: dict[str, Any] = {**ASKED, "text": str(donors["text"]), **changes}
    return sweep(str(donors["gpt2"]), str(donors["qwen3"]), out, **arguments)[0]


@pytest.fixture(scope="module")
def swept(donors, tmp_path_factory) -> tuple[dict, Path]:
    out = tmp_path_factory.mktemp("swept") / "sweep"
    return run(donors, out), out


# ---------------------------------------------------------------------------------------------------------- planted truth


@pytest.fixture(scope="module")
def planted() -> dict[Side, Model]:
    """A Llama and the same computation in a rotated, wider stream, whose blocks cost more."""
    a = tiny.model("llama", tie_word_embeddings=False)
    rotation = random_rotation(a.width, 56, torch.Generator().manual_seed(2)).float()
    return {"a": a, "b": rotated_copy(a, 56, rotation)}


@pytest.fixture(scope="module")
def planted_windows(planted) -> dict[Split, Windows]:
    """Text sampled from the planted model itself, on which that model is optimal."""
    return {split: sampled(planted["a"], 32, count, seed) for seed, (split, count) in enumerate(SAMPLES.items())}


@torch.no_grad()
def sampled(model: Model, context: int, count: int, seed: int) -> Windows:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((count, 1), tiny.BOS)
    while ids.shape[1] < context:
        chances = model.net(ids).logits[:, -1].softmax(-1)
        ids = torch.cat([ids, torch.multinomial(chances, 1, generator=generator)], 1)
    return Windows(ids.int(), torch.arange(count)[:, None].expand(-1, context).int())


def test_for_a_rotated_copy_the_affine_map_loses_nothing_at_the_same_layer(planted, planted_windows, tmp_path):
    depth = planted["a"].depth
    sites: dict[Side, Sequence[int]] = {"a": range(depth + 1), "b": range(depth + 1)}
    harvests = {
        split: harvest_all(planted, found, sites, tmp_path / split, 2**28) for split, found in planted_windows.items()
    }
    held_out = {split: harvests[split] for split in ("sweep", "report")}
    cells = [cell for cell in all_cells(planted["a"], planted["b"]) if cell.j in (2, 5)]
    found = score_cells(planted, cells, harvests["fit"], held_out, reference="report", memory=2**28)
    whole = {"a": whole_model(planted["a"].net)}
    own = evaluate(whole, planted_windows["report"], vocabulary=tiny.VOCABULARY)["a"].ce
    for cell, rows in found.rows.items():
        scores = rows["affine"].scores["report"]
        assert scores.kl is not None
        kl = float(scores.kl.sum() / scores.tokens.sum())
        if cell.i == cell.j:
            assert scores.ce == pytest.approx(own, abs=2e-3) and kl < 1e-3, cell
        else:
            assert scores.ce > own + 0.02 and kl > 0.02, cell
    for null in found.nulls.values():
        assert null.scores["report"].ce > own + 0.02


@torch.no_grad()
def test_a_cell_has_the_same_numbers_whatever_else_is_scored(planted, planted_windows, tmp_path, monkeypatch):
    """Workers of a cluster get some of the cells each. Sums over chunks of another size differ in their last bits."""
    moments, chunks = cells_module._moments, []
    monkeypatch.setattr(cells_module, "_moments", lambda *given: chunks.append(given[3]) or moments(*given))
    sites: dict[Side, Sequence[int]] = {"a": [1, 2], "b": [1, 2]}
    harvests = {
        split: harvest_all(planted, found, sites, tmp_path / split, 2**26) for split, found in planted_windows.items()
    }
    held_out = {split: harvests[split] for split in ("sweep", "report")}
    own = Cell("b", 1, "b", 2)

    def scored(cells: list[Cell]):
        return score_cells(planted, cells, harvests["fit"], held_out, reference=None, memory=2**25)

    alone, beside = scored([own]), scored([Cell("a", 1, "b", 2), Cell("b", 2, "a", 1), own])
    for one, other in (*zip(alone.rows[own].values(), beside.rows[own].values(), strict=True),
                       (alone.nulls["b", 2], beside.nulls["b", 2])):  # fmt: skip
        assert one.strength == other.strength
        assert torch.equal(one.scores["report"].nats, other.scores["report"].nats)
    assert len({*chunks}) == 1 and chunks[0] < planted_windows["fit"].tokens


def test_for_a_rotated_copy_the_same_layer_is_chosen(planted, planted_windows, tmp_path):
    for layer in (1, 3, 5):
        choice = choose_layer(planted["a"], planted["b"], layer, planted_windows, tmp_path / "layer", memory=2**28)
        flops = {item["b"]: item["flops"] for item in choice["layers"]}
        assert flops[layer] <= choice["budget_flops"]  # otherwise the same layer would cost too much
        assert choice["b"] == layer
    assert not (tmp_path / "layer").exists()


@torch.no_grad()
def test_tokens_without_rows_get_them_from_the_embedding_of_the_models_own_source(tmp_path, monkeypatch):
    """A cell of one model beside a narrower one gives what it gives where that model is alone."""
    monkeypatch.setattr("stitch.layers.cells.token_tables", partial(token_tables, small=0))
    narrow, wide = (
        tiny.model(family, tie_word_embeddings=False, **more)
        for family, more in (("llama", {}), ("qwen3", {"hidden_size": 48}))
    )
    windows = {split: sampled(wide, 32, count, seed) for seed, (split, count) in enumerate(SAMPLES.items())}
    for split in ("fit", "sweep"):  # half of the vocabulary is read in the report alone
        windows[split] = replace(windows[split], ids=windows[split].ids % (tiny.VOCABULARY // 2))

    def scored(models: dict[Side, Model], cell: Cell):
        sites: dict[Side, Sequence[int]] = {side: range(model.depth + 1) for side, model in models.items()}
        harvests = {
            split: harvest_all(models, found, sites, tmp_path / f"{cell.source}{split}", 2**28)
            for split, found in windows.items()
        }
        held_out = {split: harvests[split] for split in ("sweep", "report")}
        found = score_cells(models, [cell], harvests["fit"], held_out, reference=None, memory=2**28)
        return found.rows[cell]["affine+token"], found.nulls["b", cell.j]

    beside = scored({"a": narrow, "b": wide}, Cell("b", 1, "b", 3))
    alone = scored({"a": wide, "b": wide}, Cell("a", 1, "b", 3))
    for one, other in zip(beside, alone, strict=True):
        assert one.reads_embedding and other.reads_embedding
        assert one.scores["report"].ce == pytest.approx(other.scores["report"].ce, rel=1e-5)
        assert one.seam == other.seam


# ---------------------------------------------------------------------------------------------------------------- the whole


def test_the_report_has_every_cell_and_agrees_with_the_main_job_in_both_directions(swept, donors, tmp_path):
    report, folder = swept
    assert json.loads((folder / "report.json").read_text()) == report
    cells = {(cell["source"], cell["i"], cell["j"]): cell for cell in report["cells"]}
    assert len(cells) == 2 * 4 * 5
    for source, target, i, j in (("gpt2", "qwen3", 2, 1), ("qwen3", "gpt2", 1, 2)):
        wanted = settings(
            donors[source], donors[target], donors["text"], tokens=4096, layer=i, layer_b=j, sae_passes=0.1, brief=True,
            translation="affine+token", reference_steps=None, held_out=None, seam_bytes=1000.0,
        )  # fmt: skip
        main, _ = stitch(wanted, tmp_path / source)
        rows = {row["name"]: row for row in main["results"]}
        cell = cells["a" if source == "gpt2" else "b", i, j]
        for name in ("affine", "affine+token"):  # the main job leaves out a few more rows, which follow a sink
            row = cell["translations"][name]
            assert row["ce"] == pytest.approx(rows[f"translation:{name}"]["ce"], abs=0.02)
            assert row["kl_to_target"] == pytest.approx(rows[f"translation:{name}"]["kl_to_b"], abs=0.02)
            assert row["ce_low"] == pytest.approx(rows[f"translation:{name}"]["ce_low"], abs=0.02)
        assert cell["flops"] == rows["line"]["flops"]


def test_fronts_and_best_layers_follow_from_the_cells(swept):
    report, _ = swept
    for cost, points in report["fronts"].items():
        alone = [*report["donors"].values(), *report["alternatives"]]
        everything = [(one[cost], one["sweep_ce"]) for one in alone] + [
            (row[cost], row["sweep_ce"]) for cell in report["cells"] for row in cell["translations"].values()
        ]
        for point in points:
            affordable = [loss for paid, loss in everything if paid <= point[cost]]
            assert point["sweep_ce"] == pytest.approx(min(affordable), abs=1e-4)
        assert points[0][cost] == min(paid for paid, _ in everything)
        assert [point["up_to"] for point in points] == [*(point[cost] for point in points[1:]), None]
    budget = max(one["flops"] for one in report["donors"].values())
    assert {(row["source"], row["i"]) for row in report["best_layers"]} == {
        *(("a", i) for i in (1, 2, 3)),
        *(("b", i) for i in (1, 2, 3, 4)),
    }
    for row in report["best_layers"]:
        rivals = [
            cell
            for cell in report["cells"]
            if (cell["source"], cell["i"]) == (row["source"], row["i"])
            and 1 <= cell["j"] < report["depth"][row["target"]]
        ]
        affordable = [cell for cell in rivals if cell["flops"] <= budget]
        assert row["within_budget"] == bool(affordable)
        wanted = min(
            affordable or rivals,
            key=lambda cell: (
                min(one["sweep_ce"] for one in cell["translations"].values()) if affordable else cell["flops"]
            ),
        )
        assert row["j"] == wanted["j"]


def test_the_rival_of_a_cell_is_the_best_on_the_sweep_split_within_its_cost(swept):
    report, _ = swept
    alone = [*report["donors"].values(), *report["alternatives"]]
    for cell in report["cells"]:
        mine = cell["translations"][cell["chosen"]]
        for key, limited in (
            ("rival", ["flops"]), ("rival_within_bytes", ["flops", "bytes"]), ("rival_without_tables", ["flops", "bytes"]),
        ):  # fmt: skip
            known = [one for one in alone if one.get("kind") != "tables" or key != "rival_without_tables"]
            affordable = [one for one in known if all(one[cost] <= mine[cost] for cost in limited)]
            assert (cell[key] is None) == (not affordable)
            if affordable:
                rival, best = cell[key], min(affordable, key=lambda one: one["sweep_ce"])
                assert (rival["ce"], rival["flops"], rival["bytes"]) == (best["ce"], best["flops"], best["bytes"])
                assert rival["above"] == pytest.approx(mine["ce"] - best["ce"])
                assert rival["above_low"] <= rival["above"] <= rival["above_high"]


@pytest.mark.slow
def test_a_model_without_some_blocks_is_the_model_joined_to_itself(swept, donors, tmp_path):
    report, _ = swept
    twice = sweep(str(donors["gpt2"]), str(donors["gpt2"]), tmp_path / "s", **{**ASKED, "text": str(donors["text"])})[0]
    cells = {(cell["i"], cell["j"]): cell["translations"] for cell in twice["cells"]}
    cuts = {one["made"]: one for one in report["alternatives"] if one["kind"] == "cut" and one["model"] == "a"}
    name = report["models"]["a"]
    for made, i, j in ((f"{name} without block 1 of 3", 1, 2), (f"{name} with an exit after 2 of 3 blocks", 2, 3)):
        for kind in ("affine", "affine+token"):
            cut = cuts[f"{made} ({kind})"]
            for key in ("flops", "parameters", "bytes", "bytes_read"):
                assert cut[key] == cells[i, j][kind][key]
            # A few more tokens are a sink at a site of one of two models.
            assert cut["ce"] == pytest.approx(cells[i, j][kind]["ce"], abs=0.02)
    assert len(cuts) == 2 * 3 and not any(one["kind"] == "cut" for one in twice["alternatives"])


def test_tables_are_of_four_sizes_at_most_and_the_name_says_which(swept):
    report, _ = swept
    for side, depth in (("a", 3), ("b", 4)):
        found = [one for one in report["alternatives"] if one["kind"] == "tables" and one["model"] == side]
        for site in range(1, depth):
            sizes = [
                one["bytes"] for one in found if f"first {site} of {depth} blocks as n-gram tables of " in one["made"]
            ]
            assert 1 <= len(sizes) <= 4 and sizes == sorted({*sizes})
        assert len({one["made"] for one in found}) > depth - 1


def test_late_blocks_behind_their_embedding_cost_nothing_of_the_other_model(swept, donors):
    report, _ = swept
    for side, nulls in (("a", 3), ("b", 4)):
        found = [one for one in report["alternatives"] if one["kind"] == "no-source" and one["model"] == side]
        assert len(found) == nulls
        model = load(donors["gpt2" if side == "a" else "qwen3"])
        for one, site in zip(found, range(1, nulls + 1), strict=True):
            table = Term(Token(), torch.zeros(tiny.VOCABULARY, model.width))
            translation = Translation("t", (table,), torch.zeros(model.width), torch.zeros(model.width))
            expected = Costs(model, model, report["context"]).composite(0, site, translation).to_dict()
            assert {cost: one[cost] for cost in expected} == expected
        scores = {cell["null"]["ce"] for cell in report["cells"] if cell["target"] == side and cell["j"]}
        assert {one["ce"] for one in found} == scores


def test_costs_are_those_of_the_composite_that_would_be_written(donors):
    models = [load(donors["gpt2"]), load(donors["qwen3"])]
    for a, b in (models, models[::-1]):
        costs = Costs(a, b, 32)
        table = Term(Token(), torch.zeros(tiny.VOCABULARY, b.width))
        translation = Translation(
            "t", (Term(Residual(2), torch.zeros(a.width, b.width)), table), torch.zeros(b.width), torch.zeros(b.width)
        )
        for onto in (0, 2, b.depth):
            composite = compose(a, b, 2, onto, translation)
            found = costs.composite(2, onto, translation)
            assert found.parameters == sum(parameter.numel() for parameter in composite.parameters())
        head_a, head_b = (2 * tiny.VOCABULARY * model.width for model in (a, b))
        assert costs.flops(a.depth, b.depth, 0) == pytest.approx(costs.whole_source.flops - head_a + head_b)
        assert costs.flops(0, 0, 5) == pytest.approx(costs.whole_target.flops + 10)


@pytest.mark.slow
def test_the_same_request_gives_the_same_bytes(swept, donors, tmp_path):
    report, folder = swept
    assert run(donors, tmp_path / "again") == report
    for name in ("report.json", "README.md", "sweep.png"):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_sums_in_several_passes_give_the_same_scores(swept, donors, tmp_path, monkeypatch):
    cells = [Cell("a", i, "b", j) for i in range(3) for j in range(3)] + [Cell("b", 1, "a", 1), Cell("b", 1, "b", 2)]
    widths = {f"{side}.{site}": 10 for side in "ab" for site in range(3)} | {"embedding.a": 10, "embedding.b": 10}
    one = 16 * 100 * len(needed_products(cells[0]))
    groups = _groups_within(cells, widths, 2 * one)
    assert len(groups) > 2 and sorted(cell for group in groups for cell in group) == sorted(cells)
    for group in groups:
        assert 16 * 100 * len({pair for cell in group for pair in needed_products(cell)}) <= 2 * one
    with pytest.raises(UsageError, match="memory must be at least"):
        _groups_within(cells, widths, one - 1)

    monkeypatch.setattr("stitch.jobs.sweep.draw_sweep", lambda report, path: None)
    monkeypatch.setattr("stitch.layers.cells._groups_within", lambda cells, widths, budget: [cells[:7], cells[7:]])
    again = run(donors, tmp_path / "again")
    assert {**again, "provenance": None} == {**swept[0], "provenance": None}


@pytest.mark.slow
def test_an_interrupted_sweep_keeps_its_activations_and_ends_with_the_same_bytes(swept, donors, tmp_path, monkeypatch):
    def interrupted(*arguments, **more):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("stitch.jobs.sweep.score_cells", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(donors, tmp_path / "cut")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / ".cut.partial").rglob("*.safetensors")}
    assert len(before) >= 6

    def forbidden(*arguments):
        raise AssertionError("a shard on disk was computed again")

    monkeypatch.setattr("stitch.activations.observe.residuals", forbidden)
    monkeypatch.setattr("stitch.jobs.sweep.draw_sweep", lambda report, path: None)
    assert run(donors, tmp_path / "cut", resume=True) == swept[0]
    assert run(donors, tmp_path / "cut", resume=True) == swept[0]  # a finished sweep returns its report again


# --------------------------------------------------------------------------------------------------- the layer of the main job


def test_layer_b_auto_takes_the_layer_of_the_rule_and_records_the_reason(donors, swept, tmp_path):
    wanted = settings(
        donors["gpt2"], donors["qwen3"], donors["text"], tokens=4096, layer=1, layer_b="auto", sae_passes=0.1,
        brief=True, reference_steps=None, held_out=None,
    )  # fmt: skip
    report, folder = stitch(wanted, tmp_path / "auto")
    best = next(row for row in swept[0]["best_layers"] if (row["source"], row["i"]) == ("a", 1))
    choice = report["layer_choice"]
    assert choice["b"] == best["j"] == report["site"]["b"]
    assert json.loads((folder / "config.json").read_text())["site_b"] == best["j"]
    cells = {(cell["source"], cell["i"], cell["j"]): cell for cell in swept[0]["cells"]}
    scored = {item["b"]: item["ce"] for item in choice["layers"]}
    assert set(scored) == {1, 2, 3} and scored[best["j"]] is not None
    for layer, ce in scored.items():
        cell = cells["a", 1, layer]
        assert (ce is None) == (cell["flops"] > choice["budget_flops"])
        if ce is not None:
            assert ce == pytest.approx(min(row["sweep_ce"] for row in cell["translations"].values()), abs=1e-6)
    assert report["provenance"]["settings"]["layer_b"] == "auto"
    assert stitch(wanted, tmp_path / "auto", resume=True)[0] == report
    from stitch.report.card import footnotes

    assert footnotes(report)[0].startswith(f"Layer of B: {best['j']}, chosen on the sweep split")


# --------------------------------------------------------------------------------------------------------------- refusals


def invoke(*arguments: str | Path):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def command(donors: dict[str, Path], *more: str | Path):
    asked = ["--tokens", "4096", "--context", "32", "--device", "cpu", "--quiet", "--text", donors["text"]]
    return invoke("sweep", donors["gpt2"], donors["qwen3"], *asked, *more)


def test_the_command_prints_heat_tables_fronts_and_best_layers(swept, donors, tmp_path, monkeypatch):
    report, folder = swept
    monkeypatch.setattr("stitch.jobs.sweep.sweep", lambda *arguments, **more: (report, folder))
    shown = command(donors, "--out", tmp_path / "s")
    assert shown.exit_code == 0, shown.stderr
    for text in (
        "i \\ j",
        "Best model at every budget of MFLOPs",
        "The chosen j of each i from 1: the lowest",
        f"written to {folder}",
    ):
        assert text in shown.stdout, text
    assert shown.stdout.count("*") == len(report["best_layers"]) + shown.stdout.count("* marks the chosen j")
    assert json.loads(command(donors, "--json").stdout) == report


def test_a_composite_equal_to_its_null_up_to_rounding_does_not_beat_it(swept):
    report, _ = swept
    cells = [
        {
            "chosen": "affine", "null": {"ce": 3.0}, "rival": {"above": high - 1e-8, "above_high": high},
            "rival_within_bytes": None, "translations": {"affine": {"ce": ce}},
        }
        for ce, high in ((2.99, -0.01), (3 - 1e-8, -1e-8), (3.01, 0.02))
    ]  # fmt: skip
    notes = sweep_report.footnotes(report | {"cells": cells})
    assert "1 of 3 composites are better than the best alternative with no more FLOPs, 0 better" in notes[0]
    assert any("1 of 3 composites beat their null" in note for note in notes)


@pytest.mark.parametrize(
    "more, message",
    [
        (["--memory", "lots"], "--memory must be a size"),
        (["--tokens", "10"], "--tokens must be at least 4,096; got 10"),
        (["--context", "4"], "--context must be at least 8"),
        (["--dtype", "fp8"], "--dtype must be one of"),
    ],
)
def test_impossible_sweeps_are_refused_in_one_line(more, message, donors, tmp_path):
    done = command(donors, "--out", tmp_path / "s", *more)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("stitch: ") and done.stderr.count("\n") == 1 and message in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "more, message",
    [
        (["--layer", "1", "--layer-b", "best"], "--layer-b must be a block's number or auto; got 'best'"),
        (["--layer", "1", "--layer-b", "1.5"], "--layer-b must be a block's number or auto; got '1.5'"),
        (["--layer", "1", "--layer-b", "9"], "layer-b must be in 0..4"),
        (["--layer", "0", "--layer-b", "auto"], "--layer-b auto needs a --layer of at least 1; got 0"),
    ],
)
def test_impossible_layers_are_refused_in_one_line(more, message, donors, tmp_path):
    done = invoke(donors["gpt2"], donors["qwen3"], "--quiet", "--text", donors["text"], "--out", tmp_path / "c", *more)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("stitch: ") and done.stderr.count("\n") == 1 and message in done.stderr
    assert not list(tmp_path.iterdir())


def test_models_of_one_block_other_tokenizers_and_existing_folders_are_refused(swept, donors, tmp_path):
    short = tiny.save(tmp_path / "short", "llama", num_hidden_layers=1)
    with pytest.raises(UsageError, match=r"at least 2 blocks; .*short has 1"):
        sweep(str(donors["gpt2"]), str(short), tmp_path / "out", **ASKED)
    other = tiny.save(tmp_path / "other", "llama")
    changed = tiny.tokenizer()
    changed.add_tokens(["<new>"])
    changed.save_pretrained(other)
    with pytest.raises(UsageError, match="1 of 129 tokens differ"):
        sweep(str(donors["gpt2"]), str(other), tmp_path / "out", **ASKED)
    with pytest.raises(UsageError, match="out must not exist"):
        run(donors, swept[1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "short"]


def test_without_matplotlib_a_sweep_has_all_but_its_picture(swept, donors, tmp_path, monkeypatch):
    report, whole = swept
    monkeypatch.setattr("stitch.report.no_picture.missing_of", lambda extra: ["matplotlib"])
    write_sweep(tmp_path / "s", report, sweep_card, sweep_page, draw_sweep, "sweep.png")
    assert {file.name for file in whole.iterdir()} - {file.name for file in (tmp_path / "s").iterdir()} >= {"sweep.png"}
    card = (tmp_path / "s" / "README.md").read_text()
    assert "No picture was made: it needs the extra plot" in card and "sweep.png" not in card
    assert "](sweep.png)" in (whole / "README.md").read_text()
    monkeypatch.setattr("stitch.jobs.sweep.sweep", lambda *arguments, **more: (report, tmp_path / "s"))
    done = command(donors, "--out", tmp_path / "s")
    assert done.exit_code == 0 and "pip install '.[plot]'" in done.stdout
