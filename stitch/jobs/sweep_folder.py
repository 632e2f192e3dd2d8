"""The folder of a sweep: report.json, a page, a card, and a picture where matplotlib is installed."""

from collections.abc import Callable
from pathlib import Path

from stitch.files.folders import to_json
from stitch.pages.page import Page, html
from stitch.report.no_picture import no_picture


def write_sweep(
    folder: Path,
    report: dict,
    card: Callable[[dict], bytes],
    page: Callable[[dict], Page],
    draw: Callable[[dict, Path], None],
    picture: str,
) -> None:
    folder.mkdir()
    (folder / "report.json").write_bytes(to_json(report))
    (folder / "README.md").write_bytes(card(report))
    (folder / "report.html").write_bytes(html(page(report)))
    if not no_picture():
        draw(report, folder / picture)
