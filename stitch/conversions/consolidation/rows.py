"""The rows of a consolidation's report: the donor, the ceiling, and every edit, scaled to the same cost on other text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stitch.conversions.consolidation.arms import ModelAndText
from stitch.conversions.consolidation.documents import Document
from stitch.conversions.consolidation.queries import concatenated, score_queries, scores_with_context
from stitch.conversions.consolidation.slow_weights import Edit, Parameters, edited_parameters
from stitch.evaluation.scores import Scores


@dataclass(frozen=True)
class ArmScores:
    """Scores of one row on every document, after unrelated text and without a prefix. Its cost on other text, with a 95 %
    interval.
    """

    behind_text: list[Scores]
    bare: list[Scores]
    cost: tuple[float, float, float]

    @property
    def all_behind_text(self) -> Scores:
        return concatenated(self.behind_text)


def score_arms(
    setup: ModelAndText, edits: dict[str, Callable[[], Edit]], documents: Sequence[Document], cost: float
) -> tuple[dict[str, ArmScores], Edit, float]:
    """Scores of the donor, the ceiling and every edit, scaled to `cost`; and the edit `converted` with its scale."""
    model, progress = setup.model, setup.progress

    def scored(cost: tuple[float, float, float], changed: Parameters | None = None) -> ArmScores:
        behind = [score_queries(model, one.behind_text, changed, progress) for one in documents]
        return ArmScores(behind, [score_queries(model, one.bare, changed, progress) for one in documents], cost)

    nothing = (0.0, 0.0, 0.0)
    ceiling = [scores_with_context(one.bare.labelled) for one in documents]
    rows = {"donor": scored(nothing), "reference:with context": ArmScores(ceiling, ceiling, nothing)}
    converted: tuple[Edit, float] | None = None
    for number, (name, make) in enumerate(edits.items(), 1):
        edit = make()
        scale = setup.scale(edit, cost)
        rows[name] = scored(setup.retention_cost(edit, scale), edited_parameters(model, edit, scale))
        converted = (edit, scale) if name == "converted" else converted
        if progress:
            progress("edits scored", number, len(edits))
    assert converted is not None
    return rows, *converted
