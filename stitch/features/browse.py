"""The best matched pairs of features as a reader can look at them: the text they fire on with both codes of every token.

One more pass over the codes finds those of both partners in the windows that are shown, and histograms of all their codes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from matching.stream import Batches
from matching.types import Pairs
from stitch.features.shown import ShownCodes
from stitch.features.texts import Pieces, Texts
from stitch.features.tops import Tops
from stitch.progress import Progress, counted

PAIRS = 1_000  # the best by score
CONTEXTS = 4  # texts of each partner

Decoders = tuple[Float[Tensor, "features_a d_a"], Float[Tensor, "features_b d_b"]]


def browsable(
    codes: Batches,
    pairs: Pairs,
    tops: tuple[Tops, Tops],
    texts: Texts,
    tokenizer: Any,
    decoders: Decoders | None,
    progress: Progress | None = None,
) -> dict:
    """The best pairs as JSON: {"pairs": […], "pieces": [text of a token], "left_out": number of other pairs}.

    A pair has its features, score and null score, and by side how many tokens each fires on, the highest code, and a histogram of
    its codes. A context has the numbers of its tokens in `pieces`, `at`, the place of the token that it was chosen for, and of
    both partners [place, code] for every code above 0. `top` numbers the contexts of each partner's highest codes. Where both
    streams have one width, a pair has the cosine of its decoder rows; that says something if both models share a basis.
    """
    best = np.argsort(-pairs.scores, kind="stable")[:PAIRS]
    features = pairs.rows[best], pairs.cols[best]
    chosen = [_Chosen.of(a, b, tops) for a, b in zip(*(side.tolist() for side in features), strict=True)]
    wanted = [[kept for token in one.tokens for kept in texts.kept(token)] for one in chosen]
    highest = [top.values[side, 0] for top, side in zip(tops, features, strict=True)]
    total = texts.tokens
    shown = [ShownCodes(side, most, wanted, total) for side, most in zip(features, highest, strict=True)]
    seen = 0
    for chunk in codes():
        for side, found in zip(shown, chunk, strict=True):
            side.read(found, seen)  # pyright: ignore[reportArgumentType]
        seen += chunk[0].shape[0]  # pyright: ignore[reportOptionalSubscript]
    pieces = Pieces(tokenizer)
    return {
        "pairs": [
            {
                "b": int(pairs.cols[pair]),
                "a": int(pairs.rows[pair]),
                "score": round(float(pairs.scores[pair]), 4),
                "null_score": round(float(pairs.null_scores[pair]), 4),
                **({} if decoders is None else _cosine(decoders, int(pairs.rows[pair]), int(pairs.cols[pair]))),
                "fires": [int(side.counts[row].sum()) for side in shown],
                "highest": [round(float(most[row]), 3) for most in highest],
                "histograms": [side.counts[row].tolist() for side in shown],
                "top": chosen[row].top,
                "contexts": [_context(row, token, shown, texts, pieces) for token in chosen[row].tokens],
            }
            for row, pair in enumerate(counted(best, "pairs of features shown (pairs)", progress))
        ],
        "pieces": pieces.found,
        "left_out": len(pairs) - len(best),
    }


@dataclass(frozen=True)
class _Chosen:
    """Kept tokens whose surroundings are shown for a pair, and which of them are the highest codes of A and of B."""

    tokens: list[int]
    top: list[list[int]]

    @classmethod
    def of(cls, a: int, b: int, tops: tuple[Tops, Tops]) -> "_Chosen":
        both = [side.tokens_of(feature, CONTEXTS) for side, feature in zip(tops, (a, b), strict=True)]
        tokens = list(dict.fromkeys([*both[0], *both[1]]))
        return cls(tokens, [[tokens.index(token) for token in side] for side in both])


def _context(row: int, token: int, shown: list[ShownCodes], texts: Texts, pieces: Pieces) -> dict:
    ids, at = texts.ids(token)
    kept = texts.kept(token)
    of_a, of_b = (side.on(row, kept) for side in shown)
    return {"tokens": [pieces.number(id) for id in ids], "at": at, "a": of_a, "b": of_b}


def _cosine(decoders: Decoders, a: int, b: int) -> dict:
    x, y = (side[row].double().cpu() for side, row in zip(decoders, (a, b), strict=True))
    if len(x) != len(y):
        return {}
    return {"cosine": round(float(torch.nn.functional.cosine_similarity(x, y, dim=0)), 4)}
