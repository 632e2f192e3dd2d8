"""Why a feature goes where it goes: for every feature of B its strongest features of A, and the text that both fire on.

Kept in the composite's folder: `features.json` to read, `features.safetensors` with the candidate graph and the matching.
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
from stitch.features.saes import Codes

CONTEXTS, STRONGEST = 3, 4  # texts per feature, features of A per feature of B
BEFORE, AFTER = 8, 3  # tokens shown around the one a feature fires on


@dataclass(frozen=True)
class Tops:
    """Per feature its highest codes, 0 where it has fewer, and the kept tokens they are of, by number."""

    values: Float32[np.ndarray, "features n"]
    tokens: Int64[np.ndarray, "features n"]


def explain(
    paired: Paired, codes: Iterable[tuple[Codes, Codes]], graph: Candidates, pairs: Pairs, tokenizer: Any
) -> dict[str, bytes]:
    """The two files by name. `codes` are those of A and B for the kept tokens of `paired`, in order, as `match` read them."""
    tops = _tops(codes)
    context = paired.keep.shape[1]
    places = paired.keep.flatten().nonzero()[:, 0].numpy()  # kept token → place in the flattened windows

    def texts(side: int, feature: int) -> list[dict]:
        found = []
        for value, token in zip(tops[side].values[feature], tops[side].tokens[feature], strict=True):
            if value > 0:
                window, position = divmod(int(places[token]), context)
                found.append({"code": round(float(value), 4), "text": _text(paired, tokenizer, window, position)})
        return found

    strongest = _strongest(graph)
    partner = {int(col): number for number, col in enumerate(pairs.cols)}
    features = []
    for feature in range(graph.shape[1]):
        entry: dict = {"feature": feature, "contexts": texts(1, feature), "match": None, "strongest": []}
        if (number := partner.get(feature)) is not None:
            entry["match"] = {
                "feature": int(pairs.rows[number]),
                "score": round(float(pairs.scores[number]), 4),
                "null_score": round(float(pairs.null_scores[number]), 4),
            }
        for other, correlation in strongest.get(feature, []):
            entry["strongest"].append({"feature": other, "correlation": round(correlation, 4)})
        features.append(entry)
    shown = {item["feature"] for entry in features for item in entry["strongest"]}
    shown |= {int(row) for row in pairs.rows}
    report = {
        "b": features,
        "a": [{"feature": feature, "contexts": texts(0, feature)} for feature in sorted(shown)],
        "contexts": "the token a feature fires on stands between « and »",
    }
    return {
        "features.json": (json.dumps(report, ensure_ascii=False, indent=1) + "\n").encode(),
        "features.safetensors": save(_tensors(graph, pairs)),
    }


def _tops(codes: Iterable[tuple[Codes, Codes]]) -> list[Tops]:
    tops: list[Tops | None] = [None, None]
    seen = 0
    for parts in codes:
        for side, found in enumerate(parts):
            tops[side] = _merged(tops[side], found, seen)
        seen += parts[0].shape[0]  # pyright: ignore[reportOptionalSubscript]
    return [found for found in tops if found is not None]


def _merged(known: Tops | None, codes: Codes, seen: int) -> Tops:
    """The highest of those known and of `codes`, whose first token is number `seen`; earlier tokens win ties."""
    count = codes.shape[1]  # pyright: ignore[reportOptionalSubscript]
    if known is None:
        known = Tops(np.zeros((count, CONTEXTS), np.float32), np.zeros((count, CONTEXTS), np.int64))
    entries = codes.tocoo()
    higher = entries.data > known.values[entries.col, -1]  # soon only a few are
    features = np.concatenate([np.repeat(np.arange(count), CONTEXTS), entries.col[higher]])
    values = np.concatenate([known.values.ravel(), entries.data[higher]])
    tokens = np.concatenate([known.tokens.ravel(), entries.row[higher] + seen])
    order = np.lexsort((tokens, -values, features))
    features = features[order]
    rank = np.arange(len(features)) - np.searchsorted(features, features)
    kept = order[rank < CONTEXTS]
    shape = (count, CONTEXTS)
    return Tops(values[kept].reshape(shape).astype(np.float32), tokens[kept].reshape(shape).astype(np.int64))


def _text(paired: Paired, tokenizer: Any, window: int, position: int) -> str:
    ids = paired.a.windows.ids[window].tolist()
    before, after = ids[max(1, position - BEFORE) : position], ids[position + 1 : position + 1 + AFTER]
    return tokenizer.decode(before) + "«" + tokenizer.decode([ids[position]]) + "»" + tokenizer.decode(after)


def _strongest(graph: Candidates) -> dict[int, list[tuple[int, float]]]:
    """The features of A most correlated with each feature of B, best first."""
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
