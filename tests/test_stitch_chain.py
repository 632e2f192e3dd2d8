"""`stitch chain`: the file that names the parts, and the job against separate stitches made one after another."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import cli
import tiny
from hub_double import hub  # noqa: F401 (a fixture)
from jobs import gpt2_and_qwen3, settings
from stitch.composite.parts import Part, joined, read_parts
from stitch.config import Settings
from stitch.errors import UsageError
from stitch.evaluation.scores import evaluate, whole_model
from stitch.files.markdown import inert
from stitch.files.store import Store
from stitch.jobs.chain import chain, complete_all
from stitch.jobs.join import stitch
from stitch.jobs.sweep import sweep
from stitch.models.describe import describe
from stitch.report.card import footnotes, model_card, table
from stitch.report.chain import made, ran
from stitch.text.documents import read, select
from stitch.text.windows import sample
from stitch.translation.available import earlier_sites

OPTIONS = dict(tokens=4096, context=32, features=48, k=8, sae_passes=0.5, device="cpu", memory=2**28, brief=True)


@pytest.fixture(scope="module")
def donors(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("donors")
    return gpt2_and_qwen3(root) | {"llama": tiny.save(root / "llama", "llama", seed=2)}


def parts_of(donors: dict[str, Path]) -> list[Part]:
    """Blocks of the second model have other numbers in the composite than in their donor."""
    return [Part(str(donors["gpt2"]), 0, 2), Part(str(donors["qwen3"]), 3, 5), Part(str(donors["llama"]), 3)]


@pytest.fixture(scope="module")
def run(donors, tmp_path_factory) -> tuple[dict, Path]:
    out = tmp_path_factory.mktemp("run") / "chain"
    return chain(parts_of(donors), out, text=str(donors["text"]), **OPTIONS)


# ---------------------------------------------------------------------------------------------------------------- the job


def row(report: dict, name: str) -> dict:
    return next(row for row in report["results"] if row["name"] == name)


@pytest.mark.slow
def test_a_chain_equals_separate_stitches_made_one_after_another(run, donors, tmp_path):
    """The second seam equals that of a stitch with the composite as model A, fitted on the composite's activations."""
    report, folder = run
    shared = dict(tokens=4096, features=48, sae_passes=0.5, reference_steps=0, brief=True)
    first = settings(donors["gpt2"], donors["qwen3"], donors["text"], layer=2, layer_b=3, **shared)
    first_report, place = stitch(first, tmp_path / "first")
    second = settings(place, donors["llama"], donors["text"], layer=4, layer_b=3, **shared)
    second_report, other = stitch(second, tmp_path / "second")
    assert report["results"] == second_report["results"] and report["differences"] == second_report["differences"]
    assert json.loads((folder / "seam-1" / "report.json").read_text())["results"] == first_report["results"]
    for file in ("model.safetensors", "config.json", "features.json", "sae-a/sae_weights.safetensors"):
        assert (folder / file).read_bytes() == (other / file).read_bytes(), file
    assert (folder / "seam-1" / "features.json").read_bytes() == (place / "features.json").read_bytes()
    facts = describe(str(folder))
    assert {
        "blocks": 7,
        "sites": "4..7 (resid_pre.N is the residual stream entering block N)",
        "width": 40,
    }.items() <= facts.items()
    # The same fit on the donor's own stream at that site gives another translation.
    donors_own = settings(
        donors["qwen3"], donors["llama"], donors["text"], layer=5, layer_b=3, **{**shared, "features": 64}
    )
    donors_report, _ = stitch(donors_own, tmp_path / "donors-own")
    assert donors_report["ridge"]["translation:affine"] != report["ridge"]["translation:affine"]


