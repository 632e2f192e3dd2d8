"""What `stitch join` would do: the work of its stages, disk, memory, and what earlier runs have left in the store."""

from collections.abc import Mapping
from pathlib import Path

from sae.schedule import default_features
from stitch.activations.kept import counted, kept, unmade
from stitch.composite.costs import Costs
from stitch.composite.cuts import exact_streams_from
from stitch.config import CompleteSettings
from stitch.estimates.disk import Disk, streams
from stitch.estimates.machine import calibrate
from stitch.estimates.plan import OF_SAES, Plan
from stitch.estimates.work import Work
from stitch.features.saes import KIND, about
from stitch.files.job import Clock
from stitch.files.store import Store
from stitch.jobs.across_work import head_for_other_tokens
from stitch.jobs.join_work import Ends, JoinWork
from stitch.jobs.pair.features import sae_requests
from stitch.jobs.pair.streams import harvest_requests
from stitch.jobs.pair.text import read_windows, text_size
from stitch.layers.work import layer_choice
from stitch.models.model import Model
from stitch.models.sources import Source
from stitch.progress import Progress
from stitch.text.documents import Split
from stitch.text.windows import Windows, tokens_of
from stitch.translation.look_ups import position_columns

REPORT = 4 * 2**20  # bytes of reports, contexts of features, page and tokenizer
CODE = 12  # bytes of an active feature of a token


def plan_join(
    settings: CompleteSettings,
    a: Model,
    b: Model,
    sources: dict[str, Source],
    *,
    chooses: bool = False,
    store: Store | None = None,
    progress: Progress | None = None,
) -> Plan:
    """The plan of joining two models. The text is read and the machine is measured; no activation is computed.

    `chooses`: B's layer is chosen first; the other stages are those of the layer in `settings`.
    """
    clock = Clock()
    with clock.stage("text"):
        windows = read_windows(settings, a, b, progress, store=store)
    missing, cached = left_to_make(settings, a, b, sources, windows, store)
    machine = calibrate({"a": a, "b": b}, settings.context, progress)
    costs, size = Costs(a, b, settings.context), text_size(settings, a, b)
    work = JoinWork(
        ends=Ends.of(costs, *settings.sites, position_columns(*dict.fromkeys((a, b)))), settings=settings, fit=size.fit,
        held_out=size.held_out, ids=len(windows["fit"].ids.unique()), machine=machine, missing=missing,
    )  # fmt: skip
    tokens = tokens_of(windows)
    models = costs.whole_source.bytes + (0 if a is b else costs.whole_target.bytes)
    return Plan(
        stages={
            "text": Work(seconds=clock.seconds["text"]),
            **({"layer": layer_choice(machine, costs, settings.layer, tokens)} if chooses else {}),
            **(
                {}
                if b.original is None
                else {
                    "vocabulary": head_for_other_tokens(machine, costs, b, settings.layer_b, costs.whole_source.flops)
                }
            ),
            **work.stages(),
        },
        tokens=tokens,
        disk=disk_of_join(settings, a, b, tokens),
        memory=OF_SAES + models + work.held() + settings.memory,
        machine=machine,
        cached=cached,
    )


def disk_of_join(settings: CompleteSettings, a: Model, b: Model, tokens: Mapping[Split, int]) -> Disk:
    """Streams and codes on the way; in the end two halves, a seam and two SAEs."""
    costs = Costs(a, b, settings.context)
    halves = costs.halves(settings.layer, settings.layer_b)
    saes = sum(
        4 * (2 * width + 1) * (settings.features or default_features(width, tokens["fit"]))
        for width in (a.width, b.width)
    )
    read = ((request.model, request.sites) for request in harvest_requests(settings, a, b))
    return Disk(
        scratch=streams(read, tokens) + 2 * CODE * settings.k * tokens["fit"],
        output=int(halves.bytes * (1 + settings.seam_bytes / 100)) + saes + REPORT,
    )


def left_to_make(
    settings: CompleteSettings,
    a: Model,
    b: Model,
    sources: dict[str, Source],
    windows: dict[Split, Windows],
    store: Store | None,
    *,
    unmade_sites: int = 0,
) -> tuple[dict[str, float], dict[str, tuple[int, int]]]:
    """The shares of each model's passes and of SAEs that are not in the store, and the numbers of files and SAEs that are.

    Whether an SAE is the one that will be looked for is known only once activations are there: it depends on which tokens are
    sinks at the other site. One at the same site with as many features and tokens is taken for it. `unmade_sites`: A stands for a
    composite that is still to be made, of which so many sites will be read; of it nothing can be in the store.
    """
    tokens = windows["fit"].tokens - len(windows["fit"].ids)
    requests = sae_requests(settings, a, b, tokens, sources, Path())
    wanted = {side: request for side, request in requests.items() if request.given is None}
    missing = {"a": 1.0, "b": 1.0, **{f"sae-{side}": float(side in wanted) for side in "ab"}}
    if store is None:
        return missing, {}
    texts = [*windows.values()]
    if unmade_sites:
        found = {"a": unmade(texts, unmade_sites), "b": kept(b, texts, [settings.layer_b], store, exact_streams_from)}
    else:
        asked = harvest_requests(settings, a, b)
        found = {one.name: kept(one.model, texts, one.sites, store, exact_streams_from) for one in asked}
    missing |= {side: one.left for name, one in found.items() for side in name}
    known = {side for side, request in wanted.items() if store.has_about(KIND, about(request, windows["fit"].tokens))}
    if unmade_sites:
        known -= {"a"}
    missing |= {f"sae-{side}": 0.0 for side in known}
    return missing, {**counted([*found.values()]), "SAEs, probably": (len(wanted), len(known))}
