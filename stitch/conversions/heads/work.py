"""The work of `stitch convert heads`, counted from what `fit.py` and `convert.py` do."""

from stitch.conversions.plan import Counted
from stitch.estimates import counts
from stitch.estimates.work import Work
from stitch.internals import weights

METHODS = 6  # ways to merge heads, each without and with refitted output weights
OURS = 2  # of them that are not baselines
REFINED = 12.0  # seconds per million numbers of a block's refined attention
STRENGTHS = 12  # values of λ that a refit tries
STREAMS = 60  # arrays as large as the stream of all text that are held
ATTENDED = 4  # bytes moved per attention weight and pass, times the passes over it


def stages(counted: Counted, *, sample: int, steps: int, batch: int) -> dict[str, Work]:
    """Work by stage. `sample` are the tokens that keys are refined on; `steps` of `batch` windows fine-tune each method."""
    machine, model, tokens = counted.machine, counted.donor.model, counted.tokens
    fitted = tokens["fit"] + tokens["sweep"]
    attention = weights.attention(*model.in_part(0))
    _, heads, d = attention.q.shape
    blocks = (2 + METHODS) * counted.passes(fitted)
    blocks += model.depth * (1 + METHODS) * machine.moved(8.0 * ATTENDED * heads * fitted * counted.donor.context)
    columns = heads * d
    refit = counts.moments(machine, fitted, columns, model.width, double=False)
    refit += machine.product(STRENGTHS * (columns**3 / 3 + 3 * columns**2 * model.width), double=True)
    refined = Work(seconds=REFINED * sample * counted.donor.context / 8 / 1e6)
    rows = 2 * METHODS + 2 + (1 + METHODS - OURS if steps else 0)
    found = {
        "heads merged": blocks + model.depth * (METHODS * refit + refined),
        "choice": counted.scored(2 * OURS * tokens["sweep"]),
        "evaluation": counted.scored(rows * tokens["report"]),
    }
    if steps:
        per_method = steps * batch * counted.donor.context
        trained = counted.passes(per_method) + counted.trained(per_method)
        found["fine-tuning"] = (1 + METHODS - OURS) * trained
    return found
