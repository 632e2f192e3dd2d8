"""Donors' circuits in a host of another architecture, fresh or trained: found, planned, written, and compared."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from stitch.circuits.find import ChosenCircuit, choose_circuit, read_arrangement
from stitch.composite.checkpoint import TOKENIZER_FILES
from stitch.errors import UsageError
from stitch.files.folders import appear
from stitch.files.output import check_output
from stitch.grafts.allocation import FreeSpace
from stitch.grafts.compared import PlannedGraft, text_scores, with_plan
from stitch.grafts.hosts import read_host, widened
from stitch.grafts.neurons import units
from stitch.grafts.plan import make_plan
from stitch.grafts.positions import CODE_PLANES
from stitch.grafts.rearranged import rearranged_circuit
from stitch.grafts.trained import beside_trained_stream
from stitch.grafts.write import write
from stitch.internals import weights
from stitch.internals.transcoders import feature_blocks, put_features
from stitch.models.device import torch_device
from stitch.models.loading import load
from stitch.models.model import Model
from stitch.models.sources import resolve
from stitch.progress import Progress
from stitch.text.tokenizers import require_same_ids


@dataclass(frozen=True)
class GraftRequest:
    """A behaviour that the host should have from a donor; `circuit` names its components, None: they are looked for.

    `features` are those of transcoders, by block, in the place of its neurons.
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
    """Writes donors' circuits into a host, saved to `out` as a stock checkpoint; None: plans, and writes nothing.

    `host` is a JSON file with the config of a model to be initialised here, or a trained model, which gets new channels, heads
    and neurons beside its own; circuits then add `strength` times what they bring to the donor's logits to its logits.

    A circuit that is looked for and lies in more blocks than a fresh host has is looked for again in the donor rearranged into
    as many (`stitch.circuits.shallow`): early blocks become the host's embedding, others read side by side.

    For every wish the report has the plan and rows: the donor, all of it rearranged where that is so, its circuit alone (all
    else constant), the grafted host, and controls: the host without a graft, noise in the place of the circuit, its blocks in
    the opposite order, the first and the last of them left out. `kl` is KL(circuit alone ‖ row) in nats per answer. For a
    trained host, `text` has its cross-entropy before and after on `tokens` of held-out text.

    Raises: UsageError when a circuit does not fit the host, StitchError when a donor does not have its behaviour.
    """
    if out is not None:
        check_output(out, overwrite)
    options = {"device": torch_device(device), "trust_remote_code": trust_remote_code, "progress": progress}
    donors = [_load(request.donor, "donor", **options) for request in requests]
    for request, net in zip(requests, donors, strict=True):
        put_features(net, request.features)
        for block, module in feature_blocks(net).items():
            if module.behind or module.k is not None:
                why = "of an SAE on what the MLP writes, a layer behind its neurons" if module.behind else "top-k"
                raise UsageError(
                    f"features to be grafted must be a transcoder's, each for itself; those of block {block} are {why}: choose "
                    "others."
                )
    for net in donors[1:]:
        require_same_ids(donors[0].tokenizer, net.tokenizer, donors[0].name, net.name)
    trained = None if host.endswith(".json") else _load(host, "host", **options)
    if trained is not None:
        require_same_ids(donors[0].tokenizer, trained.tokenizer, donors[0].name, trained.name)
    else:
        read_host(Path(host), donors[0], seed)  # refused, if it is, before the search takes time
    search = {"keep": keep, "count": count, "seed": seed, "text": text, "constant": True, "progress": progress}
    chosen = [
        choose_circuit(net, request.behaviour, circuit=request.circuit, **search)
        for request, net in zip(requests, donors, strict=True)
    ]

    def make() -> tuple[Model, FreeSpace]:
        if trained is not None:
            return widened(trained, **_needed(donors, chosen, trained, channels))
        fresh = read_host(Path(host), donors[0], seed)
        return fresh, FreeSpace.of(fresh)

    target, space = make()
    if trained is None:
        arranged = [read_arrangement(request.circuit) if request.circuit else None for request in requests]
        chosen = [
            rearranged_circuit(
                net, request.behaviour, one, target, given, keep=keep, seed=seed, text=text, progress=progress
            )
            if given or (not request.circuit and len(one.kept.blocks()) > target.depth)
            else one
            for request, net, one, given in zip(requests, donors, chosen, arranged, strict=True)
        ]
    report = {"host": target.config.to_diff_dict(), "trained": trained is not None, "seed": seed, "grafts": []}
    grafts = []
    for request, net, one in zip(requests, donors, chosen, strict=True):
        plan = make_plan(net, request.behaviour, one.kept, one.means, one.first, target, space, channels, one.shallow)
        entry = {
            "donor": request.donor,
            "behaviour": request.behaviour,
            "circuit": one.kept.to_dict(),
            "features": {str(block): source for block, source in request.features.items()},
            "plan": plan.described(),
        }
        if trained is not None:
            plan = beside_trained_stream(plan, net, one.kept, one.means, target, space, strength)
        grafts.append(PlannedGraft(net, one, plan))
        report["grafts"].append(entry)
    report["free"] = {"channels": space.free, "of": target.width}
    if out is None:
        return report
    plans = [one.plan for one in grafts]
    reads = write(target, plans)
    for one, found, entry in zip(grafts, reads, report["grafts"], strict=True):
        tests = one.controls(lambda: make()[0], seed)
        if len(plans) > 1:
            tests["this graft alone"] = lambda plan=one.plan: with_plan(make()[0], plan)
        of = one.chosen.other
        entry |= {"reads": found, "prompts": len(of.clean), "places": int(of.asked.sum()), "order_one": of.order_one}
        entry["results"] = one.compared(target, tests, progress)
    if trained is not None:
        report["text"] = text_scores(trained, target, text, tokens, progress)
    _save(target, donors[0], out, report)
    return report


