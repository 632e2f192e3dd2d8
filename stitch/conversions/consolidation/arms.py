"""All arms of the consolidation table: converted model, baselines and nulls, each scaled to the same cost on other text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial

import torch
from jaxtyping import Int
from torch import Tensor

from stitch.conversions.consolidation import fitting
from stitch.conversions.consolidation.queries import (
    LabelledQueries,
    continuations,
    joined,
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
from stitch.progress import Progress
from stitch.text.documents import Split
from stitch.text.windows import Windows

QUERIES = 48  # in a fit: half continuations of the document by the model, half passages of it
CURVATURE_TOKENS = 24_576
FIRST_TOKENS = 4_096  # on which an edit is scaled to within 20 % of its budget
SEARCH_TOKENS = 16_384  # then to within 5 %. A cost measured on fewer tokens is off by up to a third on other text
REPORT_TOKENS = 16_384  # on which the cost is reported
# Learning rates of plain training, the best on the sweep split (benchmarks/conversions_consolidate.py --part tune).
SGD_RATE, ADAMW_RATE = 1.0, 1e-2


@dataclass(frozen=True)
class ModelAndText:
    """A model and the other text on which the cost of edits is measured, for any document.

    The `report` split is used only for reported costs.
    """

    model: Model
    windows: Mapping[Split, Windows]
    progress: Progress | None = None

    @cached_property
    def curvature(self) -> Curvature:
        return measure_curvature(self.model, self.windows["fit"].first(CURVATURE_TOKENS), progress=self.progress)

    @cached_property
    def axes(self) -> Coordinates:
        return coordinates(self.curvature, self.model, progress=self.progress)

    @cached_property
    def other_text(self) -> dict[str, Windows]:
        """The text for the first and the final search of a scale, and for the report."""
        return {
            "first": self.windows["sweep"].first(FIRST_TOKENS),
            "search": self.windows["sweep"].first(SEARCH_TOKENS),
            "report": self.windows["report"].first(REPORT_TOKENS),
        }

    @cached_property
    def unedited_scores(self) -> dict[str, Scores]:
        """Scores of the unedited model on other text."""
        return {name: self._scores({}, windows) for name, windows in self.other_text.items()}

    def retention_cost(self, edit: Edit, scale: float) -> tuple[float, float, float]:
        """Cost of the edit on the report split in nats per token, and its paired 95 % interval over documents."""
        scores = self._scores(edited_parameters(self.model, edit, scale), self.other_text["report"])
        before = self.unedited_scores["report"]
        return scores.ce - before.ce, *scores.interval(minus=before)

    def scale(self, edit: Edit, budget: float, start: float | None = None) -> float:
        """The factor with which the edit costs about `budget` nats per token on the sweep split.

        The search begins with `start`, where it is known from a like edit; otherwise on less text.
        """

        def cost_on(text: str, scale: float) -> float:
            scores = self._scores(edited_parameters(self.model, edit, scale), self.other_text[text])
            return scores.ce - self.unedited_scores[text].ce

        if start is None:
            start = scale_to_cost(partial(cost_on, "first"), budget, within=0.2) or 1.0
        return scale_to_cost(partial(cost_on, "search"), budget, start=start)

    def _scores(self, changed: dict[str, Tensor], windows: Windows) -> Scores:
        row = {"model": lambda batch: logits_with(self.model, changed, batch.ids)}
        return evaluate(
            row, windows, vocabulary=self.model.vocabulary, progress=self.progress, task="cost on other text (tokens)"
        )["model"]


def prepare(model: Model, windows: Mapping[Split, Windows], progress: Progress | None = None) -> ModelAndText:
    """Freezes the model's parameters. Raises UsageError for MLPs that cannot be edited, StitchError for non-finite weights."""
    check_writable(model)
    model.net.requires_grad_(False)
    return ModelAndText(model, windows, progress)


def queries_about(
    model: Model,
    document: Int[Tensor, " tokens"],
    seed: int = 0,
    queries: int = QUERIES,
    progress: Progress | None = None,
) -> LabelledQueries:
    """Queries to fit on, made from the document alone: half are continuations by the model, half passages."""
    generator, length = torch.Generator().manual_seed(seed), query_length(model)
    own = continuations(model, document, queries - queries // 2, length, generator, progress)
    return label_queries(
        model, document, torch.cat([own, passages(document, queries // 2, length, generator)]), progress=progress
    )


def fit(
    setup: ModelAndText, labelled: LabelledQueries, budget: float, seed: int = 0, steps: int = fitting.STEPS
) -> Edit:
    """The edit for the queries, not yet scaled to the budget."""
    return fitting.natural_gradient(
        setup.model, labelled, setup.windows["fit"], setup.axes, reach=fitting.SHARE * budget, steps=steps, seed=seed,
        progress=setup.progress,
    )  # fmt: skip


def consolidate_documents(
    setup: ModelAndText, documents: Sequence[Int[Tensor, " tokens"]], budget: float, seed: int = 0
) -> tuple[Edit, float]:
    """The edit for several documents together, and the factor that scales it to the budget. Takes as many steps for each."""
    labelled = joined([queries_about(setup.model, one, seed, progress=setup.progress) for one in documents])
    edit = fit(setup, labelled, budget, seed, fitting.STEPS * len(documents))
    return edit, setup.scale(edit, budget)


def arms(
    setup: ModelAndText,
    documents: Sequence[Int[Tensor, " tokens"]],
    others: Sequence[Int[Tensor, " tokens"]],
    budget: float,
    seed: int = 0,
) -> dict[str, Callable[[], Edit]]:
    """Functions that compute the edits for all `documents` together, by the names of their rows.

    `others` are the wrong documents of a null.
    """
    model, pool, steps = setup.model, setup.windows["fit"], fitting.STEPS * len(documents)
    about = [queries_about(model, one, seed, progress=setup.progress) for one in documents]
    labelled, length = joined(about), query_length(model)
    asked = [(one, labels.queries) for one, labels in zip(documents, about, strict=True)]
    # Plain training uses as many passages of a document as there are queries about it. It ignores the target.
    read = [passages(one, QUERIES, length, torch.Generator().manual_seed(seed)) for one in documents]
    text = LabelledQueries(torch.cat(read), labelled.target)

    @cache  # also needed for the norm of the noise
    def converted() -> Edit:
        return fit(setup, labelled, budget, seed, steps)

    def train(asked: LabelledQueries, **how) -> Edit:
        return fitting.train(model, asked, pool, seed=seed, steps=steps, progress=setup.progress, **how)

    def wrong() -> Edit:
        asked = joined([queries_about(model, one, seed, progress=setup.progress) for one in others])
        return fit(setup, asked, budget, seed, steps)

    return {
        "converted": converted,
        "baseline:closed form": lambda: fitting.closed_form(
            model, asked, pool, setup.curvature, seed=seed, progress=setup.progress
        ),
        "baseline:one step": lambda: fit(setup, labelled, budget, seed, steps=1),
        "baseline:sgd": lambda: train(text, optimiser="sgd", rate=SGD_RATE, labels="text"),
        "baseline:adamw": lambda: train(text, optimiser="adamw", rate=ADAMW_RATE, labels="text"),
        "baseline:adamw, queries": lambda: train(labelled, optimiser="adamw", rate=ADAMW_RATE, labels="donor"),
        "null:other document": wrong,
        "null:noise": lambda: fitting.random_direction(converted(), seed),
    }
