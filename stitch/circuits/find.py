"""Finds a circuit: the components with the largest attributions, as few as keep a behaviour under ablation."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.circuits.attribution import attribute, looks_up_ids
from stitch.circuits.behaviours.named import make_prompts
from stitch.circuits.behaviours.prompts import Prompts, require_room
from stitch.circuits.behaviours.sampler import LONGEST
from stitch.circuits.circuit_file import read_circuit
from stitch.circuits.components import Components, Place, check_located, replaced, watched
from stitch.circuits.edges import circuit_edges, name_of
from stitch.circuits.graph_json import write_graph
from stitch.circuits.score import PROMPTS_AT_ONCE, answered, logits_of, score
from stitch.circuits.shallow import ShallowModel
from stitch.errors import StitchError, UsageError
from stitch.files.recipe import recipe
from stitch.internals.transcoders import as_trained, put_features
from stitch.models.device import torch_device, torch_dtype
from stitch.models.loading import load
from stitch.models.model import Model
from stitch.models.provenance import surroundings
from stitch.models.sources import resolve
from stitch.models.writer import Writer
from stitch.progress import Progress

LEAST = 0.1  # a model has a behaviour if its share of right answers is higher by this on clean than on corrupt prompts
RANDOM = 3  # number of random control circuits
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
    graph: Path | None = None,
    progress: Progress | None = None,
) -> dict:
    """Finds the fewest components, in order of attribution, that keep a share `keep` of a model's right answers when all others
    give their mean output on corrupt prompts; or scores the `circuit` of a file. Returns the report.

    The circuit is chosen on `count` prompts and scored on as many others; of a file's prompts, on every second one. `features` by
    block replace neurons (`put_features`) and become components in their place; what they do not explain of an MLP is left out.

    The report's rows are the whole model; the circuit alone, with means from the prompts it was chosen on and from the others;
    the model without the circuit; random circuits with as many heads and neurons, alone and removed; and the model on corrupt
    prompts. `stability` is the share of its components that are also in the circuit of equal size chosen on the other prompts.
    `attribution` has the nats per answer that every head contributes, and the neurons of the circuit in its order. `edges` has
    what components of the circuit contribute through each other (`circuit_edges`), and the file `graph` gets the same for one
    prompt in circuit-tracer's JSON (`write_graph`); there are neither for a model that looks up token ids.

    Raises: UsageError for a model family that is not supported, and as `choose_circuit`; StitchError when the model does not have
    the behaviour.
    """
    source = resolve(model, trust_remote_code=trust_remote_code, progress=progress)
    arguments = {"dtype": torch_dtype(dtype), "device": torch_device(device), "trust_remote_code": trust_remote_code}
    net = load(source.folder, name=source.name, progress=progress, **arguments)
    put_features(net, features or {})
    chosen = choose_circuit(
        net, behaviour, circuit=circuit, keep=keep, count=count, seed=seed, text=text, progress=progress
    )
    kept, other = chosen.kept, chosen.other
    settings = {
        "model": model, "behaviour": behaviour, "circuit": None if circuit is None else str(circuit),
        "features": [f"{block}={one}" for block, one in (features or {}).items()] or None, "keep": keep, "count": count,
        "text": text, "seed": seed, "device": device, "dtype": dtype,
    }  # fmt: skip
    provenance = surroundings(settings, {"model": (net, source)})
    has_edges = not looks_up_ids(net)
    report = {
        "model": model,
        "behaviour": behaviour,
        "prompts": len(other.clean),
        "places": int(other.asked.sum()),
        "circuit": kept.to_dict(),
        "attribution": None if chosen.attribution is None else _described(chosen.attribution, kept),
        "edges": circuit_edges(net, chosen.first, kept, progress) if has_edges else None,
        "features": {str(block): source for block, source in (features or {}).items()},
        "size": {kind: {"kept": kept.count(kind), "of": _all(kept).count(kind)} for kind in ("heads", "neurons")},
        "stability": chosen.stability,
        "results": _rows(net, chosen, seed, with_features=bool(features)),
        "provenance": provenance,
        "recipe": recipe("circuit", provenance),
    }
    if graph is not None and has_edges:
        replaced_by = features or {}
        labels = {one: name_of(one).replace("neuron", "feature") for one in kept.listed() if one[0][1] in replaced_by}
        write_graph(graph, net, chosen.first, kept, name=model, behaviour=behaviour, labels=labels, progress=progress)
    return report


def _described(attribution: dict[Place, Tensor], kept: Components) -> dict:
    """Attributions by kind and block, in nats per answer: those of all heads, and of the neurons in the circuit."""
    found: dict[str, dict[str, list[float]]] = {"heads": {}, "neurons": {}}
    for (kind, block), values in attribution.items():
        if kind == "neurons":
            values = values[kept.masks[kind, block].to(values.device)]
        if len(values):
            found[kind][str(block)] = [round(value, 5) for value in values.tolist()]
    return found


@dataclass(frozen=True)
class ChosenCircuit:
    """The components `kept`, chosen on the `first` prompts. `means` are the mean outputs of all components on those prompts.

    `whole` and `corrupt` are the model's scores on the `other` prompts. `shallow` is the model rearranged into fewer blocks,
    where the circuit was chosen in that. `attribution` has the nats that each component contributes to an answer on the first
    prompts, where the circuit was looked for by them.
    """

    kept: Components
    means: Means
    first: Prompts
    other: Prompts
    whole: dict[str, Any]
    corrupt: dict[str, Any]
    stability: float | None
    shallow: ShallowModel | None = None
    attribution: dict[Place, Tensor] | None = None


def _rows(net: Model, chosen: ChosenCircuit, seed: int, *, with_features: bool) -> list[dict]:
    """The rows of `find_circuit`'s report, all on the prompts that the circuit was not chosen on."""
    kept, other = chosen.kept, chosen.other

    def row(name: str, components: Components, means: Means = chosen.means) -> dict:
        with replaced(net, components, means):
            return {**score(logits_of(net.net), other)[0], "name": name}

    generator = torch.Generator().manual_seed(seed)
    drawn = [_random_like(kept, generator) for _ in range(RANDOM)]
    rows = [{**chosen.whole, "name": WITH_FEATURES if with_features else "model"}, row("circuit alone", kept)]
    if with_features:
        with as_trained(net):
            rows.insert(0, {**score(logits_of(net.net), other)[0], "name": "model"})
    rows += [row("circuit alone, other means", kept, mean_outputs(net, other)), row("without it", _others(kept))]
    rows += [row(f"random circuit {number} alone", circuit) for number, circuit in enumerate(drawn, 1)]
    rows += [row(f"without random circuit {number}", _others(circuit)) for number, circuit in enumerate(drawn, 1)]
    return [*rows, {**chosen.corrupt, "name": "corrupt prompts"}]


