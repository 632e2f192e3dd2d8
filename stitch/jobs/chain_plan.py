"""What `stitch chain` would do: the work of every seam, disk, memory, and what earlier runs have left in the store."""

from collections.abc import Sequence

from stitch.composite.costs import Costs
from stitch.composite.parts import Part
from stitch.config import CompleteSettings
from stitch.estimates.disk import Disk
from stitch.estimates.machine import calibrate
from stitch.estimates.plan import OF_SAES, Plan
from stitch.estimates.work import Work
from stitch.files.job import Clock
from stitch.files.store import Store
from stitch.jobs.across_work import head_for_other_tokens
from stitch.jobs.join_plan import REPORT, left_to_make
from stitch.jobs.join_work import Ends, JoinWork
from stitch.jobs.pair.text import read_windows, text_size
from stitch.models.anatomy import blocks_before_last_part
from stitch.models.model import Model
from stitch.models.sources import Source
from stitch.progress import Progress
from stitch.text.windows import tokens_of
from stitch.translation.available import earlier_sites
from stitch.translation.look_ups import position_columns


def plan_chain(
    parts: Sequence[Part],
    seams: Sequence[CompleteSettings],
    models: Sequence[Model],
    sources: Sequence[Source],
    store: Store | None,
    progress: Progress | None,
) -> Plan:
    """The plan of joining `parts` at `seams`: those of each join, the first model of which is the composite so far.

    Stages of all seams are added up, and so is what the store has of each. A composite that is still to be made has no files by
    which its activations and its SAE could be looked up: after the first seam, what A needs counts as missing.
    """
    clock, total, first = Clock(), {"text": Work()}, seams[0]
    with clock.stage("text"):
        windows = read_windows(first, models[0], models[1], progress, store=store)
    size, ids = text_size(first, models[0], models[1]), len(windows["fit"].ids.unique())
    streams, halves, kept, widest, held = 0, 0, 0, 0, 0
    cached: dict[str, tuple[int, int]] = {}
    before, blocks = 0.0, 0  # FLOPs per token and number of blocks of the composite before its last part
    machines = []
    for number, settings in enumerate(seams):
        early, late, start = models[number], models[number + 1], parts[number].start
        machines.append(machine := calibrate({"a": early, "b": late}, settings.context, progress))
        costs = Costs(early, late, settings.context)
        before_it = earlier_sites(blocks + settings.layer - start, blocks or blocks_before_last_part(early.config))
        earlier, widest = len(before_it), max(widest, early.width)
        named = {"a": sources[number], "b": sources[number + 1]}
        missing, found = left_to_make(
            settings, early, late, named, windows, store, unmade_sites=1 + earlier if number else 0
        )
        for kind, (of, there) in found.items():
            known = cached.get(kind, (0, 0))
            cached[kind] = known[0] + of, known[1] + there
        own = Ends.of(costs, *settings.sites, position_columns(*dict.fromkeys((early, late))))
        used = own.early_a - costs.early(start).flops
        rest = own.whole_a - own.early_a
        ends = Ends(
            early_a=before + used, whole_a=before + used + rest, early_b=own.early_b, late_b=own.late_b, width_a=own.width_a,
            width_b=own.width_b, earlier=earlier, positions=own.positions,
            sites_a=own.sites_a, sites_b=own.sites_b, same=own.same and number == 0,
        )  # fmt: skip
        work = JoinWork(
            ends=ends,
            settings=settings,
            fit=size.fit,
            held_out=size.held_out,
            ids=ids,
            machine=machine,
            missing=missing,
        )
        if late.original is not None:
            head = head_for_other_tokens(machine, costs, late, settings.layer_b, ends.whole_a)
            total["vocabulary"] = total.get("vocabulary", Work()) + head
        for name, one in work.stages().items():
            total[name] = total.get(name, Work()) + one
        total["text"] += Work(seconds=clock.seconds["text"])
        held = max(held, work.held())
        before, blocks = before + used, blocks + settings.layer - start
        streams = max(streams, own.width_a + ends.earlier * widest + own.width_b)
        kept += sum(4 * (2 * width + 1) * work.features(width) for width in (own.width_a, own.width_b))
        # Behind the first seam A is a composite, which shares no matrix with B.
        sites = settings.layer, settings.layer_b
        halves = (costs.early(sites[0]) + costs.late(sites[1]) if number else costs.halves(*sites)).bytes
    tokens = tokens_of(windows)
    models_held = sum(
        Costs(model, model, first.context).whole_source.bytes for model in {id(m): m for m in models}.values()
    )
    return Plan(
        stages=total, tokens=tokens,
        disk=Disk(
            scratch=models[0].dtype.itemsize * streams * sum(tokens.values()) + 2 * halves,
            output=int(halves * (1 + first.seam_bytes / 100)) + kept + REPORT,
        ),
        memory=OF_SAES + models_held + halves + held + first.memory,
        machine=machines[0], cached=cached,
    )  # fmt: skip
