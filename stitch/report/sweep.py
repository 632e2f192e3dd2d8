"""The tables of a sweep and the sentences below them."""

from collections.abc import Sequence

from stitch.evaluation.documents import phrase, warning
from stitch.report.notes import text_notes
from stitch.report.origin import origin_notes

CHOSEN = "the chosen j of each i from 1"
UNITS = {"flops": "MFLOPs per token", "bytes": "MB on disk"}
SAME = 1e-3  # nats. Where the target runs whole, its composite differs from its null by rounding alone


def swept_directions(report: dict) -> list[tuple[str, str]]:
    """(source, target) of every direction that was swept."""
    return list(dict.fromkeys((cell["source"], cell["target"]) for cell in report["cells"]))


def heat(report: dict, source: str) -> tuple[str, list[str], list[list[str]], list[list[float]]]:
    """Title, header, rows and values of one direction's table, in nats above the best alternative with no more FLOPs; the chosen
    j of each i has a *."""
    cells = {(cell["i"], cell["j"]): cell for cell in report["cells"] if cell["source"] == source}
    target = next(cell["target"] for cell in cells.values())
    best = {(row["i"], row["j"]) for row in report["best_layers"] if row["source"] == source}
    depth_i, depth_j = report["depth"][source], report["depth"][target]
    values = [[above(cells[i, j]) for j in range(depth_j + 1)] for i in range(depth_i + 1)]
    rows = [
        [str(i), *(f"{round(value, 2) + 0.0:+.2f}" + ("*" if (i, j) in best else " ") for j, value in enumerate(line))]
        for i, line in enumerate(values)
    ]
    title = (
        f"first i blocks of {report['models'][source]} (down), then {report['models'][target]} from block j (across): "
        f"cross-entropy above the best alternative with no more FLOPs, nats per token; * marks {CHOSEN}"
    )
    return title, ["i \\ j", *map(str, range(depth_j + 1))], rows, values


def above(cell: dict) -> float:
    """Cross-entropy of the cell's chosen translation minus that of the best alternative with no more FLOPs, in nats per token;
    minus that of the line where every alternative costs more."""
    return cell["rival"]["above"] if cell["rival"] else cell["translations"][cell["chosen"]]["ce"] - cell["line"]


def better(cells: Sequence[dict], than: str) -> int:
    """How many composites are better than `than`, "rival" or "rival_within_bytes", by more than SAME and with a paired interval
    below zero."""
    return sum(
        cell[than] is not None and cell[than]["above"] < -SAME and cell[than]["above_high"] < 0 for cell in cells
    )


def front_table(report: dict, cost: str) -> tuple[list[str], list[list[str]], str]:
    """Header, rows and title of a Pareto front: the best model for every budget."""
    unit = UNITS[cost]
    rows = [
        [described(point, report), f"{point[cost] / 1e6:.3f}", f"{point['ce']:.3f}", _interval(point)]
        for point in report["fronts"][cost]
    ]
    return ["from this budget on", unit, "CE", "95 % interval"], rows, f"Best model at every budget of {unit}"


def best_table(report: dict) -> tuple[list[str], list[list[str]], str]:
    """Header, rows and title of the layer j that the rule chooses for every i."""
    rows = [
        [
            described(row, report) + ("" if row["within_budget"] else " (over budget)"),
            f"{row['flops'] / 1e6:.3f}",
            f"{row['ce']:.3f}",
            _interval(row),
            f"{row['line']:.3f}",
        ]
        for row in report["best_layers"]
    ]
    header = ["", "MFLOPs per token", "CE", "95 % interval", "line"]
    return header, rows, f"{CHOSEN.capitalize()}: {report['rule']}"


def framed(report: dict) -> str:
    """The sentence beside a map on which the chosen j is framed."""
    return f"Framed is {CHOSEN}: {report['rule']}."


def footnotes(report: dict) -> list[str]:
    """The sentences below the tables."""
    models, donors, tokens, cells = report["models"], report["donors"], report["tokens"], report["cells"]
    beaten = sum(cell["null"]["ce"] - cell["translations"][cell["chosen"]]["ce"] > SAME for cell in cells)
    return [
        f"{better(cells, 'rival')} of {len(cells)} composites are better than the best alternative with no more FLOPs, "
        f"{better(cells, 'rival_within_bytes')} better than the best with no more FLOPs and no more bytes: by more than {SAME} "
        f"nats, with the paired 95 % interval below zero. {_alternatives(report)}",
        f"Whole models: {models['a']} has cross-entropy {donors['a']['ce']:.3f}, {models['b']} {donors['b']['ce']:.3f}. "
        f"Fitted on {tokens['fit']:,} tokens, scored on {tokens['report']:,} others{phrase(report)}.",
        f"{beaten} of {len(cells)} composites beat their null, which reads only the target's token embedding and nothing of "
        f"the source, by more than {SAME} nats.",
        "Layers and fronts are chosen on the sweep split; numbers are from the report split.",
        "line = CE_source + share · (CE_target − CE_source), where share is the composite's place between the FLOPs of "
        "source (0) and target (1).",
        *origin_notes(report),
        *text_notes(report),
        *warning(report),
    ]


def _alternatives(report: dict) -> str:
    ways = ["whole", "with its first blocks as n-gram tables", "as late blocks behind its embedding"]
    # Where both models are the same, the composites are these.
    if any(one["kind"] == "cut" for one in report["alternatives"]):
        ways.insert(2, "without some of its blocks")
    return f"Alternatives are made of one model alone: {', '.join(ways[:-1])}, or {ways[-1]}."


def described(point: dict, report: dict) -> str:
    """What a point of a front is."""
    if point.get("model") in ("a", "b"):
        return point["made"]
    models = report["models"]
    return f"{models[point['source']]}.{point['i']} → {models[point['target']]}.{point['j']} ({point['translation']})"


def _interval(point: dict) -> str:
    return f"{point['ce_low']:.3f} – {point['ce_high']:.3f}"