def choose_circuit(
    net: Model,
    behaviour: str,
    *,
    circuit: Path | None = None,
    keep: float = 0.9,
    count: int = 128,
    seed: int = 0,
    text: str = "docs",
    longest: int = LONGEST,
    constant: bool = False,
    progress: Progress | None = None,
) -> ChosenCircuit:
    """The circuit that `find_circuit` reports on, chosen with the same arguments. Prompts whose length is not fixed fit into
    `longest` tokens as well as into the model's context. `constant` as in `choose_on`.

    Raises: UsageError for a `keep` that is no share, a single prompt, prompts longer than the model's context, and as
    `make_prompts` and `read_circuit`; StitchError when the model does not have the behaviour.
    """
    if not 0 < keep <= 1:
        raise UsageError(f"keep must be a share of the right answers, above 0 and at most 1; got {keep}.")
    check_located(net)
    with as_trained(net):  # it may write the text
        writer = Writer.of(net, seed)
        both = make_prompts(
            behaviour, net.tokenizer, count=2 * count, seed=seed, longest=min(longest, net.longest), text=text,
            writer=writer, progress=progress,
        )  # fmt: skip
    require_room(both, behaviour, net.name, net.longest)
    if len(both.clean) < 2:
        raise UsageError(
            f"a circuit needs at least 2 prompts, to choose on and to report on; {behaviour} has 1: add prompts."
        )
    first, other = both.part(slice(0, None, 2)), both.part(slice(1, None, 2))
    return choose_on(net, first, other, circuit=circuit, keep=keep, constant=constant, progress=progress)