def test_the_report_lists_every_model_every_seam_and_every_composite(run, donors):
    report, folder = run
    assert json.loads((folder / "report.json").read_text()) == report
    names = [part.model for part in parts_of(donors)]
    first = json.loads((folder / "seam-1" / "report.json").read_text())
    assert {model["name"]: model["ce"] for model in report["chain"]["models"]} == {
        names[0]: row(first, "a")["ce"],
        names[1]: row(first, "b")["ce"],
        names[2]: row(report, "b")["ce"],
    }
    seams = report["chain"]["seams"]
    assert [(seam["from"]["site"], seam["to"]["site"], seam["site"]) for seam in seams] == [
        (2, 3, {"a": 2, "b": 3}),
        (5, 3, {"a": 4, "b": 3}),
    ]
    assert [seam["composite"]["ce"] for seam in seams] == [
        row(first, "composite")["ce"],
        row(report, "composite")["ce"],
    ]
    # written, loaded and scored again
    assert seams[0]["composite"]["ce"] == pytest.approx(row(report, "a")["ce"], abs=1e-6)
    assert [seam["chosen"] for seam in seams] == [first["chosen"], report["chosen"]]
    _, rows, title = table(report)
    shown = {cells[0]: cells[1] for cells in rows}
    assert joined(parts_of(donors)) in title
    assert shown[f"model {names[1]}"] == f"{row(first, 'b')['ce']:.3f}"
    assert shown["a (after seam 1)"] == f"{seams[0]['composite']['ce']:.3f}"
    card = (folder / "README.md").read_text()
    plain = model_card({**report, "seconds": {}}).to_bytes().decode()
    assert re.sub(r"!\[Cross-entropy with 95 % intervals.*\]\(chart.png\)\n\n", "", card) == plain != card
    for text in (*footnotes(report), *shown, "blocks 3 to 4 of", "null:no-source"):
        assert inert(text) in card, text
    assert footnotes(report)[0].startswith(
        f"Seam 1: {names[0]} at block 2 to {names[1]} at block 3, translation {first['chosen']}. "
    )


def test_the_folder_on_disk_is_the_composite_of_the_report(run, donors):
    report, folder = run
    net = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    windows = sample(select(read(str(donors["text"])), "report"), tiny.tokenizer(), 32, report["tokens"]["report"])
    ce = evaluate({"m": whole_model(net)}, windows, vocabulary=tiny.VOCABULARY)["m"].ce
    assert ce == pytest.approx(row(report, "composite")["ce"], abs=1e-5)
    assert not list(folder.parent.glob(".*"))
    assert sorted(path.name for path in (folder / "seam-1").iterdir()) == [
        *("features.json", "features.safetensors", "report.html", "report.json", "sae-a", "sae-b"),
    ]


class Stop:
    """Interrupts at the nth call whose stage starts like this. A killed run leaves the same files."""

    def __init__(self, stage: str, count: int):
        self.stage, self.left = stage, count

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.left -= stage.startswith(self.stage)
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_a_chain_interrupted_at_either_seam_and_resumed_writes_the_same_bytes(run, donors, tmp_path):
    report, folder = run
    arguments = dict(text=str(donors["text"]), resume=True, **OPTIONS)
    for stop in (Stop("feature codes (windows)", 1), Stop("choice", 2)):
        with pytest.raises(KeyboardInterrupt):
            chain(parts_of(donors), tmp_path / "cut", progress=stop, **arguments)
        assert (tmp_path / ".cut.partial").is_dir()
    with pytest.raises(UsageError, match="`resume` needs the settings of the interrupted run; seed differ"):
        chain(parts_of(donors), tmp_path / "cut", seed=3, **arguments)
    again, other = chain(parts_of(donors), tmp_path / "cut", **arguments)
    assert {**report, "seconds": {}} == {**again, "seconds": {}}
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    for file in files:
        if file.name != "report.json":
            assert (folder / file).read_bytes() == (other / file).read_bytes(), file
    assert [path.name for path in tmp_path.iterdir()] == ["cut"]
    with pytest.raises(UsageError, match="out must not exist"):
        chain(parts_of(donors), tmp_path / "cut", text=str(donors["text"]), **OPTIONS)


