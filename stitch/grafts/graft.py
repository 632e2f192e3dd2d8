"""Grafts donors' circuits into a host of another architecture, fresh or trained: finds, plans, writes and compares them."""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from stitch.circuits.behaviours.prompts import Prompts
from stitch.circuits.circuit_file import read_arrangement
from stitch.circuits.find import ChosenCircuit, choose_circuit
from stitch.composite.donor_code import save_net
from stitch.errors import UsageError
from stitch.files.job import Job, run
from stitch.files.recipe import recipe
from stitch.files.tokenizer import copy_tokenizer
from stitch.grafts.allocation import FreeSpace
from stitch.grafts.compared import PlannedGraft, text_scores, with_plan
from stitch.grafts.constant_neurons import SLOPES
from stitch.grafts.fresh_host import read_host
from stitch.grafts.hosts import widened
from stitch.grafts.landed import write_graphs
from stitch.grafts.neurons import units
from stitch.grafts.plan import Plan, make_plan
from stitch.grafts.position_heads import HEADS
from stitch.grafts.positions import CODE_PLANES, PositionScheme
from stitch.grafts.rearranged import rearranged_circuit
from stitch.grafts.report import graft_card, plan_notes, plan_tables, result_notes, result_tables
from stitch.grafts.trained import beside_trained_stream
from stitch.grafts.write import write
from stitch.internals import weights
from stitch.internals.transcoders import feature_blocks, put_features
from stitch.models.device import torch_device
from stitch.models.loading import load
from stitch.models.model import Model
from stitch.models.provenance import surroundings
from stitch.models.sources import Source, resolve
from stitch.pages.card import page_and_card
from stitch.pages.graft import graft_page
from stitch.progress import Progress
from stitch.text.tokenizers import require_same_ids


@dataclass(frozen=True)
class GraftRequest:
    """A behaviour that the host should get from a donor.

    `circuit` is a file that names the components; None: they are looked for. `features` are transcoders by block, whose features
    replace the donor's neurons there.
    """

    donor: str
    behaviour: str
    circuit: Path | None = None
    features: Mapping[int, str] = field(default_factory=dict)


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
    depend on no donor's stream, and a circuit's mean logits on corrupt prompts are left out, also in the control of one alone.

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
        loaded = _load_donors(requests, **options)
        donors = [model for model, _ in loaded]
        found, longest = _load_or_check_host(host, donors[0], seed, **options)
        trained = None if found is None else found[0]
        search = {"keep": keep, "count": count, "seed": seed, "text": text, "longest": longest, "progress": progress}
        circuits = [
            choose_circuit(donor, request.behaviour, circuit=request.circuit, constant=True, **search)
            for request, donor in zip(requests, donors, strict=True)
        ]
        make_host = _host_factory(host, trained, donors, circuits, channels, seed)
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
                reserved=_key_heads_of(donors[number:], circuits[number:], target),
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


def _key_heads_of(donors: Sequence[Model], circuits: Sequence[ChosenCircuit], host: Model) -> Counter[int]:
    """Upper bounds for the key heads that circuits take, by block of the host."""
    found: Counter[int] = Counter()
    for donor, chosen in zip(donors, circuits, strict=True):
        for place, block in _places(donor, chosen, host):
            found[place] += int(chosen.kept.masks["heads", block].sum())
    return found


def _places(donor: Model, chosen: ChosenCircuit, host: Model) -> Iterator[tuple[int, int]]:
    """Blocks of the host that a circuit may take, each with the donor's: two for one if positions may be written before it."""
    blocks = (
        dict(zip(chosen.kept.blocks(), itertools.count()))
        if chosen.shallow is None
        else chosen.shallow.arrangement.layers
    )
    later = chosen.shallow is None and PositionScheme.of(donor, host).loses_positions
    for block, place in blocks.items():
        for one in range(place, place + 1 + later):
            yield one, block


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
        controls = _controls(planned, lambda: prepared.make_host()[0], seed, shared=len(grafts) > 1)
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


def _load_donors(requests: Sequence[GraftRequest], **options: Any) -> list[tuple[Model, Source]]:
    """The donors with the requested features in place of their neurons.

    Raises: UsageError for features that cannot be grafted, and for donors whose tokenizers differ.
    """
    loaded = [_load(request.donor, "donor", **options) for request in requests]
    donors = [model for model, _ in loaded]
    for request, donor in zip(requests, donors, strict=True):
        put_features(donor, request.features)
        for block, module in feature_blocks(donor).items():
            if module.reads_output or module.k is not None:
                what = "an SAE on the MLP's output, behind the neurons" if module.reads_output else "a top-k dictionary"
                raise UsageError(
                    f"features to be grafted must be those of a transcoder without top-k; those of block {block} are of {what}: "
                    "choose others."
                )
    for donor in donors[1:]:
        require_same_ids(donors[0].tokenizer, donor.tokenizer, donors[0].name, donor.name)
    return loaded


