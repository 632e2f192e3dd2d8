"""The page of a sweep: a map of every pair of layers in both directions, and what can be had for how much."""

from stitch.pages.chart import Chart
from stitch.pages.frontier import COSTS, frontier
from stitch.pages.heatmap import heatmap
from stitch.pages.page import Page
from stitch.pages.section import Section, ungrouped
from stitch.report.palette import ends_of
from stitch.report.sweep import best_table, footnotes, framed, front_table, heat, swept_directions


def sweep_page(report: dict) -> Page:
    """The page of a sweep."""
    notes = footnotes(report)
    return Page(
        title=f"{report['models']['a']} × {report['models']['b']}: every pair of layers",
        lead=notes[0],
        facts=[notes[1]],
        sections=[_maps(report), _fronts(report, notes[2:])],
    )


def _maps(report: dict) -> Section:
    found = {source: heat(report, source) for source, _ in swept_directions(report)}
    ends = ends_of(value for *_, values in found.values() for line in values for value in line)
    words = [
        "A square is a composite: the first i blocks of one model, a translation, and the other model from block j on. Its "
        "colour is how far it is above the best alternative with no more FLOPs; below zero it is better.",
        framed(report),
    ]
    return Section(
        name="layers",
        heading="Every pair of layers",
        words=words,
        charts=[_map(report, source, target, found[source][3], ends) for source, target in swept_directions(report)],
        tables=[ungrouped((header, rows, title)) for title, header, rows, _ in found.values()],
        folded=True,
    )


def _map(report: dict, source: str, target: str, values: list[list[float]], ends: tuple[float, float]) -> Chart:
    best = {(row["i"], row["j"]) for row in report["best_layers"] if row["source"] == source}
    cells = [
        {"x": j, "y": i, "value": value, "best": (i, j) in best}
        for i, line in enumerate(values)
        for j, value in enumerate(line)
    ]
    early, late = report["models"][source], report["models"][target]
    what = "nats above the best alternative"
    across, down = f"{late} from block j", f"first i blocks of {early}"
    return heatmap(f"layers-{source}", f"{early} → {late}", cells, across, down, what, ends)


def _fronts(report: dict, notes: list[str]) -> Section:
    points = _points(report)
    charts = [
        frontier(
            f"front-{cost}", points, cost, [{**one, "value": one["ce"]} for one in report["fronts"][cost]], size=36
        )
        for cost in COSTS
    ]
    tables = [front_table(report, "flops"), front_table(report, "bytes"), best_table(report)]
    words = [
        "Every composite with its chosen translation, both whole models, and the alternatives made of one of them alone. "
        "The steps are the best of all at every budget, chosen on the sweep split."
    ]
    return Section(
        name="fronts",
        heading="What can be had for how much",
        words=words,
        charts=charts,
        tables=[ungrouped(table) for table in tables],
        notes=notes,
        folded=True,
    )


def _points(report: dict) -> list[dict]:
    def point(label: str, role: str, one: dict) -> dict:
        return {"label": label, "role": role, "value": one["ce"], "flops": one["flops"], "bytes": one["bytes"]}

    models = report["models"]
    points = [{**point(models[side], side, whole), "short": models[side]} for side, whole in report["donors"].items()]
    points += [point(one["made"], "alternative", one) for one in report["alternatives"]]
    for cell in report["cells"]:
        label = f"{models[cell['source']]}.{cell['i']} → {models[cell['target']]}.{cell['j']}"
        points.append(point(label, "composite", cell["translations"][cell["chosen"]]))
    return points
