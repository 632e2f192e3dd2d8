"""What a composite loses at tokens that did not occur in the text its tables are of: they get a fall-back in place of a row."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.evaluation.scores import evaluate
from stitch.evaluation.stage import Stage
from stitch.progress import Progress
from stitch.text.windows import Windows
from stitch.translation.packed import Packed
from stitch.translation.types import Term, Token, Translation
from stitch.translation.unfolded import factors_of

AT_MOST = 16_384  # tokens of the text that are read for it


def loss_at_unseen(on: Stage, translation: Translation, progress: Progress | None = None) -> dict | None:
    """Cross-entropy, in nats, of predictions made at tokens without a row and at all others.

    They are those of B, where it reads the same tokens, of the translation, and of the translation with the mean row in place of
    its fall-back. None where every token has a row or the translation has no fall-back.
    """
    windows = on.windows.first(AT_MOST)
    keys = next((term.input.keys for term in translation.terms
                 if isinstance(term.input, Token) and not term.input.back and term.fallback is not None), None)  # fmt: skip
    if keys is None:
        return None
    unseen = ~torch.isin(windows.ids, keys.to(windows.ids.dtype))
    made_at = torch.zeros_like(windows.ids)
    made_at[:, 1:] = unseen[:, :-1]  # `Windows.document` labels predicted tokens, and `unseen` the tokens before them
    if not made_at.any():
        return None
    rows = {
        **({"b": on.whole(on.b.net)} if on.b.original is None else {}),
        "fallback": on.translated(translation),
        "mean_row": on.translated(with_mean_rows(translation)),
    }
    scores = evaluate(
        rows, Windows(windows.ids, made_at), vocabulary=on.vocabulary, memory=on.memory,
        counted=on.counted, progress=progress, task="tokens without rows (tokens)",
    )  # fmt: skip
    counts = scores["fallback"].tokens
    return {
        "tokens_without_rows": int(counts[1]), "tokens": int(counts.sum()),
        "ce_without_rows": {name: float(found.nats[1] / counts[1]) for name, found in scores.items()},
        "ce_with_rows": {name: float(found.nats[0] / counts[0]) for name, found in scores.items()},
    }  # fmt: skip


def with_mean_rows(translation: Translation) -> Translation:
    terms = tuple(
        replace(term, fallback=term.fallback.always(_mean_row(term))) if term.fallback is not None else term
        for term in translation.terms
    )
    return replace(translation, terms=terms)


def _mean_row(term: Term) -> Float[Tensor, " d_out"]:
    if isinstance(term.weight, Packed):
        return term.weight.rows(torch.arange(len(term.weight))).mean(0)
    assert term.weight is not None
    means = ((rows.mean(0, dtype=torch.float64).cpu(), weight) for rows, weight in factors_of(term.weight))
    return sum(
        (mean if weight is None else mean @ weight.double().cpu() for mean, weight in means), torch.tensor(0.0)
    ).float()
