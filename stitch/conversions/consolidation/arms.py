"""A document consolidated: all arms of the table, each scaled to the same cost on other text."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial

import torch
from jaxtyping import Int
from torch import Tensor

from stitch.conversions.consolidation import fitting
from stitch.conversions.consolidation.queries import (
    LabelledQueries,
    continuations,
    label_queries,
    passages,
    query_length,
)
from stitch.conversions.consolidation.slow_weights import (
    Coordinates,
    Curvature,
    Edit,
    check_writable,
    coordinates,
    edited_parameters,
    logits_with,
    measure_curvature,
    scale_to_cost,
)
from stitch.evaluation.scores import Scores, evaluate
from stitch.models.model import Model
from stitch.text.documents import Split
from stitch.text.windows import Windows

QUERIES = 48  # to learn from: half the model's own continuations of the document, half passages of it
CURVATURE_TOKENS = 24_576
FIRST_TOKENS = 4_096  # on which an edit is scaled to about its cost
SEARCH_TOKENS = 16_384  # and then within 5 %: what it costs on fewer is a third more or less elsewhere
REPORT_TOKENS = 16_384  # on which its cost is reported
# Rates of plain training, the best of those tried on the sweep split (benchmarks/conversions_consolidate.py --part tune).
SGD_RATE, ADAMW_RATE = 1.0, 1e-2


@dataclass(frozen=True)
class ModelAndText:
    """A model and other text: what consolidating any document needs. The text of the `report` split is only reported on."""

    model: Model
    windows: Mapping[Split, Windows]

    @cached_property
    def curvature(self) -> Curvature:
        return measure_curvature(self.model, self.windows["fit"].first(CURVATURE_TOKENS))

    @cached_property
    def axes(self) -> Coordinates:
        return coordinates(self.curvature, self.model)

    @cached_property
    def other(self) -> dict[str, Windows]:
        """The text that costs are searched on, at first and then, and reported on: they differ much by document."""
        return {
            "first": self.windows["sweep"].spread(FIRST_TOKENS),
            "search": self.windows["sweep"].spread(SEARCH_TOKENS),
            "report": self.windows["report"].spread(REPORT_TOKENS),
        }

    @cached_property
    def unedited_scores(self) -> dict[str, Scores]:
        """The model as it is on other text."""
        return {name: self._other_text({}, windows) for name, windows in self.other.items()}

    def retention_cost(self, edit: Edit, scale: float) -> tuple[float, float, float]:
        """What the edit costs on the report split, nats per token, with its paired 95 % interval over documents."""
        scores, before = (
            self._other_text(edited_parameters(self.model, edit, scale), self.other["report"]),
            self.unedited_scores["report"],
        )
        return scores.ce - before.ce, *scores.interval(minus=before)

    def scale(self, edit: Edit, budget: float) -> float:
        """The factor with which the edit costs `budget` nats per token on the sweep split."""

        def cost_on(text: str, scale: float) -> float:
            scores = self._other_text(edited_parameters(self.model, edit, scale), self.other[text])
            return scores.ce - self.unedited_scores[text].ce

        about = scale_to_cost(partial(cost_on, "first"), budget, within=0.2)
        return scale_to_cost(partial(cost_on, "search"), budget, start=about or 1.0)

    def _other_text(self, changed: dict[str, Tensor], windows: Windows) -> Scores:
        row = {"model": lambda batch: logits_with(self.model, changed, batch.ids)}
        return evaluate(row, windows, vocabulary=self.model.config.vocab_size)["model"]


def prepare(model: Model, windows: Mapping[Split, Windows]) -> ModelAndText:
    """Freezes the model: only edits have gradients. Raises UsageError for a model without an MLP to write to."""
    check_writable(model)
    model.net.requires_grad_(False)
    return ModelAndText(model, windows)


def queries_about(
    model: Model, document: Int[Tensor, " tokens"], seed: int = 0, queries: int = QUERIES
) -> LabelledQueries:
    """Queries that need no other text about the document: half are continuations by the model itself, half passages."""
    generator, length = torch.Generator().manual_seed(seed), query_length(model)
    own = continuations(model, document, queries - queries // 2, length, generator)
    return label_queries(model, document, torch.cat([own, passages(document, queries // 2, length, generator)]))


def fit(
    setup: ModelAndText, labelled: LabelledQueries, budget: float, seed: int = 0, steps: int = fitting.STEPS
) -> Edit:
    """The edit, not yet scaled to the budget."""
    return fitting.natural_gradient(
        setup.model, labelled, setup.windows["fit"], setup.axes, reach=fitting.SHARE * budget, steps=steps, seed=seed
    )


def consolidate_document(
    setup: ModelAndText, document: Int[Tensor, " tokens"], budget: float, seed: int = 0
) -> tuple[Edit, float]:
    """The edit that holds the document, and its factor."""
    edit = fit(setup, queries_about(setup.model, document, seed), budget, seed)
    return edit, setup.scale(edit, budget)


def arms(
    setup: ModelAndText, document: Int[Tensor, " tokens"], other: Int[Tensor, " tokens"], budget: float, seed: int = 0
) -> dict[str, Callable[[], Edit]]:
    """The converted model, baselines and nulls by their names in the table. `other` is the wrong document."""
    model, pool = setup.model, setup.windows["fit"]
    labelled, length = queries_about(model, document, seed), query_length(model)
    # Training on the document sees as many passages of it as there are queries, and no donor: its target is not read.
    text = LabelledQueries(
        passages(document, len(labelled.queries), length, torch.Generator().manual_seed(seed)), labelled.target
    )

    @cache  # the noise is as long as it
    def converted() -> Edit:
        return fit(setup, labelled, budget, seed)

    return {
        "converted": converted,
        "baseline:closed form": lambda: fitting.closed_form(
            model, document, labelled.queries, pool, setup.curvature, seed=seed
        ),
        "baseline:one step": lambda: fit(setup, labelled, budget, seed, steps=1),
        "baseline:sgd": lambda: fitting.train(
            model, text, pool, optimiser="sgd", rate=SGD_RATE, labels="text", seed=seed
        ),
        "baseline:adamw": lambda: fitting.train(
            model, text, pool, optimiser="adamw", rate=ADAMW_RATE, labels="text", seed=seed
        ),
        "baseline:adamw, queries": lambda: fitting.train(
            model, labelled, pool, optimiser="adamw", rate=ADAMW_RATE, labels="donor", seed=seed
        ),
        "null:other document": lambda: fit(setup, queries_about(model, other, seed), budget, seed),
        "null:noise": lambda: fitting.random_direction(converted(), seed),
    }
