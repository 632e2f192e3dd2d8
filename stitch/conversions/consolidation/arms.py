"""A document consolidated: all arms of the table, each scaled to the same cost on other text."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial

import torch
from jaxtyping import Int
from torch import Tensor

from stitch.conversions.consolidation import fitting
from stitch.conversions.consolidation.queries import Lesson, continuations, learn, passages, query_length
from stitch.conversions.consolidation.slow_weights import (
    Coordinates,
    Curvature,
    Edit,
    call,
    check,
    coordinates,
    measure_curvature,
    parameters,
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
class Bench:
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
    def untouched(self) -> dict[str, Scores]:
        """The model as it is on other text."""
        return {name: self._other_text({}, windows) for name, windows in self.other.items()}

    def retained(self, edit: Edit, scale: float) -> tuple[float, float, float]:
        """What the edit costs on the report split, nats per token, with its paired 95 % interval over documents."""
        scores, before = (
            self._other_text(parameters(self.model, edit, scale), self.other["report"]),
            self.untouched["report"],
        )
        return scores.ce - before.ce, *scores.interval(minus=before)

    def scale(self, edit: Edit, budget: float) -> float:
        """The factor with which the edit costs `budget` nats per token on the sweep split."""

        def cost_on(text: str, scale: float) -> float:
            scores = self._other_text(parameters(self.model, edit, scale), self.other[text])
            return scores.ce - self.untouched[text].ce

        about = scale_to_cost(partial(cost_on, "first"), budget, within=0.2)
        return scale_to_cost(partial(cost_on, "search"), budget, start=about or 1.0)

    def _other_text(self, changed: dict[str, Tensor], windows: Windows) -> Scores:
        row = {"model": lambda batch: call(self.model, changed, batch.ids)}
        return evaluate(row, windows, vocabulary=self.model.config.vocab_size)["model"]


def open_bench(model: Model, windows: Mapping[Split, Windows]) -> Bench:
    """Freezes the model: only edits have gradients. Raises UsageError for a model without an MLP to write to."""
    check(model)
    model.net.requires_grad_(False)
    return Bench(model, windows)


def lesson_of(model: Model, document: Int[Tensor, " tokens"], seed: int = 0, queries: int = QUERIES) -> Lesson:
    """Queries that need no other text about the document: half are continuations by the model itself, half passages."""
    generator, length = torch.Generator().manual_seed(seed), query_length(model)
    own = continuations(model, document, queries - queries // 2, length, generator)
    return learn(model, document, torch.cat([own, passages(document, queries // 2, length, generator)]))


def fit(bench: Bench, lesson: Lesson, budget: float, seed: int = 0, steps: int = fitting.STEPS) -> Edit:
    """The edit, not yet scaled to the budget."""
    return fitting.natural_gradient(
        bench.model, lesson, bench.windows["fit"], bench.axes, reach=fitting.SHARE * budget, steps=steps, seed=seed
    )


def consolidate_document(
    bench: Bench, document: Int[Tensor, " tokens"], budget: float, seed: int = 0
) -> tuple[Edit, float]:
    """The edit that holds the document, and its factor."""
    edit = fit(bench, lesson_of(bench.model, document, seed), budget, seed)
    return edit, bench.scale(edit, budget)


def arms(
    bench: Bench, document: Int[Tensor, " tokens"], other: Int[Tensor, " tokens"], budget: float, seed: int = 0
) -> dict[str, Callable[[], Edit]]:
    """The converted model, baselines and nulls by their names in the table. `other` is the wrong document."""
    model, pool = bench.model, bench.windows["fit"]
    lesson, length = lesson_of(model, document, seed), query_length(model)
    # Training on the document sees as many passages of it as there are queries, and no donor: its target is not read.
    text = Lesson(passages(document, len(lesson.queries), length, torch.Generator().manual_seed(seed)), lesson.target)

    @cache  # the noise is as long as it
    def converted() -> Edit:
        return fit(bench, lesson, budget, seed)

    return {
        "converted": converted,
        "baseline:closed form": lambda: fitting.closed_form(
            model, document, lesson.queries, pool, bench.curvature, seed=seed
        ),
        "baseline:one step": lambda: fit(bench, lesson, budget, seed, steps=1),
        "baseline:sgd": lambda: fitting.train(
            model, text, pool, optimiser="sgd", rate=SGD_RATE, labels="text", seed=seed
        ),
        "baseline:adamw": lambda: fitting.train(
            model, text, pool, optimiser="adamw", rate=ADAMW_RATE, labels="text", seed=seed
        ),
        "baseline:adamw, queries": lambda: fitting.train(
            model, lesson, pool, optimiser="adamw", rate=ADAMW_RATE, labels="donor", seed=seed
        ),
        "null:other document": lambda: fit(bench, lesson_of(model, other, seed), budget, seed),
        "null:noise": lambda: fitting.random_direction(converted(), seed),
    }
