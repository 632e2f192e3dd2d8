"""Scores of a fitted pair: the choice of its translation, and every row of the report."""

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType

import torch

from stitch.activations.original import Original
from stitch.activations.paired import Paired
from stitch.composite.splice import Splice
from stitch.composite.surgery import Bridge, bridged
from stitch.config import CompleteSettings
from stitch.errors import UsageError
from stitch.evaluation.bins import Bins
from stitch.evaluation.own_tokens import own_scores
from stitch.evaluation.racing import FIRST, near_the_best, race, race_against
from stitch.evaluation.scores import Logits, Scores, evaluate
from stitch.evaluation.stage import Stage
from stitch.evaluation.trained import trained
from stitch.features.saes import SAEs
from stitch.models.model import Model
from stitch.progress import Progress
from stitch.translation import rows as registry
from stitch.translation.fit import Fitted, everything
from stitch.translation.types import Translation

CHOICE = 16_384  # tokens of the sweep split that the translation is chosen on
LEAST_WINDOWS = 16  # before a row of the report may be dropped
TIE = 0.01  # nats; translations this close to the best count as equal, and the cheapest of them is chosen


def stage(settings: CompleteSettings, a: Model, b: Model, paired: Paired) -> Stage:
    """Both models, ready to score rows on the split of `paired`."""
    return Stage(a, b, *settings.sites, paired, settings.memory)


def choose(
    settings: CompleteSettings,
    fitted: Fitted,
    candidates: Mapping[str, Translation],
    on: Stage,
    progress: Progress | None,
) -> str:
    """Row name of the translation to write: the one that the settings name, or the best candidate on the sweep split (see TIE).

    Raises: UsageError when the named translation was not fitted.
    """
    if settings.translation != "auto":
        if (name := f"translation:{settings.translation}") in fitted.left_out:
            raise UsageError(
                f"translation {settings.translation} needs more than `memory` with so many SAE features: raise `memory`, lower "
                "`features` or choose another translation."
            )
        return name
    rows = {name: on.translated(translation) for name, translation in candidates.items()}
    windows = on.windows.first(CHOICE)

    def score(names: list[str], part: range) -> dict[str, Scores]:
        return evaluate(
            {name: rows[name] for name in names}, windows, vocabulary=on.vocabulary, memory=settings.memory, part=part,
            counted=on.counted, progress=progress, task="choice (tokens)",
        )  # fmt: skip

    found = race(rows, score, len(windows.ids), -(-FIRST // windows.context), near_the_best(TIE))
    scored = max(float(row.tokens.sum()) for row in found.values())
    scores = {name: row for name, row in found.items() if float(row.tokens.sum()) == scored}
    best = min(found.ce for found in scores.values())
    tied = [name for name, found in scores.items() if found.ce - best <= TIE]

    def price(name: str) -> tuple[int, int, float]:
        translation = candidates[name]
        return translation.multiply_adds, translation.parameters, scores[name].ce

    return min(tied, key=price)


def train_references(
    settings: CompleteSettings, a: Model, b: Model, fit: Paired, fitted: Fitted, progress: Progress | None = None
) -> dict[str, Translation]:
    """The affine map after as many steps of gradient descent on cross-entropy as the settings say; empty for 0 steps."""
    if not settings.steps_of_reference:
        return {}
    start = fitted.translations["translation:affine"]
    arguments = {
        "steps": settings.steps_of_reference,
        "seed": settings.seed,
        "memory": settings.memory,
        "progress": progress,
    }
    return {"reference:affine-trained": trained(start, a, b, fit, **arguments)}


def evaluate_all(
    on: Stage,
    composite: torch.nn.Module,
    fitted: Fitted,
    saes: SAEs,
    *,
    wants: Callable[[str], bool] = everything,
    references: Mapping[str, Translation] = MappingProxyType({}),
    bridges: Mapping[str, Bridge] = MappingProxyType({}),
    alternatives: Mapping[str, Logits] = MappingProxyType({}),
    variants: Mapping[str, Logits] = MappingProxyType({}),
    whole: Collection[str] = (),
    bins: Bins | None = None,
    progress: Progress | None = None,
) -> dict[str, Scores]:
    """Scores of all rows of the report; those of rows scored on all text also by `bins`.

    They are the models, all translations, bridges, references, alternatives and `variants` of the composite, and those floors,
    ceilings and nulls that `wants` accepts. Where B reads other tokens than A, its row is in its own, and rows are compared with
    what it says of the next byte. Alternatives, bridges, headline rows and those of `whole` are scored on all text; the others
    until they are certain to be worse than the composite (`race_against`).
    """
    yardsticks = {
        "floor:mean": on.constant(fitted.mean),
        "floor:zero": on.constant(torch.zeros_like(fitted.mean)),
        "floor:wrong-text": on.wrong_text(),
        "ceiling:sae-b": on.spliced_b(saes.b),
        "sae-a": on.spliced_a(saes.a),
        **{name: on.translated(translation) for name, translation in fitted.nulls.items()},
        "null:shuffled-matching": on.translated(*fitted.shuffles),
    }
    splice = Splice(on.a.depth, on.site_a, on.site_b)
    own, next_byte = None, None
    if isinstance(on.b.original, Original):
        own, next_byte = own_scores(on.b.original, on.windows, on.memory, progress)
    if own is not None:
        yardsticks["ceiling:aligned"] = on.aligned()
    rows = {
        **({} if on.a is on.b else {"a": on.whole(on.a.net)}),
        **({"b": on.whole(on.b.net)} if own is None else {}),
        "composite": on.whole(composite),
        **{name: on.translated(translation) for name, translation in fitted.translations.items()},
        **{name: on.whole(bridged(on.a, splice, bridge).net) for name, bridge in bridges.items()},
        **{name: on.translated(translation) for name, translation in references.items()},
        **alternatives,
        **variants,
        **{name: logits for name, logits in yardsticks.items() if wants(name)},
    }
    windows = on.windows

    def score(names: list[str], part: range) -> dict[str, Scores]:
        some = {name: rows[name] for name in names}
        return evaluate(
            some, windows, vocabulary=on.vocabulary, reference=rows.get("b") or next_byte, memory=on.memory, part=part,
            counted=on.counted, bins=bins, binned=always, progress=progress,
        )  # fmt: skip

    always = {"composite", *whole, *bridges, *alternatives, *(row.name for row in registry.ROWS if row.headline)}
    first = max(LEAST_WINDOWS, -(-FIRST // windows.context))
    scores = race_against("composite", rows, score, len(windows.ids), first, always)
    if on.a is on.b:
        return {"a": scores["b"], **scores}
    return scores if own is None else {**scores, "b": own}