@torch.no_grad()
def test_a_model_in_three_parts_with_identity_seams_gives_its_own_logits_bit_for_bit(donors, tmp_path):
    name = str(donors["llama"])
    parts = [Part(name, 0, 2), Part(name, 2, 4), Part(name, 4)]
    report, folder = chain(parts, tmp_path / "out", text=str(donors["text"]), translation="identity", **OPTIONS)
    whole = AutoModelForCausalLM.from_pretrained(donors["llama"])
    composite = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    padded = tiny.ids(3, 12)
    padded[1, :7] = tiny.PAD
    mask = (padded != tiny.PAD).long()
    assert torch.equal(composite(padded, attention_mask=mask).logits, whole(padded, attention_mask=mask).logits)
    assert {seam["composite"]["ce"] for seam in report["chain"]["seams"]} == {row(report, "b")["ce"]}
    assert len(report["chain"]["models"]) == 1
    stored = load_file(folder / "model.safetensors")
    layers = [name for name in stored if name.endswith("mlp.up_proj.weight")]
    assert len(layers) == tiny.DEPTH and not any("lm_head" in name for name in stored if name.startswith("a."))


# --------------------------------------------------------------------------------------------------------------- the file


def written(tmp_path: Path, content: str) -> Path:
    (tmp_path / "chain.yaml").write_text(content)
    return tmp_path / "chain.yaml"


def test_a_file_names_the_parts(tmp_path):
    file = written(
        tmp_path,
        """
        # A -> B -> A
        parts:
          - {model: demo:gpt2, to: 3}              # blocks 0..2
          - {model: demo:llama, from: 4, to: 6}
          - model: you/your-model
            from: 5
        """,
    )
    parts = read_parts(file)
    assert parts == [Part("demo:gpt2", 0, 3), Part("demo:llama", 4, 6), Part("you/your-model", 5)]
    assert joined(parts) == "demo:gpt2[:3] + demo:llama[4:6] + you/your-model[5:]"
    assert joined(parts[:2]) == "demo:gpt2[:3] + demo:llama[4:]"


A, B = "{model: a, to: 2}", "{model: b, from: 3}"


@pytest.mark.parametrize(
    "content, message",
    [
        ("parts: [", "must be YAML; line 1, column 9: expected the node content"),
        ("", "it must be an object with parts, got None"),
        ("- a", "it must be an object with parts, got"),
        ("parts: 3", "parts must be a list, got 3"),
        (f"parts: [{A}, {B}]\nseed: 3", r"it has 'seed' \(its keys are parts\)"),
        (f"parts: [{A}]", "parts must have at least 2, got"),
        ("parts: []", "parts must have at least 2, got"),
        (f"parts: [{A}, b]", r"parts\[1\] must be an object with model, from, to, got 'b'"),
        (f"parts: [{A}, {{model: b, form: 3}}]", r"parts\[1\] has 'form' \(did you mean from\?\)"),
        (f"parts: [{{to: 3}}, {B}]", r"parts\[0\] needs 'model'"),
        (f"parts: [{{model: 3, to: 3}}, {B}]", r"parts\[0\].model must be text, got 3"),
        (f"parts: [{A}, {{model: b}}]", r"parts\[1\] \('b'\) needs 'from'"),
        (f"parts: [{{model: a}}, {B}]", r"parts\[0\] \('a'\) needs 'to'"),
        (f"parts: [{A}, {{model: b, from: 3}}, {B}]", r"parts\[1\] \('b'\) needs 'to'"),
        (f"parts: [{A}, {{model: b, to: 3}}, {B}]", r"parts\[1\] \('b'\) needs 'from'"),
        (
            f"parts: [{{model: a, from: 1, to: 2}}, {B}]",
            r"parts\[0\] .* reads the text, so it begins at block 0, got 1",
        ),
        (f"parts: [{{model: a, to: 0}}, {B}]", "'to' must be above 0, got 0"),
        (f"parts: [{A}, {{model: b, from: 3, to: 3}}, {B}]", "'to' must be above 3, got 3"),
        (f"parts: [{A}, {{model: b, from: 3, to: 1}}, {B}]", "'to' must be above 3, got 1"),
        (f"parts: [{{model: a, to: -1}}, {B}]", r"parts\[0\].to must be at least 0, got -1"),
        (f"parts: [{{model: a, to: two}}, {B}]", r"parts\[0\].to must be a whole number, got 'two'"),
        (f"parts: [{{model: a, to: yes}}, {B}]", r"parts\[0\].to must be a whole number, got True"),
        (f"parts: [{{model: a, model: b, to: 2}}, {B}]", "line 1, column 20: has 'model' twice"),
        ("parts: [{to: -1}, {model: b, form: 3}, c]", r"parts\[0\] needs.*to must.*parts\[1\] has.*parts\[2\] must"),
    ],
)
def test_an_invalid_file_is_refused_in_one_line(content, message, tmp_path):
    with pytest.raises(UsageError, match=message) as caught:
        read_parts(written(tmp_path, content))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"must be a file; there is no .*nowhere\.yaml"):
        read_parts(tmp_path / "nowhere.yaml")


