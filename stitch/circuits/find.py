"""The fewest components that keep a behaviour: the first by attribution, as many as ablation asks for, seen on other prompts."""

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.circuits.attribution import attribute
from stitch.circuits.behaviours import Prompts, make_prompts
from stitch.circuits.components import Components, Place, replaced, watched
from stitch.circuits.score import PROMPTS_AT_ONCE, answered
from stitch.circuits.shallow import Arrangement, ShallowModel
from stitch.errors import StitchError, UsageError
from stitch.internals.transcoders import as_trained, feature_blocks, put_features
from stitch.models.device import torch_device, torch_dtype
from stitch.models.loading import load
from stitch.models.model import Model
from stitch.models.sources import resolve
from stitch.progress import Progress

LEAST = 0.1  # of the answers: what a model must have of a behaviour beyond what corrupt prompts get
RANDOM = 3  # circuits drawn at random
WITH_FEATURES = "features for neurons"

Means = dict[Place, Float[Tensor, "1 #length columns"]]


def find_circuit(
    model: str,
    behaviour: str,
    *,
    circuit: Path | None = None,
    features: Mapping[int, str] | None = None,
    keep: float = 0.9,
    count: int = 128,
    seed: int = 0,
    text: str = "docs",
    device: str = "auto",
    dtype: str = "fp32",
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> dict:
    """The fewest components, by attribution, that alone keep a share `keep` of a model's right answers, all others having their
    mean output on corrupt prompts; or what the `circuit` of a file keeps. Chosen on `count` prompts, reported on as many others;
    of a file's prompts, on every other one.

    `features` by block are put in the place of neurons (`put_features`): they are then what the circuit is made of there, and
    what they do not explain of an MLP is left out.

    The report's rows are the whole model; the circuit alone, with the means of the prompts it was chosen on and with those of
    the others; the model without it; circuits of as many heads and neurons drawn at random, alone and left out; and the model on
    corrupt prompts. `stability` is the share of components that the circuit of as many other prompts has as well.

    Raises: UsageError for families without anatomy; StitchError when the model does not have the behaviour.
    """
    source = resolve(model, progress=progress)
    arguments = {"dtype": torch_dtype(dtype), "device": torch_device(device), "trust_remote_code": trust_remote_code}
    net = load(source.folder, name=source.name, **arguments)
    put_features(net, features or {})
    chosen = choose_circuit(
        net, behaviour, circuit=circuit, keep=keep, count=count, seed=seed, text=text, progress=progress
    )
    found, other, means = chosen.kept, chosen.other, chosen.means

    def row(name: str, kept: Components, values: Means = means) -> dict:
        with replaced(net, kept, values):
            return {"name": name, **_answers(net, other, other.clean)}

    generator = torch.Generator().manual_seed(seed)
    drawn = [_random_like(found, generator) for _ in range(RANDOM)]
    rows = [{"name": "model", **chosen.whole}, row("circuit alone", found)]
    if features:
        with as_trained(net):
            rows = [{"name": "model", **_answers(net, other, other.clean)}, {**rows[0], "name": WITH_FEATURES}, rows[1]]
    rows += [row("circuit alone, other means", found, mean_outputs(net, other)), row("without it", _others(found))]
    rows += [row(f"random circuit {number} alone", one) for number, one in enumerate(drawn, 1)]
    rows += [row(f"without random circuit {number}", _others(one)) for number, one in enumerate(drawn, 1)]
    return {
        "model": model,
        "behaviour": behaviour,
        "prompts": len(other.clean),
        "places": int(other.asked.sum()),
        "circuit": found.to_dict(),
        "features": {str(block): source for block, source in (features or {}).items()},
        "size": {kind: {"kept": found.count(kind), "of": _all(found).count(kind)} for kind in ("heads", "neurons")},
        "stability": chosen.stability,
        "results": [*rows, {"name": "corrupt prompts", **chosen.corrupt}],
    }


@dataclass(frozen=True)
class ChosenCircuit:
    """The components `kept`, chosen on the `first` prompts, where all have these `means`; scores are on the `other` prompts.

    `shallow` is how they stand in fewer blocks than the model has, if they do.
    """

    kept: Components
    means: Means
    first: Prompts
    other: Prompts
    whole: dict[str, float]
    corrupt: dict[str, float]
    stability: float | None
    shallow: ShallowModel | None = None


def choose_circuit(
    net: Model,
    behaviour: str,
    *,
    circuit: Path | None = None,
    keep: float = 0.9,
    count: int = 128,
    seed: int = 0,
    text: str = "docs",
    constant: bool = False,
    progress: Progress | None = None,
) -> ChosenCircuit:
    """The circuit that `find_circuit` reports on, with the same arguments; `constant`: other components have one mean output
    wherever they are in a prompt, which says nothing about its form.

    Raises: StitchError when the model does not have the behaviour; UsageError as `make_prompts` and `read_circuit`.
    """
    if not 0 < keep <= 1:
        raise UsageError(f"--keep must be a share of the right answers, above 0 and at most 1; got {keep}.")
    both = make_prompts(behaviour, net.tokenizer, count=2 * count, seed=seed, text=text)
    if len(both.clean) < 2:
        raise UsageError(f"a circuit needs prompts to choose on and others to report on; {behaviour} has only one.")
    first, other = both.part(slice(0, None, 2)), both.part(slice(1, None, 2))
    whole, corrupt = (_answers(net, other, ids) for ids in (other.clean, other.corrupt))
    if whole["right"] - corrupt["right"] < LEAST:
        raise StitchError(
            f"{net.name} must have the behaviour to have a circuit for it; it answers {whole['right']:.1%} of clean prompts and "
            f"{corrupt['right']:.1%} of corrupt ones right: choose another donor or behaviour."
        )
    means = mean_outputs(net, first)
    if constant:
        means = {place: mean.mean(1, keepdim=True) for place, mean in means.items()}
    if circuit is not None:
        return ChosenCircuit(read_circuit(circuit, net), means, first, other, whole, corrupt, None)
    order, order_other = (ranked(attribute(net, of, progress=progress)) for of in (first, other))
    wanted, tried = keep * _answers(net, first, first.clean)["right"], itertools.count(1)

    def enough(size: int) -> bool:
        if progress:
            progress("ablation (sizes, at most)", next(tried), len(order).bit_length() + 6)
        with replaced(net, _taken(net, order, size), means):
            return _answers(net, first, first.clean)["right"] >= wanted

    size = smallest(len(order), enough)
    found, again = _taken(net, order, size), _taken(net, order_other, size)
    stability = sum(int((found.masks[place] & again.masks[place]).sum()) for place in found.masks) / size
    return ChosenCircuit(found, means, first, other, whole, corrupt, stability)


def read_circuit(path: Path, model: Model) -> Components:
    """A circuit as `find_circuit` reports it, under the key `circuit` or alone; or that of a graft, as graft.json has it.

    Raises: UsageError when the file is no such JSON, names components that the model does not have, or was found with features
    in other blocks.
    """
    try:
        report = _read(path)
        found = report.get("circuit", report)
        featured = {int(block) for block in report.get("features", {})}
        wanted = [
            (kind, int(block), numbers)
            for kind in ("heads", "neurons")
            for block, numbers in found.get(kind, {}).items()
        ]
    except (OSError, ValueError, AttributeError) as error:
        raise _no_circuit(path, error) from error
    here = set(feature_blocks(model))
    if "circuit" in report and featured != here:
        where = [", ".join(map(str, sorted(blocks))) for blocks in (featured, here)]
        raise UsageError(
            f"{path} has features in {f'blocks {where[0]}' if featured else 'none'}; {model.name} in "
            f"{f'blocks {where[1]}' if here else 'none'}: give the same --features."
        )
    kept = Components.none(model)
    for kind, block, numbers in wanted:
        mask = kept.masks.get((kind, block), torch.zeros(0, dtype=torch.bool))  # none in a block that there is not
        if not isinstance(numbers, list) or not all(isinstance(one, int) and 0 <= one < len(mask) for one in numbers):
            raise UsageError(f"{path} names {kind} {numbers} of block {block}, which {model.name} does not have.")
        mask[numbers] = True
    return kept


def read_arrangement(path: Path) -> Arrangement | None:
    """How the donor of a graft was rearranged, where graft.json says so. Raises UsageError where it makes no sense."""
    try:
        found = _read(path).get("plan", {}).get("arrangement")
        return None if found is None else Arrangement.from_dict(found)
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise _no_circuit(path, error) from error


def _read(path: Path) -> dict:
    report = json.loads(path.read_text(encoding="utf-8"))
    grafts = report.get("grafts", [report])
    if len(grafts) != 1:
        raise ValueError(f"it has {len(grafts)} grafts; leave one")
    return grafts[0]


def _no_circuit(path: Path, error: Exception) -> UsageError:
    return UsageError(f'--circuit must be JSON such as {{"heads": {{"1": [0, 2]}}, "neurons": {{}}}}; {path}: {error}.')


@torch.no_grad()
def mean_outputs(model: Model, of: Prompts) -> Means:
    """What components give on average over the corrupt prompts, by place in the prompt."""
    totals: Means = {}
    for part in of.corrupt.split(PROMPTS_AT_ONCE):
        with watched(model) as seen:
            model.net(input_ids=part.to(model.device), use_cache=False)
        for place, output in seen.items():
            totals[place] = totals.get(place, 0) + output.sum(0, keepdim=True)
    return {place: total / len(of.corrupt) for place, total in totals.items()}


def _answers(model: Model, of: Prompts, ids: Tensor) -> dict:
    return answered(lambda part: model.net(input_ids=part.to(model.device), use_cache=False).logits.cpu(), ids, of)


def ranked(scores: dict[Place, Tensor]) -> list[tuple[Place, int]]:
    """Components from the one that matters most, to whichever side, on."""
    named = [
        (place, number, abs(value)) for place, values in scores.items() for number, value in enumerate(values.tolist())
    ]
    return [(place, number) for place, number, _ in sorted(named, key=lambda one: -one[2])]


def _taken(model: Model, order: list[tuple[Place, int]], size: int) -> Components:
    kept = Components.none(model)
    for place, number in order[:size]:
        kept.masks[place][number] = True
    return kept


def smallest(total: int, enough: Callable[[int], bool]) -> int:
    """How many of the first components are enough, all at most: doubled until they are, then halved in between."""
    most = 1
    while most < total and not enough(most):
        most = min(2 * most, total)
    least = most // 2  # not enough, or none
    while most - least > max(1, least // 16):
        middle = (least + most) // 2
        least, most = (least, middle) if enough(middle) else (middle, most)
    return most


def _all(of: Components) -> Components:
    return Components({place: torch.ones_like(mask) for place, mask in of.masks.items()})


def _others(of: Components) -> Components:
    return Components({place: ~mask for place, mask in of.masks.items()})


def _random_like(of: Components, generator: torch.Generator) -> Components:
    """As many heads and as many neurons, anywhere."""
    drawn = {}
    for kind in ("heads", "neurons"):
        masks = {place: mask for place, mask in of.masks.items() if place[0] == kind}
        joined = torch.cat(list(masks.values()))
        mixed = joined[torch.randperm(len(joined), generator=generator)]
        drawn |= dict(zip(masks, mixed.split([len(mask) for mask in masks.values()]), strict=True))
    return Components({place: drawn[place] for place in of.masks})