def _load_or_check_host(host: str, donor: Model, seed: int, **options: Any) -> tuple[tuple[Model, Source] | None, int]:
    """The trained host, or None for a config file, which is only checked here, before the search for circuits takes time; and the
    host's longest context."""
    if host.endswith(".json"):
        return None, read_host(Path(host), donor, seed).longest
    trained, source = _load(host, "host", **options)
    require_same_ids(donor.tokenizer, trained.tokenizer, donor.name, trained.name)
    return (trained, source), trained.longest


def _host_factory(
    host: str,
    trained: Model | None,
    donors: Sequence[Model],
    circuits: Sequence[ChosenCircuit],
    channels: int | None,
    seed: int,
) -> Callable[[], tuple[Model, FreeSpace]]:
    """Makes the host without a graft and its free space, as often as controls need it."""

    def fresh() -> tuple[Model, FreeSpace]:
        model = read_host(Path(host), donors[0], seed)
        return model, FreeSpace.of(model)

    if trained is None:
        return fresh
    return partial(widened, trained, **_needed(donors, circuits, trained, channels))


def _needed(
    donors: Sequence[Model], circuits: Sequence[ChosenCircuit], host: Model, channels: int | None
) -> dict[str, int]:
    """Upper bounds for the channels, and the key heads and neurons of every block, that circuits take of a trained host."""
    neurons: Counter[int] = Counter()
    heads, attention = _key_heads_of(donors, circuits, host), weights.attention(host, 0)
    for donor, chosen in zip(donors, circuits, strict=True):
        if PositionScheme.of(donor, host).loses_positions:
            heads[0] += -(-HEADS // attention.shared)
        for place, block in _places(donor, chosen, host):
            per_neuron = units(weights.mlp(donor, block), weights.mlp(host, 0))
            neurons[place] += per_neuron * int(chosen.kept.masks["neurons", block].sum()) + len(SLOPES)
            heads[place] += attention.o_bias is None  # for a constant
    # The donor's stream, its output, position codes or BOS, and a constant; LayerNorm takes one more channel each of two times.
    width = sum(min(donor.width, channels or donor.width) + donor.width + 2 * CODE_PLANES + 3 for donor in donors)
    return {"channels": width, "groups": max(heads.values(), default=0), "neurons": max(neurons.values(), default=0)}


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
    planned: PlannedGraft, bare: Callable[[], Model], seed: int, *, shared: bool
) -> dict[str, Callable[[], Model]]:
    """The graft's controls; if the host is `shared` with other grafts, also the host with this graft alone."""
    controls = planned.controls(bare, seed)
    if shared:
        controls["this graft alone"] = lambda: with_plan(bare(), planned.plan)
    return controls


def _load(
    name: str, role: str, *, device: torch.device, trust_remote_code: bool, progress: Progress | None
) -> tuple[Model, Source]:
    """A donor or a trained host in fp32. Raises UsageError for a model whose weights cannot be read or written head by head."""
    source = resolve(name, trust_remote_code=trust_remote_code, progress=progress)
    model = load(
        source.folder, name=name, dtype=torch.float32, device=device, trust_remote_code=trust_remote_code, progress=progress
    )  # fmt: skip
    weights.check(model, f"the {role} of a graft")
    if role == "host" and model.config.model_type not in weights.FAMILIES:
        raise UsageError(
            f"the host of a graft must have room for more key heads; {name} is a GPTBigCode, which has one: choose a model of "
            f"one of {', '.join(weights.FAMILIES)}."
        )
    return model, source


def _save(host: Model, donor: Model, folder: Path, report: dict) -> None:
    """Writes a stock checkpoint with the donor's tokenizer, and report, page and model card beside it."""
    folder.mkdir()
    save_net(host.net, folder)
    copy_tokenizer(donor.folder, folder)
    (folder / "graft.json").write_text(json.dumps(report, indent=2) + "\n")
    page = graft_page(report, plan_tables(report), plan_notes(report), result_tables(report), result_notes(report))
    for name, content in page_and_card(page, graft_card(report)).items():
        (folder / name).write_bytes(content)
