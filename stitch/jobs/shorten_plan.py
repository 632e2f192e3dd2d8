"""What `stitch join --native` would do: the work of its stages, disk, memory, and what earlier runs have left in the store."""

from collections.abc import Mapping

from stitch.activations.kept import counted, kept
from stitch.composite.costs import whole
from stitch.composite.cuts import exact_streams_from
from stitch.composite.splice import Splice
from stitch.composite.surgery import refits, weight_of
from stitch.config import CompleteSettings
from stitch.estimates import counts
from stitch.estimates.disk import Disk, streams
from stitch.estimates.machine import calibrate
from stitch.estimates.plan import Plan
from stitch.estimates.work import Work
from stitch.files.job import Clock
from stitch.files.store import Store
from stitch.jobs.stages import harvest_requests, read_windows
from stitch.models.flops import block_flops
from stitch.models.model import Model
from stitch.progress import Progress
from stitch.text.documents import Split
from stitch.text.windows import tokens_of

BRIDGES, OTHERS, ADAPTERS = 7, 4, 2  # rows: bridges and their null, random ranges, translations of a composite
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
    changed = cost.flops + block * (len(splice.order) - model.depth)
    neurons = len(weight_of(model.down(splice.order[splice.seam - 1]))) if refits(model) else 0
    ridges = 2 * counts.moments(machine, fitted, neurons, 2 * model.width, double=True)
    ridges += 3 * counts.ridge(machine, neurons, model.width) + 4 * counts.ridge(machine, model.width, model.width)
    sites = harvest_requests(settings, model, model)[0].sites
    found = [kept(model, [*windows.values()], sites, store, exact_streams_from)] if store else []
    left = found[0].left if found else 1.0
    stages = {
        "text": Work(seconds=clock.seconds["text"]),
        "activations": machine.forward("a", left * sum(tokens.values()) * cost.flops * max(sites) / model.depth),
        "translations": machine.forward("a", PASSES * fitted * 2 * block) + ridges,
        "choice": counts.scored(machine, "a", 3 * tokens["sweep"], changed),
        "evaluation": counts.scored(machine, "a", held, cost.flops)
        + counts.scored(machine, "a", (BRIDGES + OTHERS + ADAPTERS) * held, changed),
        "writing": Work(seconds=WRITING),
    }
    return Plan(
        stages=stages, tokens=tokens, disk=disk_of_shortened(settings, model, tokens),
        memory=2 * cost.bytes + settings.memory, machine=machine,
        cached=counted(found),
    )  # fmt: skip


def disk_of_shortened(settings: CompleteSettings, model: Model, tokens: Mapping[Split, int]) -> Disk:
    """Streams on the way; in the end the model with other blocks."""
    read = ((request.model, request.sites) for request in harvest_requests(settings, model, model))
    blocks = len(Splice(model.depth, *settings.sites).order)
    output = int(whole(model, settings.context).bytes * blocks / model.depth)
    return Disk(scratch=streams(read, tokens), output=output)
