"""What `stitch inspect` sees: maps of a model's heads, and its sites beside what it costs to cut there."""

from math import log2

from matplotlib.figure import Figure

from drawings.models import wide
from stitch.report.figure import heat_legend, heat_map, legend, logarithmic, marks, panels, rule, series, whole_numbers

WITH_HEADS, WITH_OUTLIERS = "demo:llama", "smollm2"
MOST = 128  # stands for more than 64 keys


def draw_heads(lines: list[dict], model: str = WITH_HEADS) -> Figure:
    """Keys that matter, far keys and copies, by block (across) and head (down); and the loss where all heads know few keys."""
    (line,) = [one for one in lines if one["conjecture"] == "far_heads" and one["model"] == model]
    depth, width = (1 + max(head[key] for head in line["heads"]) for key in ("block", "head"))
    shown = {
        "keys that matter, powers of two": lambda head: log2(head["keys"] or MOST),
        f"share moved from over {line['far_from']} tokens back": lambda head: head["far_moved"],
        "times as much to tokens behind a copy": lambda head: min(head["copies"] or 0.0, 30.0),
    }
    figure, (*axes, losses) = panels(len(shown) + 1, 1, 1.5)
    for axis, (title, value) in zip(axes, shown.items(), strict=True):
        values = [[float("nan")] * depth for _ in range(width)]
        for head in line["heads"]:
            values[head["head"]][head["block"]] = value(head)
        flat = [one for row in values for one in row if one == one]
        ends = min(flat), max(flat)
        heat_map(axis, values, range(len(values)), 0, [], ends)
        axis.set(title=f"{model}: {title}", xlabel="block", ylabel="head")
        heat_legend(figure, [axis], ends, "")
    _draw_losses(losses, lines, model)
    legend(figure, 2)
    return figure


def _draw_losses(axis, lines: list[dict], model: str) -> None:
    (line,) = [one for one in lines if one["conjecture"] == "keys" and one["model"] == model]
    ways = list(dict.fromkeys(row["others"] for row in line["rows"]))
    for role, way in zip(("composite", "alternative", "baseline", "null"), ways, strict=True):
        points = [(row["keys"], row["ce"]) for row in line["rows"] if row["others"] == way]
        axis.plot(*zip(*points, strict=True), **marks(role), label=way.replace("null:", "null: "))
    logarithmic(axis, "y", (0.001, 0.01, 0.1, 1))
    logarithmic(axis, "x", sorted({row["keys"] for row in line["rows"]}))
    axis.set(title=f"{wide(model)}: nats above the whole model", xlabel="exact keys of each query", ylabel="nats")


def draw_sites(lines: list[dict]) -> Figure:
    """Outliers by site, and what it costs to leave out two blocks there."""
    (line,) = [one for one in lines if one["conjecture"] == "outliers" and one["model"] == WITH_OUTLIERS]
    sites = line["sites"]
    at = [one["site"] for one in sites]
    figure, (shares, lengths, costs) = panels(3, 1, 1.5, sharex=True)
    for how, (key, label, scale) in zip(
        series(3),
        (
            ("top_share", "top channel's share of the variance", 1.0),
            ("read", "share that the head reads", 1.0),
            ("effective_rank", "effective rank, share of the width", 1 / sites[0]["width"]),
        ),
        strict=True,
    ):
        shares.plot(at, [one[key] * scale for one in sites], **how, label=label)
    shares.set(title=f"{wide(WITH_OUTLIERS)}: the stream by site", ylabel="share")
    lengths.plot(at, [one["first_token"] for one in sites], **marks("a"), label="length of a window's first token")
    logarithmic(lengths, "y", (1, 10, 100))
    lengths.set(title="A window's first token", ylabel="times the median")
    for role, way, label in (("baseline", "cut", "as they are"), ("composite", "bridged", "bridged")):
        points = [(one["first"], one[way]) for one in line["costs"]]
        costs.plot(*zip(*points, strict=True), **marks(role), label=f"two blocks left out, {label}")
    rule(costs, 0)
    logarithmic(costs, "y", (0.1, 0.3, 1, 3))
    whole_numbers(costs, "x")
    costs.set(title="Two blocks left out behind the site", xlabel="site", ylabel="nats above")
    legend(figure, 1)
    return figure