def choose_on(
    net: Model,
    first: Prompts,
    other: Prompts,
    *,
    circuit: Path | None = None,
    keep: float = 0.9,
    constant: bool = False,
    progress: Progress | None = None,
) -> ChosenCircuit:
    """The circuit chosen on the `first` prompts, or that of a file, to be reported on the `other` ones.

    If `constant`, left-out components give the same mean output at all positions, so that the means do not tell where in a prompt
    the model is.
    Raises: as `read_circuit`; StitchError when the model does not have the behaviour on the other prompts.
    """
    whole, corrupt = score(logits_of(net.net), other)
    if whole["right"] - corrupt["right"] < LEAST:
        raise StitchError(
            f"{net.name} must have the behaviour for a circuit to be found; it answers {whole['right']:.1%} of clean prompts and "
            f"{corrupt['right']:.1%} of corrupt ones right: choose another model or behaviour."
        )
    means = mean_outputs(net, first)
    if constant:
        means = {place: mean.mean(1, keepdim=True) for place, mean in means.items()}
    if circuit is not None:
        return ChosenCircuit(read_circuit(circuit, net), means, first, other, whole, corrupt, None)
    contributed, contributed_other = (attribute(net, prompts, progress=progress) for prompts in (first, other))
    order, order_other = ranked(contributed), ranked(contributed_other)
    needed, tried = keep * _answers(net, first, first.clean)["right"], itertools.count(1)

    def is_enough(size: int) -> bool:
        if progress:
            progress("ablation (sizes, at most)", next(tried), len(order).bit_length() + 6)
        with replaced(net, first_components(net, order, size), means):
            return _answers(net, first, first.clean)["right"] >= needed

    size = smallest(len(order), is_enough)
    kept, kept_on_other = (first_components(net, each, size) for each in (order, order_other))
    stability = sum(int((kept.masks[place] & kept_on_other.masks[place]).sum()) for place in kept.masks) / size
    return ChosenCircuit(kept, means, first, other, whole, corrupt, stability, attribution=contributed)


@torch.no_grad()
def mean_outputs(model: Model, prompts: Prompts) -> Means:
    """The mean outputs of all components over the corrupt prompts, separately for each position."""
    totals: Means = {}
    for part in prompts.corrupt.split(PROMPTS_AT_ONCE):
        with watched(model) as seen:
            model.net(input_ids=part.to(model.device), use_cache=False)
        for place, output in seen.items():
            totals[place] = totals.get(place, 0) + output.sum(0, keepdim=True)
    return {place: total / len(prompts.corrupt) for place, total in totals.items()}


def _answers(model: Model, prompts: Prompts, ids: Tensor) -> dict:
    return answered(logits_of(model.net), ids, prompts)


def ranked(scores: dict[Place, Tensor]) -> list[tuple[Place, int]]:
    """All components in order of the absolute value of their scores, the largest first."""
    named = [
        (place, number, abs(value)) for place, values in scores.items() for number, value in enumerate(values.tolist())
    ]
    return [(place, number) for place, number, _ in sorted(named, key=lambda one: -one[2])]


def first_components(model: Model, order: list[tuple[Place, int]], size: int) -> Components:
    """The first `size` components of an order."""
    kept = Components.none(model)
    for place, number in order[:size]:
        kept.masks[place][number] = True
    return kept


def smallest(total: int, is_enough: Callable[[int], bool]) -> int:
    """The smallest size that is enough, at most `total`: doubling, then bisection to within 1/16."""
    most = 1
    while most < total and not is_enough(most):
        most = min(2 * most, total)
    least = most // 2  # known not to be enough, or 0
    while most - least > max(1, least // 16):
        middle = (least + most) // 2
        least, most = (least, middle) if is_enough(middle) else (middle, most)
    return most


def _all(components: Components) -> Components:
    return Components({place: torch.ones_like(mask) for place, mask in components.masks.items()})


def _others(components: Components) -> Components:
    return Components({place: ~mask for place, mask in components.masks.items()})


def _random_like(components: Components, generator: torch.Generator) -> Components:
    """As many heads and as many neurons, drawn at random from all blocks."""
    drawn = {}
    for kind in ("heads", "neurons"):
        masks = {place: mask for place, mask in components.masks.items() if place[0] == kind}
        joined = torch.cat(list(masks.values()))
        shuffled = joined[torch.randperm(len(joined), generator=generator)]
        drawn |= dict(zip(masks, shuffled.split([len(mask) for mask in masks.values()]), strict=True))
    return Components({place: drawn[place] for place in components.masks})
