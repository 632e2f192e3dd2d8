"""The page of a circuit: its heads and neurons by block, with what each contributes, and its scores."""

from pathlib import Path

from stitch.circuits.report import footnotes, inner_name, tables
from stitch.pages.chart import FLUID, Chart, axis, colour, roles_in, tips
from stitch.pages.edges import NEURONS, WORDS, edge_lines, edge_table, estimate, line_layer
from stitch.pages.page import Page, html
from stitch.pages.scores import answers
from stitch.pages.section import Section, Table, ungrouped
from stitch.report.palette import ROLES

NATS = "nats per answer"


def write_circuit_page(report: dict, out: Path) -> Path:
    """Writes the page beside the JSON file `out`: circuit.json has circuit.html. Returns its path."""
    place = out.with_suffix(".page.html" if out.suffix == ".html" else ".html")  # never in the place of the report
    place.write_bytes(html(circuit_page(report)))
    return place


def circuit_page(report: dict) -> Page:
    """The page of a report of `find_circuit`."""
    notes = footnotes(report)
    scores = Section(
        name="scores",
        heading="What it does alone, and the model without it",
        words=[
            "All components outside a circuit give their mean output. Random circuits have as many heads and neurons."
        ],
        charts=[answers("answers", "Right answers, with 95 % intervals", report["results"])],
        tables=[ungrouped(one) for one in tables(report)],
    )
    return Page(
        title=f"{report['model']}: {report['behaviour']}",
        lead=notes[0],
        facts=notes[1:],
        sections=[_components(report), scores],
    )


def _components(report: dict) -> Section:
    heads, neurons, edges = head_points(report), neuron_points(report), report.get("edges")
    lines = edge_lines(edges) if edges else []
    charts = []
    if heads:
        charts.append(_graph(heads, neurons, lines, known=report["attribution"] is not None))
    if neurons:
        charts.append(_neurons(neurons, inner_name(report)))
    words = ["The circuit is that of a file, so there are no attributions."]
    if report["attribution"] is not None:
        words = [
            "Attribution is the nats per answer that a component contributes, estimated by integrated gradients. Two components "
            "that can stand in for each other both get low values."
        ]
    return Section(
        name="components",
        heading="Heads and neurons",
        words=[*words, WORDS] if lines else words,
        charts=charts,
        tables=[ungrouped(_table(heads, neurons)), *([ungrouped(edge_table(edges, NATS))] if edges else [])],
        notes=[estimate(edges)] if edges else [],
        folded=True,
    )


def head_points(report: dict) -> list[dict]:
    """Every head with an attribution, or those of the circuit: block, number, nats, and whether the circuit has it."""
    kept = {(int(block), number) for block, numbers in report["circuit"]["heads"].items() for number in numbers}
    if report["attribution"] is None:
        return [{"block": block, "head": number, "nats": None, "role": "composite"} for block, number in sorted(kept)]
    return [
        {
            "block": int(block),
            "head": number,
            "nats": value,
            "role": "composite" if (int(block), number) in kept else "null",
        }
        for block, values in report["attribution"]["heads"].items()
        for number, value in enumerate(values)
    ]


def neuron_points(report: dict) -> list[dict]:
    """By block: how many neurons the circuit has, and the sum of what they contribute."""
    known = (report["attribution"] or {}).get("neurons", {})
    return [
        {
            "block": int(block),
            "count": len(numbers),
            "nats": sum(known[block]) if block in known else None,
            "role": "composite",
        }
        for block, numbers in report["circuit"]["neurons"].items()
    ]


def _graph(heads: list[dict], neurons: list[dict], lines: list[dict], *, known: bool) -> Chart:
    """A circle for each head, by block and number; its size is the attribution's absolute value. With lines between them, the
    neurons of each block have a circle below the heads."""
    values = [{**head, "label": f"head {head['block']}.{head['head']}"} for head in heads]
    if lines:
        values += [
            {**one, "head": NEURONS, "label": f"{one['count']:,} neurons of block {one['block']}"} for one in neurons
        ]
    most = max(abs(value["nats"] or 0) for value in values)
    values = [{**value, "size": abs(value["nats"] or 0) if known else 1} for value in values]
    rows = [*sorted({head["head"] for head in heads}), *([NEURONS] if lines and neurons else [])]
    points = {
        "mark": {"type": "point", "filled": True, "opacity": 0.9},
        "encoding": {
            **colour(roles_in(values)),
            "size": {
                "field": "size",
                "type": "quantitative",
                "scale": {"domain": [0, most or 1], "range": [14, 420]},
                "legend": None,
            },
            "tooltip": tips(("label", "", ""), *([("nats", NATS, "+.4f")] if known else [])),
        },
    }
    spec = {
        "data": {"values": values},
        **FLUID,
        "height": {"step": 26},
        "encoding": {
            "x": {
                "field": "block", "type": "ordinal", "title": "block", "axis": {"labelAngle": 0},
                "scale": {"type": "point", "domain": sorted({value["block"] for value in values})},
            },
            "y": {
                "field": "head", "type": "ordinal", "title": "head", "scale": {"type": "point", "domain": rows},
            },
        },
        "layer": [*([line_layer(lines, NATS)] if lines else []), points],
    }  # fmt: skip
    names = {"composite": "in the circuit", "null": "other heads"}
    note = "The area of a circle is the size of its contribution." if known else ""
    title = "Heads by block, and the strongest edges" if lines else "Heads by block"
    return Chart(name="heads", title=title, spec=spec, roles=roles_in(values), names=names, shaped=False, note=note)


def _neurons(blocks: list[dict], name: str) -> Chart:
    what = "number of neurons" if name == "neurons" else "number of components"
    spec = {
        "data": {"values": blocks},
        **FLUID,
        "height": 150,
        "mark": {"type": "bar", "color": ROLES["composite"].light},
        "encoding": {
            "x": {"field": "block", "type": "ordinal", "title": "block", "axis": {"labelAngle": 0}},
            "y": axis("count", what, scale={"zero": True}),
            "tooltip": tips(
                ("block", "block", ""), ("count", "in the circuit", ","), ("nats", f"{NATS}, all together", "+.4f")
            ),
        },
    }
    return Chart(name="neurons", title=f"{name[0].upper()}{name[1:]} of the circuit by block", spec=spec)


def _table(heads: list[dict], neurons: list[dict]) -> Table:
    def nats(value: float | None) -> str:
        return "" if value is None else f"{value:+.4f}"

    mine = sorted((head for head in heads if head["role"] == "composite"), key=lambda head: -abs(head["nats"] or 0))
    rows = [[f"head {head['block']}.{head['head']}", "1", nats(head["nats"])] for head in mine]
    rows += [[f"neurons of block {one['block']}", f"{one['count']:,}", nats(one["nats"])] for one in neurons]
    return ["component", "number", NATS], rows, "Components of the circuit"