def test_requests_that_the_models_cannot_meet_are_refused_before_any_work(donors, tmp_path):
    parts = parts_of(donors)

    def refusal(*changed: Part, **options) -> str:
        with pytest.raises(UsageError) as caught:
            chain(changed, tmp_path / "out", text=str(donors["text"]), **{**OPTIONS, **options})
        assert not list(tmp_path.glob("*out*")) and "\n" not in str(caught.value)
        return str(caught.value)

    assert "part 1 must lie in its model, which has 6 blocks" in refusal(replace(parts[0], stop=7), *parts[1:])
    assert "got `to`: 7" in refusal(parts[0], replace(parts[1], stop=7), parts[2])
    assert "got `from`: 7" in refusal(parts[0], replace(parts[1], start=7, stop=8), parts[2])
    assert "must begin in its model, which has 6 blocks" in refusal(*parts[:2], replace(parts[2], start=7))
    assert "runs to the end of its model, block 6 of" in refusal(*parts[:2], replace(parts[2], stop=5))
    assert "context must be at most 128" in refusal(*parts, context=129)
    # 45 is enough for the second seam's 40, too little for Qwen3's 48
    assert "features must be at least the width, 48; got 45" in refusal(*parts, features=45)


@pytest.mark.parametrize(
    ("site", "seam", "earlier"),
    [
        (6, 0, [2, 4]),
        (1, 0, []),
        (24, 15, [14, 20]),
        (6, 3, [2, 4]),
        (4, 3, [2]),
        (3, 2, [1, 2]),
        (3, 3, [2]),
        (2, 1, []),
    ],
)
def test_earlier_streams_of_a_composite_are_those_around_its_last_seam(site, seam, earlier):
    assert earlier_sites(site, seam) == earlier


def test_a_last_part_without_blocks_is_its_head():
    parts = [
        {"model": "x", "from": 0, "to": 3},
        {"model": "y", "from": 5, "to": 6},
        {"model": "x", "from": 6, "to": None},
    ]
    found = {"parts": parts, "head_alone": True, "seams": [{"chosen": "affine"}] * 2}
    assert ran(found) == ["blocks 0 to 2", "block 5", "the final norm and the head"]
    assert made(found).startswith("Blocks 0 to 2 of x, block 5 of y, and the final norm and the head of x, joined by")
    assert ran({"parts": parts})[-1] == "the blocks from 6 on"


def test_every_seam_uses_the_windows_that_all_models_accept():
    models = [tiny.model("gpt2", n_positions=96), tiny.model("qwen3"), tiny.model("llama", max_position_embeddings=64)]
    parts = [Part("a", 0, 2), Part("b", 2, 4), Part("c", 3)]
    seams = [
        Settings(model_a="a", model_b="b", layer=2, layer_b=2),
        Settings(model_a="b", model_b="c", layer=4, layer_b=3),
    ]
    assert [found.context for found in complete_all(parts, seams, models)] == [64, 64]
    assert [found.context for found in complete_all([parts[0], Part("b", 2)], seams[:1], models[:2])] == [96]


