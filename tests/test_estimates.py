"""`--dry-run` and `stitch.estimate`: nothing is done, stages are those of the run, and what is in the cache is not counted."""

import dataclasses
import json
import shutil

import pytest
from typer.testing import CliRunner

import cli
import stitch
import tiny
from jobs import gpt2_and_qwen3, settings
from stitch.api.estimate import _duration, _estimate
from stitch.composite.costs import whole
from stitch.config import CompleteSettings
from stitch.conversions.donor import read_donor
from stitch.conversions.ngrams.work import TableText, memory_fitted
from stitch.conversions.plan import Counted
from stitch.conversions.recurrence.work import stages as recurrent_stages
from stitch.errors import UsageError
from stitch.estimates import counts, machine
from stitch.estimates.disk import Disk
from stitch.estimates.machine import Machine
from stitch.estimates.plan import Plan
from stitch.estimates.work import Work
from stitch.files.job import planning
from stitch.files.sizes import size_in_words
from stitch.files.store import Store
from stitch.jobs.chain import PER_SEAM, chain
from stitch.jobs.join import stitch as join
from stitch.jobs.join_plan import plan_join
from stitch.jobs.join_work import Ends, JoinWork, scored_rows
from stitch.jobs.pair.models import load_pair
from stitch.jobs.pair.settings import complete
from stitch.models.flops import block_flops

