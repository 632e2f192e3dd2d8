"""What `stitch join --native` would do: the work of its stages, disk, memory, and what earlier runs have left in the store."""

from collections.abc import Mapping
from pathlib import Path

from stitch.activations.kept import counted, kept
from stitch.composite.bridges import FITTED
from stitch.composite.costs import whole
from stitch.composite.cuts import exact_streams_from
from stitch.composite.native import with_blocks
from stitch.composite.splice import Splice
from stitch.composite.surgery import refits, weight_of
from stitch.config import CompleteSettings
from stitch.conversions.ngrams.work import TableText
from stitch.estimates import counts
from stitch.estimates.disk import Disk, streams
from stitch.estimates.machine import Machine, calibrate
from stitch.estimates.plan import Plan
from stitch.estimates.work import Work
from stitch.files.job import Clock
from stitch.files.store import Store
from stitch.frontier.alternative import Means
from stitch.frontier.own_tables import first_site_within
from stitch.frontier.work import Donor, cut, own_tables
from stitch.jobs.other_ranges import is_refitted, other_ranges, sites_of_ranges
from stitch.jobs.pair.streams import harvest_requests
from stitch.jobs.pair.text import read_windows
from stitch.jobs.shorten_rivals import exit_is_small, means_of
from stitch.models.flops import block_flops
from stitch.models.model import Model
from stitch.progress import Progress
from stitch.text.documents import SPLITS, Split
from stitch.text.windows import tokens_of
from stitch.translation.look_ups import position_columns

BRIDGES, ADAPTERS = 7, 2  # rows: bridges and their null, translations of a composite
PASSES = 4  # over the text, to fit bridges and the matrix of LinearPatch
WRITING = 3.0  # seconds: page and picture


def plan_shorten(settings: CompleteSettings, model: Model, store: Store | None, progress: Progress | None) -> Plan:
    """The plan of removing or repeating blocks of a model and bridging them."""
    clock = Clock()
    with clock.stage("text"):
        windows = read_windows(settings, model, model, progress, store=store)
    machine, cost = calibrate({"a": model}, settings.context, progress), whole(model, settings.context)
    tokens = tokens_of(windows)
    fitted, held = tokens["fit"] + tokens["sweep"], tokens["report"]
    splice = Splice(model.depth, *settings.sites)
    block = block_flops(model.config, splice.order[splice.seam - 1], settings.context)
    limit = whole(with_blocks(model, splice.order), settings.context)
    changed = limit.flops
    neurons = len(weight_of(model.down(splice.order[splice.seam - 1]))) if refits(model) else 0
    ridges = 2 * counts.moments(machine, fitted, neurons, 2 * model.width, double=True)
    ridges += 3 * counts.ridge(machine, neurons, model.width) + 4 * counts.ridge(machine, model.width, model.width)
    others = other_ranges(model, settings)
    fitted_again = Work()
    if is_refitted(model, settings):  # at each range two down projections
        fitted_again += len(others) * (
            machine.forward("a", PASSES * fitted * 2 * block)
            + 2 * counts.moments(machine, fitted, neurons, model.width, double=True)
            + 2 * counts.ridge(machine, neurons, model.width)
        )
    made, rows = _alternatives(model, splice, means_of(settings, windows, limit, Path(), None), machine)
    passes, found = 0.0, []
    for split, sites in sites_by_split(settings, model).items():
        one = kept(model, [windows[split]], sites, store, exact_streams_from) if store else None
        found += [] if one is None else [one]
        passes += (1.0 if one is None else one.left) * tokens[split] * cost.flops * max(sites) / model.depth
    stages = {
        "text": Work(seconds=clock.seconds["text"]),
        "activations": machine.forward("a", passes),
        "translations": machine.forward("a", PASSES * fitted * 2 * block) + ridges,
        "choice": counts.scored(machine, "a", 3 * tokens["sweep"], changed),
        "other ranges": fitted_again,
        "alternatives": made,
        "evaluation": counts.scored(machine, "a", held, cost.flops)
        + counts.scored(machine, "a", (BRIDGES + len(others) + ADAPTERS + rows) * held, changed),
        "writing": Work(seconds=WRITING),
    }
    return Plan(
        stages=stages, tokens=tokens, disk=disk_of_shortened(settings, model, tokens),
        memory=2 * cost.bytes + settings.memory, machine=machine,
        cached=counted(found),
    )  # fmt: skip


def _alternatives(model: Model, splice: Splice, means: Means, machine: Machine) -> tuple[Work, int]:
    """The work of `stitch.jobs.shorten_rivals.rivals`, and how many rows it makes, at most."""
    text = TableText(
        fit=means.windows["fit"].tokens, held_out=means.windows["sweep"].tokens, ids=len(means.windows["fit"].ids.unique())
    )  # fmt: skip
    total, rows = Work(), 0
    site = first_site_within(model, means)
    if site is not None:
        early = sum(block_flops(model.config, block, means.context) for block in range(site))
        total, rows = own_tables(machine, _donor(model, early, means.context), text), 1
    if splice.removes:  # blocks removed elsewhere, and an exit
        cuts = 1 + exit_is_small(model, splice, means)
        total, rows = total + cuts * cut(machine, _donor(model, 0.0, means.context), text), rows + cuts
    return total, rows


def _donor(model: Model, early: float, context: int) -> Donor:
    flops = whole(model, context).flops
    return Donor(name="a", early=early, whole=flops, width=model.width, positions=position_columns(model))


def sites_by_split(settings: CompleteSettings, model: Model) -> dict[Split, list[int]]:
    """The sites whose streams are written of each split: where other ranges are bridged, only of those that are fitted on."""
    also = sites_of_ranges(model, other_ranges(model, settings), settings)
    return {
        split: harvest_requests(settings, model, model, also if split in FITTED else ())[0].sites for split in SPLITS
    }


def disk_of_shortened(settings: CompleteSettings, model: Model, tokens: Mapping[Split, int]) -> Disk:
    """Streams on the way, at last those of an alternative at up to three sites; in the end the model with other blocks."""
    scratch = sum(
        streams([(model, sites)], {split: tokens[split]}) for split, sites in sites_by_split(settings, model).items()
    )
    scratch += streams([(model, [0, 0, 0])], {split: tokens[split] for split in FITTED})
    blocks = len(Splice(model.depth, *settings.sites).order)
    output = int(whole(model, settings.context).bytes * blocks / model.depth)
    return Disk(scratch=scratch, output=output)
