"""Depth surgery: the native checkpoint computes what the bridge specifies, planted bridges are found, unsupported
changes are refused.
"""

import copy
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import cli
import tiny
from heard import Heard
from jobs import settings, write_text
from stitch.activations.harvest import Activations, harvest
from stitch.composite.bridges import fit_bridges, sites_of
from stitch.composite.linear_patch import hadamard, linear_patch
from stitch.composite.native import with_blocks, write_native
from stitch.composite.normed import fit_gain
from stitch.composite.splice import Splice
from stitch.composite.surgery import Bridge, bridged, parameters_of, weight_of, why_not_foldable
from stitch.config import Settings
from stitch.errors import StitchError, UsageError
from stitch.evaluation.scores import evaluate, whole_model
from stitch.files.job import planning
from stitch.files.store import Store
from stitch.jobs.join import stitch
from stitch.jobs.pair.models import load_pair
from stitch.jobs.pair.settings import complete
from stitch.jobs.pair.text import read_windows
from stitch.models.anatomy import ANATOMIES
from stitch.models.loading import load
from stitch.models.model import Model
from stitch.regression.moments import accumulate
from stitch.regression.prior import ridge_towards
from stitch.regression.ridge import STRENGTHS
from stitch.report.card import table
from stitch.report.verdict import verdict_sentence
from stitch.text.documents import Split
from stitch.text.windows import Windows

NORMED = [family for family in tiny.FAMILIES if ANATOMIES[family].mlp_out_norm is not None]
START, STOP = 2, 4
REMOVED, REPEATED = Splice(tiny.DEPTH, START, STOP), Splice(tiny.DEPTH, STOP, START)
BOTH = pytest.mark.parametrize("splice", [REMOVED, REPEATED], ids=["removed", "repeated"])


# --------------------------------------------------------------------------------------------------------- the checkpoint


def rms(rows: torch.Tensor) -> torch.Tensor:
    return rows.square().mean(-1, keepdim=True).sqrt()


def by_hand(model: Model, ids: torch.Tensor, splice: Splice, bridge: Bridge) -> torch.Tensor:
    """Logits of the whole model's modules: its list of blocks is changed, and bridged MLPs get other outputs while they run as
    the block of that number.
    """
    net = copy.deepcopy(model.net)
    changed = dataclasses.replace(model, net=net)
    blocks: Any = changed.body.get_submodule(model.anatomy.blocks)
    chosen = [copy.deepcopy(blocks[block]) for block in splice.order]
    kinds = getattr(model.config, "layer_types", None)
    changed.body.set_submodule(model.anatomy.blocks, nn.ModuleList(chosen))
    net.config.num_hidden_layers = len(chosen)
    if kinds is not None:
        net.config.layer_types = [kinds[block] for block in splice.order]
    for block, gain in bridge.gains.items():
        norm = chosen[block].get_submodule(str(model.anatomy.mlp_out_norm))
        norm.register_forward_hook(lambda module, args, output, gain=gain: args[0] / rms(args[0]) * gain.float())
    for block, matrix in bridge.downs.items():
        place = chosen[block].get_submodule(model.anatomy.down)

        def replaced(module, args, output, matrix=matrix):
            neurons = args[0]
            return neurons @ matrix[: neurons.shape[-1]] + matrix[neurons.shape[-1] :].sum(0)

        place.register_forward_hook(replaced)
    with torch.no_grad():
        return net(ids, use_cache=False).logits


