"""The edges of a circuit on its page: lines between heads and the neurons of blocks, a table, and how good the estimate is."""

from stitch.circuits.edges import ANSWERS, TOKENS
from stitch.pages.chart import Spec, tips
from stitch.pages.section import Table
from stitch.report.palette import ROLES

NEURONS = "neurons"  # the row of the chart below the heads
LINES, ROWS = 48, 40  # the strongest edges, as many as stay readable
WORDS = (
    "A line is an edge: the nats per answer that the earlier of two components contributes through the later one, with no third "
    "one between them. Wider and darker lines are stronger, dashed ones are negative. Edges are estimated as attributions are "
    "(edge attribution patching with integrated gradients); neurons of a block are taken together."
)


def edge_lines(edges: dict) -> list[dict]:
    """The strongest edges between heads and the neurons of blocks, with the places of both ends; weak lines first."""
    totals: dict[tuple, float] = {}
    for target, into in edges["into"].items():
        for source, value in into.items():
            if source != TOKENS and target != ANSWERS:
                ends = _place(source), _place(target)
                totals[ends] = totals.get(ends, 0) + value
    strongest = sorted(totals.items(), key=lambda one: -abs(one[1]))[:LINES]
    return [
        {"block": source[0], "head": source[1], "block2": target[0], "head2": target[1], "nats": value,
         "strength": abs(value), "sign": "+" if value > 0 else "−", "label": f"{_named(*source)} → {_named(*target)}"}
        for (source, target), value in reversed(strongest)
    ]  # fmt: skip


def line_layer(lines: list[dict], unit: str) -> Spec:
    """The lines as a layer of the chart of heads by block."""
    scale = {"domain": [0, max(line["strength"] for line in lines)]}
    return {
        "data": {"values": lines},
        "mark": {"type": "rule", "color": ROLES["composite"].light},
        "encoding": {
            "x2": {"field": "block2"},
            "y2": {"field": "head2"},
            "strokeWidth": {
                "field": "strength", "type": "quantitative", "scale": {**scale, "range": [0.5, 3.5]}, "legend": None,
            },
            "opacity": {
                "field": "strength", "type": "quantitative", "scale": {**scale, "range": [0.08, 0.8]}, "legend": None,
            },
            "strokeDash": {
                "field": "sign", "type": "nominal", "scale": {"domain": ["+", "−"], "range": [[1, 0], [5, 4]]}, "legend": None,
            },
            "tooltip": tips(("label", "", ""), ("nats", unit, "+.4f")),
        },
    }  # fmt: skip


def edge_table(edges: dict, unit: str) -> Table:
    """The strongest edges of single components, those from tokens and to answers included."""
    every = [(source, target, value) for target, into in edges["into"].items() for source, value in into.items()]
    rows = [[*ends, f"{value:+.4f}"] for *ends, value in sorted(every, key=lambda one: -abs(one[2]))[:ROWS]]
    title = "Edges" if len(every) <= ROWS else f"The {ROWS} strongest of {len(every):,} edges"
    return ["from", "to", unit], rows, title


def estimate(edges: dict) -> str:
    """How far the estimate can be trusted: what it says of all tokens, beside what was measured."""
    said, measured = edges["components"][TOKENS], edges["difference"]
    text = (
        f"On the {edges['prompts']:,} prompts of the edges the answers are {measured:.3f} nats likelier than on the corrupt "
        f"ones. The estimate has {said:.3f} for this: the closer, the better it is."
    )
    if left := edges["left_out"]:
        text += f" {left:,} components with lower attributions have no edges here."
    return text


def _place(name: str) -> tuple[int, int | str]:
    """The block of a component, and its row in the chart: `head 1.2` has (1, 2), `neuron 1.7` has (1, "neurons")."""
    kind, _, numbers = name.partition(" ")
    block, _, number = numbers.partition(".")
    return int(block), int(number) if kind == "head" else NEURONS


def _named(block: int, row: int | str) -> str:
    return f"neurons of block {block}" if row == NEURONS else f"head {block}.{row}"
