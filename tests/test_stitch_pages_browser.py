"""Pages in a real Chromium: charts are drawn, the browser of features works, no text breaks out, nothing leaves the machine.

`STITCH_SCREENSHOTS=1` makes the pictures of the documentation anew, from folders of results named in `STITCH_RESULTS`.
"""

import os
import re
import shutil
from pathlib import Path

import pytest

import page_reports
from page_reports import HOSTILE, KINDS

ROOT = Path(__file__).parent.parent
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
QUIET = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
PHONE, DESK = {"width": 375, "height": 740}, {"width": 1280, "height": 900}
# By the name of a picture: the kind of page (a folder of STITCH_RESULTS), what of it is shown, and how much.
PICTURES = {
    "page-join": ("join", "", {"width": 1100, "height": 1120}),
    "page-chain": ("chain", "", {"width": 1100, "height": 790}),
    "page-features": ("join", "#feature-1487", {"width": 1050, "height": 830}),
    "page-sweep": ("sweep", "", {"width": 1100, "height": 820}),
    "page-circuit": ("circuit", "", {"width": 1100, "height": 900}),
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
]


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("pages")
    for kind, page in page_reports.pages().items():
        (place / f"{kind}.html").write_bytes(page)
    return place


class Tab:
    """A page in the browser, with what it complained about and asked for."""

    def __init__(
        self, chromium, place: Path, *, anchor: str = "", size: dict = DESK, scheme: str = "light", scripts: bool = True
    ):
        context = chromium.new_context(viewport=size, color_scheme=scheme, offline=True, java_script_enabled=scripts)
        self.page = context.new_page()
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(place.as_uri() + anchor)
        if scripts:
            self.page.wait_for_selector("html[data-ready=yes]", timeout=60_000)

    def __enter__(self) -> "Tab":
        return self

    def __exit__(self, *_) -> None:
        self.page.context.close()

    def wait_for(self, selector: str, text: re.Pattern[str]) -> None:
        # Not `wait_for_function`: a page refuses to evaluate its string a second time, when the first came too early.
        self.page.locator(selector).filter(has_text=text).wait_for()

    def texts(self, selector: str) -> list[str]:
        return self.page.locator(selector).all_inner_texts()


@pytest.mark.parametrize("kind", KINDS)
def test_every_chart_is_drawn_without_complaint_or_connection(chromium, folder, kind):
    with Tab(chromium, folder / f"{kind}.html") as tab:
        plots = tab.page.locator(".plot")
        assert plots.count() == tab.page.locator("script.spec").count() >= (1 if kind == "certificate" else 2)
        for number in range(plots.count()):
            svg = plots.nth(number).locator("svg.marks")
            assert svg.count() == 1
            assert svg.locator(".role-mark path, .role-mark text").count() > 0
            assert svg.bounding_box()["height"] > 50
        assert tab.errors == []
        assert tab.requests == [(folder / f"{kind}.html").as_uri()]


@pytest.mark.parametrize("kind", KINDS)
def test_a_phone_needs_no_scrolling_to_the_side(chromium, folder, kind):
    with Tab(chromium, folder / f"{kind}.html", size=PHONE) as tab:
        for details in tab.page.locator("details").all():
            details.evaluate("one => { one.open = true; }")
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        for caption in tab.page.locator("caption:not(.unseen) span").all():
            box = caption.bounding_box()
            assert box["x"] + box["width"] <= PHONE["width"]
        assert tab.errors == []


def test_search_finds_text_and_numbers(chromium, folder):
    with Tab(chromium, folder / "join.html") as tab:
        assert len(tab.texts("#list a")) == 6
        tab.page.fill("#search", "WORD3")
        assert [text.split(" · ")[0] for text in tab.texts("#list a")] == ["B 3"]
        tab.page.fill("#search", "104")
        assert [text.split(" · ")[0] for text in tab.texts("#list a")] == ["B 4"]
        tab.page.fill("#search", "no such text")
        assert tab.texts("#list a") == [] and tab.texts("#found")[0].startswith("0 of 6 pairs")
        assert tab.errors == []


def test_pairs_are_sorted_as_asked(chromium, folder):
    pairs = page_reports.features()["pairs"]
    keys = {
        "score": lambda pair: -pair["score"],
        "margin": lambda pair: -(pair["score"] - pair["null_score"]),
        "number": lambda pair: pair["b"],
    }
    with Tab(chromium, folder / "join.html") as tab:
        for name, key in keys.items():
            tab.page.select_option("#sort", name)
            expected = [f"B {pair['b']}" for pair in sorted(pairs, key=key)]
            assert [text.split(" · ")[0] for text in tab.texts("#list a")] == expected
        assert expected != [f"B {pair['b']}" for pair in sorted(pairs, key=keys["margin"])]


