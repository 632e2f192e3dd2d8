"""An explanation of a feature matching: for every feature of B its most correlated features of A, and the text both fire on.

Written to the composite's folder: `features.json` for people, `features.safetensors` with the candidate graph and the matching.
"""

import json

import numpy as np
from safetensors.numpy import save

from matching.stream import Batches
from matching.types import Candidates, Pairs
from stitch.activations.paired import Paired
from stitch.features.browse import Decoders, browsable
from stitch.features.texts import Texts
from stitch.features.tops import Tops, highest
from stitch.progress import Progress, counted

STRONGEST = 4  # features of A shown per feature of B


def explain(
    paired: Paired,
    codes: Batches,
    graph: Candidates,
    pairs: Pairs,
    tokenizer,
    decoders: Decoders | None = None,
    progress: Progress | None = None,
) -> dict[str, bytes]:
    """Content of the two files, by file name.

    `codes` starts the stream of codes of A and B for the kept tokens of `paired`, in order, as given to `match`; `graph` and
    `pairs` are its results. `decoders` are the decoder rows of A's and B's features.
    """
    tops_a, tops_b = highest(codes())
    texts = Texts(paired, tokenizer)
    features = _features_of_b(graph, pairs, tops_b, texts, progress)
    shown = {item["feature"] for entry in features for item in entry["strongest"]}
    shown |= {int(row) for row in pairs.rows}
    browsed = browsable(codes, pairs, (tops_a, tops_b), texts, tokenizer, decoders, progress)
    report = {
        "b": features,
        "a": [{"feature": feature, "contexts": contexts(tops_a, feature, texts)} for feature in sorted(shown)],
        "contexts": "the token a feature fires on stands between « and »",
        **browsed,
    }
    return {"features.json": one_line_each(report), "features.safetensors": save(_tensors(graph, pairs))}


def contexts(tops: Tops, feature: int, texts: Texts) -> list[dict]:
    """The highest codes of a feature, each with its text."""
    return [
        {"code": round(float(value), 4), "text": texts.around(int(token))}
        for value, token in zip(tops.values[feature], tops.tokens[feature], strict=True)
        if value > 0
    ]


def one_line_each(report: dict) -> bytes:
    """JSON with a line for every entry of a list, so that a feature is found with `grep`."""

    def text(value) -> str:
        return json.dumps(value, ensure_ascii=False)

    parts = [
        f"{text(key)}: " + ("[\n " + ",\n ".join(map(text, value)) + "\n]" if isinstance(value, list) else text(value))
        for key, value in report.items()
    ]
    return ("{" + ",\n".join(parts) + "}\n").encode()


def _features_of_b(graph: Candidates, pairs: Pairs, tops: Tops, texts: Texts, progress: Progress | None) -> list[dict]:
    """An entry for each feature of B: its texts, its partner in the matching, its most correlated features of A."""
    strongest = _strongest(graph)
    pair_of = {int(col): number for number, col in enumerate(pairs.cols)}
    features = []
    for feature in counted(range(graph.shape[1]), "text of features (features)", progress):
        entry: dict = {
            "feature": feature,
            "contexts": contexts(tops, feature, texts),
            "match": None,
            "strongest": [],
        }
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
