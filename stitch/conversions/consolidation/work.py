"""The work of `stitch convert consolidate`, counted from what `arms.py`, `fitting.py` and `slow_weights.py` do."""

from stitch.conversions.consolidation.arms import CURVATURE_TOKENS, FIRST_TOKENS, QUERIES, REPORT_TOKENS, SEARCH_TOKENS
from stitch.conversions.consolidation.fitting import PER_STEP, STEPS
from stitch.conversions.consolidation.queries import GIVEN, UNSEEN, query_length
from stitch.conversions.consolidation.slow_weights import down_projection
from stitch.conversions.plan import Counted
from stitch.estimates.work import Work
from stitch.models.model import Model

ARMS, TRAINED = 8, 6  # edits, and those among them that take STEPS steps
TRIES = 3  # scales of an edit that are tried on either text
EIGEN = 10  # FLOPs per cubed size of an eigendecomposition


def targets(model: Model, documents: int) -> int:
    """Bytes of the answers that edits are fitted to: those of the documents and of the wrong ones, and a copy while these are put
    together.
    """
    copies = 2 if documents == 1 else 3
    return copies * documents * QUERIES * (query_length(model) - GIVEN) * model.vocabulary * 4


def stages(counted: Counted, documents: int = 1) -> dict[str, Work]:
    """Work by stage, for so many documents."""
    machine, model, tokens = counted.machine, counted.donor.model, counted.tokens
    neurons, width = down_projection(model, 0).shape
    curved = min(CURVATURE_TOKENS, tokens["fit"])
    squares = 2.0 * curved * (neurons**2 + width**2) + EIGEN * (neurons**3 + width**3)
    curvature = counted.trained(curved) + model.depth * machine.product(squares, double=True)
    read = min(model.longest, 2 * query_length(model) + counted.donor.context // 2)
    steps = documents * TRAINED * STEPS * counted.trained(PER_STEP * 2 * query_length(model))
    asked = read + QUERIES * 3 // 2 * query_length(model)  # half of the queries are written first
    labelled = 2 * counted.scored(documents * asked)  # of the documents and of the wrong ones
    searched = sum(min(count, tokens["sweep"]) for count in (FIRST_TOKENS, SEARCH_TOKENS))
    scaled = ARMS * counted.scored(TRIES * searched + min(REPORT_TOKENS, tokens["report"]))
    return {
        "curvature": curvature,
        "edits": steps + labelled,
        "scales": scaled,
        "evaluation": (ARMS + 2) * 2 * counted.scored(documents * UNSEEN * read),
    }
