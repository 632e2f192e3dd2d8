"""`stitch transfer`: SAEs, probes and vectors are the same functions where one stream is an affine image of the other."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import cli
import sae
import stitch
import tiny
from jobs import gpt2_and_qwen3
from sae.convert import from_dictionary, to_dictionary
from sae.errors import SAEError
from sae.metrics import measure
from sae.types import Dictionary
from stitch.config import Settings
from stitch.errors import UsageError
from stitch.files.store import Store
from stitch.jobs.transfer_vector import transfer_vector
from stitch.text.labels import UNLABELLED, read_labelled
from stitch.transfers.agreement import agreement, top_tokens
from stitch.transfers.autoencoders import memory_to_refit, refitted, transferred, without_features
from stitch.transfers.encoders import codes_and_streams, firing_at, firings, with_encoder
from stitch.transfers.maps import PROCRUSTES, RANDOM, TRANSFERRED, UNCHANGED, all_maps, pair_moments, unexplained
from stitch.transfers.probes import accuracy, predicted, trained
from stitch.transfers.vectors import carried, carried_probe, read_probe, read_vectors

WIDTH, FEATURES, TOKENS = 12, 40, 3000


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return tiny.noise(*shape, seed=seed)


def paired(x: torch.Tensor, y: torch.Tensor) -> Any:
    """What the maps read of a pair of sites."""
    return SimpleNamespace(chunks=lambda: zip(x.split(700), y.split(700), x.split(700), strict=True))


@pytest.fixture(scope="module")
def streams():
    """A's stream, and B's, which is an affine image of it in more dimensions."""
    x = noise(TOKENS, WIDTH) + 2
    there, bias = noise(WIDTH, WIDTH + 4, seed=1), noise(WIDTH + 4, seed=2)
    return x, x @ there + bias


@pytest.fixture(scope="module")
def maps(streams):
    x, y = streams
    moments = pair_moments(paired(x[:2000], y[:2000]), paired(x[2000:], y[2000:]))
    return all_maps(moments, seed=0), moments


def dictionary(activation: Any = "jumprelu", seed: int = 3) -> Dictionary:
    decoder = noise(FEATURES, WIDTH, seed=seed)
    decoder = decoder / decoder.norm(dim=1, keepdim=True)
    threshold = noise(FEATURES, seed=4).abs() if activation == "jumprelu" else None
    return Dictionary(
        noise(WIDTH, FEATURES, seed=5), noise(FEATURES, seed=6) - 2, activation, threshold, None, decoder,
        noise(WIDTH, seed=7),
    )  # fmt: skip


def test_an_affine_image_is_found_in_both_directions(maps, streams):
    found, moments = maps
    x, y = streams
    errors = {name: unexplained(one, moments) for name, one in found.items()}
    assert max(errors[TRANSFERRED].values()) < 1e-6
    for name in (PROCRUSTES, RANDOM, UNCHANGED):
        assert errors[name]["there"] > 0.05
    there = found[TRANSFERRED].there
    held = y[2000:].double()
    direct = (held - there(x[2000:].double())).square().sum() / (held - held.mean(0)).square().sum()
    assert float(direct) == pytest.approx(errors[TRANSFERRED]["there"], abs=1e-9)
    worse = found[PROCRUSTES].there
    direct = (held - worse(x[2000:].double())).square().mean(0).sum() / held.var(0, correction=0).sum()
    assert float(direct) == pytest.approx(errors[PROCRUSTES]["there"], rel=1e-6)


@pytest.mark.parametrize("activation", ["jumprelu", "relu"])
def test_a_transferred_sae_fires_and_writes_as_the_one_it_came_from(maps, streams, activation):
    x, y = streams
    source = dictionary(activation)
    found = transferred(source, maps[0][TRANSFERRED])
    assert torch.allclose(found.decoder.norm(dim=1), torch.ones(FEATURES), atol=1e-5)
    expected = maps[0][TRANSFERRED].there(source(x).double()).float()
    assert torch.allclose(found(y), expected, atol=2e-3)
    fires = source.encode(x) > 0
    assert ((found.encode(y) > 0) == fires).float().mean() > 0.999
    assert agreement(top_tokens(source, x.split(500)), top_tokens(found, y.split(700))) > 0.97
    random = transferred(source, maps[0][RANDOM])
    assert agreement(top_tokens(source, x.split(500)), top_tokens(random, y.split(700))) < 0.2


def test_a_refitted_decoder_explains_more_and_keeps_the_codes(maps, streams):
    _, y = streams
    mapped = transferred(dictionary(), maps[0][TRANSFERRED])
    found = refitted(mapped, y[:2000].split(500), y[2000:].split(500))
    assert measure(found, [y[2000:]]).fvu < 0.5 * measure(mapped, [y[2000:]]).fvu
    assert torch.equal(found.encode(y) > 0, mapped.encode(y) > 0)
    assert torch.allclose(found.decoder.norm(dim=1), torch.ones(FEATURES), atol=1e-5)


def test_features_fire_as_often_as_asked_with_any_room(maps, streams):
    _, y = streams
    mapped = transferred(dictionary(), maps[0][RANDOM])
    counts = firings(dictionary(), [streams[0]])
    asked = counts.clone()
    asked[:3] = torch.tensor([0, 1, len(y)])
    for memory in (1, 2**30):
        found = firing_at(mapped, asked, lambda: y.split(700), memory)
        positive = (y @ mapped.encoder + mapped.encoder_bias > 0).sum(0)
        assert torch.equal(firings(found, [y]), torch.minimum(asked, positive))
    assert not torch.equal(firings(mapped, [y])[3:], counts[3:])


def test_a_refitted_encoder_predicts_codes_whatever_the_map(maps, streams):
    x, y = streams
    source = dictionary("relu")
    fit, held_out = (codes_and_streams(source, [x[part]], [y[part]]) for part in (slice(2000), slice(2000, None)))
    wide = transferred(source, maps[0][RANDOM])
    found = with_encoder(wide, fit, held_out)
    again = firing_at(found, firings(source, [x]), lambda: [y], 2**30)
    ours, theirs = top_tokens(source, [x]), top_tokens(again, [y])
    assert agreement(ours, theirs) > 0.5
    assert (
        agreement(ours, top_tokens(firing_at(found, firings(source, [x]), lambda: [y.flip(0)], 2**30), [y.flip(0)]))
        < 0.1
    )


def test_features_that_share_no_text_do_not_agree():
    x = noise(2000, WIDTH)
    source = dictionary("relu")
    order = torch.randperm(FEATURES, generator=torch.Generator().manual_seed(0))
    moved = dataclasses.replace(
        source, encoder=source.encoder[:, order], encoder_bias=source.encoder_bias[order], decoder=source.decoder[order]
    )
    ours, theirs = top_tokens(source, x.split(700)), top_tokens(moved, x.split(300))
    assert agreement(ours, theirs, order.argsort().numpy()) == 1.0
    assert agreement(ours, theirs) < 0.2 and agreement(ours, theirs, np.full(FEATURES, -1)) == 0.0
    best = source.encode(x).topk(10, dim=0).indices.T
    assert [set(row) for row in ours.tokens.tolist()] == [set(row) for row in best.tolist()]


@pytest.mark.slow
def test_without_memory_to_refit_the_mapped_sae_is_written(pair):
    common: Any = dict(text=pair["text"], tokens=4096, context=32, device="cpu", quiet=True)
    found = stitch.transfer.sae(pair["gpt2"], pair["qwen3"], pair["folder"] / "wide", 2, memory="64M", **common)
    assert found.report["chosen"] == "transferred" and "transferred, decoder refitted" not in found.rows.index
    assert "Neither encoder nor decoder was refitted" in repr(found)
    assert memory_to_refit(to_dictionary(sae.load(pair["folder"] / "wide"))) > 2**26


def test_an_sae_to_compare_with_is_read_before_anything_costs(pair):
    with pytest.raises(sae.SAEError, match="width 48"):
        stitch.transfer.sae(
            pair["gpt2"], pair["qwen3"], pair["folder"] / "sae", 2, native=pair["folder"] / "sae",
            text="no such text anywhere", quiet=True,
        )  # fmt: skip


def test_features_left_out_never_fire():
    found = without_features(dictionary(), [3, 5])
    codes = found.encode(noise(500, WIDTH))
    assert codes.isfinite().all() and set(codes.any(0).nonzero()[:, 0].tolist()) <= {3, 5} and codes[:, 3].any()


def test_top_k_saes_are_refused(maps):
    wrong = Dictionary(noise(4, 8), noise(8), "topk", None, 2, noise(8, 4), noise(4))
    with pytest.raises(UsageError, match="ReLU or JumpReLU"):
        transferred(wrong, maps[0][TRANSFERRED])


@pytest.mark.parametrize("activation", ["jumprelu", "relu"])
def test_a_dictionary_is_written_for_saelens_as_the_same_function(activation, tmp_path):
    source = dictionary(activation)
    sae.save(from_dictionary(source), tmp_path / "sae", {"made": "here"})
    loaded = sae.load(tmp_path / "sae", width=WIDTH)
    x = noise(200, WIDTH, seed=9)
    assert torch.allclose(loaded.encode(x), source.encode(x), atol=1e-5)
    assert torch.allclose(loaded.decode(loaded.encode(x)), source(x), atol=1e-5)
    assert torch.allclose(to_dictionary(loaded)(x), source(x), atol=1e-5)


def test_a_carried_probe_scores_what_the_probe_scores_on_the_mapped_stream(maps, streams):
    x, y = streams
    weight, bias = noise(3, WIDTH, seed=1), noise(3, seed=2)
    carried_weight, carried_bias = carried_probe(weight, bias, maps[0][TRANSFERRED])
    assert torch.allclose(y @ carried_weight.T + carried_bias, x @ weight.T + bias, atol=1e-2)
    one = carried_probe(weight[:1], bias[:1], maps[0][TRANSFERRED])
    assert (predicted(one, y) == (x @ weight[0] + bias[0] > 0)).float().mean() > 0.999


def test_accuracy_is_balanced_over_classes():
    truth = torch.tensor([0] * 90 + [1] * 10)
    document = torch.arange(100) % 10
    assert accuracy(torch.zeros(100, dtype=torch.long), truth, document, 2)["accuracy"] == pytest.approx(0.5)
    found = accuracy(truth, truth, document, 3)
    assert found["accuracy"] == pytest.approx(1) == found["accuracy_low"]
    half = torch.tensor([0] * 90 + [1] * 5 + [0] * 5)
    assert accuracy(half, truth, document, 2)["accuracy"] == pytest.approx(0.75)


def test_a_trained_probe_finds_rare_classes():
    x = noise(2000, 6) * torch.tensor([100.0, 1, 1, 1, 0.01, 1]) + 5
    truth = ((x[:, 4] - 5) / 0.01 > 1.5).long()  # 7 %, in the smallest dimension
    probe = trained(x[:1000], truth[:1000], 2)
    document = torch.arange(1000) % 20
    assert accuracy(predicted(probe, x[1000:]), truth[1000:], document, 2)["accuracy"] > 0.95


def test_vectors_are_carried_without_the_bias(maps, tmp_path):
    save_file({"one": noise(WIDTH), "two": noise(3, WIDTH)}, tmp_path / "v.safetensors")
    found = carried(read_vectors(tmp_path / "v.safetensors", WIDTH), maps[0][TRANSFERRED])
    assert found["one"].shape == (WIDTH + 4,) and found["two"].shape == (3, WIDTH + 4)
    assert torch.equal(carried({"no": torch.zeros(WIDTH)}, maps[0][TRANSFERRED])["no"], torch.zeros(WIDTH + 4))


@pytest.mark.parametrize(
    "tensors, said",
    [
        ({"weight": torch.ones(2, 5)}, r"must be \[classes, 12\]"),
        ({"weight": torch.ones(2, 12), "bias": torch.ones(3)}, r"`bias` \[classes\]"),
        ({"w": torch.ones(2, 12)}, "must hold `weight`"),
        ({"weight": torch.full((2, 12), torch.nan)}, "finite"),
        (None, "safetensors file"),
    ],
)
def test_files_that_are_no_probe_are_refused(tensors, said, tmp_path):
    file = tmp_path / "probe.safetensors"
    file.write_text("{}") if tensors is None else save_file(tensors, file)
    with pytest.raises(UsageError, match=said):
        read_probe(file, WIDTH)


def test_labels_are_those_of_a_tokens_last_character(tmp_path):
    file = tmp_path / "labels.jsonl"
    file.write_text(json.dumps({"text": "ab cd", "labels": [[0, 2, 1], [3, 4, 0]]}) + "\n\n")
    (found,) = read_labelled(file, tiny.tokenizer(), 100)
    assert found.classes.tolist() == [UNLABELLED, 1, 1, UNLABELLED, 0, UNLABELLED] and len(found.ids) == 6
    assert len(read_labelled(file, tiny.tokenizer(), 3)[0].ids) == 3
    for wrong in ('{"text": "a"}', "[]", '{"text": "a", "labels": [[0, 1, -2]]}', '{"text": 1, "labels": []}'):
        file.write_text(wrong)
        with pytest.raises(UsageError, match="line 1"):
            read_labelled(file, tiny.tokenizer(), 100)
    file.write_text('{"text": "abc", "labels": []}')
    with pytest.raises(UsageError, match="cover some tokens"):
        read_labelled(file, tiny.tokenizer(), 100)


# ------------------------------------------------------------------------------------------------------- whole transfers


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    found = gpt2_and_qwen3(folder)
    save_file({"weight": noise(2, 32), "bias": noise(2)}, folder / "probe.safetensors")
    save_file({"v": 3 * noise(32)}, folder / "vectors.safetensors")
    words = [json.loads(line)["text"] for line in found["text"].read_text().splitlines()[:12]]
    lines = [{"text": text, "labels": [[0, 15, 1], [15, len(text), 0]]} for text in words]
    (folder / "labels.jsonl").write_text("\n".join(map(json.dumps, lines)))
    trained_sae = sae.train(noise(1024, 32), features=64, k=4, passes=1)
    sae.save(trained_sae, folder / "sae", {})
    sae.save(sae.train(noise(256, 32), features=1536, k=4, passes=1), folder / "wide", {})
    return {**found, "folder": folder}


def options(pair: dict) -> list[str]:
    return ["--layer", "2", "--text", str(pair["text"]), "--tokens", "4096", "--context", "32", "--device", "cpu", "-q"]


def test_an_sae_is_transferred_and_loads_in_saelens(pair, tmp_path):
    words = [
        "transfer",
        "sae",
        pair["gpt2"],
        pair["qwen3"],
        pair["folder"] / "sae",
        *options(pair),
        "--out",
        tmp_path / "out",
    ]
    done = CliRunner().invoke(cli.app, [*map(str, words)])
    assert done.exit_code == 0, done.output
    assert "reference:native" in done.output and "null:random-map" in done.output
    loaded = sae.load(tmp_path / "out" / "sae", width=48)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert loaded.cfg.d_sae == 64 == report["features"]
    rows = {row["name"]: row for row in report["results"]}
    assert rows[report["chosen"]]["fvu"] <= rows["null:random-map"]["fvu"]


def test_a_model_to_itself_at_one_site_changes_nothing(pair):
    common: Any = dict(text=pair["text"], tokens=4096, context=32, device="cpu", quiet=True, layer_b=2)
    a, folder = pair["gpt2"], pair["folder"]
    rows = stitch.transfer.probe(a, a, folder / "probe.safetensors", 2, **common).rows
    assert rows.loc["transferred", "accuracy"] > 0.995 > 0.9 > rows.loc["null:random-map", "accuracy"]
    rows = stitch.transfer.vector(a, a, folder / "vectors.safetensors", 2, **common).rows
    assert rows.loc["transferred", "effect"] > 0.999 and rows.loc["transferred", "size"] == pytest.approx(1, abs=1e-2)
    assert rows.loc["transferred", "ce"] == pytest.approx(rows.loc["a steered", "ce"], abs=1e-3)
    rows = stitch.transfer.sae(a, a, folder / "sae", 2, **common).rows
    assert rows.loc["transferred", "fvu"] == pytest.approx(rows.loc["a with its SAE", "fvu"], rel=1e-3)
    assert rows.loc["transferred", "agree"] > 0.98


def test_labels_train_a_probe_to_compare_with(pair):
    result = stitch.transfer.probe(
        pair["gpt2"], pair["qwen3"], pair["folder"] / "probe.safetensors", 2, labels=pair["folder"] / "labels.jsonl",
        text=pair["text"], tokens=4096, context=32, device="cpu", quiet=True,
    )  # fmt: skip
    assert {"reference:native", "reference:trained on a", "reference:native, 1 % of the labels"} <= set(
        result.rows.index
    )
    assert result.report["scored_documents"] == 6 and 5 < result.report["documents"]["effective"] <= 6
    assert " tokens of 6 documents (effective number 6), balanced accuracy" in repr(result)
    assert "Few documents: their effective number is 6, below 30" in repr(result)
    written = load_file(result.folder / "probe.safetensors")
    assert written["weight"].shape == (2, 48) and written["bias"].shape == (2,)
    assert "accuracy" in result._repr_html_() and "Always giving one class scores 50.0%" in repr(result)


SMALL: Any = dict(tokens=4096, context=32, device="cpu", quiet=True)


@pytest.mark.parametrize("kind", [pytest.param("sae", marks=pytest.mark.slow), "probe", "vector"])
def test_what_is_in_memory_is_carried_as_from_its_file(pair, kind):
    folder = pair["folder"]
    given = {"labels": folder / "labels.jsonl"} if kind == "probe" else {}
    file = folder / {"sae": "sae", "probe": "probe.safetensors", "vector": "vectors.safetensors"}[kind]
    in_memory = {"sae": sae.load, "probe": load_file, "vector": lambda file: load_file(file)["v"].numpy()}[kind](file)
    held = {"labels": [*map(json.loads, given["labels"].read_text().splitlines())]} if given else {}
    call = getattr(stitch.transfer, kind)
    of_file, of_memory = (
        call(pair["gpt2"], pair["qwen3"], what, 2, text=pair["text"], **more, **SMALL)
        for what, more in ((file, given), (in_memory, held))
    )
    assert of_memory.report["results"] == of_file.report["results"]
    name = of_memory.report["provenance"]["settings"]["file"]
    assert name.startswith("given ") and "(sha256 " in name and "/" not in name
    assert of_memory.report["recipe"]["file"] == name


def test_a_native_sae_may_be_in_memory(pair):
    of_b = sae.train(noise(512, 48), features=64, k=4, passes=1)
    found = stitch.transfer.sae(
        pair["gpt2"], pair["qwen3"], pair["folder"] / "sae", 2, native=of_b, text=pair["text"], **SMALL
    )
    assert found.rows.loc["reference:native, given", "fvu"] > 0


def test_what_cannot_be_carried_is_refused_in_one_line(pair):
    a, b = pair["gpt2"], pair["qwen3"]
    for call, given, error, said in [
        (stitch.transfer.sae, {}, SAEError, "one of SAELens, .*; got dict"),
        (stitch.transfer.probe, {"weight": "no"}, UsageError, "a mapping of tensors is needed; got weight: str"),
        (stitch.transfer.vector, object(), UsageError, "a mapping of tensors is needed; got vector: object"),
        (stitch.transfer.vector, {}, UsageError, "a mapping of tensors is needed; got nothing"),
        (stitch.transfer.vector, noise(32) * 1j, UsageError, "a mapping of tensors is needed; got vector: Tensor"),
        (stitch.transfer.vector, noise(32) / 0, UsageError, "must be finite; vector is not"),
        (stitch.transfer.vector, noise(31).numpy()[::-1], UsageError, r"must be \[32\].*is \[31\]"),
        (stitch.transfer.vector, noise(31), UsageError, r"must be \[32\].*is \[31\]"),
    ]:
        with pytest.raises(error, match=said) as refusal:
            call(a, b, given, 2, text=pair["text"], **SMALL)
        assert "\n" not in str(refusal.value)
    with pytest.raises(UsageError, match=r"labels are a \.jsonl file, or a list"):
        stitch.transfer.probe(a, b, {"weight": noise(2, 32)}, 2, labels=[noise(1)], text=pair["text"], **SMALL)
    with pytest.raises(UsageError, match=r"labels.*line 1"):
        stitch.transfer.probe(a, b, {"weight": noise(2, 32)}, 2, labels=[{"text": "a"}], text=pair["text"], **SMALL)


def test_a_file_of_another_width_is_refused_before_anything_costs(pair, tmp_path):
    wrong = tmp_path / "wrong.safetensors"
    save_file({"weight": noise(2, 31)}, wrong)
    done = CliRunner().invoke(
        cli.app, [*map(str, ("transfer", "probe", pair["gpt2"], pair["qwen3"], wrong, *options(pair)))]
    )
    assert done.exit_code == 2 and "[classes, 32]" in done.stderr
    assert not list(Path().glob("*-to-*-probe"))


def test_activations_of_an_earlier_run_are_used_and_change_nothing(pair, tmp_path):
    vectors = tmp_path / "vectors.safetensors"
    save_file({"one": noise(32)}, vectors)
    asked = Settings(
        model_a=str(pair["gpt2"]), model_b=str(pair["qwen3"]), layer=2, text=str(pair["text"]), tokens=4096, context=32,
        device="cpu", brief=True,
    )  # fmt: skip
    store = Store(tmp_path / "store")
    reports = [transfer_vector(asked, vectors, tmp_path / name, store=store)[0] for name in ("first", "second")]
    assert store.missed["activations"] == store.reused["activations"] > 0
    assert reports[0]["results"] == reports[1]["results"]
    assert reports[1]["cache"] == store.counts()
