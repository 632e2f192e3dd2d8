"""The loss of a model with a range of its blocks removed or repeated, for many ranges, from cached streams.

A range is scored from the last stream that the new model shares with the whole one, so it costs only the blocks after that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stitch.activations.harvest import Activations
from stitch.composite.bridges import fit_down_projection
from stitch.composite.compose import late_half, late_logits
from stitch.composite.splice import Splice
from stitch.composite.surgery import Bridge, bridged
from stitch.evaluation.scores import Batch, Logits, Scores, evaluate
from stitch.models.model import Model
from stitch.progress import Progress
from stitch.text.documents import Split

PLAIN, BRIDGED = "passthrough", "down-projection"  # the rows of a cell


@dataclass(frozen=True)
class DepthCell:
    """Scores of a splice by row, and of its bridge the relative λ and the share of the target's squares left unexplained."""

    scores: dict[str, Scores]
    strength: float | None
    unexplained: float | None


def splices(depth: int, lengths: Sequence[int], *, repeat: bool) -> list[Splice]:
    """Every range of blocks of these lengths, removed or repeated. Removal keeps block 0, which writes what others read."""
    found = []
    for length in lengths:
        first = Splice(depth, length, 0) if repeat else Splice(depth, 1, 1 + length)
        found += sorted([first, *first.elsewhere], key=lambda splice: splice.changed[0])
    return found


@torch.no_grad()
def score_depth(
    model: Model,
    found: Sequence[Splice],
    fitted_on: Mapping[Split, Activations],
    scored_on: Activations,
    *,
    bridge: bool,
    memory: int,
    progress: Progress | None = None,
) -> dict[Splice, DepthCell]:
    """Scores every splice on the windows of `scored_on`, plain and, with `bridge`, with a down projection refitted on the fit
    split of `fitted_on` and its λ chosen on the sweep split. All have the streams of every site. `memory` is in bytes.
    """
    cells = {}
    for splice in found:
        bridges = {PLAIN: Bridge({})}
        if bridge:
            bridges[BRIDGED] = fit_down_projection(model, splice, fitted_on, memory=memory)
        streams = scored_on.all(splice.shared)
        rows = {name: from_shared(bridged(model, splice, one), splice, streams) for name, one in bridges.items()}
        scores = evaluate(rows, scored_on.windows, vocabulary=model.vocabulary, memory=memory)
        one, block = bridges[list(bridges)[-1]], splice.seam - 1
        cells[splice] = DepthCell(scores, one.strengths.get(block), one.unexplained.get(block))
        if progress:
            progress("ranges of blocks", len(cells), len(found))
    return cells


def from_shared(spliced: Model, splice: Splice, streams: Tensor) -> Logits:
    """Logits of the new model, run from the whole model's `streams` at the last site that both share."""
    late = late_half(spliced, splice.shared)

    def logits(batch: Batch) -> Tensor:
        x = streams[batch.rows].to(spliced.device)
        return late_logits(late, x, ids=batch.ids.to(x.device))

    return logits