@pytest.mark.numeric
@BOTH
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_checkpoint_is_a_stock_model_that_computes_what_the_bridge_specifies(family, splice, tmp_path):
    """Against the whole model's modules in another list."""
    model, ids = load(tiny.save(tmp_path / "whole", family)), tiny.ids(3, 14)
    refitted = (splice.seam - 1, splice.seam)
    noise = {block: tiny.noise(*weight_of(model.down(0)).shape, seed=block) / 5 for block in refitted}
    gains = {block: tiny.noise(model.width, seed=block).double() for block in refitted}
    bridge = Bridge(noise, gains=gains if family in NORMED else {})
    changed = parameters_of(with_blocks(model, splice.order), bridge)
    write_native(tmp_path / "new", model, splice.order, changed, max_shard_bytes=20_000)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "new", output_loading_info=True)
    net, report = loaded
    assert type(net) is type(model.net) and net.config.num_hidden_layers == len(splice.order)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with torch.no_grad():
        logits = net.eval()(ids, use_cache=False).logits
    assert (logits - by_hand(model, ids, splice, bridge)).abs().max() < 1e-4
    assert torch.equal(logits, bridged(model, splice, bridge).net(ids, use_cache=False).logits)
    plain = by_hand(model, ids, splice, Bridge({}))
    assert (logits - plain).abs().max() > 0.1
    assert (plain - model.net(ids, use_cache=False).logits).abs().max() > 0.1
    cached = net.generate(ids, max_new_tokens=8, do_sample=False, use_cache=True)  # pyright: ignore[reportCallIssue]
    assert torch.equal(cached, net.generate(ids, max_new_tokens=8, do_sample=False, use_cache=False))  # pyright: ignore[reportCallIssue]


