"""What `stitch sweep --depth` would do: the work of its stages, disk, memory, and what earlier runs have left in the store."""

from collections.abc import Sequence

from stitch.activations.kept import counted, kept
from stitch.composite.costs import whole
from stitch.composite.cuts import exact_streams_from
from stitch.composite.splice import Splice
from stitch.composite.surgery import weight_of, why_not_foldable
from stitch.config import CompleteSettings
from stitch.estimates import counts
from stitch.estimates.machine import calibrate
from stitch.estimates.plan import Plan
from stitch.estimates.work import Work
from stitch.files.job import Clock
from stitch.files.store import Store
from stitch.jobs.pair.text import read_windows
from stitch.jobs.sweep_plan import disk_of_sweep
from stitch.layers.work import Depths
from stitch.models.model import Model
from stitch.progress import Progress
from stitch.text.windows import tokens_of

WRITING = 4.0  # seconds: figure and page
REPORT = 6 * 2**20  # bytes


def plan_depth(
    settings: CompleteSettings,
    model: Model,
    tried: Sequence[Splice],
    on_cells: int,
    draws: int,
    store: Store | None,
    progress: Progress | None,
) -> Plan:
    """The plan of scoring the splices `tried` on `on_cells` tokens, and the best of each length with `draws` others again."""
    clock = Clock()
    with clock.stage("text"):
        windows = read_windows(settings, model, model, progress, store=store)
    windows["sweep"] = windows["sweep"].first(on_cells)
    machine, cost = calibrate({"a": model}, settings.context, progress), whole(model, settings.context)
    tokens = tokens_of(windows)
    found = [kept(model, [*windows.values()], range(model.depth + 1), store, exact_streams_from)] if store else []
    left = found[0].left if found else 1.0
    before = Depths.of("a", model, cost.flops, settings.context).before
    block = cost.flops / model.depth
    bridge = Work()
    if why_not_foldable(model, 1, 0, settings.memory) is None:
        neurons = len(weight_of(model.down(model.depth // 2)))
        fitted = tokens["fit"] + tokens["sweep"]
        bridge = counts.moments(machine, fitted, neurons, model.width, double=True)
        bridge += counts.ridge(machine, neurons, model.width) + machine.forward("a", 2 * fitted * block)
    rows = 2 if bridge.seconds else 1

    def scored(splice: Splice, on: int) -> Work:
        left = (len(splice.order) - splice.shared) * block
        return bridge + rows * counts.scored(machine, "a", on, left)

    lengths = {(len(splice.order), splice.removes): splice for splice in tried}
    again = [splice for splice in lengths.values() for _ in range(2 * (1 + draws))]
    stages = {
        "text": Work(seconds=clock.seconds["text"]),
        "activations": machine.forward("a", left * sum(tokens.values()) * before[-1]),
        "ranges of blocks": sum((scored(splice, tokens["sweep"]) for splice in tried), Work()),
        "the best, and others": sum((scored(splice, tokens["report"]) for splice in again), Work()),
        "whole model": counts.scored(machine, "a", tokens["sweep"] + tokens["report"], cost.flops),
        "writing": Work(seconds=WRITING),
    }
    return Plan(
        stages=stages, tokens=tokens, disk=disk_of_sweep([model], tokens),
        memory=2 * cost.bytes + settings.memory, machine=machine,
        cached=counted(found),
    )  # fmt: skip
