"""Donors' circuits in a host of another architecture, fresh or trained: found, planned, written, and compared."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from stitch.activations import Progress
from stitch.checkpoint import TOKENIZER_FILES, appear
from stitch.circuits import weights
from stitch.circuits.circuit import LEAST, Chosen, choose, read_arrangement
from stitch.circuits.score import answered
from stitch.circuits.shallow import Arrangement, tables, with_reads
from stitch.circuits.spec import BEHAVIOURS, prompts
from stitch.circuits.squeeze import fitting, squeeze
from stitch.circuits.transcoders import feature_blocks, put_features
from stitch.config import torch_device
from stitch.errors import StitchError, UsageError
from stitch.grafts.comparison import Graft, on_text, with_plan
from stitch.grafts.neurons import units
from stitch.grafts.plan import make_plan
from stitch.grafts.room import Room
from stitch.grafts.scheme import CODE_PLANES
from stitch.grafts.trained import beside
from stitch.grafts.widen import widened
from stitch.grafts.write import write
from stitch.models import ANATOMIES, Model, load
from stitch.sources import resolve
from stitch.tokens import require_same_ids

READ_ON = 128  # prompts that reads of a rearranged donor are fitted on
FORCED = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")  # the donor's, since the tokenizer is


@dataclass(frozen=True)
class Wish:
    """A behaviour that the host should have from a donor; `circuit` names its components, None: they are looked for.

    `features` are those of transcoders, by block, in the place of its neurons.
    """

    donor: str
    behaviour: str
    circuit: Path | None = None
    features: Mapping[int, str] = field(default_factory=dict)


def graft(
    wishes: Sequence[Wish],
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
    if out is not None and out.exists() and not overwrite:
        raise UsageError(f"--out must not exist yet; {out} does: choose another or give --overwrite.")
    options = {"device": torch_device(device), "trust_remote_code": trust_remote_code, "progress": progress}
    donors = [_load(wish.donor, "donor", **options) for wish in wishes]
    for wish, net in zip(wishes, donors, strict=True):
        put_features(net, wish.features)
        for block, module in feature_blocks(net).items():
            if module.behind or module.k is not None:
                why = "of an SAE on what the MLP writes, a layer behind its neurons" if module.behind else "top-k"
                raise UsageError(
                    f"features to be grafted must be a transcoder's, each for itself; those of block {block} are {why}: choose "
                    "others."
                )
    for net in donors[1:]:
        require_same_ids(donors[0].tokenizer, net.tokenizer, donors[0].name, net.name)
    search = {"keep": keep, "count": count, "seed": seed, "text": text, "constant": True, "progress": progress}
    chosen = [
        choose(net, wish.behaviour, circuit=wish.circuit, **search) for wish, net in zip(wishes, donors, strict=True)
    ]
    trained = None if host.endswith(".json") else _load(host, "host", **options)

    def make() -> tuple[Model, Room]:
        if trained is not None:
            return widened(trained, **_needed(donors, chosen, trained, channels))
        fresh = read_host(Path(host), donors[0], seed)
        return fresh, Room.of(fresh)

    if trained is not None:
        require_same_ids(donors[0].tokenizer, trained.tokenizer, donors[0].name, trained.name)
    target, room = make()
    if trained is None:
        arranged = [read_arrangement(wish.circuit) if wish.circuit else None for wish in wishes]
        chosen = [
            squeezed(net, wish.behaviour, one, target, given, keep=keep, seed=seed, text=text, progress=progress)
            if given or (not wish.circuit and len(one.kept.blocks()) > target.depth)
            else one
            for wish, net, one, given in zip(wishes, donors, chosen, arranged, strict=True)
        ]
    report = {"host": target.config.to_diff_dict(), "trained": trained is not None, "seed": seed, "grafts": []}
    grafts = []
    for wish, net, one in zip(wishes, donors, chosen, strict=True):
        plan = make_plan(net, wish.behaviour, one.kept, one.means, one.first, target, room, channels, one.shallow)
        entry = {
            "donor": wish.donor,
            "behaviour": wish.behaviour,
            "circuit": one.kept.to_dict(),
            "features": {str(block): source for block, source in wish.features.items()},
            "plan": plan.described(),
        }
        if trained is not None:
            plan = beside(plan, net, one.kept, one.means, target, room, strength)
        grafts.append(Graft(net, one, plan))
        report["grafts"].append(entry)
    report["free"] = {"channels": room.free, "of": target.width}
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
        report["text"] = on_text(trained, target, text, tokens, progress)
    _save(target, donors[0], out, report)
    return report


def squeezed(
    donor: Model,
    behaviour: str,
    chosen: Chosen,
    host: Model,
    given: Arrangement | None = None,
    *,
    keep: float = 0.98,
    seed: int = 0,
    text: str = "docs",
    progress: Progress | None = None,
) -> Chosen:
    """The circuit of a donor rearranged into as many blocks as the host has, with as many heads and neurons as fit into each;
    `given` an arrangement, with the components that are chosen already.

    Raises: UsageError for an arrangement of other blocks than donor and host have; StitchError when it does not have the
    behaviour any more.
    """
    if given is not None and (given.groups[-1][-1] != donor.depth - 1 or len(given.groups) > host.depth):
        raise UsageError(
            f"the arrangement has {len(given.groups)} groups, the last of {given.groups[-1]}; {donor.name} has {donor.depth} "
            f"blocks and {host.name} {host.depth}: leave it out, or choose a deeper host."
        )
    arrangement = given or squeeze(donor, chosen.first, host.depth, seed, progress)
    known = tables(donor, torch.arange(len(donor.embedding.weight)), {arrangement.first}, seed, progress)
    # Reads need no answers, so more prompts can be made for them; n-grams and a file's prompts are those that there are.
    drawn = behaviour in BEHAVIOURS and behaviour != "ngram"
    more = prompts(behaviour, donor.tokenizer, count=READ_ON, seed=seed + 1, text=text) if drawn else chosen.first
    as_many = max(units(weights.mlp(donor, block), weights.mlp(host, 0)) for block in range(donor.depth))
    most = {
        "heads": weights.attention(host, 0).k.shape[1],
        "neurons": (weights.mlp(host, 0).up.shape[1] - 1) // as_many,  # one may have to write constants
    }
    whole = with_reads(donor, arrangement, known, more, progress=progress)
    if given is None:
        shallow = fitting(whole, chosen.first, most, keep, progress)
    else:
        shallow = replace(whole, kept=chosen.kept, means=whole.mean_outputs(chosen.first))
    assert shallow.kept is not None
    left = answered(shallow.logits, chosen.other.clean, chosen.other)["right"]
    if left - chosen.corrupt["right"] < LEAST:
        raise StitchError(
            f"the circuit of {donor.name} is in {len(chosen.kept.blocks())} blocks, one after another; rearranged into the "
            f"{host.depth} of {host.name} it must still have the behaviour; it answers {left:.1%} right: choose a deeper host."
        )
    return replace(chosen, kept=shallow.kept, means=shallow.means, shallow=shallow, stability=None)


def _needed(donors: Sequence[Model], chosen: Sequence[Chosen], host: Model, channels: int | None) -> dict[str, int]:
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


def read_host(path: Path, donor: Model, seed: int) -> Model:
    """A freshly initialised model of the architecture in a JSON file, with the donor's vocabulary.

    Raises: UsageError for a file that is no config, a family without anatomy, or tied embeddings: a donor's embedding and
    unembedding are not the same matrix once its final norm's gain is folded in.
    """
    try:
        wanted = json.loads(path.read_text(encoding="utf-8"))
        family = wanted.pop("model_type")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UsageError(
            f'--host must be JSON such as {{"model_type": "llama", "hidden_size": 320, …}}; {path}: {type(error).__name__}, '
            f"{error}."
        ) from error
    if family not in weights.FAMILIES:
        raise UsageError(f"the host of a graft must be of one of {', '.join(weights.FAMILIES)}; got {family}.")
    if wanted.get("tie_word_embeddings"):
        raise UsageError(
            "the host's embeddings must not be tied: the donor's unembedding would overwrite its embedding; set "
            '"tie_word_embeddings": false.'
        )
    own = {name: getattr(donor.config, name, None) for name in FORCED}
    own["vocab_size"] = len(donor.embedding.weight)
    if any(name in wanted and wanted[name] != own[name] for name in FORCED):
        raise UsageError(f"the host has the donor's tokenizer; leave {', '.join(FORCED)} out of {path}.")
    wanted["tie_word_embeddings"] = False
    try:
        config = AutoConfig.for_model(family, **wanted, **own)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    except Exception as error:  # whatever the family checks
        raise UsageError(
            f"{path} must make a model; transformers says: {' '.join(str(error).split())[:200]}"
        ) from error
    host = Model(path.stem, net, donor.tokenizer, ANATOMIES[family], path.parent)
    weights.check(host, "the host of a graft")
    return host


def _save(host: Model, donor: Model, out: Path, report: dict) -> None:
    """A stock checkpoint with the donor's tokenizer, and the report beside it."""

    def fill(folder: Path) -> None:
        host.net.save_pretrained(folder)
        for name in TOKENIZER_FILES:
            if (donor.folder / name).is_file():
                shutil.copyfile(donor.folder / name, folder / name)
        (folder / "graft.json").write_text(json.dumps(report, indent=2) + "\n")

    appear(out, fill)