FIXED = Machine(passes={"a": 1e9, "b": 1e9}, single=1e10, double=5e9, bytes=1e9, compared=1e-5)
ENDS = Ends(
    early_a=1e6, whole_a=2e6, early_b=1e6, late_b=2e6, width_a=32, width_b=48, earlier=2, positions=32, sites_a=7, sites_b=5,
)  # fmt: skip
NOTHING_KEPT = {"a": 1.0, "b": 1.0, "sae-a": 1.0, "sae-b": 1.0}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(machine, "LONG", 0.0)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return gpt2_and_qwen3(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def joined(pair, tmp_path_factory):
    folder = tmp_path_factory.mktemp("joined")
    asked = settings(pair["gpt2"], pair["qwen3"], pair["text"], brief=True, reference_steps=0)
    report, _ = join(asked, folder / "out", store=Store(folder / "store"))
    return asked, report, folder / "store"


def work(**changes) -> JoinWork:
    asked = dict(model_a="a", model_b="b", layer=2, layer_b=2, tokens=4096, context=32, features=64)
    given = dict(
        ends=ENDS,
        settings=CompleteSettings(**asked),
        fit=4096,
        held_out=1024,
        ids=50,
        machine=FIXED,
        missing=NOTHING_KEPT,
    )
    return JoinWork(**{**given, **changes})


def test_stages_are_those_of_the_run(joined):
    asked, report, _ = joined
    a, b, sources = load_pair(asked)
    plan = plan_join(complete(asked, a, b), a, b, sources)
    assert set(plan.stages) == set(report["seconds"]) - {"load"}
    assert plan.whole.seconds == pytest.approx(sum(one.seconds for one in plan.stages.values()))
    assert plan.tokens == report["tokens"] and plan.disk.output > 0 < plan.disk.scratch


@pytest.mark.slow
def test_what_the_store_has_is_not_counted(joined):
    asked, _, folder = joined
    a, b, sources = load_pair(asked)
    known = plan_join(complete(asked, a, b), a, b, sources, store=Store(folder))
    assert known.stages["activations"].flops == 0 and all(of == there > 0 for of, there in known.cached.values())
    other = plan_join(complete(dataclasses.replace(asked, layer_b=3), a, b), a, b, sources, store=Store(folder))
    files, saes = other.cached.values()
    assert 0 < files[1] < files[0] and saes == (2, 1)
    fresh = plan_join(complete(asked, a, b), a, b, sources)
    assert 0 < other.stages["activations"].flops < fresh.stages["activations"].flops
    assert other.stages["saes"].flops < fresh.stages["saes"].flops


def test_more_text_is_more_work_at_every_stage_that_reads_it():
    small, large = work().stages(), work(fit=8192, held_out=8192).stages()
    grown = {name for name in small if large[name].flops > small[name].flops}
    assert grown == {"activations", "saes", "matching", "translations", "choice", "alternatives", "evaluation"}


def test_matched_features_at_other_blocks_are_counted_unless_the_report_is_brief():
    brief = dataclasses.replace(work().settings, brief=True)
    whole, without = (one.stages()["matching"].flops for one in (work(), work(settings=brief)))
    passes, encoded = 2e6 + 3e6, 2 * 64 * (7 * 32 + 5 * 48)
    assert whole - without == 1024 * (2 * passes + encoded)  # the tokens are read once more for the streams' lengths


def test_memory_counts_what_is_held_until_it_is_scored():
    def held(**changes) -> int:
        return work(settings=dataclasses.replace(work().settings, **changes)).held()

    tables = [row.name for row in scored_rows() if row.name.endswith("+tables")] + ["null:no-source"]
    assert held(ngrams=1000) - held(ngrams=0) == 4 * 48 * 1000 * len(tables)
    assert held(features=128) - held(features=64) == 4 * 2 * 64 * (32 + 48)
    assert held(brief=True) < held()


def test_every_row_that_is_scored_is_counted(joined):
    _, report, _ = joined
    beside = {"a", "b", "composite", "line"} | {row["name"] for row in report["results"] if row["name"][:3] == "ref"}
    assert {row["name"] for row in report["results"]} - beside <= {row.name for row in scored_rows()}


def test_a_step_of_training_costs_a_forward_and_a_backward_pass():
    once = counts.scored(FIXED, "a", 100, 1e6)
    assert once == Work(1e8, 0.1 + 100 * 1e-5)
    assert counts.trained(FIXED, "a", 100, 1e6).flops == 3e8
    assert counts.trained(FIXED, "a", 100, 1e6, frozen=True).flops == 2e8


def test_tables_cost_what_the_text_and_the_held_out_tokens_bring():
    def seconds(tables: int = 5, passes: int = 6, **changes: int) -> float:
        text = TableText(**{"fit": 10_000, "held_out": 4096, "ids": 50, **changes})
        return memory_fitted(FIXED, tables, 0, 64, text, passes).seconds

    assert seconds(passes=12) == pytest.approx(2 * seconds()) and seconds(fit=20_000) > seconds() < seconds(tables=6)
    small, large = ((seconds(held_out=2 * held) - seconds(held_out=held)) / held for held in (4096, 65_536))
    assert large > 2 * small  # arrays that go back to the system after every use


def test_streams_of_a_sweep_cost_all_blocks_and_no_head(pair):
    found = stitch.estimate(
        stitch.sweep, pair["gpt2"], pair["qwen3"], text=pair["text"], tokens=4096, context=32, device="cpu", quiet=True
    )  # fmt: skip
    asked = settings(pair["gpt2"], pair["qwen3"], pair["text"])
    blocks = sum(block_flops(model.config, n, 32) for model in load_pair(asked)[:2] for n in range(model.depth))
    assert found.rows["flops"]["activations"] == pytest.approx(sum(found.report["tokens"].values()) * blocks)


def test_a_recurrent_form_costs_what_its_blocks_and_its_context_need(pair):
    def planned(context: int, blocks: range, **changes) -> dict[str, Work]:
        donor = read_donor(
            str(pair["gpt2"]), text=str(pair["text"]), tokens=4096, held_out=1024, context=context, device="cpu",
            dtype="fp32", trust_remote_code=False,
        )  # fmt: skip
        machine = dataclasses.replace(FIXED, passes={"donor": 1e9})
        counted = Counted(donor, machine, whole(donor.model, context))
        given = dict(steps=10, logit_steps=0, fitted=1, allocated=True)
        return recurrent_stages(counted, blocks=blocks, **{**given, **changes})

    short, long, part = planned(16, range(6)), planned(64, range(6)), planned(16, range(2))
    for stage in ("keys by head", "fits"):
        assert part[stage].seconds < short[stage].seconds < long[stage].seconds
    beside_passes = [found["fits"].seconds - found["fits"].flops / 1e9 for found in (short, long)]
    assert beside_passes[1] > 1.5 * beside_passes[0]  # attention weights that are compared
    assert "keys by head" not in planned(16, range(6), allocated=False)
    # Recall is tried on about 8,192 tokens by every net and twice by the donor, whatever the text.
    least = 8192 * 12 * whole(load_pair(settings(pair["gpt2"], pair["qwen3"], pair["text"]))[0], 16).flops
    assert short["evaluation"].flops > least


COMMANDS = {
    "join": ["join", "{gpt2}", "{qwen3}", "--layer", "2", "--features", "64"],
    "join, layer chosen": ["join", "{gpt2}", "{qwen3}", "--layer", "2", "--layer-b", "auto", "--features", "64"],
    "join, native": ["join", "{gpt2}", "{gpt2}", "--layer", "2", "--layer-b", "4", "--native"],
    "sweep": ["sweep", "{gpt2}", "{qwen3}"],
    "sweep, depth": ["sweep", "{gpt2}", "--depth", "--repeat"],
    "heads": ["convert", "heads", "{gpt2}", "--kv-heads", "1", "--steps", "2"],
    "ngram": ["convert", "ngram", "{gpt2}", "--drop", "auto"],
    "recurrent": ["convert", "recurrent", "{gpt2}"],
    "consolidate": ["convert", "consolidate", "{gpt2}", "--context", "{note}"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_dry_run_of_every_command_says_what_it_would_take_and_writes_nothing(name, pair, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    note = pair["text"].with_name("note.txt")
    note.write_text("norm head block early late match pair plan. " * 2)
    words = [word.format(**pair, note=note) for word in COMMANDS[name]]
    common = ["--text", str(pair["text"]), "--tokens", "4096", "--device", "cpu", "--dry-run", "--quiet"]
    context = [] if name == "consolidate" else ["--context", "32"]
    result = CliRunner().invoke(cli.app, [*words, *common, *context, "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["seconds"] > 0 < report["flops"] and report["bytes"]["output"] > 0 and report["bytes"]["memory"] > 0
    assert list(tmp_path.iterdir()) == []
    if "chosen" in name:
        assert next(stage for stage in report["stages"] if stage["name"] == "layer")["seconds"] > 0


@pytest.mark.parametrize("name", ["heads", "ngram", "recurrent", "consolidate"])
def test_a_conversion_without_a_folder_is_refused_before_any_work(name, pair):
    done = CliRunner().invoke(cli.app, [word.format(**pair, note=pair["text"]) for word in COMMANDS[name]])
    assert done.exit_code == 2 and "--out must be a folder to write; only" in done.output, done.output


@pytest.mark.slow
def test_a_chain_is_the_sum_of_its_seams(pair, tmp_path):
    parts = [
        stitch.Part(str(pair["gpt2"]), 0, 2),
        stitch.Part(str(pair["qwen3"]), 2, 4),
        stitch.Part(str(pair["gpt2"]), 4),
    ]
    small = dict(text=pair["text"], tokens=4096, context=32, features=64, device="cpu", quiet=True)
    both = stitch.estimate(stitch.chain, parts, **small)
    one = stitch.estimate(stitch.chain, [parts[0], stitch.Part(str(pair["qwen3"]), 2)], **small)
    flops = [found.rows["flops"]["saes"] for found in (one, both)]
    assert flops[1] == pytest.approx(2 * flops[0])


@pytest.mark.slow
def test_a_chain_of_one_tied_model_has_its_matrix_twice(pair, tmp_path):
    """Behind the first seam the first model is a composite, which shares nothing with the last: as with copies of the model."""
    model = tiny.save(tmp_path / "model", "llama")
    again = shutil.copytree(model, tmp_path / "again")
    small = dict(text=pair["text"], tokens=4096, context=32, features=64, device="cpu", quiet=True)
    found = []
    for middle in (model, again):  # the last seam joins what follows a composite to the same model, or to a copy
        parts = [stitch.Part(str(again), 0, 2), stitch.Part(str(middle), 2, 4), stitch.Part(str(model), 5)]
        found.append(stitch.estimate(stitch.chain, parts, **small).report["bytes"]["output"])
    assert found[0] == found[1]


@pytest.mark.slow
def test_a_chain_counts_what_the_store_has_of_donors_but_nothing_of_composites_still_to_be_made(pair, joined):
    asked, _, folder = joined  # of the first two blocks of A, and of B from block 2 on
    gpt2, qwen3 = str(pair["gpt2"]), str(pair["qwen3"])
    parts = [stitch.Part(gpt2, 0, 2), stitch.Part(qwen3, 1, 2), stitch.Part(gpt2, 2)]
    shared = {name: value for name, value in asked.to_dict().items() if name not in PER_SEAM}

    def planned(store: Store | None):
        with planning() as plans:
            chain(parts, store=store, **shared)
        return plans[1]

    known, fresh = planned(Store(folder)), planned(None)
    # A file for each split. Of seam 1, sites 1 and 2 of A are there, and site 1 of B is not. Of seam 2, site 2 of B is there, and
    # three sites of the composite are not. Its SAE is not taken for that of the model whose blocks it ends with.
    assert known.cached == {"files of activations": (21, 9), "SAEs, probably": (4, 2)} and fresh.cached == {}
    assert 0 < known.stages["activations"].flops < fresh.stages["activations"].flops
    assert 0 < known.stages["saes"].flops < fresh.stages["saes"].flops


def test_an_estimate_shows_itself_and_fails_where_the_call_would(pair):
    small = dict(text=pair["text"], tokens=4096, context=32, features=64, device="cpu", quiet=True)
    found = stitch.estimate(stitch.join, pair["gpt2"], pair["qwen3"], 2, **small)
    assert (
        repr(found).startswith("About ") and "Memory: at most about" in repr(found) and "<table>" in found._repr_html_()
    )
    with pytest.raises(UsageError, match="layer must be"):
        stitch.estimate(stitch.join, pair["gpt2"], pair["qwen3"], 20, **small)
    with pytest.raises(UsageError, match="can be estimated"):
        stitch.estimate(stitch.inspect, pair["gpt2"])


@pytest.mark.parametrize("load, busy", [(99.0, True), (0.5, False), (None, False)])
def test_an_estimate_says_that_the_machine_was_busy(load, busy):
    measured = dataclasses.replace(FIXED, load=load, cores=2)
    plan = Plan(stages={"a": Work(1.0, 1.0)}, tokens={}, disk=Disk(scratch=0, output=0), memory=0, machine=measured)
    assert ("was busy while it was measured (its load was 99.0, its cores are 2)" in repr(_estimate(plan))) == busy


def test_the_machine_is_measured(pair):
    asked = settings(pair["gpt2"], pair["qwen3"], pair["text"])
    a, b, _ = load_pair(asked)
    found = machine.calibrate({"a": a, "b": b}, 32)
    assert min(*found.passes.values(), found.single, found.double, found.bytes) > 1e5 and found.compared >= 0


def test_times_and_sizes_in_words():
    assert [_duration(seconds) for seconds in (0.44, 8.2, 150, 12_000)] == ["0.4 s", "8 s", "2 min 30 s", "3 h 20 min"]
    assert [size_in_words(count) for count in (12, 2**20, 1.5 * 2**30)] == ["12 B", "1.0 MiB", "1.5 GiB"]
