"""Text `self`: what a model writes, how it is drawn, kept and refused, and the jobs that are fitted on it."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import composites
import tiny
from jobs import settings
from stitch.conversions.donor import read_donor
from stitch.conversions.heads.convert import convert_heads
from stitch.errors import StitchError, UsageError
from stitch.files.store import Store
from stitch.jobs.evaluate import evaluate_models
from stitch.jobs.join import stitch
from stitch.models.loading import load
from stitch.models.model import Model
from stitch.models.writer import Writer, _draws
from stitch.report.card import footnotes
from stitch.report.verdict import verdict_sentence
from stitch.text.documents import read, split_of
from stitch.text.sources import Corpus, Wanted, corpus_of
from stitch.text.windows import read_for, split_windows

LONGEST = 24
UNTIED = {"tie_word_embeddings": False}  # with random tied embeddings a model says its last token again
ENDS = range(40, 50)  # ids that end a text beside EOS, in tests of texts of different lengths


@pytest.fixture(scope="module")
def donors(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("donors")
    return {
        "gpt2": tiny.save(folder / "gpt2", "gpt2", **UNTIED),
        "qwen3": tiny.save(folder / "qwen3", "qwen3", seed=1, hidden_size=48, **UNTIED),
        "tied": tiny.save(folder / "tied", "llama"),
    }


@pytest.fixture(scope="module")
def gpt2(donors) -> Model:
    return load(donors["gpt2"], name="gpt2")


@pytest.fixture(scope="module")
def composite(tmp_path_factory) -> Model:
    return load(composites.write(tmp_path_factory.mktemp("composite")))


class Parrot:
    """A writer without a model: text number n is `said(n)`, in the ids of the pico tokenizer."""

    name, seed, identity, longest = "parrot", 0, "parrot", 1000

    def __init__(self, said):
        self.said, self.asked = said, []

    def described(self) -> dict:
        return {"model": self.name}

    def at_once(self, longest: int) -> int:
        return 16

    def write(self, numbers, longest: int) -> list[list[int]]:
        self.asked += numbers
        return [tiny.tokenizer().encode(self.said(number), add_special_tokens=False) for number in numbers]

    def text(self, ids) -> str:
        return tiny.tokenizer().decode(ids)


def wanted(fit: int = 600, held: int = 100) -> Wanted:
    return Wanted({"fit": fit, "sweep": held, "report": held}, tiny.tokenizer(), LONGEST)


def tokens_by_split(found: Corpus) -> Counter:
    tokens = Counter()
    for name, text in found.documents:
        tokens[split_of(name)] += 1 + len(tiny.tokenizer().encode(text, add_special_tokens=False))
    return tokens


# ------------------------------------------------------------------------------------------------------------------ drawing


@torch.no_grad()
def by_hand(model: Model, number: int, seed: int, longest: int) -> list[int]:
    """Text `number`, drawn from the logits of whole texts: no cache, no batch."""
    special = set(model.tokenizer.all_special_ids)
    ids = [tiny.BOS]
    for draw in _draws(seed, number, longest - 1).tolist():
        logits = model.net(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double()
        logits[sorted(special - {tiny.BOS})] = -torch.inf
        sums = logits.softmax(-1).cumsum(-1)
        token = int((sums <= draw * sums[-1]).sum())
        if token in (tiny.BOS, *ENDS):
            break
        ids.append(token)
    return ids[1:]


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "composite"])
def test_texts_of_a_batch_are_those_drawn_one_by_one_without_a_cache(family, request):
    model = request.getfixturevalue("composite") if family == "composite" else tiny.model(family, **UNTIED)
    model.net.generation_config.eos_token_id = [tiny.BOS, *ENDS]
    numbers = [3, 1, 4, 15, 9, 2, 6, 5]
    found = Writer.of(model, 7).write(numbers, LONGEST)
    assert found == [by_hand(model, number, 7, LONGEST) for number in numbers]
    lengths = {len(ids) for ids in found}
    assert len(lengths) > 3  # some ended and were dropped from the batch
    assert max(lengths) <= LONGEST - 1


def test_tokens_come_as_often_as_the_model_says(gpt2):
    count = 4000
    drawn = Counter(ids[0] for ids in Writer.of(gpt2, 0).write(range(count), 2) if ids)
    with torch.no_grad():
        logits = gpt2.net(input_ids=torch.tensor([[tiny.BOS]])).logits[0, -1].double()
    logits[[id for id in gpt2.tokenizer.all_special_ids if id != tiny.BOS]] = -torch.inf
    expected = logits.softmax(-1)
    expected[tiny.BOS] = 0
    seen = torch.zeros_like(expected)
    for token, times in drawn.items():
        seen[token] = times / count
    error = (expected * (1 - expected) / count).sqrt()
    assert ((seen - expected).abs() <= 4.5 * error + 1e-12).all()


def test_another_seed_is_another_text(gpt2):
    one, same, other = (Writer.of(gpt2, seed).write(range(4), LONGEST) for seed in (0, 0, 1))
    assert one == same
    assert all(a != b for a, b in zip(one, other, strict=True))


def test_special_tokens_are_not_written(gpt2):
    special = set(gpt2.tokenizer.all_special_ids)
    assert {tiny.BOS, tiny.PAD} < special
    assert not any(set(ids) & special for ids in Writer.of(gpt2, 0).write(range(100), LONGEST))


# ------------------------------------------------------------------------------------------------------------------ documents


def test_every_split_gets_its_tokens_and_no_more_documents_than_it_needs(gpt2):
    asked = wanted(fit=2000, held=400)
    found = corpus_of("self", None, asked, Writer.of(gpt2, 0))
    of_split = tokens_by_split(found)
    assert all(of_split[split] >= least for split, least in asked.limits.items())
    assert sum(of_split.values()) < 1.3 * sum(asked.limits.values())
    texts = [text for _, text in found.documents]
    assert len(set(texts)) == len(texts)
    assert found.written is not None and found.written["longest"] == LONGEST


def test_windows_of_written_text_are_as_many_as_were_asked_for(gpt2):
    limits = {"fit": 4096, "sweep": 500, "report": 500}
    corpus = read_for("self", limits, gpt2.tokenizer, 32, writer=Writer.of(gpt2, 0))
    windows = split_windows(corpus, limits, gpt2.tokenizer, 32)
    assert {split: one.tokens for split, one in windows.items()} == {"fit": 4096, "sweep": 512, "report": 512}
    said = windows["report"].provenance["text"]
    assert said["name"] == "self" and said["written"]["model"] == "gpt2" and said["written"]["temperature"] == 1.0
    assert said["note"].startswith("gpt2 wrote the text itself")


def test_a_model_that_says_its_last_token_again_is_refused(donors):
    with pytest.raises(StitchError, match="tied must write texts that differ"):
        corpus_of("self", None, wanted(), Writer.of(load(donors["tied"], name="tied"), 0))


@pytest.mark.parametrize(
    "said", [lambda n: "a" * (n + 1), lambda n: "the same", lambda n: "", lambda n: "  " * (n + 1)]
)
def test_a_model_that_repeats_itself_is_refused_in_one_line(said):
    parrot = Parrot(said)
    with pytest.raises(StitchError, match=r"^parrot must write texts that differ .*: give another `text`\.$"):
        corpus_of("self", None, wanted(), parrot)
    assert len(parrot.asked) < 100


def test_texts_that_come_twice_are_kept_once():
    found = corpus_of("self", None, wanted(), Parrot(lambda n: f"text number {n // 2}"))
    assert len({text for _, text in found.documents}) == len(found.documents)
    assert all(tokens_by_split(found)[split] >= least for split, least in wanted().limits.items())


def test_no_text_is_longer_than_the_model_takes(donors):
    short = Writer.of(load(donors["gpt2"], name="gpt2"), 0)
    found = corpus_of("self", None, Wanted({"fit": 2000}, tiny.tokenizer(), 10_000), short)
    assert found.written is not None and found.written["longest"] == short.longest == 128


# ------------------------------------------------------------------------------------------------------------------ keeping


def test_written_text_is_kept_under_model_seed_and_size(gpt2, tmp_path, monkeypatch):
    store = Store(tmp_path)
    first = corpus_of("self", None, wanted(), Writer.of(gpt2, 0), store)
    (entry,) = store.entries()
    assert entry.kind == "texts" and entry.about == "800 tokens by gpt2, seed 0"
    bytes_ = (entry.folder / "content").read_bytes()

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "write", lambda *_: pytest.fail("it is written again"))
        assert corpus_of("self", None, wanted(), Writer.of(gpt2, 0), store) == first
        renamed = corpus_of("self", None, wanted(), Writer.of(replace(gpt2, name="another name"), 0), store)
    assert renamed.written == {**(first.written or {}), "model": "another name"}
    store.remove(entry)
    assert corpus_of("self", None, wanted(), Writer.of(gpt2, 0), store) == first
    assert (store.entries()[0].folder / "content").read_bytes() == bytes_

    corpus_of("self", None, wanted(), Writer.of(gpt2, 1), store)
    corpus_of("self", None, wanted(fit=700), Writer.of(gpt2, 0), store)
    assert len(store.entries()) == 3


def test_self_is_a_folder_only_with_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "one.jsonl").write_text(json.dumps({"text": "one"}))
    assert [text for _, text in read("./self")] == ["one"]
    with pytest.raises(UsageError, match=r"^text self is written by a model, and there is none here: .*\./self"):
        read("self")


# ------------------------------------------------------------------------------------------------------------------ jobs


def test_a_pair_is_joined_on_text_that_b_writes(donors, tmp_path):
    asked = settings(donors["gpt2"], donors["qwen3"], Path("self"), brief=True, held_out=512)
    report, folder = stitch(asked, tmp_path / "one")
    text = report["provenance"]["text"]
    assert text["written"]["model"] == str(donors["qwen3"]) and text["written"]["seed"] == 0
    assert report["recipe"]["text"] == "self"
    assert json.loads((folder / "report.json").read_text()) == report
    assert verdict_sentence(report).startswith(f"Text written by {donors['qwen3']}. ")
    assert text["note"] in footnotes(report)
    rows = {row["name"]: row for row in report["results"]}
    assert rows["b"]["ce"] < rows["a"]["ce"] and rows["b"]["ce"] < rows["composite"]["ce"]


@pytest.mark.slow
def test_a_conversion_reads_what_its_donor_writes(donors, tmp_path):
    report = convert_heads(
        str(donors["gpt2"]), tmp_path / "out", kv_heads=1, text="self", tokens=4096, held_out=512, context=32, seed=3,
        device="cpu",
    )  # fmt: skip
    text = report["provenance"]["text"]
    assert text["written"]["model"] == str(donors["gpt2"]) and text["written"]["seed"] == 3


def test_longer_windows_of_a_conversion_are_of_the_same_text(donors):
    given = read_donor(
        str(donors["gpt2"]), text="self", tokens=4096, held_out=512, context=16, report_factor=4, device="cpu"
    )
    assert given.windows["report"].context == 64
    assert given.windows["report"].text == given.windows["fit"].text
    assert given.windows["fit"].text is not None and given.windows["fit"].text.written["longest"] == 64


def test_of_two_models_that_are_scored_the_second_writes(donors, tmp_path):
    alone = evaluate_models(str(donors["gpt2"]), text="self", tokens=512, context=32, device="cpu")
    assert alone["provenance"]["text"]["written"]["model"] == str(donors["gpt2"])
    both = evaluate_models(str(donors["gpt2"]), str(donors["qwen3"]), text="self", tokens=512, context=32, device="cpu")
    assert both["provenance"]["text"]["written"]["model"] == str(donors["qwen3"])
    scores = {row["name"]: row["ce"] for row in both["results"]}
    assert scores["against"] < scores["model"]
