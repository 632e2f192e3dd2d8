"""What `stitch sweep` would do: the work of its stages, disk, memory, and what earlier runs have left in the store."""

from collections.abc import Mapping, Sequence

from stitch.activations.kept import Kept, counted, kept
from stitch.composite.costs import whole
from stitch.composite.cuts import exact_streams_from
from stitch.config import CompleteSettings
from stitch.conversions.ngrams.work import TableText
from stitch.estimates import counts
from stitch.estimates.disk import Disk, streams
from stitch.estimates.machine import calibrate
from stitch.estimates.plan import Plan
from stitch.estimates.work import Work
from stitch.files.job import Clock
from stitch.files.store import Store
from stitch.frontier.own_tables import SHARES
from stitch.frontier.work import Donor, own_tables
from stitch.jobs.pair.text import read_windows
from stitch.jobs.sweep_rivals import own_cells
from stitch.layers import work
from stitch.layers.streams import Cell, Side
from stitch.layers.work import Depths
from stitch.models.model import Model
from stitch.progress import Progress
from stitch.text.documents import Split
from stitch.text.windows import tokens_of
from stitch.translation.look_ups import position_columns

WRITING = 4.0  # seconds: figure and page
REPORT = 6 * 2**20  # bytes


def plan_sweep(
    settings: CompleteSettings,
    models: Mapping[Side, Model],
    cells: Sequence[Cell],
    held_out: int,
    store: Store | None,
    progress: Progress | None,
) -> Plan:
    """The plan of a sweep over `cells`, with at most `held_out` tokens in a held-out split where it has windows enough."""
    a, b = models["a"], models["b"]
    clock = Clock()
    with clock.stage("text"):
        windows = read_windows(settings, a, b, progress, held_out, store=store)
    context = settings.context
    machine = calibrate({"a": a, "b": b}, context, progress)
    costs = {side: whole(model, context) for side, model in models.items()}
    depths = {side: Depths.of(side, model, costs[side].flops, context) for side, model in models.items()}
    sides: list[Side] = ["a"] if a is b else ["a", "b"]
    tokens = tokens_of(windows)
    found: dict[Side, Kept] = {}
    if store:
        found = {
            side: kept(models[side], [*windows.values()], range(models[side].depth + 1), store, exact_streams_from)
            for side in sides
        }
    left = {side: found[side].left if side in found else 1.0 for side in sides}
    pairs = [
        (depths[cell.source], cell.i, depths[cell.target], cell.j) for cell in [*cells, *own_cells({"a": a, "b": b})]
    ]
    text = TableText(
        fit=tokens["fit"], held_out=tokens["sweep"], ids=len(windows["fit"].ids.unique()),
    )  # fmt: skip

    def tables(side: Side) -> Work:
        """`at_every_depth`, each of every size scored on both held-out splits."""
        model, depth = models[side], depths[side]
        made, on = Work(), tokens["sweep"] + tokens["report"]
        for site in range(1, model.depth):
            donor = Donor(
                name=side,
                early=depth.before[site],
                whole=depth.whole,
                width=model.width,
                positions=position_columns(model),
            )
            made += own_tables(machine, donor, text)
            made += (1 + len(SHARES)) * counts.scored(machine, side, on, depth.after(site))
        return made

    stages = {
        "text": Work(seconds=clock.seconds["text"]),
        "activations": sum(
            (machine.forward(side, left[side] * sum(tokens.values()) * depths[side].before[-1]) for side in sides),
            Work(),
        ),
        "translations": work.fitted(machine, pairs, tokens["fit"] + tokens["sweep"]),
        "scores of pairs": work.scored(machine, pairs, tokens["sweep"], reference=False)
        + work.scored(machine, pairs, tokens["report"], reference=True),
        "scores of models": sum(
            (counts.scored(machine, side, tokens["sweep"] + tokens["report"], depths[side].whole) for side in "ab"),
            Work(),
        ),
        "own tables": sum(map(tables, sides), Work()),
        "writing": Work(seconds=WRITING),
    }
    return Plan(
        stages=stages, tokens=tokens, disk=disk_of_sweep([models[side] for side in sides], tokens),
        memory=sum(costs[side].bytes for side in sides) + settings.memory, machine=machine,
        cached=counted([*found.values()]),
    )  # fmt: skip


def disk_of_sweep(models: Sequence[Model], tokens: Mapping[Split, int]) -> Disk:
    """Streams of different models at all their sites."""
    return Disk(scratch=streams(((model, range(model.depth + 1)) for model in models), tokens), output=REPORT)