def test_layer_types_tied_weights_and_dtype_are_those_of_the_donor(tmp_path):
    gemma = load(tiny.save(tmp_path / "gemma", "gemma3_text"))
    for order in ([0, 3, 4, 5], [0, 1, 2, 1, 2, 3, 4, 5], [0, 0, 5, 2]):
        folder = tmp_path / "-".join(map(str, order))
        write_native(folder, gemma, order, {})
        kinds = json.loads((folder / "config.json").read_text())["layer_types"]
        assert kinds == [tiny._MIXED_LAYERS[block] for block in order]
    llama = load(tiny.save(tmp_path / "llama", "llama", dtype=torch.bfloat16))
    order = Splice(tiny.DEPTH, 1, 3).order
    changed = parameters_of(with_blocks(llama, order), Bridge({0: tiny.noise(56, 40)}))
    write_native(tmp_path / "narrow", llama, order, changed)
    with safe_open(tmp_path / "narrow" / "model.safetensors", framework="pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118


# ---------------------------------------------------------------------------------------------------------- planted truth


def windows(count: int, seed: int) -> Windows:
    ids = tiny.ids(count, 32, seed)
    return Windows(ids.int(), torch.arange(count)[:, None].expand(count, 32).int())


class Planted(nn.Module):
    """A block that adds a linear function of the neurons of another block."""

    def __init__(self, change: torch.Tensor):
        super().__init__()
        self.change, self.neurons = change, torch.zeros(())

    def forward(self, hidden_states, *args, **kwargs):
        return hidden_states + self.neurons @ self.change


class PassOn(nn.Module):
    def forward(self, hidden_states, *args, **kwargs):
        return hidden_states


def bridge_scores(model: Model, splice: Splice, folder: Path) -> dict[str, float]:
    """KL to the whole model of every bridge, fitted on random windows."""
    texts: dict[Split, Windows] = {"fit": windows(60, 1), "sweep": windows(10, 2)}
    streams: dict[Split, Activations] = {
        split: harvest(model, text, sites_of(splice), folder / split, per_shard=25) for split, text in texts.items()
    }
    bridges = fit_bridges(model, splice, streams, memory=2**28)
    rows = {name: whole_model(bridged(model, splice, bridge).net) for name, bridge in bridges.items()}
    scores = evaluate(rows, windows(8, 3), vocabulary=tiny.VOCABULARY, reference=whole_model(model.net))
    return {name: found.row(name)["kl_to_b"] for name, found in scores.items()}


@pytest.mark.numeric
@pytest.mark.parametrize(
    "family, of", [("llama", "neurons"), ("gpt2", "neurons"), ("phi", "neurons"), ("llama", "output")]
)
def test_a_cut_that_a_bridge_can_represent_is_bridged_exactly(family, of, tmp_path):
    model = tiny.model(family)
    down = model.down(START - 1)
    own = weight_of(down).float()
    neurons = own.shape[0] - (down.bias is not None)
    change = (
        tiny.noise(neurons, model.width) / 5
        if of == "neurons"
        else own[:neurons] @ tiny.noise(model.width, model.width) / 5
    )
    planted = Planted(change)
    down.register_forward_pre_hook(lambda module, args: setattr(planted, "neurons", args[0]))
    model.blocks[START], model.blocks[STOP - 1] = planted, PassOn()
    kl = bridge_scores(model, REMOVED, tmp_path)
    exact = {"translation:down-projection", "translation:down-projections"}
    exact |= {"reference:replaceme", "reference:replaceme-relative"} if of == "output" else set()
    for name, found in kl.items():
        assert found < 1e-6 if name in exact else found > 1e-3, (name, kl)


@pytest.mark.numeric
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_repeat_whose_effect_the_last_mlp_can_undo_is_bridged_exactly(family, tmp_path):
    """Where attention writes nothing, the second run of a block adds a linear function of its neurons, and 0 is wanted. It is
    wanted of every token, so the null finds it too."""
    model = tiny.model(family)
    splice = Splice(tiny.DEPTH, 3, 2)
    out: Any = model.heads_out(2)
    with torch.no_grad():
        out.weight.zero_()
        if out.bias is not None:
            out.bias.zero_()
    kl = bridge_scores(model, splice, tmp_path)
    for name, found in kl.items():
        exact = not name.endswith(("passthrough", "linear-patch"))
        assert found < 1e-6 if exact else found > 1e-3, (name, kl)


@pytest.mark.parametrize("order", [1, 2, 4, 12, 20, 28, 36, 40, 576, 640])
def test_hadamard_matrices_have_orthogonal_rows_of_plus_and_minus_one(order):
    found = hadamard(order)
    assert found is not None and bool((found.abs() == 1).all())
    assert torch.equal(found @ found.T, order * torch.eye(order, dtype=torch.float64))


def test_orders_without_a_matrix_of_paley_are_refused():
    assert hadamard(6) is None and hadamard(92) is None
    assert linear_patch([(torch.ones(1, 2, 6).double(), torch.ones(1, 2, 6).double())]) is None


def test_a_linear_patch_restores_magnitudes_in_the_rotated_channels():
    """The stream that arrives is the expected one with its rotated channels scaled, so undoing that is exact."""
    rotation = hadamard(12)
    assert rotation is not None
    rotation = rotation / 12**0.5
    expected = tiny.noise(5, 7, 12).double()
    scales = torch.linspace(0.3, 3, 12, dtype=torch.float64)
    patch = linear_patch([(expected @ rotation @ torch.diag(scales) @ rotation.T, expected)])
    assert patch is not None
    assert torch.allclose(patch, rotation @ torch.diag(1 / scales) @ rotation.T)
    assert torch.allclose(patch, patch.T)


@pytest.mark.numeric
def test_ridge_towards_given_weights_is_least_squares_with_one_more_row_per_input():
    u, y, prior = tiny.noise(200, 7).double(), tiny.noise(200, 3, seed=1).double(), tiny.noise(7, 3, seed=2).double()
    pairs = [("u", "u"), ("u", "y")]
    moments = accumulate([{"u": u[:120], "y": y[:120]}, {"u": u[120:], "y": y[120:]}], pairs)
    found = ridge_towards(moments, accumulate([{"u": u[:50], "y": y[:50]}], pairs), prior, inputs="u", target="y")
    strength = (found.strength * (u**2).sum(0).mean()).sqrt() * torch.eye(7, dtype=torch.float64)
    expected = torch.linalg.lstsq(torch.cat([u, strength]), torch.cat([y, strength @ prior])).solution
    assert torch.allclose(found.weight, expected)
    error = ((y[:50] - u[:50] @ found.weight) ** 2).sum() / (y[:50] ** 2).sum()
    assert found.unexplained == pytest.approx(float(error))


@pytest.mark.numeric
@pytest.mark.parametrize("seed", range(4))
def test_the_strength_is_the_best_of_all_and_one_that_cannot_be_solved_is_passed_by(seed, monkeypatch):
    """Fewer rows than inputs: the smallest strengths are below rounding."""
    u, prior = tiny.noise(40, 30, seed=seed).double(), torch.zeros(30, 3, dtype=torch.float64)
    u = torch.cat([u, u + 1e-9 * tiny.noise(40, 30, seed=seed + 10).double()], 1)
    y = u[:, :3] + 0.5 * tiny.noise(40, 3, seed=seed + 20).double()
    pairs, prior = [("u", "u"), ("u", "y")], torch.cat([prior, prior])
    fit, held = accumulate([{"u": u[:24], "y": y[:24]}], pairs), accumulate([{"u": u[24:], "y": y[24:]}], pairs)
    found = ridge_towards(fit, held, prior, inputs="u", target="y")

    def unexplained(strength: float) -> float:
        added = (strength * (u[:24] ** 2).sum(0).mean()) ** 0.5 * torch.eye(60, dtype=torch.float64)
        weight = torch.linalg.lstsq(torch.cat([u[:24], added]), torch.cat([y[:24], prior])).solution
        return float(((y[24:] - u[24:] @ weight) ** 2).sum() / (y[24:] ** 2).sum())

    assert found.unexplained == pytest.approx(min(map(unexplained, STRENGTHS.tolist())), rel=1e-4)
    monkeypatch.setattr("torch.linalg.cholesky_ex", lambda matrix: (matrix, torch.ones(())))
    with pytest.raises(StitchError, match="can be solved in float64"):
        ridge_towards(fit, held, prior, inputs="u", target="y")


# ------------------------------------------------------------------------------------------------------------ the command


@pytest.fixture(scope="module")
def donors(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("donors")
    return {"llama": tiny.save(root / "llama", "llama"), "text": write_text(root)}


@pytest.fixture(scope="module")
def heard() -> Heard:
    """What `run` tells of its progress."""
    return Heard()


@pytest.fixture(scope="module")
def run(donors, heard, tmp_path_factory) -> tuple[dict, Path]:
    out = tmp_path_factory.mktemp("run") / "short"
    return stitch(shorten(donors, layer=2, layer_b=4), out, progress=heard)


@pytest.fixture(scope="module")
def grown(donors, tmp_path_factory) -> tuple[dict, Path]:
    return stitch(shorten(donors, layer=4, layer_b=2), tmp_path_factory.mktemp("grown") / "long")


@pytest.fixture(scope="module")
def plain(donors, tmp_path_factory) -> tuple[dict, Path]:
    return stitch(shorten(donors, layer_b=4, translation="identity"), tmp_path_factory.mktemp("plain") / "plain")


def shorten(donors, **changes):
    return settings(donors["llama"], donors["llama"], donors["text"], native=True, **changes)


def test_the_report_has_every_bridge_beside_removal_replaceme_adapters_and_null(run):
    report, folder = run
    assert json.loads((folder / "report.json").read_text()) == report
    rows = {row["name"]: row for row in report["results"]}
    assert list(rows)[:3] == ["a", "b", "composite"]
    assert set(list(rows)[3:]) == {
        "translation:down-projection", "translation:down-projections", "translation:affine", "translation:affine+token",
        "reference:passthrough", "reference:replaceme", "reference:replaceme-relative", "reference:linear-patch",
        "reference:own-tables", "reference:b-shortened", "reference:a-exit",
        "null:shuffled-down-projection", "null:random-range",
    }  # fmt: skip
    assert rows["translation:down-projection"]["kl_to_b"] < rows["reference:replaceme"]["kl_to_b"]
    assert rows["translation:down-projection"]["kl_to_b"] < rows["null:shuffled-down-projection"]["kl_to_b"]
    assert report["native"]["blocks"] == 4 and report["native"]["of"] == 6
    compared = {(item["name"], item["minus"]) for item in report["differences"]}
    assert {("reference:passthrough", "composite"), ("reference:replaceme", "composite")} <= compared
    assert {("null:random-range", "composite"), ("composite", "reference:own-tables")} <= compared
    card = (folder / "README.md").read_text()
    assert "trust_remote_code" not in card and "without blocks 2 to 3" in card
    assert all(row in card for row in rows)


def test_the_folder_scores_as_reported_and_generates(run, donors):
    from stitch.jobs.evaluate import evaluate_models

    report, folder = run
    again = evaluate_models(str(folder), text=str(donors["text"]), tokens=4096, context=32, device="cpu")
    ce = next(row["ce"] for row in report["results"] if row["name"] == "composite")
    assert again["results"][0]["ce"] == pytest.approx(ce, abs=1e-6)
    assert (folder / "tokenizer.json").is_file() and (folder / "generation_config.json").is_file()
    assert not list(folder.parent.glob(".*"))


@pytest.mark.slow
def test_the_same_request_gives_the_same_bytes_and_replaces_on_request_only(run, donors, tmp_path):
    report, folder = run
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "report.json"}
    done = CliRunner().invoke(
        cli.app,
        [str(donors["llama"])] * 2 + f"--layer 2 --layer-b 4 --native --text {donors['text']} --tokens 4096 --context 32 "
        f"--features 64 --k 8 --reference-steps 5 --memory 256M --device cpu --json -q --overwrite --out {folder}".split(),
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    again = json.loads(done.stdout)
    assert {**report, "seconds": {}} == {**again, "seconds": {}, "cache": {}}
    assert before == {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "report.json"}
    again, place = stitch(shorten(donors, layer_b=4), folder, resume=True)
    assert place == folder and {**report, "seconds": {}} == {**again, "seconds": {}, "cache": {}}
    with pytest.raises(UsageError, match="out must not exist"):
        stitch(shorten(donors, layer_b=4), folder)


@pytest.mark.slow
def test_activations_of_an_earlier_run_are_used_planned_for_and_change_nothing(run, donors, tmp_path, monkeypatch):
    monkeypatch.setattr("stitch.estimates.machine.LONG", 0.0)
    found = []
    for name in ("first", "second"):
        store = Store(tmp_path / "store")
        report, folder = stitch(shorten(donors, layer=2, layer_b=4), tmp_path / name, store=store)
        found.append(report["cache"])
        assert report["results"] == run[0]["results"]
        assert (folder / "model.safetensors").read_bytes() == (run[1] / "model.safetensors").read_bytes()
    count = found[0]["made"]["activations"]
    assert found[1]["reused"] == {"activations": count} and count > 0
    with planning() as plans:
        stitch(shorten(donors, layer=2, layer_b=4), tmp_path / "third", store=Store(tmp_path / "store"))
    assert set(plans[1].stages) == set(report["seconds"]) - {"load"}
    assert plans[1].cached == {"files of activations": (count, count)} and plans[1].stages["activations"].flops == 0


def test_a_requested_bridge_is_the_one_written(plain, donors):
    report, folder = plain
    assert report["chosen"] == "passthrough"
    wanted = by_hand(load(donors["llama"]), tiny.ids(), REMOVED, Bridge({}))
    assert torch.equal(AutoModelForCausalLM.from_pretrained(folder)(tiny.ids(), use_cache=False).logits, wanted)


def test_with_the_first_layer_above_the_second_blocks_are_repeated(grown):
    report, folder = grown
    rows = {row["name"]: row for row in report["results"]}
    assert report["native"]["order"] == [0, 1, 2, 3, 2, 3, 4, 5] == REPEATED.order
    assert report["native"]["change"] == "with blocks 2 to 3 twice" and report["native"]["weights_added"] > 0
    assert AutoModelForCausalLM.from_pretrained(folder).config.num_hidden_layers == 8
    assert rows["translation:down-projection"]["kl_to_b"] < rows["reference:passthrough"]["kl_to_b"]
    assert rows["translation:down-projection"]["kl_to_b"] < rows["null:shuffled-down-projection"]["kl_to_b"]
    assert "with blocks 2 to 3 twice" in (folder / "README.md").read_text()


def stored(folder: Path) -> tuple[int, int]:
    """Numbers and bytes of the tensors in a checkpoint."""
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
    return sum(one.numel() for one in tensors), sum(one.numel() * one.element_size() for one in tensors)


def test_every_row_has_its_costs_and_the_written_one_those_of_its_files(run, grown, donors):
    """The embedding is tied to the head, and is stored once; blocks that run twice are stored twice."""
    for (report, folder), blocks in ((run, 4), (grown, 8)):
        rows = {row["name"]: row for row in report["results"]}
        assert all(row["flops"] > 0 < row["bytes_read"] for row in rows.values())
        written, whole = rows["composite"], rows["a"]
        assert (written["parameters"], written["bytes"]) == stored(folder)
        assert (whole["parameters"], whole["bytes"]) == stored(donors["llama"])
        each = (whole["flops"] - 2 * tiny.VOCABULARY * 40) / 6  # the head is a product of vocabulary × width
        assert written["flops"] == pytest.approx(blocks * each + 2 * tiny.VOCABULARY * 40)
        assert rows["null:random-range"]["bytes"] == written["bytes"]
        assert rows["reference:linear-patch"]["flops"] == written["flops"] + 2 * 40 * 40
        assert rows["translation:affine"]["bytes"] > written["bytes"]
        header, cells, _ = table(report)
        assert header[-4:] == ["MFLOP", "M param.", "MB", "MB read"] and all(all(row[-4:]) for row in cells)


def test_the_verdict_is_that_against_the_best_that_costs_no_more(run, grown):
    for report, folder in (run, grown):
        rows = {row["name"]: row for row in report["results"]}
        limit = rows["composite"]
        models = {"a", "reference:passthrough", "reference:replaceme", "reference:replaceme-relative"}
        models |= {"reference:linear-patch", "reference:own-tables", "reference:b-shortened", "reference:a-exit"} & set(
            rows
        )
        cheap = [
            name for name in models - {f"reference:{report['chosen']}"}
            if rows[name]["flops"] <= limit["flops"] and rows[name]["bytes"] <= limit["bytes"]
        ]  # fmt: skip
        found = report["verdict"]
        assert found["rivals"] == sorted(cheap, key=lambda name: rows[name]["ce"])
        best = rows[found["rivals"][0]]
        assert found["row"] == best["name"] and found["ce"] == pytest.approx(limit["ce"] - best["ce"])
        assert found["flops"] == pytest.approx(best["flops"] / limit["flops"]) and found["bytes"] <= 1
        paired = {
            frozenset((one["name"], one["minus"])): sorted(abs(one[end]) for end in ("ce_low", "ce_high"))
            for one in report["differences"]
        }
        ends = sorted(abs(found[end]) for end in ("ce_low", "ce_high"))
        assert ends == pytest.approx(paired[frozenset(("composite", best["name"]))])
        sentence = verdict_sentence(report)
        assert best["name"] in sentence and f"{found['flops']:.2f} of " in sentence
        assert sentence in (folder / "README.md").read_text() and sentence in (folder / "report.html").read_text()
    assert "reference:own-tables" in run[0]["verdict"]["rivals"] and "a" not in run[0]["verdict"]["rivals"]
    assert "a" in grown[0]["verdict"]["rivals"] and "b" not in grown[0]["verdict"]["rivals"]


def test_a_model_is_not_its_own_rival(run, donors, tmp_path):
    """Neither as the row of the bridge that is written, nor as the range that changes least."""
    shorter = run[0]["alternatives"]["reference:b-shortened"]
    first, last = map(int, re.findall(r"blocks (\d) to (\d) of 6", shorter)[0])
    assert (first, last) != (2, 3)
    report, _ = stitch(shorten(donors, layer=first, layer_b=last + 1, translation="identity"), tmp_path / "out")
    assert report["chosen"] == "passthrough" and "reference:passthrough" not in report["verdict"]["rivals"]
    rows = {row["name"] for row in report["results"]}
    assert "reference:b-shortened" not in rows and {"reference:own-tables", "reference:passthrough"} <= rows


def test_the_null_bridges_other_ranges_as_the_written_one(run, plain, donors, tmp_path):
    """Against all bridges of each range, fitted here; where nothing is refitted, against plain removal."""
    assert [other.changed for other in REMOVED.elsewhere] == [range(1, 3), range(3, 5), range(4, 6)]
    assert [other.changed[0] for other in REPEATED.elsewhere] == [0, 1, 3, 4]
    model = load(donors["llama"])
    text = read_windows(shorten(donors, layer_b=4), model, model)
    fitted: tuple[Split, Split] = ("fit", "sweep")
    assert run[0]["chosen"] == "down-projections"
    for report, bridge_of in ((run[0], lambda found: found), (plain[0], lambda found: {})):
        nats = []
        for other in REMOVED.elsewhere:
            folder = tmp_path / other.in_words
            streams: dict[Split, Activations] = {
                split: harvest(model, text[split], sites_of(other), folder / split) for split in fitted
            }
            found = bridge_of(fit_bridges(model, other, streams, memory=2**28))
            last = found.get("translation:down-projections") or found.get("translation:down-projection") or Bridge({})
            rows = {"other": whole_model(bridged(model, other, last).net)}
            nats.append(evaluate(rows, text["report"], vocabulary=tiny.VOCABULARY)["other"].ce)
        null = next(row for row in report["results"] if row["name"] == "null:random-range")
        assert null["ce"] == pytest.approx(sum(nats) / 3, abs=1e-6)
        assert report["native"]["other_ranges"] == [other.in_words for other in REMOVED.elsewhere]


def test_the_tables_of_adapters_and_the_null_are_heard_of(run, heard):
    splits = [f"moments of adapters on the {split} split (chunks, at most)" for split in ("fit", "sweep")]
    heard.require([*splits, "bridges of other ranges (ranges)"])


def test_a_bridge_is_fitted_on_less_text_than_a_stitch_by_default(donors):
    def completed(**changes) -> Settings:
        asked = Settings(model_a=str(donors["llama"]), model_b=str(donors["llama"]), layer=2, layer_b=4, **changes)
        a, b, _ = load_pair(asked)
        return complete(asked, a, b)

    assert completed().tokens == 1_000_000
    assert completed(native=True).tokens == 100_000
    assert completed(native=True, tokens=5_000).tokens == 5_000


@pytest.mark.slow
def test_the_main_job_shows_the_bridges_if_both_models_are_the_same(donors, tmp_path):
    wanted = settings(donors["llama"], donors["llama"], donors["text"], layer=2, layer_b=4, sae_passes=0.1)
    report, _ = stitch(wanted, tmp_path / "composite")
    rows = {row["name"]: row for row in report["results"]}
    assert rows["reference:passthrough"]["ce"] == pytest.approx(rows["translation:identity"]["ce"], abs=1e-6)
    assert rows["translation:down-projection"]["kl_to_b"] < rows["reference:replaceme"]["kl_to_b"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_b": "gpt2"}, "`model_a` and `model_b` must be the same; got"),
        ({}, "`layer` must be above 0 and differ from `layer_b`; got 2 and 2"),
        ({"layer": 0, "layer_b": 2}, "`layer` must be above 0 and differ from `layer_b`; got 0 and 2"),
        (
            {"layer_b": 4, "translation": "affine"},
            "must fold .*: auto, identity, down-projection, down-projections; got affine",
        ),
        ({"layer_b": 6, "translation": "down-projections"}, "choose down-projection"),
        ({"layer": 6, "layer_b": 4, "translation": "down-projections"}, "choose down-projection"),
    ],
)
def test_unsupported_cuts_are_refused_before_any_work(changes, message, donors, tmp_path):
    if "model_b" in changes:
        changes = {"model_b": str(tiny.save(tmp_path / "gpt2", "gpt2")), "layer_b": 4}
    with pytest.raises(UsageError, match=message):
        stitch(shorten(donors, **changes), tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} <= {"gpt2"}


@pytest.mark.numeric
@BOTH
@pytest.mark.parametrize("family", NORMED)
def test_where_a_norm_follows_the_mlp_direction_and_gain_are_refitted(family, splice, tmp_path):
    """No bridge is exact there: the norm fixes the size of what each token writes."""
    kl = bridge_scores(tiny.model(family), splice, tmp_path)
    assert "reference:replaceme-relative" not in kl
    for better in ("translation:down-projection", "translation:down-projections"):
        for worse in ("reference:passthrough", "null:shuffled-down-projection"):
            assert kl[better] < kl[worse], kl


@pytest.mark.numeric
def test_a_planted_gain_is_found():
    rows, goal = tiny.noise(4, 30, 12).double(), tiny.noise(4, 30, 12, seed=1).double()
    gain = torch.linspace(-2, 2, 12, dtype=torch.float64)
    pieces = [(rows, gain * rows / rms(rows), goal)]
    assert torch.allclose(fit_gain(pieces), gain)
    assert not torch.allclose(fit_gain(pieces, shuffled=0), gain, atol=0.5)


def test_other_unsupported_cuts():
    assert "scale_attn_by_inverse" in str(
        why_not_foldable(tiny.model("gpt2", scale_attn_by_inverse_layer_idx=True), 2, 4, 2**28)
    )
    assert "memory must be at least" in str(why_not_foldable(tiny.model("llama"), 2, 4, 2**16))
    with pytest.raises(UsageError, match="set `native`"):
        settings(Path("a"), Path("a"), Path("t"), translation="down-projection")
