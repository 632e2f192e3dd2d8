"""Where a graft's components are in the host, and the graphs of what they do there."""

from collections.abc import Sequence
from pathlib import Path

from stitch.circuits.components import Component, Components
from stitch.circuits.edges import name_of
from stitch.circuits.graph_json import write_graph
from stitch.grafts.compared import PlannedGraft
from stitch.grafts.plan import Plan
from stitch.internals import weights
from stitch.models.model import Model
from stitch.progress import Progress


def landed(host: Model, plan: Plan) -> dict[Component, str]:
    """The heads and neurons of the host that a plan fills, each with a label that says where it comes from."""
    found: dict[Component, str] = {}
    shared = weights.attention(host, 0).shared
    for block, group in plan.constant_heads.items():
        component: Component = (("heads", block), group * shared)
        found[component] = f"{name_of(component)} (a constant)"
    for number in plan.written_positions.queries if plan.written_positions else []:
        component: Component = (("heads", 0), number)
        found[component] = f"{name_of(component)} (donor's positions)"
    for head in plan.heads:
        component = (("heads", head.host_block), head.host_head)
        found[component] = f"{name_of(component)} (donor's {head.block}.{head.number})"
    for neurons in plan.neurons:
        for number in range(neurons.first, neurons.first + len(neurons.maps)):
            component = (("neurons", neurons.host_block), number)
            found[component] = f"{name_of(component)} (donor's block {neurons.block})"
    return found


def write_graphs(
    host: Model,
    grafts: Sequence[PlannedGraft],
    behaviours: Sequence[str],
    folder: Path,
    name: str,
    progress: Progress | None,
) -> None:
    """Writes the graph of every graft in the host: graph.json, and graph-2.json and so on for further ones.

    `name` is what the host is called, not the folder, so that equal runs write equal graphs. The prompt is one of those that
    the circuit was chosen on, so that the graph can be compared with the donor's.
    """
    for number, (planned, behaviour) in enumerate(zip(grafts, behaviours, strict=True), 1):
        labels = landed(host, planned.plan)
        kept = Components.none(host)
        for place, component in labels:
            kept.masks[place][component] = True
        path = folder / ("graph.json" if number == 1 else f"graph-{number}.json")
        first = planned.chosen.first
        write_graph(path, host, first, kept, name=name, behaviour=behaviour, labels=labels, progress=progress)
