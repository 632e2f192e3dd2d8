"""Donors' circuits in a host of another architecture that has never been trained: found, planned, written, and compared."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from stitch.activations import Progress
from stitch.checkpoint import TOKENIZER_FILES, appear
from stitch.circuits import controls, weights
from stitch.circuits.circuit import Chosen, choose
from stitch.circuits.components import replaced
from stitch.circuits.plan import Plan, make_plan
from stitch.circuits.room import Room
from stitch.circuits.score import Logits, answered, divergence
from stitch.circuits.write import write
from stitch.config import torch_device
from stitch.errors import UsageError
from stitch.models import ANATOMIES, Model, load
from stitch.sources import resolve
from stitch.tokens import require_same_ids

FORCED = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")  # the donor's, since the tokenizer is


@dataclass(frozen=True)
class Wish:
    """A behaviour that the host should have from a donor; `circuit` names its components, None: they are looked for."""

    donor: str
    behaviour: str
    circuit: Path | None = None


def graft(
    wishes: Sequence[Wish],
    host: Path,
    out: Path | None,
    *,
    keep: float = 0.9,
    channels: int | None = None,
    count: int = 128,
    seed: int = 0,
    text: str = "docs",
    device: str = "auto",
    overwrite: bool = False,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> dict:
    """Writes donors' circuits into a fresh model of the architecture in the file `host`, saved to `out` as a stock checkpoint;
    None: plans, and writes nothing.

    For every wish the report has the plan and rows: the donor, its circuit alone (all else constant), the host before any
    training, and controls: the same initialisation without a graft, noise in the place of the circuit, its blocks in the
    opposite order, the first and the last of them left out. `kl` is KL(circuit alone ‖ row) in nats per answer.

    Raises: UsageError when a circuit does not fit the host, StitchError when a donor does not have its behaviour.
    """
    if out is not None and out.exists() and not overwrite:
        raise UsageError(f"--out must not exist yet; {out} does: choose another or give --overwrite.")
    donors = [_load_donor(wish, device, trust_remote_code, progress) for wish in wishes]
    for net in donors[1:]:
        require_same_ids(donors[0].tokenizer, net.tokenizer, donors[0].name, net.name)

    def fresh() -> Model:
        return read_host(host, donors[0], seed)

    target = fresh()
    room, grafts = Room.of(target), []
    for wish, net in zip(wishes, donors, strict=True):
        chosen = choose(
            net, wish.behaviour, circuit=wish.circuit, keep=keep, count=count, seed=seed, text=text, constant=True,
            progress=progress,
        )  # fmt: skip
        plan = make_plan(net, wish.behaviour, chosen.kept, chosen.means, chosen.first, target, room, channels)
        grafts.append(_Graft(net, chosen, plan))
    plans = [one.plan for one in grafts]
    report = {
        "host": target.config.to_diff_dict(),
        "free": {"channels": room.free, "of": target.width},
        "seed": seed,
        "grafts": [one.described() for one in grafts],
    }
    if out is None:
        return report
    reads = write(target, plans)
    for graft, found, entry in zip(grafts, reads, report["grafts"], strict=True):
        alone = [] if len(plans) == 1 else [("this graft alone", lambda plan=graft.plan: _written(fresh(), [plan]))]
        entry["reads"] = found
        entry["results"] = graft.compared(target, fresh, alone, seed, progress)
    _save(target, donors[0], out, report)
    return report


@dataclass(frozen=True)
class _Graft:
    donor: Model
    chosen: Chosen
    plan: Plan

    def described(self) -> dict:
        of = self.chosen.other
        return {
            "donor": self.plan.donor,
            "behaviour": self.plan.behaviour,
            "circuit": self.chosen.kept.to_dict(),
            "plan": self.plan.described(),
            "prompts": len(of.clean),
            "places": int(of.asked.sum()),
        }

    def compared(
        self,
        host: Model,
        fresh: Callable[[], Model],
        others: list[tuple[str, Callable[[], Model]]],
        seed: int,
        progress: Progress | None,
    ) -> list[dict]:
        """Rows of the report, on prompts that nothing was chosen or fitted on."""
        of = self.chosen.other
        donor = _logits(self.donor)

        def alone(ids: torch.Tensor) -> torch.Tensor:
            with replaced(self.donor, self.chosen.kept, self.chosen.means):
                return donor(ids)

        def row(name: str, logits: Logits) -> dict:
            return {"name": name, **answered(logits, of.clean, of), "kl": divergence(alone, logits, of)}

        rows = [row("donor", donor), row("its circuit alone", alone), row("host, before training", _logits(host))]
        rows.append({"name": "host on corrupt prompts", **answered(_logits(host), of.corrupt, of)})
        tests = [*others, *self._controls(fresh, seed)]
        for number, (name, make) in enumerate(tests, 1):
            rows.append(row(name, _logits(make())))
            if progress:
                progress("controls", number, len(tests))
        return rows

    def _controls(self, fresh: Callable[[], Model], seed: int) -> list[tuple[str, Callable[[], Model]]]:
        plan, blocks = self.plan, sorted(self.plan.layers)
        found = [("fresh initialisation", fresh)]
        found.append(("noise of the same norm", lambda: _written(fresh(), [controls.randomised(plan, seed)])))
        if len(blocks) > 1:
            found.append(("blocks in opposite order", lambda: _written(fresh(), [controls.shuffled(plan)])))
        for block in sorted({blocks[0], blocks[-1]}):
            found.append(
                (f"without block {block}", lambda block=block: _written(fresh(), [controls.without(plan, block)]))
            )
        return found


def _load_donor(wish: Wish, device: str, trust_remote_code: bool, progress: Progress | None) -> Model:
    source = resolve(wish.donor, progress=progress)
    where, name = torch_device(device), wish.donor
    net = load(source.folder, name=name, dtype=torch.float32, device=where, trust_remote_code=trust_remote_code)
    weights.check(net, "donor")
    return net


def _logits(model: Model) -> Logits:
    return lambda ids: model.net(input_ids=ids.to(model.device), use_cache=False).logits.cpu()


def _written(host: Model, plans: Sequence[Plan]) -> Model:
    write(host, plans)
    return host


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
    weights.check(host, "host")
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
