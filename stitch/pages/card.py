"""A model card that shows the main chart of its page."""

from dataclasses import replace

from stitch.files.markdown import inert
from stitch.pages.chart import left_out
from stitch.pages.javascript import png
from stitch.pages.page import NAME, Page, html
from stitch.report.readme import ModelCard

PICTURE = "chart.png"


def card_files(card: ModelCard, page: Page) -> dict[str, bytes]:
    """The card and what belongs to it, by name: chart.png where the page has a chart and it can be drawn."""
    chart = page.main_chart
    picture = None if chart is None else png(chart)
    if chart is None or picture is None:
        return card.files()
    absent = left_out(chart)
    title = f"{chart.title}. {' '.join(absent)}" if absent else chart.title
    shown = f"![{inert(title)}]({PICTURE})"
    return {**replace(card, pictures=[shown, ""]).files(), PICTURE: picture}


def page_and_card(page: Page, card: ModelCard) -> dict[str, bytes]:
    """report.html beside the files of its card, by name."""
    return {NAME: html(page), **card_files(card, page)}
