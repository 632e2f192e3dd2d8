"""An explanation of a feature matching: for every feature of B its most correlated features of A, and the text both fire on.

Written to the composite's folder: `features.json` for people, `features.safetensors` with the candidate graph and the matching.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64
from safetensors.numpy import save

from matching.types import Candidates, Pairs
from stitch.activations.paired import Paired
from stitch.features.codes import Codes

CONTEXTS, STRONGEST = 3, 4  # texts shown per feature, features of A shown per feature of B
BEFORE, AFTER = 8, 3  # tokens shown before and after the one a feature fires on


@dataclass(frozen=True)
class Tops:
    """The highest codes of each feature (0 where there are fewer), and the index of the kept token of each code."""

    values: Float32[np.ndarray, "features n"]
    tokens: Int64[np.ndarray, "features n"]


def explain(
    paired: Paired, codes: Iterable[tuple[Codes, Codes]], graph: Candidates, pairs: Pairs, tokenizer: Any
) -> dict[str, bytes]:
    """Content of the two files, by file name.

    `codes` are those of A and B for the kept tokens of `paired`, in order, as given to `match`; `graph` and `pairs` are its
    results.
    """
    tops_a, tops_b = _tops(codes)
    texts = _Texts(paired, tokenizer)
    features = _features_of_b(graph, pairs, tops_b, texts)
    shown = {item["feature"] for entry in features for item in entry["strongest"]}
    shown |= {int(row) for row in pairs.rows}
    report = {
        "b": features,
        "a": [{"feature": feature, "contexts": texts.of(tops_a, feature)} for feature in sorted(shown)],
        "contexts": "the token a feature fires on stands between « and »",
    }
    return {
        "features.json": (json.dumps(report, ensure_ascii=False, indent=1) + "\n").encode(),
        "features.safetensors": save(_tensors(graph, pairs)),
    }


class _Texts:
    """The text around the tokens that a feature fires on."""

    def __init__(self, paired: Paired, tokenizer: Any):
        self._ids, self._tokenizer = paired.a.windows.ids, tokenizer
        self._places = paired.keep.flatten().nonzero()[:, 0].numpy()  # kept token → index in the flattened windows

    def of(self, tops: Tops, feature: int) -> list[dict]:
        """The highest codes of a feature, each with its text."""
        return [
            {"code": round(float(value), 4), "text": self._around(int(self._places[token]))}
            for value, token in zip(tops.values[feature], tops.tokens[feature], strict=True)
            if value > 0
        ]

    def _around(self, place: int) -> str:
        window, position = divmod(place, self._ids.shape[1])
        ids, decode = self._ids[window].tolist(), self._tokenizer.decode
        before, after = ids[max(1, position - BEFORE) : position], ids[position + 1 : position + 1 + AFTER]
        return decode(before) + "«" + decode([ids[position]]) + "»" + decode(after)


def _features_of_b(graph: Candidates, pairs: Pairs, tops: Tops, texts: _Texts) -> list[dict]:
    """An entry for each feature of B: its texts, its partner in the matching, its most correlated features of A."""
    strongest = _strongest(graph)
    pair_of = {int(col): number for number, col in enumerate(pairs.cols)}
    features = []
    for feature in range(graph.shape[1]):
        entry: dict = {"feature": feature, "contexts": texts.of(tops, feature), "match": None, "strongest": []}
        if (number := pair_of.get(feature)) is not None:
            entry["match"] = {
                "feature": int(pairs.rows[number]),
                "score": round(float(pairs.scores[number]), 4),
                "null_score": round(float(pairs.null_scores[number]), 4),
            }
        for other, correlation in strongest.get(feature, []):
            entry["strongest"].append({"feature": other, "correlation": round(correlation, 4)})
        features.append(entry)
    return features


def _tops(codes: Iterable[tuple[Codes, Codes]]) -> tuple[Tops, Tops]:
    """The highest codes of A's features and of B's, in one pass. There is at least one chunk of codes."""
    tops: list[Tops | None] = [None, None]
    seen = 0
    for chunk in codes:
        for side, found in enumerate(chunk):
            tops[side] = _merged(tops[side], found, seen)
        seen += chunk[0].shape[0]  # pyright: ignore[reportOptionalSubscript]
    a, b = tops
    assert a is not None and b is not None, "there are no codes"
    return a, b


def _merged(known: Tops | None, codes: Codes, seen: int) -> Tops:
    """The highest codes among `known` and `codes`, whose first token has index `seen`. Earlier tokens win ties."""
    count = codes.shape[1]  # pyright: ignore[reportOptionalSubscript]
    if known is None:
        known = Tops(np.zeros((count, CONTEXTS), np.float32), np.zeros((count, CONTEXTS), np.int64))
    entries = codes.tocoo()
    higher = entries.data > known.values[entries.col, -1]  # after the first chunks, few codes are
    features = np.concatenate([np.repeat(np.arange(count), CONTEXTS), entries.col[higher]])
    values = np.concatenate([known.values.ravel(), entries.data[higher]])
    tokens = np.concatenate([known.tokens.ravel(), entries.row[higher] + seen])
    order = np.lexsort((tokens, -values, features))
    features = features[order]
    rank = np.arange(len(features)) - np.searchsorted(features, features)
    kept = order[rank < CONTEXTS]
    shape = (count, CONTEXTS)
    return Tops(values[kept].reshape(shape).astype(np.float32), tokens[kept].reshape(shape).astype(np.int64))


def _strongest(graph: Candidates) -> dict[int, list[tuple[int, float]]]:
    """For each feature of B, the features of A most correlated with it and their correlations, best first."""
    order = np.lexsort((graph.rows, -graph.correlation, graph.cols))
    cols = graph.cols[order]
    rank = np.arange(len(cols)) - np.searchsorted(cols, cols)
    found: dict[int, list[tuple[int, float]]] = {}
    for edge in order[rank < STRONGEST]:
        found.setdefault(int(graph.cols[edge]), []).append((int(graph.rows[edge]), float(graph.correlation[edge])))
    return found


def _tensors(graph: Candidates, pairs: Pairs) -> dict[str, np.ndarray]:
    return {
        "candidates.a": graph.rows,
        "candidates.b": graph.cols,
        "candidates.correlation": graph.correlation,
        "pairs.a": pairs.rows,
        "pairs.b": pairs.cols,
        "pairs.score": pairs.scores,
        "pairs.null_score": pairs.null_scores,
    }
