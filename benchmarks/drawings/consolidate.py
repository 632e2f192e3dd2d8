"""A document in the weights: gain kept by method, by number of documents, and nats of facts."""

from matplotlib.figure import Figure

from drawings.models import wide
from stitch.report.figure import interval, legend, marks, panels, rule

MODELS = ("gpt2", "llama")
DOCUMENTS = {
    "kept_percent": ("all documents", "composite", 0),
    "first_percent": ("the first of them", "composite", 1),
}
FACTS = {
    "converted": ("facts, converted", "composite", 2),
    "without": ("facts, without context", "a", 0),
    "unrelated_after": ("unrelated facts, converted", "null", 0),
}


def draw(lines: list[dict]) -> Figure:
    figure, axes = panels(3, 2, 1.9, sharey="row")
    by_method = [line for line in lines if _is_drawn(line)]
    methods = list(dict.fromkeys(_name(line) for line in by_method))
    for model, axis in zip(MODELS, axes[:2], strict=True):
        rule(axis, 0, upright=True)
        for line in by_method:
            if line["model"] == f"demo:{model}":
                at = -methods.index(_name(line))
                interval(axis, at, line["unseen"], marks(_role(line["row"])), key="kept_percent")
        axis.set(title=wide(f"demo:{model}").replace(" (", "\n("), xlabel="% of the gain kept")
    axes[0].set_yticks(range(0, -len(methods), -1), [method.partition(":")[2] or method for method in methods])
    for row, (part, across, up, shown) in enumerate(
        (("capacity", "documents", "% of the gain kept", DOCUMENTS), ("facts", "facts", "nats of the answer", FACTS)), 1
    ):
        points = [line for line in lines if line.get("part") == part]
        for model, axis in zip(MODELS, axes[2 * row : 2 * row + 2], strict=True):
            for key, (label, role, variant) in shown.items():
                at, values = [line[across] for line in points], [line[model][key] for line in points]
                axis.plot(at, values, **marks(role, variant), label=label)
            axis.set(title=f"demo:{model}", xlabel=across)
        axes[2 * row].set(ylabel=up)
    legend(figure)
    return figure


def _is_drawn(line: dict) -> bool:
    """Rows with an interval: of all methods, and the peers with the conversion on their documents."""
    if line.get("part") == "peers":
        return line["row"] == "converted" or line["row"].startswith("peer:")
    return line.get("part") == "documents" and "kept_percent_low" in line["unseen"]


def _name(line: dict) -> str:
    return "converted, with peers" if (line["part"], line["row"]) == ("peers", "converted") else line["row"]


def _role(row: str) -> str:
    kind = row.partition(":")[0]
    return {"converted": "composite", "peer": "alternative"}.get(kind, kind)
