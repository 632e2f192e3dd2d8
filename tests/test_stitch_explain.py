"""Feature explanations: for planted codes, the text they fire on and their partners are shown."""

import json

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from safetensors.numpy import load

import tiny
from matching.types import Alternatives, Candidates, Pairs
from stitch.activations.harvest import Activations
from stitch.activations.paired import Paired
from stitch.features import shown
from stitch.features import texts as module
from stitch.features.explain import explain
from stitch.text.windows import Windows

CONTEXT, WINDOWS = 12, 9
WORDS = "abcdefghijk"


@pytest.fixture
def paired(tmp_path) -> Paired:
    tokenizer = tiny.tokenizer()
    texts = ["".join(np.roll(list(WORDS), shift)) for shift in range(WINDOWS)]
    ids = torch.tensor([tokenizer.encode(text) for text in texts], dtype=torch.int32)
    windows = Windows(ids, torch.zeros_like(ids))
    keep = torch.ones(ids.shape, dtype=torch.bool)
    keep[:, 0] = keep[4, 5] = False
    activations = Activations(tmp_path, (1,), windows, WINDOWS)
    return Paired(activations, activations, 1, 1, keep)


def planted(paired: Paired, parts: int):
    """Features 0 of A and 1 of B fire on "c" (most strongly in the last windows), 1 of A and 0 of B once on "f", the
    rest never.
    """
    ids = paired.a.windows.ids[paired.keep]
    c, f = (tiny.tokenizer().convert_tokens_to_ids(letter) for letter in "cf")
    a, b = np.zeros((len(ids), 3), np.float32), np.zeros((len(ids), 2), np.float32)
    fires = np.flatnonzero(ids.numpy() == c)
    a[fires, 0] = b[fires, 1] = 1 + np.arange(len(fires))
    once = np.flatnonzero(ids.numpy() == f)[2]
    a[once, 1] = b[once, 0] = 7.0
    cuts = np.array_split(np.arange(len(ids)), parts)
    return [(sp.csr_array(a[rows]), sp.csr_array(b[rows])) for rows in cuts]


def matching() -> tuple[Candidates, Pairs]:
    rows, cols = np.array([0, 0, 1, 2]), np.array([0, 1, 0, 1])
    correlation = np.array([0.1, 0.9, 0.8, 0.2])
    nothing = Alternatives(np.zeros((3, 0), np.int64), np.zeros((3, 0)))
    graph = Candidates((3, 2), rows, cols, correlation, correlation, nothing)
    pairs = Pairs(np.array([0, 1]), np.array([1, 0]), np.array([0.9, 0.8]), np.array([0.3, 0.2]))
    return graph, pairs


@pytest.mark.parametrize("parts", [1, 4])
def test_features_are_shown_with_the_text_they_fire_on_and_their_partners(paired, parts):
    files = explain(paired, lambda: planted(paired, parts), *matching(), tiny.tokenizer())
    report = json.loads(files["features.json"])
    first, second = report["b"]
    assert first["match"] == {"feature": 1, "score": 0.8, "null_score": 0.2}
    assert second["match"]["feature"] == 0
    assert second["strongest"] == [{"feature": 0, "correlation": 0.9}, {"feature": 2, "correlation": 0.2}]
    assert len(first["contexts"]) == 1 and first["contexts"][0]["code"] == 7.0
    assert "«f»" in first["contexts"][0]["text"]
    assert [item["code"] for item in second["contexts"]] == [9.0, 8.0, 7.0, 6.0, 5.0, 4.0]
    last = "".join(np.roll(list(WORDS), WINDOWS - 1))  # the window of the largest code
    place = last.index("c")
    shown = last[max(0, place - module.BEFORE) : place] + "«c»" + last[place + 1 : place + 1 + module.AFTER]
    assert second["contexts"][0]["text"] == shown
    assert [item["feature"] for item in report["a"]] == [0, 1, 2]
    assert report["a"][0]["contexts"] == second["contexts"] and report["a"][2]["contexts"] == []


def test_the_graph_and_the_pairs_are_saved_beside_the_explanations(paired):
    tensors = load(explain(paired, lambda: planted(paired, 2), *matching(), tiny.tokenizer())["features.safetensors"])
    assert tensors["candidates.correlation"].tolist() == [0.1, 0.9, 0.8, 0.2]
    assert tensors["pairs.b"][tensors["pairs.a"].tolist().index(1)] == 0


def test_the_best_pairs_are_shown_with_both_codes_of_every_token(paired):
    files = explain(paired, lambda: planted(paired, 3), *matching(), tiny.tokenizer())
    report = json.loads(files["features.json"])
    best, second = report["pairs"]
    assert (best["a"], best["b"], best["score"], best["null_score"]) == (0, 1, 0.9, 0.3)
    assert (second["a"], second["b"]) == (1, 0) and report["left_out"] == 0
    fires = sum("c" in context for context in ["".join(np.roll(list(WORDS), shift)) for shift in range(WINDOWS)])
    assert best["fires"] == [fires, fires] and best["highest"] == [9.0, 9.0]
    for number in best["top"][0]:
        context = best["contexts"][number]
        words = [report["pieces"][token] for token in context["tokens"]]
        assert words[context["at"]] == "c"
        assert context["a"] == context["b"] == [[place, code] for place, code in context["a"] if words[place] == "c"]
    assert [best["contexts"][number]["a"][0][1] for number in best["top"][1]] == [9.0, 8.0, 7.0, 6.0]
    assert second["contexts"][0]["a"] == [[second["contexts"][0]["at"], 7.0]]


def test_a_histogram_counts_every_code_up_to_the_highest(paired):
    files = explain(paired, lambda: planted(paired, 4), *matching(), tiny.tokenizer())
    best = json.loads(files["features.json"])["pairs"][0]
    codes = 1 + np.arange(best["fires"][0])
    expected, _ = np.histogram(codes, bins=shown.BARS, range=(0, codes.max()))
    assert best["histograms"][0] == expected.tolist()


def test_decoder_rows_are_compared_where_both_streams_have_one_width(paired):
    a, b = torch.eye(3), torch.tensor([[0.0, 3.0, 0.0], [3.0, 4.0, 0.0]])
    files = explain(paired, lambda: planted(paired, 1), *matching(), tiny.tokenizer(), (a, b))
    best, second = json.loads(files["features.json"])["pairs"]
    assert best["cosine"] == 0.6 and second["cosine"] == 1.0
    files = explain(paired, lambda: planted(paired, 1), *matching(), tiny.tokenizer(), (a, b[:, :2]))
    assert "cosine" not in json.loads(files["features.json"])["pairs"][0]


def test_only_the_best_pairs_are_shown_and_the_others_counted(paired, monkeypatch):
    monkeypatch.setattr("stitch.features.browse.PAIRS", 1)
    report = json.loads(explain(paired, lambda: planted(paired, 1), *matching(), tiny.tokenizer())["features.json"])
    assert [pair["b"] for pair in report["pairs"]] == [1] and report["left_out"] == 1


def test_every_feature_stands_on_a_line_of_its_own(paired):
    lines = (
        explain(paired, lambda: planted(paired, 1), *matching(), tiny.tokenizer())["features.json"]
        .decode()
        .splitlines()
    )
    assert sum(line.startswith(' {"feature": 1, ') for line in lines) == 2  # of A and of B
