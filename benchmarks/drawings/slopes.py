"""Growth of time: CPU seconds of every stage of the main job, while one size is varied."""

from matplotlib.figure import Figure

from stitch.report.figure import legend, logarithmic, panels, series


def draw(lines: list[dict]) -> Figure:
    sizes = next(line["axes"] for line in lines if line["benchmark"] == "slopes")
    figure, axes = panels(2, 2, 2.0, sharey=True)
    for axis, (size, found) in zip(axes, sizes.items(), strict=True):
        stages = ("total", *(stage for stage in found["seconds"] if stage != "total"))
        for stage, how in zip(stages, series(len(stages)), strict=True):
            axis.plot(found["values"], found["seconds"][stage], **how, label="SAEs" if stage == "saes" else stage)
        logarithmic(axis, "x", found["values"])
        logarithmic(axis, "y", (3, 10, 30, 100, 300))
        axis.set(xlabel=size)
    figure.suptitle("Two Llamas with random weights")
    figure.supylabel("seconds of CPU time")
    legend(figure, 3)
    return figure