@pytest.mark.slow
def test_a_composite_may_be_the_first_part_of_a_chain_only(run, donors, tmp_path):
    _, folder = run
    llama = str(donors["llama"])
    for work in (
        lambda: chain([Part(llama, 0, 2), Part(str(folder), 3)], tmp_path / "out", **OPTIONS),
        lambda: stitch(settings(donors["llama"], folder, donors["text"]), tmp_path / "out"),
        lambda: sweep(str(folder), llama, tmp_path / "out", device="cpu"),
    ):
        with pytest.raises(UsageError, match=r"a composite can only come first; .*chain is one"):
            work()
    report, _ = chain(
        [Part(str(folder), 0, 6), Part(llama, 5)],
        tmp_path / "out",
        text=str(donors["text"]),
        translation="identity",
        **OPTIONS,
    )
    # Its last part is blocks 3 and 4 of the Llama, so with block 5 it is the composite again.
    assert row(report, "composite")["ce"] == pytest.approx(row(report, "a")["ce"], abs=1e-6)


# ------------------------------------------------------------------------------------------------------------ the command


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # output of the Hub client
def test_the_command_writes_the_same_folder_prints_json_alone_and_pushes(run, donors, tmp_path, hub, monkeypatch):  # noqa: F811
    report, folder = run
    entries = [{"model": part.model, "from": part.start, "to": part.stop} for part in parts_of(donors)]
    entries = [{key: value for key, value in entry.items() if value is not None} for entry in entries]
    file = written(tmp_path, yaml.safe_dump({"parts": entries}))
    arguments = [
        *("chain", file, "--text", donors["text"], "--out", tmp_path / "out", "--tokens", 4096, "--context", 32),
        *("--features", 48, "--k", 8, "--sae-passes", 0.5, "--device", "cpu", "--memory", "256M", "--brief"),
        *("--cache-size", 0, "--json", "-q"),
    ]
    done = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.stderr
    assert not done.stderr and {**json.loads(done.stdout), "seconds": {}} == {**report, "seconds": {}}
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    monkeypatch.setenv("HF_TOKEN", hub.token)
    again = [str(argument) for argument in arguments if argument != "--json"] + ["--resume", "--push", "user/chain"]
    table = CliRunner().invoke(cli.app, again)
    assert "after seam 1" in table.stdout and "Seam 2: " in table.stdout and f"{hub.url}/user/chain" in table.stdout
    assert hub.files("user/chain")["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    refused = CliRunner().invoke(cli.app, ["chain", str(tmp_path / "no.yaml"), "-q"])
    assert refused.exit_code == 2 and refused.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_chain_uses_what_earlier_runs_have_kept_and_has_the_same_bytes(run, donors, tmp_path):
    _, folder = run
    first, second = Store(tmp_path / "store"), Store(tmp_path / "store")
    other = [*parts_of(donors)[:2], Part(str(donors["llama"]), 4)]
    chain(other, tmp_path / "other", text=str(donors["text"]), store=first, **OPTIONS)
    report, again = chain(
        parts_of(donors), tmp_path / "again", text=str(donors["text"]), store=second, **OPTIONS
    )  # the first seam is the other chain's
    assert (
        second.reused["activations"] > 0 and second.reused["saes"] >= 2 and report["cache"]["reused"] == second.reused
    )
    third = Store(tmp_path / "store")
    chain(parts_of(donors), tmp_path / "third", text=str(donors["text"]), store=third, **OPTIONS)
    assert third.missed == {}  # nor of the composite that seam 2 cuts, which was made again
    named = "model.safetensors", "seam-1/features.json", "sae-b/sae_weights.safetensors"
    assert [name for name in named if (folder / name).read_bytes() != (again / name).read_bytes()] == []
