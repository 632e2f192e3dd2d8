"""`stitch transfer` between models that read different tokens: maps where tokens of both end, scores in own tokens."""

import json
from math import log
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import jobs
import sae
import stitch
import tiny
from sae.convert import to_dictionary
from sae.metrics import measure
from stitch.activations.observe import residuals
from stitch.activations.original import at_tokens_of
from stitch.errors import UsageError
from stitch.jobs import transfer_across
from stitch.jobs.transfer_across import require_carriable
from stitch.models.loading import load
from stitch.models.model import Model
from stitch.text.correspondence import alike
from stitch.text.labels import UNLABELLED, read_labelled
from stitch.text.reader import Reader
from stitch.text.windows import report_windows
from stitch.transfers import effects
from stitch.transfers.effects import Effects
from stitch.transfers.probes import accuracy, predicted, trained
from test_join_across_tokenizers import renumbered
from tokenizers_made import with_byte_fallback

LAYER, WIDTH, CONTEXT, HELD_OUT = 2, 32, 32, 1024
PRINTABLE = 95  # characters, a token for each in the pico models


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    """A model that reads characters, the same with other ids, and one that reads words; what is carried, and labels."""
    folder = tmp_path_factory.mktemp("across")
    found = {"folder": folder, "a": tiny.save(folder / "a", "gpt2"), "text": jobs.write_text(folder, documents=400)}
    other = renumbered(tiny.model("gpt2"))
    found["same"] = folder / "same"
    other.net.save_pretrained(found["same"])
    other.tokenizer.save_pretrained(found["same"])
    words = with_byte_fallback("never")
    found["words"] = tiny.save(folder / "words", "qwen3", seed=1, hidden_size=48, vocab_size=len(words))
    words.save_pretrained(found["words"])
    save_file({"weight": tiny.noise(2, WIDTH), "bias": tiny.noise(2)}, folder / "probe")
    save_file({"v": 3 * tiny.noise(WIDTH)}, folder / "vectors")
    save_file({"v": 3 * tiny.noise(2, 48)}, folder / "vectors-of-words")
    for name, width in (("sae", WIDTH), ("sae-of-words", 48)):
        sae.save(sae.train(tiny.noise(1024, width), features=64, k=4, passes=1), folder / name, {})
    texts = [json.loads(line)["text"] for line in found["text"].read_text().splitlines()[:12]]
    lines = [{"text": text, "labels": [[0, 15, 1], [15, len(text), 0]]} for text in texts]
    (folder / "labels.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return found


def options(made: dict[str, Path], **more: Any) -> dict[str, Any]:
    common = dict(text=made["text"], tokens=4096, held_out=HELD_OUT, context=CONTEXT, device="cpu", quiet=True)
    return {**common, **more}


def model(place: Path) -> Model:
    return load(place, dtype=torch.float32, device=torch.device("cpu"))


@torch.no_grad()
def own_loss(reader: Model, text: Path) -> tuple[float, float]:
    """Nats per token that stands for text, and bits per byte, on the report split in the model's own tokens."""
    ids = report_windows(str(text), HELD_OUT, reader.tokenizer, CONTEXT).ids.long()
    found = reader.net(ids).logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    special = torch.isin(ids[:, 1:], torch.tensor(reader.tokenizer.all_special_ids))
    nats = float(-found[~special].double().sum())
    spelt = reader.tokenizer.convert_ids_to_tokens(ids[:, 1:][~special].tolist())
    length = sum(1 if word.startswith("<0x") else len(word) for word in spelt)
    return nats / len(spelt), nats / length / log(2)


def test_a_model_in_other_ids_takes_what_is_carried_as_it_is(made):
    common, folder = options(made, layer_b=LAYER), made["folder"]
    found = stitch.transfer.vector(made["a"], made["same"], folder / "vectors", LAYER, **common)
    rows, across = found.rows, found.report["across"]
    assert rows.loc["transferred", "effect"] > 0.999 and rows.loc["transferred", "size"] == pytest.approx(1, abs=1e-2)
    assert rows.loc["transferred", "ce"] == pytest.approx(rows.loc["a steered", "ce"], abs=1e-3)
    assert rows.loc["null:random-map", "effect"] < 0.9
    assert across["coinciding"] == 1.0 and across["shared"] == tiny.VOCABULARY - 3
    assert across["bytes_per_token"] == {"a": 1.0, "b": 1.0}
    rows = stitch.transfer.sae(made["a"], made["same"], folder / "sae", LAYER, sae_passes=1, **common).rows
    assert rows.loc["transferred", "fvu"] == pytest.approx(rows.loc["a with its SAE", "fvu"], rel=1e-3)
    assert rows.loc["transferred", "ce"] == pytest.approx(rows.loc["a with its SAE", "ce"], abs=1e-3)
    assert rows.loc["transferred", "agree"] > 0.98 > 0.5 > rows.loc["null:random-map", "agree"]


def test_every_row_of_an_sae_is_scored_in_the_tokens_of_its_model(made):
    """A reads words: most of B's tokens, which are characters, end inside one of A's."""
    carried = made["folder"] / "sae-of-words"
    result = stitch.transfer.sae(made["words"], made["a"], carried, LAYER, sae_passes=1, **options(made, layer_b=3))
    rows, report = result.rows, result.report
    for name, place in (("a", made["words"]), ("b", made["a"])):
        assert tuple(rows.loc[name, ["ce", "bpb"]]) == pytest.approx(own_loss(model(place), made["text"]), rel=1e-5)
    written, b = sae.load(result.folder / "sae", width=WIDTH), model(made["a"])
    ids = report_windows(str(made["text"]), HELD_OUT, b.tokenizer, CONTEXT).ids.long()
    with torch.no_grad():
        y = residuals(b, ids, [3])[3][:, 1:].flatten(0, 1)
    found = measure(to_dictionary(written), [y])
    assert rows.loc[report["chosen"], "fvu"] == pytest.approx(found.fvu, rel=1e-4)
    assert rows.loc[report["chosen"], "l0"] == pytest.approx(found.l0, rel=1e-4)
    scale = rows.loc["b", "bpb"] / rows.loc["b", "ce"]
    for row in (rows.loc["transferred"], rows.loc["null:random-map"], report["differences"][0]):
        assert row["bpb"] == pytest.approx(row["ce"] * scale, rel=1e-6)
    assert "read different tokens" in repr(result) and "bits/byte" in repr(result)
    page = (result.folder / "report.html").read_text()
    assert "read different tokens" in page and "bits per byte" in page


def test_effects_are_compared_over_tokens_of_the_same_bytes(made):
    """A reads words: the effect in B is that on the characters which are words of A too."""
    result = stitch.transfer.vector(
        made["words"], made["a"], made["folder"] / "vectors-of-words", LAYER, **options(made)
    )
    across = result.report["across"]
    assert 0.1 < across["coinciding"] < 0.6  # of characters, those that end a word
    kept = across["pairs"]["fit"] / (4096 * 31 / 32)
    assert kept == pytest.approx(across["coinciding"], abs=0.02)
    assert across["shared"] == PRINTABLE  # those that are no word are spelt by tokens for single bytes
    assert set(result.rows.index) >= {"a steered", "transferred", "null:random-map"}
    assert load_file(result.folder / "vectors.safetensors")["v"].shape == (2, WIDTH)
    for name in ("a steered", "transferred"):
        side = "a" if name == "a steered" else "b"
        row = result.rows.loc[name]
        assert row["side_bpb"] == pytest.approx(row["bpb"] - result.rows.loc[side, "bpb"], abs=1e-9)


def stream(reader: Model, site: int, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return residuals(reader, ids[None].long(), [site])[site][0]


def test_labels_are_those_of_each_models_tokens(made):
    labels, folder = made["folder"] / "labels.jsonl", made["folder"]
    result = stitch.transfer.probe(
        made["a"], made["words"], folder / "probe", LAYER, labels=labels, **options(made, context=64)
    )
    probe = load_file(folder / "probe")
    wanted = {}
    for name in ("a", "words"):
        reader, parts = model(made[name]), []
        for text in read_labelled(labels, reader.tokenizer, 64):
            chosen = text.classes != UNLABELLED
            parts.append((stream(reader, LAYER, text.ids)[chosen], text.classes[chosen]))
        fit, held = ([torch.cat(some) for some in zip(*parts[start::2], strict=True)] for start in (0, 1))
        owner = torch.cat([torch.full((len(part[1]),), number) for number, part in enumerate(parts[1::2])])
        native = trained(fit[0], fit[1], 2)
        wanted[name] = accuracy(predicted(native, held[0]), held[1], owner, 2)["accuracy"], len(held[1])
        if name == "a":
            given = predicted((probe["weight"], probe["bias"]), held[0])
            assert result.rows.loc["a", "accuracy"] == pytest.approx(accuracy(given, held[1], owner, 2)["accuracy"])
    assert result.rows.loc["reference:trained on a", "accuracy"] == pytest.approx(wanted["a"][0])
    assert result.rows.loc["reference:native", "accuracy"] == pytest.approx(wanted["words"][0])
    assert result.report["scored_tokens"] == wanted["words"][1] < wanted["a"][1]


def test_what_cannot_be_carried_is_refused(made, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer_across, "TOKENS_PER_FEATURE", 100)
    with pytest.raises(
        UsageError, match=r"at the same byte at 4,800 places of the fit split .* do at [1,]+\d{3}: raise `tokens`"
    ):
        stitch.transfer.vector(made["words"], made["a"], made["folder"] / "vectors-of-words", LAYER, **options(made))
    monkeypatch.undo()
    text = tmp_path / "text.jsonl"
    lines = [json.dumps({"text": f"日本語 {number} feature model layer token stream weight"}) for number in range(400)]
    text.write_text("\n".join(lines))  # A knows ASCII alone
    with pytest.raises(UsageError, match=r"must keep all but 0\.1%"):
        stitch.transfer.vector(
            made["a"], made["words"], made["folder"] / "vectors", LAYER, **options({**made, "text": text})
        )
    tokenizers = [model(made[name]).tokenizer for name in ("a", "words")]
    composite, other = (
        SimpleNamespace(name=name, tokenizer=tokenizer, parts=[None] * parts)
        for name, tokenizer, parts in zip(("composite", "other"), tokenizers, (2, 1), strict=True)
    )
    with pytest.raises(UsageError, match="composite must share its tokenizer"):
        require_carriable(composite, other)  # pyright: ignore[reportArgumentType]
    require_carriable(other, other)  # pyright: ignore[reportArgumentType]


def test_streams_are_read_at_the_tokens_of_the_other_model(made):
    a, words = model(made["a"]), model(made["words"])
    text = "feature model layer"
    ids = torch.tensor([words.tokenizer.bos_token_id, *words.tokenizer.encode(text, add_special_tokens=False)])
    found = stream(at_tokens_of(a, words), LAYER, ids)
    ends = [len(words.tokenizer.decode(ids[1 : n + 2])) for n in range(len(ids) - 1)]
    own = torch.tensor([tiny.BOS, *a.tokenizer.encode(text, add_special_tokens=False)])
    assert torch.allclose(found[1:], stream(a, LAYER, own)[ends], atol=1e-5)


def test_tokens_alike_stand_for_the_same_bytes():
    one, other = (Reader.of(name, tokenizer) for name, tokenizer in (
        ("characters", tiny.tokenizer()), ("words", with_byte_fallback("never")),
    ))  # fmt: skip
    found = [index.tolist() for index in alike(one, other)]
    pieces = [
        [reader.vocabulary.pieces[token] for token in ids] for reader, ids in zip((one, other), found, strict=True)
    ]
    assert pieces[0] == pieces[1] and b" " in pieces[0] and len(set(pieces[0])) == len(pieces[0]) > 20


def test_log_probabilities_are_added_in_parts_for_a_large_vocabulary(monkeypatch):
    logits, documents = tiny.noise(50, 90), torch.arange(50) % 7
    sums = []
    for at_once in (effects.AT_ONCE, 4 * 80 * 3):  # bytes: of all tokens, and of three
        monkeypatch.setattr(effects, "AT_ONCE", at_once)
        found = Effects(torch.ones(7), vocabulary=80)
        found.add("b", logits, documents)
        sums.append(found.sums["b"])
    assert torch.equal(*sums)
    for document in range(7):
        wanted = logits[documents == document, :80].log_softmax(-1).sum(0)
        assert torch.allclose(sums[1][found.group[document]], wanted, atol=1e-4)