def test_a_link_names_a_pair(chromium, folder):
    with Tab(chromium, folder / "join.html", anchor="#feature-4") as tab:
        assert tab.texts("#pair h3") == ["Feature 4 of B and 104 of A"]
        assert tab.page.locator("#list a[aria-current]").get_attribute("href") == "#feature-4"
        assert tab.page.locator("#browser").bounding_box()["y"] < DESK["height"]
        tab.page.evaluate("location.hash = '#feature-99'")
        tab.wait_for("#pair", re.compile("99"))
        assert "not among the pairs" in tab.texts("#pair")[0]


def test_the_list_is_worked_with_the_keyboard(chromium, folder):
    with Tab(chromium, folder / "join.html") as tab:
        tab.page.focus("#list a")
        tab.page.keyboard.press("ArrowDown")
        tab.wait_for("#pair h3", re.compile("^Feature 1 "))
        tab.page.keyboard.press("ArrowUp")
        tab.wait_for("#pair h3", re.compile("^Feature 0 "))
        focusable = tab.page.locator("fieldset.groups input, #search, #sort, summary, .scroll[tabindex='0']")
        assert focusable.count() > 8


def test_tokens_are_coloured_by_their_codes(chromium, folder):
    with Tab(chromium, folder / "join.html", anchor="#feature-2") as tab:
        tokens = tab.page.locator(".side.a .token")
        colours = [tokens.nth(number).evaluate("one => getComputedStyle(one).backgroundColor") for number in range(5)]
        clear = "rgba(0, 0, 0, 0)"
        assert [colour == clear for colour in colours] == [True, False, True, False, True]
        assert colours[1] != colours[3]  # codes 0.5 and 2.0
        assert tokens.nth(3).get_attribute("title") == "A 2.00, B 4.00"
        assert tab.page.locator(".side.b .token").nth(1).get_attribute("title") == "A 0.500, B 0.00"


def test_groups_of_rows_are_folded_in_the_chart_and_open_in_the_table(chromium, folder):
    with Tab(chromium, folder / "join.html") as tab:
        marks = tab.page.locator("#plot-rows .mark-symbol.role-mark path")
        before = marks.count()
        assert all(body.is_visible() for body in tab.page.locator("#rows tbody").all())
        tab.page.check("fieldset[data-chart=rows] input[value=null]")
        marks.nth(before).wait_for(state="attached")
        assert marks.count() == before + 1
        tab.page.uncheck("fieldset[data-chart=rows] input[value=null]")
        assert tab.page.locator("tbody[data-group=null]").is_visible()


def test_hostile_text_stays_text(chromium, folder):
    with Tab(chromium, folder / "join.html", anchor="#feature-0") as tab:
        assert tab.page.evaluate("window.broken") is None
        assert tab.page.locator("img").count() == 0
        shown = [text for text in tab.texts(".side.a .token") if "broken" in text]
        assert [re.sub(r"\s", " ", text) for text in shown] == [re.sub(r"\s", " ", HOSTILE)]
        assert tab.errors == []


def test_dark_mode_has_its_own_colours(chromium, folder):
    playwright = pytest.importorskip("playwright.sync_api")

    def seen(tab: Tab) -> tuple[str, str]:
        background = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
        return background, tab.page.locator("#plot-rows .mark-symbol.role-mark path").first.get_attribute("fill")

    with Tab(chromium, folder / "join.html") as light, Tab(chromium, folder / "join.html", scheme="dark") as dark:
        assert all(one != other for one, other in zip(seen(light), seen(dark), strict=True))
        expected = seen(dark)
        light.page.emulate_media(color_scheme="dark")
        playwright.expect(light.page.locator("body")).to_have_css("background-color", "rgb(20, 23, 28)")
        light.page.wait_for_timeout(500)
        assert seen(light) == expected


def test_without_javascript_tables_and_the_best_pairs_can_be_read(chromium, folder):
    with Tab(chromium, folder / "join.html", scripts=False) as tab:
        assert tab.page.locator("#rows tbody tr").count() > 9
        assert tab.page.locator("#features noscript tbody tr, #features tbody tr").count() == 6
        assert tab.page.locator("#rows tbody[data-group=null]").is_visible()


@pytest.mark.skipif("STITCH_SCREENSHOTS" not in os.environ, reason="pictures are made when STITCH_SCREENSHOTS is set")
@pytest.mark.parametrize("name", PICTURES)
def test_pictures_of_the_documentation(chromium, name):
    kind, anchor, size = PICTURES[name]
    with Tab(chromium, Path(os.environ["STITCH_RESULTS"]) / kind / "report.html", anchor=anchor, size=size) as tab:
        tab.page.wait_for_timeout(300)
        place = ROOT / "docs" / "figures" / f"{name}.png"
        tab.page.screenshot(path=place)
        assert place.stat().st_size < 200_000
