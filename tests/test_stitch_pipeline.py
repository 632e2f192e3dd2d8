"""The main job on pico models: planted ground truth, a model stitched to itself, reproducible bytes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import tiny
from jobs import gpt2_and_qwen3, settings, write_text
from matching.procrustes import random_rotation
from sae.config import SAEConfig
from sae.null import untrained
from sae.schedule import default_features
from sae.types import Dictionary
from stitch.activations.harvest import harvest
from stitch.activations.paired import pair
from stitch.config import Settings, same_relative_depth
from stitch.errors import StitchError, UsageError
from stitch.evaluation.scores import evaluate
from stitch.evaluation.stage import Stage
from stitch.features.codes import code_stream
from stitch.features.matching import match
from stitch.jobs.evaluate import evaluate_models
from stitch.jobs.join import stitch
from stitch.models.loading import load
from stitch.report.card import footnotes, table
from stitch.text.documents import select
from stitch.text.windows import pack, sample
from stitch.translation import look_ups
from stitch.translation import rows as registry
from stitch.translation.evidence import Evidence, MatchedFeatures, Options
from stitch.translation.fit import translate
from stitch.translation.inputs import ByToken, Lift, Stream
from stitch.translation.token_tables import token_tables
from turned import rotated_copy


@pytest.fixture(scope="module")
def donors(tmp_path_factory) -> dict[str, Path]:
    return gpt2_and_qwen3(tmp_path_factory.mktemp("donors"))


@pytest.fixture(scope="module")
def run(donors, tmp_path_factory) -> tuple[dict, Path]:
    out = tmp_path_factory.mktemp("run") / "composite"
    return stitch(settings(donors["gpt2"], donors["qwen3"], donors["text"]), out)


def test_the_report_has_every_row_and_its_numbers_agree(run):
    report, folder = run
    assert json.loads((folder / "report.json").read_text()) == report
    assert all(0 < value < 0.99 for value in report["similarity"].values())
    names = [row["name"] for row in report["results"]]
    for name in ("a", "b", "composite", "line", "translation:affine", "translation:permutation", "translation:directions",
                 "translation:rotation", "translation:features", "translation:affine+token", "translation:identity",
                 "translation:mean-shift", "floor:mean", "floor:zero", "floor:wrong-text", "ceiling:sae-b",
                 "translation:affine+free", "translation:features+free+tables", "translation:cross-code", "translation:prior",
                 "translation:permutation+error", "translation:barycentric", "null:look-ups", "null:random-relu",
                 "null:exemplars", "null:rbf", "null:random-topk", "null:no-source", "null:shuffled-matching",
                 "translation:routed", "translation:routed+tables", "null:random-routes",
                 "null:random-rotation", "null:untrained-sae", "null:untrained-a", "reference:affine-trained"):  # fmt: skip
        assert names.count(name) == 1, name
    fitted = {name.removeprefix("translation:") for name in names if name.startswith("translation:")}
    assert fitted == set(registry.translations()) - set(registry.NATIVE)
    rows = {row["name"]: row for row in report["results"]}
    assert rows["composite"]["above_line"] == pytest.approx(rows["composite"]["ce"] - rows["line"]["ce"])
    to_line = next(row for row in report["differences"] if (row["name"], row["minus"]) == ("composite", "line"))
    assert to_line["ce"] == pytest.approx(rows["composite"]["above_line"]) and to_line["ce_low"] < to_line["ce_high"]
    assert to_line["ce_low"] <= to_line["ce"] <= to_line["ce_high"]
    assert rows["translation:affine"]["seam"]["flops"] == 2 * 32 * 48
    assert rows["null:untrained-a"]["flops"] <= rows["composite"]["flops"]
    assert ("null:untrained-a", "composite") in [(row["name"], row["minus"]) for row in report["differences"]]
    for row in rows.values():
        if row["name"] != "line":
            assert row["ce_low"] <= row["ce"] <= row["ce_high"]
            assert row["ppl"] == pytest.approx(np.exp(row["ce"]))
    assert rows["composite"]["ce"] == pytest.approx(rows[f"translation:{report['chosen']}"]["ce"], abs=1e-6)
    assert rows["b"]["kl_to_b"] == pytest.approx(0, abs=1e-6) and rows["b"]["top1"] == 1.0
    assert rows["null:shuffled-tokens"]["kl_to_b"] > rows["translation:affine"]["kl_to_b"]
    low, high = sorted((rows["a"]["ce"], rows["b"]["ce"]))
    assert low <= rows["line"]["ce"] <= high
    assert {split: report["tokens"][split] for split in ("fit", "sweep", "report")} == {
        "fit": 4096,
        "sweep": 3072,
        "report": 2784,
    }


def test_matched_features_are_read_at_all_blocks_of_both_models(run):
    report, folder = run
    found = report["matching_by_block"]
    depths = {side: len(found["sites"][side]) for side in "ab"}
    assert found["sites"] == {side: list(range(depths[side])) for side in "ab"} and min(depths.values()) > 2
    assert 2 <= found["pairs"] <= report["matching"]["pairs"]
    assert 0 < found["tokens"] < report["tokens"]["sweep"]  # without BOS
    for name in ("correlation", "null"):
        assert [len(row) for row in found[name]] == [depths["b"]] * depths["a"]
    # The matching was made where both SAEs were trained, on other text.
    chosen = found["correlation"][report["site"]["a"]][report["site"]["b"]]
    assert chosen > max(abs(value) for row in found["null"] for value in row)
    assert 'id="plot-by-block-correlation"' in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    "translation",
    ["auto", *(pytest.param(one, marks=pytest.mark.slow) for one in ("cross-code", "features+free+tables"))],
)
def test_a_brief_report_has_fewer_rows_and_the_same_numbers(translation: str, run, donors, tmp_path):
    wanted = settings(
        donors["gpt2"], donors["qwen3"], donors["text"], translation=translation, brief=True, reference_steps=None
    )
    report, _ = stitch(wanted, tmp_path / "out")
    # Those that cannot keep within the composite's cost are left out.
    rivals = {row.name for row in registry.ROWS if row.alternative and row.kind == "reference"}
    names = {row["name"] for row in report["results"]}
    assert "matching_by_block" not in report
    brief = {row.name for row in registry.ROWS if row.brief and not row.across_tokenizers}
    assert names - rivals == brief - rivals - {"sae-a"} | ({f"translation:{translation}"} - {"translation:auto"})
    assert names & rivals == set(report["alternatives"])
    whole = {row["name"]: row for row in run[0]["results"]}
    differing = [row["name"] for row in report["results"] if row != whole.get(row["name"])]
    assert set(differing) <= {"composite", "line", *rivals}  # of another translation, or made for its cost
    assert report["saes"] == run[0]["saes"] and report["matching"] == run[0]["matching"]
    if translation != "auto":
        assert report["chosen"] == translation


def test_the_folder_on_disk_is_the_composite_of_the_report(run, donors):
    report, folder = run
    net = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    tokenizer = tiny.tokenizer()
    from stitch.text.documents import read

    text = sample(select(read(str(donors["text"])), "report"), tokenizer, 32, report["tokens"]["report"])
    from stitch.evaluation.scores import whole_model

    ce = evaluate({"m": whole_model(net)}, text, vocabulary=tiny.VOCABULARY)["m"].ce
    assert ce == pytest.approx(next(row["ce"] for row in report["results"] if row["name"] == "composite"), abs=1e-5)
    assert not list(folder.parent.glob(".*"))  # no workspace is left


def test_the_saes_of_the_folder_load_in_saelens(run):
    import sae_lens

    report, folder = run
    for side, width in (("a", 32), ("b", 48)):
        sae = sae_lens.SAE.load_from_disk(folder / f"sae-{side}")
        assert sae.cfg.d_in == width and sae.cfg.d_sae == 64
    assert [entry["features"] for entry in report["saes"]] == [64, 64]
    assert not [note for note in footnotes(report) if "The text is short" in note]  # 64 were asked for


def test_the_model_card_has_a_model_index_with_the_measured_perplexity(run):
    import yaml

    report, folder = run
    _, header, body = (folder / "README.md").read_text().split("---\n", 2)
    index = yaml.safe_load(header)["model-index"][0]["results"][0]["metrics"]
    composite = next(row for row in report["results"] if row["name"] == "composite")
    assert index[0] == {"type": "perplexity", "name": "Perplexity", "value": round(composite["ppl"], 4)}
    for row in report["results"]:
        assert row["name"] in body


def test_the_same_seed_gives_the_same_bytes(run, donors, tmp_path):
    report, folder = run
    again, other = stitch(settings(donors["gpt2"], donors["qwen3"], donors["text"]), tmp_path / "again")
    assert {**report, "seconds": {}} == {**again, "seconds": {}}
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    for file in files:
        if file.name != "report.json":
            assert (folder / file).read_bytes() == (other / file).read_bytes(), file


def test_resuming_a_finished_run_gives_its_report_again(run, donors):
    report, folder = run
    # killed between the last rename and the removal of the workspace
    (folder.parent / f".{folder.name}.partial").mkdir()
    again, place = stitch(settings(donors["gpt2"], donors["qwen3"], donors["text"]), folder, resume=True)
    assert again == report and place == folder and not list(folder.parent.glob(".*"))
    with pytest.raises(UsageError, match="out must not exist"):
        stitch(settings(donors["gpt2"], donors["qwen3"], donors["text"], seed=5), folder, resume=True)


@pytest.mark.slow
def test_another_seed_gives_other_saes(run, donors, tmp_path):
    _, folder = run
    wanted = settings(donors["gpt2"], donors["qwen3"], donors["text"], seed=1, brief=True, reference_steps=None)
    _, other = stitch(wanted, tmp_path / "other")
    weights = [load_file(place / "sae-a" / "sae_weights.safetensors")["W_dec"] for place in (folder, other)]
    assert not torch.equal(*weights)


def test_a_model_stitched_to_itself_chooses_the_identity_and_loses_nothing(donors, tmp_path, monkeypatch):
    scored: list[set[str]] = []

    def told(rows, *given, **more):
        scored.append(set(rows))
        return evaluate(rows, *given, **more)

    monkeypatch.setattr("stitch.evaluation.scoring.evaluate", told)
    wanted = settings(
        donors["qwen3"], donors["qwen3"], donors["text"], layer=3, layer_b=3, sae_passes=0.2, brief=True,
        reference_steps=None,
    )  # fmt: skip
    report, _ = stitch(wanted, tmp_path / "self")
    rows = {row["name"]: row for row in report["results"]}
    assert report["chosen"] == "identity"
    assert report["similarity"] == pytest.approx({"cka": 1.0, "svcca": 1.0})
    assert rows["composite"]["ce"] == rows["b"]["ce"] == rows["a"]["ce"] == rows["line"]["ce"]
    assert any("b" in names for names in scored) and not any("a" in names for names in scored)  # one model is run once


def test_the_loss_at_tokens_without_rows_agrees_with_the_rows_of_the_report(donors, tmp_path, monkeypatch):
    """Of a large vocabulary tables have rows for tokens that occur; here of a small one too."""
    monkeypatch.setitem(token_tables.__kwdefaults__, "small", 0)
    lines = [json.loads(line) for line in donors["text"].read_text().splitlines()]
    for rare, line in zip("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", lines, strict=False):
        line["text"] = f"{rare} {line['text']}"
    text = tmp_path / "text.jsonl"
    text.write_text("\n".join(map(json.dumps, lines)))
    wanted = settings(
        donors["gpt2"], donors["qwen3"], text, translation="affine+free+tables", sae_passes=0.2, brief=True,
        reference_steps=None,
    )  # fmt: skip
    report, _ = stitch(wanted, tmp_path / "rare")
    rows = {row["name"]: row["ce"] for row in report["results"]}
    assert "mean_row" not in rows
    unseen = report["look_ups"]["unseen"]
    without, tokens = unseen["tokens_without_rows"], unseen["tokens"]
    assert 0 < without < tokens
    for name, row in (("b", "b"), ("fallback", "composite")):
        parts = unseen["ce_without_rows"][name] * without + unseen["ce_with_rows"][name] * (tokens - without)
        assert parts / tokens == pytest.approx(rows[row], rel=1e-6)
    said = next(line for line in footnotes(report) if "without a row" in line)
    assert said.startswith(f"{without:,} of {tokens:,} predictions")
    assert f"would have {unseen['ce_without_rows']['mean_row']:.3f}" in said
    assert unseen["ce_without_rows"]["mean_row"] != pytest.approx(unseen["ce_without_rows"]["fallback"], rel=1e-6)


@pytest.mark.parametrize("method", [pytest.param("ot", marks=pytest.mark.slow), "unbalanced"])
def test_transport_plans_can_replace_pairs(method, donors, tmp_path):
    wanted = settings(
        donors["gpt2"], donors["qwen3"], donors["text"], matching=method, translation="permutation", sae_passes=0.5,
        brief=True, reference_steps=None,
    )  # fmt: skip
    report, _ = stitch(wanted, tmp_path / method)
    rows = {row["name"]: row["kl_to_b"] for row in report["results"]}
    assert report["chosen"] == "permutation" and report["matching"]["method"] == method
    assert rows["translation:permutation"] < rows["null:shuffled-matching"]


# ---------------------------------------------------------------------------------------------------------- planted truth


@pytest.mark.parametrize("width", [pytest.param(40, marks=pytest.mark.slow), 56])
def test_a_planted_rotation_and_permutation_of_features_is_recovered(width: int, tmp_path):
    a = tiny.model("llama")
    rotation = random_rotation(a.width, width, torch.Generator().manual_seed(2)).float()
    b = rotated_copy(a, width, rotation)
    ids = tiny.ids(3, 20)
    with torch.no_grad():
        assert (a.net(ids).logits - b.net(ids).logits).abs().max() < 2e-3  # the planted copy is correct

    text = write_text(tmp_path)
    documents = [(f"{number}", json.loads(line)["text"]) for number, line in enumerate(text.read_text().splitlines())]
    paired = {}
    for split, limit in (("fit", 12000), ("sweep", 640)):
        windows = pack(select(documents, split), a.tokenizer, 32, limit)
        paired[split] = pair(
            harvest(a, windows, [3], tmp_path / split / "a"), harvest(b, windows, [3], tmp_path / split / "b"), 3, 3
        )
    fit = paired["fit"]
    sample = fit.shard(0)[0]
    config = SAEConfig(features=96, k=12)
    known = untrained(config, sample, torch.Generator().manual_seed(0))
    order = torch.randperm(96, generator=torch.Generator().manual_seed(1))
    assert known.threshold is not None
    permuted = Dictionary(
        encoder=(rotation.T @ known.encoder)[:, order], encoder_bias=known.encoder_bias[order], activation="jumprelu",
        threshold=known.threshold[order], k=None, decoder=(known.decoder @ rotation)[order],
        decoder_bias=known.decoder_bias @ rotation,
    )  # fmt: skip
    matching = match(
        code_stream(fit, known, permuted, chunk=1024, folder=tmp_path / "codes"),
        "hungarian",
        seed=0,
        budget_bytes=2**26,
    )
    right = order[torch.from_numpy(matching.pairs.cols)] == torch.from_numpy(matching.pairs.rows)
    alive = int((torch.from_numpy(matching.used.second_a.numpy()) > 0).sum())
    assert right.double().mean() >= 0.99 and len(matching.pairs) >= 0.95 * alive
    assert matching.pairs.scores.mean() > 0.99 > 0.7 > matching.pairs.null_scores.mean()

    inputs = {
        "x": Stream(3),
        "codes": Lift(3, known),
        "embedding": ByToken(look_ups.embeddings(b, torch.arange(tiny.VOCABULARY))),
    }
    evidence = Evidence(
        fit=fit, held_out=paired["sweep"], inputs=inputs, first=fit.b.read(0, 3)[0, 0],
        vocabulary=tiny.VOCABULARY, features=MatchedFeatures(known, permuted, matching),
    )  # fmt: skip
    options = Options(ngrams=0, routes=0, seed=0, chunk=1024, memory=2**28)
    fitted = translate(evidence, options)
    in_many_groups = translate(evidence, replace(options, memory=2**18))
    for name, found in fitted.ridges.items():
        other = in_many_groups.ridges[name]
        assert other.strength == found.strength and fitted.shares[name] == in_many_groups.shares[name]
        assert all(torch.equal(weight, other.weights[input]) for input, weight in found.weights.items())
    # The products of the codes need 110,592 bytes.
    iterated = translate(evidence, replace(options, memory=2**16))
    assert iterated.left_out == ("translation:cross-code",) and fitted.left_out == ()
    assert set(iterated.translations) == set(fitted.translations) - {"translation:cross-code"}
    for name, found in fitted.ridges.items():
        assert iterated.ridges[name].unexplained == pytest.approx(found.unexplained, rel=1e-3, abs=1e-6), name
    dense = replace(known, activation="relu", threshold=None)  # half of the features are active on a token
    evidence = replace(evidence, inputs=inputs | {"codes": Lift(3, dense)})
    without = translate(evidence, replace(options, memory=2**16))
    reading_codes = {f"translation:{name}" for name in ("cross-code", "permutation+error", "features", "features+token",
                                                        "features+free", "features+free+tables")}  # fmt: skip
    assert set(without.left_out) == reading_codes == set(fitted.translations) - set(without.translations)
    stage = Stage(a, b, 3, 3, paired["sweep"], 2**28)
    names = ("rotation", "directions", "procrustes", "affine", "prior", "identity")
    rows = {name: stage.translated(fitted.translations[f"translation:{name}"]) for name in names}
    rows |= {name: stage.translated(found) for name, found in fitted.nulls.items()}
    rows["null:shuffled-matching"] = stage.translated(*fitted.shuffles)
    rows["b"] = stage.whole(b.net)
    scores = evaluate(rows, stage.windows, vocabulary=tiny.VOCABULARY, reference=rows["b"])
    kl = {name: found.row(name)["kl_to_b"] for name, found in scores.items()}
    for name in ("rotation", "directions", "procrustes", "affine", "prior"):
        assert kl[name] < 1e-3, (name, kl)
    for name in (
        "identity",
        "null:shuffled-matching",
        "null:random-rotation",
        "null:shuffled-tokens",
        "null:no-source",
    ):
        assert kl[name] > 0.1, (name, kl)


# --------------------------------------------------------------------------------------------------------------- refusals


def test_features_default_to_what_the_text_determines():
    assert default_features(48, 1_000_000) == 8 * 48
    assert default_features(1536, 19_000) == 9472 <= 19_000 // 2 < 8 * 1536
    assert default_features(1536, 3_500) == 1728 and default_features(1536, 3_100) == 1536


def test_fewer_features_for_little_text_are_told(run):
    report, _ = run
    one, other = report["saes"]
    cut = {**report, "saes": [one, {**other, "features": 1728, "features_cut_from": 12_288}]}
    added = [note for note in footnotes(cut) if note not in footnotes(report) and not note.startswith("SAE at")]
    assert added == [
        "The text is short for the SAE at b: resid_pre.2: it has 1,728 features, not 12,288, as there may be at most one for "
        "every two tokens to fit on. More `tokens` give more."
    ]


@pytest.mark.slow
def test_little_text_is_accepted_at_the_default_number_of_features(donors, tmp_path):
    width, tokens = 288, 4096
    wide = tiny.save(tmp_path / "wide", "llama", hidden_size=width)
    wanted = settings(
        wide, wide, donors["text"], layer_b=3, tokens=tokens, features=None, sae_passes=0.1, brief=True,
        reference_steps=None,
    )  # fmt: skip
    report, _ = stitch(wanted, tmp_path / "out")
    assert all(width < found["features"] <= tokens // 2 < 8 * width for found in report["saes"])
    said = [note for note in footnotes(report) if note.startswith("The text is short for the SAE")]
    assert len(said) == 2 and all(f"{report['saes'][0]['features']:,} features, not 2,304" in note for note in said)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"layer": 7}, r"layer must be in 0..6 for .*; got 7"),
        ({"layer_b": -1}, r"layer_b must be in 0..6 for .*; got -1"),
        ({"features": 40}, "features must be at least the width, 48; got 40"),
        ({"features": 2049}, "features must be at most half the number of tokens to fit on, 4,096; got 2,049"),
        (
            {"features": 10**6},
            "features must fit into `memory`: 1,000,000 need 2.4 GiB to train, and `memory` is 0.2 GiB",
        ),
        ({"context": 200}, "context must be at most 128"),
        ({"translation": "magic"}, "translation must be one of auto, identity, mean-shift"),
        ({"tokens": 10}, "tokens must be at least 4,096; got 10"),
        ({"brief": True, "native": True}, "brief and native cannot both be set"),
        ({"matching": "greedy"}, "matching must be one of hungarian, ot, unbalanced; got 'greedy'"),
    ],
)
def test_impossible_requests_are_refused_and_leave_nothing_behind(changes, message, donors, tmp_path):
    with pytest.raises(UsageError, match=message):
        stitch(
            settings(donors["gpt2"], donors["qwen3"], donors["text"], **{"sae_passes": 0.1, **changes}),
            tmp_path / "out",
        )
    assert not list(tmp_path.iterdir())


def test_text_that_is_too_small_is_refused_with_its_size(donors, tmp_path):
    (tmp_path / "text").mkdir()
    small = write_text(tmp_path / "text", documents=3)
    with pytest.raises(StitchError, match=r"must fill at least .* tokens of the fit split; .* has 3 documents"):
        stitch(settings(donors["gpt2"], donors["qwen3"], small), tmp_path / "out")
    (tmp_path / "text" / "text.jsonl").write_text("")
    with pytest.raises(StitchError, match="has 0 documents"):
        stitch(settings(donors["gpt2"], donors["qwen3"], small), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


@pytest.mark.slow
def test_a_token_more_in_one_tokenizer_is_no_obstacle(run, donors, tmp_path):
    other = tiny.save(tmp_path / "other", "qwen3", seed=1, hidden_size=48, vocab_size=tiny.VOCABULARY + 1)
    changed = tiny.tokenizer()
    changed.add_tokens(["<new>"], special_tokens=True)
    changed.save_pretrained(other)
    report, folder = stitch(settings(donors["gpt2"], other, donors["text"], brief=True), tmp_path / "out")
    assert report["across"]["coinciding"] == 1.0 and report["across"]["own_tokens_per_token"] == 1.0
    assert AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).config.vocab_size == tiny.VOCABULARY


def test_an_existing_folder_is_replaced_only_on_request(run, donors, tmp_path):
    _, folder = run
    wanted = settings(donors["gpt2"], donors["qwen3"], donors["text"])
    with pytest.raises(UsageError, match="out must not exist"):
        stitch(wanted, folder)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(UsageError, match="replaces only a folder that stitch wrote"):
        stitch(wanted, tmp_path / "thesis", overwrite=True)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"


def test_unknown_settings_are_refused():
    with pytest.raises(UsageError, match="got 'colour' as well"):
        Settings.from_dict({"model_a": "a", "model_b": "b", "layer": 1, "colour": "red"})


def test_the_default_layer_of_b_is_at_the_same_relative_depth():
    assert same_relative_depth(3, 6, 8) == 4
    assert same_relative_depth(0, 6, 8) == 0 and same_relative_depth(6, 6, 8) == 8
    assert same_relative_depth(1, 24, 4) == 1 and same_relative_depth(23, 24, 4) == 3


def test_any_model_can_be_evaluated_and_compared(run, donors):
    report, folder = run
    both = evaluate_models(
        str(folder), str(donors["qwen3"]), text=str(donors["text"]), tokens=4096, context=32, device="cpu"
    )
    found = {row["name"]: row for row in both["results"]}
    assert found["model"]["ce"] == pytest.approx(
        next(r["ce"] for r in report["results"] if r["name"] == "composite"), abs=1e-5
    )
    assert found["against"]["ce"] == pytest.approx(
        next(r["ce"] for r in report["results"] if r["name"] == "b"), abs=1e-5
    )
    assert found["model"]["kl_to_b"] > 0
    assert load(donors["qwen3"]).name == "qwen3"
    assert table(both)[0] == ["", "CE", "95 % interval", "perplexity", "KL to B", "top-1"]
    alone = {**both, "results": [{**found["model"], "kl_to_b": None, "top1": None}]}
    assert table(alone)[0] == ["", "CE", "95 % interval", "perplexity"] and len(table(alone)[1][0]) == 4