def _needed(
    donors: Sequence[Model], chosen: Sequence[ChosenCircuit], host: Model, channels: int | None
) -> dict[str, int]:
    """Channels, key heads and neurons of every block, at most, that circuits will take of a trained host."""
    heads, neurons = ([0] * max(donor.depth for donor in donors) for _ in range(2))
    for donor, one in zip(donors, chosen, strict=True):
        masks = one.kept.masks
        used = [block for block in range(donor.depth) if masks["heads", block].any() or masks["neurons", block].any()]
        for number, block in enumerate(used):
            heads[number] += int(masks["heads", block].sum())
            as_many = units(weights.mlp(donor, block), weights.mlp(host, 0))
            neurons[number] += as_many * int(masks["neurons", block].sum()) + 1
    # The donor's stream, positions, a constant and what it writes; under LayerNorm twice one more.
    width = sum(min(donor.width, channels or donor.width) + donor.width + 2 * CODE_PLANES + 3 for donor in donors)
    return {"channels": width, "groups": max(heads), "neurons": max(neurons)}


def _load(name: str, role: str, *, device: torch.device, trust_remote_code: bool, progress: Progress | None) -> Model:
    source = resolve(name, progress=progress)
    model = load(source.folder, name=name, dtype=torch.float32, device=device, trust_remote_code=trust_remote_code)
    weights.check(model, f"the {role} of a graft")
    if role == "host" and model.config.model_type not in weights.FAMILIES:
        raise UsageError(
            f"the host of a graft must have room for key heads; {name} is a GPTBigCode, whose class has one: choose a model of "
            f"one of {', '.join(weights.FAMILIES)}."
        )
    return model


def _save(host: Model, donor: Model, out: Path, report: dict) -> None:
    """A stock checkpoint with the donor's tokenizer, and the report beside it."""

    def fill(folder: Path) -> None:
        host.net.save_pretrained(folder)
        for name in TOKENIZER_FILES:
            if (donor.folder / name).is_file():
                shutil.copyfile(donor.folder / name, folder / name)
        (folder / "graft.json").write_text(json.dumps(report, indent=2) + "\n")

    appear(out, fill, "graft", overwrite=True)
