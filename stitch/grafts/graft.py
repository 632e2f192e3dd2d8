"""Grafts donors' circuits into a host of another architecture, fresh or trained: finds, plans, writes and compares them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stitch.circuits.behaviours.prompts import Prompts
from stitch.circuits.circuit_file import read_arrangement
from stitch.circuits.find import ChosenCircuit, choose_circuit
from stitch.composite.donor_code import save_net
from stitch.files.job import Job, run
from stitch.files.recipe import recipe
from stitch.files.tokenizer import copy_tokenizer
from stitch.grafts.allocation import FreeSpace
from stitch.grafts.compared import PlannedGraft, text_scores, with_plans
from stitch.grafts.hosts import host_factory
from stitch.grafts.landed import write_graphs
from stitch.grafts.needed import key_heads_of
from stitch.grafts.plan import Plan, make_plan
from stitch.grafts.rearranged import rearranged_circuit
from stitch.grafts.report import graft_card, plan_notes, plan_tables, result_notes, result_tables
from stitch.grafts.request import GraftRequest, load_donors, load_or_check_host
from stitch.grafts.trained import beside_trained_stream
from stitch.grafts.write import write
from stitch.internals import weights
from stitch.models.device import torch_device
from stitch.models.model import Model
from stitch.models.provenance import surroundings
from stitch.models.sources import Source
from stitch.pages.card import page_and_card
from stitch.pages.graft import graft_page
from stitch.progress import Progress


def graft(
    requests: Sequence[GraftRequest],
    host: str,
    out: Path | None,
    *,
    keep: float = 0.98,
    channels: int | None = None,
    strength: float = 1.0,
    count: int = 128,
    seed: int = 0,
    text: str = "docs",
    tokens: int = 50_000,
    device: str = "auto",
    overwrite: bool = False,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> dict:
    """Writes donors' circuits into a host and saves it to `out` as a stock checkpoint. Returns the report; if `out` is None, only
    the plan is made and reported.

    `host` is a JSON file with the config of a model to be initialised with `seed`, or a trained model. A trained model gets new
    channels, heads and neurons, and each circuit adds `strength` times what it adds to the donor's logits to the host's.

    Circuits that are looked for keep a share `keep` of the donor's right answers on `count` prompts. A donor's stream gets at
    most `channels` channels. If a circuit lies in more blocks than a fresh host has, the donor is rearranged into as many
    blocks (`stitch.circuits.shallow`) and the circuit is looked for again. Where several share a fresh host with RMSNorm, norms
    depend on no donor's stream, and each circuit speaks on prompts of its behaviour alone (`stitch.grafts.apart`).

    For each request the report has the plan and rows of scores: the donor, the rearranged donor if there is one, its circuit
    alone with all else constant, the grafted host, and controls: the host without the graft, noise in place of the circuit, its
    blocks in the opposite order, its first or last block left out. `kl` is KL(circuit alone ‖ row) in nats per answer. For a
    trained host, the report's `text` has its cross-entropy before and after grafting on `tokens` tokens of held-out text. `out`
    also gets graph.json, the circuit in the host on one prompt (`stitch.circuits.graph_json`).

    Raises: UsageError when a circuit does not fit into the host; StitchError when a donor does not have its behaviour.
    """

    def prepare() -> _Prepared:
        options: dict[str, Any] = {
            "device": torch_device(device),
            "trust_remote_code": trust_remote_code,
            "progress": progress,
        }
        loaded = load_donors(requests, **options)
        donors = [model for model, _ in loaded]
        found, longest = load_or_check_host(host, donors[0], seed, **options)
        trained = None if found is None else found[0]
        search = {"keep": keep, "count": count, "seed": seed, "text": text, "longest": longest, "progress": progress}
        circuits = [
            choose_circuit(donor, request.behaviour, circuit=request.circuit, constant=True, **search)
            for request, donor in zip(requests, donors, strict=True)
        ]
        make_host = host_factory(host, trained, donors, circuits, channels, seed)
        target, space = make_host()
        if trained is None:
            circuits = [
                _rearranged_if_needed(
                    request, donor, chosen, target, keep=keep, seed=seed, text=text, progress=progress
                )
                for request, donor, chosen in zip(requests, donors, circuits, strict=True)
            ]
        report = {"host": target.config.to_diff_dict(), "trained": trained is not None, "seed": seed, "grafts": []}
        apart = trained is None and _can_be_set_apart(target, circuits)
        grafts = []
        for number, (request, donor, chosen) in enumerate(zip(requests, donors, circuits, strict=True), 1):
            plan = make_plan(
                donor,
                request.behaviour,
                chosen.kept,
                chosen.means,
                chosen.first,
                target,
                space,
                channels,
                chosen.shallow,
                beside_others=apart,
                reserved=key_heads_of(donors[number:], circuits[number:], target),
            )
            report["grafts"].append(_described(request, chosen, plan))
            if trained is not None:
                plan = beside_trained_stream(plan, donor, chosen.kept, chosen.means, target, space, strength)
            grafts.append(PlannedGraft(donor, chosen, plan))
        report["free"] = {"channels": space.free, "of": target.width}
        settings = {
            "keep": keep, "count": count, "channels": channels, "strength": strength, "text": text, "seed": seed,
            "device": device,
        }  # fmt: skip
        report["provenance"] = surroundings({**_asked(requests, host), **settings}, _roles(loaded, found))
        report["recipe"] = recipe("graft", report["provenance"])
        return _Prepared(target, trained, grafts, make_host, report)

    if out is None:
        return prepare().report

    def plan() -> Job:
        prepared = prepare()

        def make(scratch: Path, output: Path) -> dict:
            _write_and_score(prepared, seed, text, tokens, progress)
            _save(prepared.target, prepared.grafts[0].donor, output, prepared.report)
            behaviours = [request.behaviour for request in requests]
            write_graphs(prepared.target, prepared.grafts, behaviours, output, Path(host).stem, progress)
            return prepared.report

        return Job(make=make)

    return run("graft", plan, out, overwrite=overwrite)[0]


def _can_be_set_apart(host: Model, circuits: Sequence[ChosenCircuit]) -> bool:
    """Whether several circuits get long constant lanes. In a host with LayerNorm a free channel lies on all of its channels, so
    that in half precision a long lane would drown the others; and where blocks are rearranged BOS has a longer lane, which others
    would read through."""
    is_centred = weights.norm(host, "final").centred
    return len(circuits) > 1 and not is_centred and all(chosen.shallow is None for chosen in circuits)


@dataclass(frozen=True)
class _Prepared:
    """The host and what will be written into it; `report` has the plan."""

    target: Model
    trained: Model | None
    grafts: list[PlannedGraft]
    make_host: Callable[[], tuple[Model, FreeSpace]]
    report: dict


def _write_and_score(prepared: _Prepared, seed: int, text: str, tokens: int, progress: Progress | None) -> None:
    """Writes the planned grafts into the host and adds scores of host, donors and controls to the report."""
    target, grafts, report = prepared.target, prepared.grafts, prepared.report
    reads = write(target, [each.plan for each in grafts])
    for planned, entry, scales in zip(grafts, report["grafts"], reads, strict=True):
        others = [each.plan for each in grafts if each is not planned]
        controls = _controls(planned, lambda: prepared.make_host()[0], seed, others)
        entry |= {"reads": scales, **_described_prompts(planned.chosen.other)}
        entry["results"] = planned.compared(target, controls, progress)
    if prepared.trained is not None:
        report["text"] = text_scores(prepared.trained, target, text, tokens, seed, progress)
        report["provenance"]["text"] = report["text"].pop("text")


def _asked(requests: Sequence[GraftRequest], host: str) -> dict:
    """What is written into which host, by the names of options."""
    first, *others = requests
    return {
        "donor": first.donor,
        "behaviour": first.behaviour,
        "host": host,
        "circuit": None if first.circuit is None else str(first.circuit),
        "requests": [f"{one.donor}={one.behaviour}" for one in others] or None,
        "features": [f"{block}={source}" for block, source in first.features.items()] or None,
    }


def _roles(
    donors: Sequence[tuple[Model, Source]], host: tuple[Model, Source] | None
) -> dict[str, tuple[Model, Source]]:
    """The models of a graft by their role in the report."""
    roles = {"donor" if number == 1 else f"donor {number}": one for number, one in enumerate(donors, 1)}
    return roles if host is None else {**roles, "host": host}


def _rearranged_if_needed(
    request: GraftRequest, donor: Model, chosen: ChosenCircuit, host: Model, **search: Any
) -> ChosenCircuit:
    """The circuit as it is, or of the rearranged donor: if the request's file has an arrangement, or the host has too few blocks
    for a circuit that was looked for."""
    given = read_arrangement(request.circuit) if request.circuit else None
    if given or (not request.circuit and len(chosen.kept.blocks()) > host.depth):
        return rearranged_circuit(donor, request.behaviour, chosen, host, given, **search)
    return chosen


def _described(request: GraftRequest, chosen: ChosenCircuit, plan: Plan) -> dict:
    """A planned graft as the report has it."""
    return {
        "donor": request.donor,
        "behaviour": request.behaviour,
        "circuit": chosen.kept.to_dict(),
        "features": {str(block): source for block, source in request.features.items()},
        "plan": plan.described(),
    }


def _described_prompts(prompts: Prompts) -> dict:
    """The prompts that a graft is scored on, as the report has them."""
    return {
        "prompts": len(prompts.clean),
        "places": int(prompts.asked.sum()),
        "order_one": prompts.order_one,
    }


def _controls(
    planned: PlannedGraft, bare: Callable[[], Model], seed: int, others: Sequence[Plan]
) -> dict[str, Callable[[], Model]]:
    """The graft's controls; where `others` share the host, also this graft without them, and they without it."""
    controls = planned.controls(bare, seed)
    if others:
        controls["this graft alone"] = lambda: with_plans(bare(), [planned.plan])
        controls["the others alone"] = lambda: with_plans(bare(), others)
    return controls


def _save(host: Model, donor: Model, folder: Path, report: dict) -> None:
    """Writes a stock checkpoint with the donor's tokenizer, and report, page and model card beside it."""
    folder.mkdir()
    save_net(host.net, folder)
    copy_tokenizer(donor.folder, folder)
    (folder / "graft.json").write_text(json.dumps(report, indent=2) + "\n")
    page = graft_page(report, plan_tables(report), plan_notes(report), result_tables(report), result_notes(report))
    for name, content in page_and_card(page, graft_card(report)).items():
        (folder / name).write_bytes(content)
