"""The JavaScript that draws charts, and charts as PNG: both from vl-convert, which brings Vega along."""

from functools import cache

from stitch.pages.chart import CONFIG, Chart, with_legend
from stitch.report.palette import BACKGROUND

VEGA_LITE = "6.4"
WIDTH, SCALE = 430, 1.5  # of a picture without its labels, in pixels, and how many dots are a pixel


@cache
def vega() -> str:
    """Vega, Vega-Lite and Vega-Embed in one script, which sets `vegaEmbed`. Made once per process, in about two seconds."""
    from vl_convert import javascript_bundle

    return javascript_bundle(vl_version=VEGA_LITE)  # pyright: ignore[reportCallIssue]


def png(chart: Chart) -> bytes | None:
    """A picture of a chart, about 600 pixels wide; None where it cannot be made, as without fonts."""
    from vl_convert import vegalite_to_png

    spec = {**with_legend(chart), "width": WIDTH, "background": BACKGROUND["light"], "config": CONFIG}
    try:
        return vegalite_to_png(spec, vl_version=VEGA_LITE, scale=SCALE)
    except ValueError:
        return None
