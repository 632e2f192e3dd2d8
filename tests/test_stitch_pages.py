"""Pages as files: charts say what the report says, text stays text, and nothing is loaded from elsewhere."""

import base64
import dataclasses
import hashlib
import json
import math
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import vl_convert

import page_reports
import stitch.pages
from page_reports import HOSTILE, KINDS, ROWS, join_report
from stitch.features.by_block import SITES
from stitch.pages.by_block import by_block_section
from stitch.pages.card import card_files, page_and_card
from stitch.pages.chart import CONFIG, with_legend
from stitch.pages.circuit import circuit_page, head_points, write_circuit_page
from stitch.pages.edges import LINES
from stitch.pages.embedded import script_json
from stitch.pages.features import browser_data, features_section
from stitch.pages.frontier import best_for_every_budget, frontier
from stitch.pages.javascript import VEGA_LITE, WIDTH, png
from stitch.pages.join import join_page
from stitch.pages.page import Page, html
from stitch.pages.rows import FAR, differences_section, rows_chart
from stitch.pages.section import Section
from stitch.report.card import model_card
from stitch.report.palette import BACKGROUND, FRAME, HEAT, ROLES, ink_on_heat
from stitch.report.sweep_card import sweep_card

MEGABYTE = 10**6


@cache
def pages() -> dict[str, bytes]:
    return page_reports.pages()


class Parsed(HTMLParser):
    """What a browser sees of a page that is not drawn by scripts: attributes, scripts, and the cells of tables."""

    def __init__(self, page: bytes):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.scripts: list[tuple[dict, str]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self._inside: dict | None = None
        self._cell = False
        self.feed(page.decode())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "script":
            self._inside = dict(attrs)
            self.scripts.append((self._inside, ""))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self._cell = True
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        if tag == "script":
            self._inside = None
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data):
        if self._inside is not None:
            self.scripts[-1] = (self._inside, self.scripts[-1][1] + data)
        else:
            self.text += data
            if self._cell:
                self.rows[-1][-1] += data.strip()

    def data(self, **attributes: str) -> list:
        """The JSON of the data blocks with these attributes."""
        return [json.loads(text) for found, text in self.scripts if attributes.items() <= found.items()]


def specs(page: bytes) -> list[dict]:
    return Parsed(page).data(**{"class": "spec"})


def values_of(spec: dict) -> dict[str, dict]:
    return {value["label"]: value for value in spec["data"]["values"]}


def test_the_rows_are_sorted_and_have_their_intervals_roles_and_groups():
    chart = rows_chart(join_report())
    shown = chart.spec["data"]["values"]
    assert [value["value"] for value in shown] == sorted(value["value"] for value in shown)
    assert chart.spec["encoding"]["y"]["sort"] == [value["label"] for value in shown]
    found = values_of(chart.spec)
    assert found.keys() == {*ROWS, "line"}
    assert (found["a"]["low"], found["a"]["value"], found["a"]["high"]) == (3.3, 3.4, 3.5)
    roles = {name: value["role"] for name, value in found.items()}
    assert roles["a"] == "a" and roles["b"] == "b" and roles["composite"] == "composite"
    assert roles["reference:own-tables"] == "alternative" and roles["translation:affine"] == "baseline"
    assert roles["floor:mean"] == roles["ceiling:sae-b"] == "bound"
    # `null:no-source` is an alternative of the verdict as well.
    assert roles["null:no-source"] == "alternative" and found["null:no-source"]["group"] == "null"
    assert found["translation:identity"]["value"] > 3.5 + FAR and found["translation:identity"]["group"] == "far"


def test_groups_can_be_switched_off():
    chart = rows_chart(join_report())
    assert chart.spec["params"] == [{"name": "shown", "value": ["model", "translation", "reference"]}]
    assert chart.spec["transform"] == [{"filter": "indexof(shown, datum.group) >= 0"}]
    assert chart.groups.keys() == {value["group"] for value in chart.spec["data"]["values"]}


def test_differences_have_a_line_at_zero_and_a_table():
    section = differences_section(join_report())
    composite, others = section.charts
    assert list(values_of(composite.spec)) == ["b"] and list(values_of(others.spec)) == [
        "null:no-source − translation:affine"
    ]
    for chart in section.charts:
        assert chart.spec["layer"][0]["data"]["values"] == [{"at": 0}]
    (group,) = section.tables[0].groups
    assert group.rows[0][1] == ["composite", "b", "+0.300", "+0.280 to +0.320"]


def test_matched_features_by_block_have_a_map_and_one_of_their_control():
    maps = {
        spec["data"]["values"][0]["value"]: spec
        for spec in specs(pages()["join"])
        if "best" in spec["data"]["values"][0]
    }
    matched, control = maps[0.1], maps[0.0]
    squares = {(one["y"], one["x"]): one["value"] for one in matched["data"]["values"]}
    assert squares == {(2, 3): 0.1, (2, 4): 0.4, (2, 5): 0.2, (3, 3): 0.3, (3, 4): 0.7, (3, 5): 0.5}
    for spec in (matched, control):
        assert [(one["y"], one["x"]) for one in spec["data"]["values"] if one["best"]] == [(3, 4)]
        assert spec["layer"][0]["encoding"]["color"]["scale"]["domain"] == [-0.02, 0.7]
        assert spec["encoding"]["tooltip"][-1]["format"] == ".4f"
    titles = [matched["encoding"][place]["title"] for place in "yx"]
    assert titles == ["block of A", "block of B, demo:llama"]
    rows = Parsed(pages()["join"]).rows
    assert ["3", "0.300", "0.700", "0.500"] in rows and ["3", "0.000", "0.030", "0.020"] in rows


def test_a_map_of_zeros_has_colours_that_begin_below_their_end():
    report = join_report()
    report["matching_by_block"] |= dict.fromkeys(("correlation", "null"), [[0.0] * 3] * 2)
    section = by_block_section(report["matching_by_block"], report["models"], report["site"])
    for chart in section.charts:
        low, high = chart.spec["layer"][0]["encoding"]["color"]["scale"]["domain"]
        assert low == 0 < high


def test_a_sweep_says_by_what_rule_squares_are_framed():
    report = page_reports.sweep_report()
    words = f"Framed is the chosen j of each i from 1: {report['rule']}."
    assert (
        words in Parsed(pages()["sweep"]).text
        and words in sweep_card({**report, "recipe": {"command": "sweep"}}).decode()
    )
    framed = [one for one in specs(pages()["sweep"])[0]["data"]["values"] if one["best"]]
    assert [(one["y"], one["x"]) for one in framed] == [(1, 2)]


def test_the_front_is_what_no_cheaper_point_beats():
    generator = np.random.default_rng(0)
    points = [{"cost": cost, "value": 12 - cost + noise} for cost, noise in generator.integers(0, 12, (40, 2)).tolist()]
    front = best_for_every_budget(points)
    for budget in range(12):
        affordable = [point["value"] for point in points if point["cost"] <= budget]
        on_front = [point["value"] for point in front if point["cost"] <= budget]
        assert min(affordable, default=None) == min(on_front, default=None)
    assert len({point["value"] for point in front}) == len(front)


def test_a_frontier_leaves_out_what_is_far_above_and_says_so():
    rows = [
        {
            "label": name,
            "role": "composite" if name == "composite" else "alternative",
            "value": ce,
            "flops": flops,
            "bytes": size,
        }
        for name, (ce, flops, size) in ROWS.items()
    ]
    chart = frontier("flops", rows, "flops", limit=7e6)
    dropped = [name for name, (ce, *_) in ROWS.items() if ce > ROWS["composite"][0] + 0.5]
    assert values_of(chart.spec).keys() == ROWS.keys() - set(dropped)
    assert chart.note.startswith(f"{len(dropped)} rows")
    assert chart.spec["layer"][0]["data"]["values"] == [{"at": 7.0}]


def test_every_head_is_drawn_and_those_of_the_circuit_are_marked():
    points = {(one["block"], one["head"]): one for one in head_points(page_reports.circuit_report())}
    assert {place for place, one in points.items() if one["role"] == "composite"} == {(0, 1), (1, 0)}
    assert points[1, 0]["nats"] == -0.3 and len(points) == 4
    without = {**page_reports.circuit_report(), "attribution": None}
    assert [(one["block"], one["head"]) for one in head_points(without)] == [(0, 1), (1, 0)]


def test_edges_are_lines_between_heads_and_the_neurons_of_blocks():
    (spec, *_) = specs(pages()["circuit"])
    lines = {line["label"]: line for line in spec["layer"][0]["data"]["values"]}
    assert {name: round(line["nats"], 6) for name, line in lines.items()} == {
        "head 0.1 → head 1.0": 0.3, "neurons of block 0 → head 1.0": -0.15, "head 0.1 → neurons of block 0": 0.09,
    }  # fmt: skip
    assert lines["neurons of block 0 → head 1.0"]["sign"] == "−"
    for line in lines.values():  # both ends are on the axes
        assert {line["block"], line["block2"]} <= set(spec["encoding"]["x"]["scale"]["domain"])
        assert {line["head"], line["head2"]} <= set(spec["encoding"]["y"]["scale"]["domain"])
    assert values_of(spec)["2 neurons of block 0"]["nats"] == pytest.approx(0.3)
    assert ["head 1.0", "answers", "-0.3100"] in Parsed(pages()["circuit"]).rows
    assert "1.500 nats likelier" in Parsed(pages()["circuit"]).text


def test_a_circuit_without_edges_has_its_page():
    without = {**page_reports.circuit_report(), "edges": None}
    older = {key: value for key, value in without.items() if key != "edges"}
    assert html(circuit_page(without)) == html(circuit_page(older))
    (spec, *_) = specs(html(circuit_page(without)))
    assert len(spec["layer"]) == 1 and len(spec["data"]["values"]) == 4


def test_a_page_shows_as_many_edges_as_stay_readable():
    report = page_reports.circuit_report()
    into = {
        f"head 1.{target}": {f"head 0.{source}": 0.01 * source + target for source in range(12)} for target in range(12)
    }
    report["edges"]["into"] = into
    (spec, *_) = specs(html(circuit_page(report)))
    lines = spec["layer"][0]["data"]["values"]
    assert (
        len(lines) == LINES
        and min(line["nats"] for line in lines)
        >= sorted(value for one in into.values() for value in one.values())[-LINES]
    )


def test_a_tool_is_drawn_by_tokens_read_and_its_intervals_end_within_0_and_1():
    _, read, text = specs(pages()["tool"])
    points = read["data"]["values"]
    assert [point["at"] for point in points][:3] == ["1", "2–3", "4"] and len(points) == 4 * 3
    assert (points[0]["role"], points[0]["value"], points[0]["low"], points[0]["high"]) == ("composite", 1.0, 0.9, 1)
    assert points[2]["low"] is None and points[2]["high"] is None
    assert {point["role"] for point in points} == {"composite", "baseline", "null"}
    assert {label: one["role"] for label, one in values_of(text).items()} == {
        "as it was": "a",
        "with the tool": "composite",
    }
    rows = Parsed(pages()["tool"]).rows
    assert ["b", "even", "odd"] in rows
    assert ["2–3", "8", "100.00%", "98.00%", "70.00%", "50.00%"] in rows
    assert ["difference, paired", "+1.0e-06", "-1.0e-07 to +2.0e-06", "+2,000"] in rows


@pytest.mark.parametrize(("name", "page"), [("c.json", "c.html"), ("c", "c.html"), ("c.html", "c.page.html")])
def test_the_page_of_a_circuit_lies_beside_its_file(tmp_path, name, page):
    out = tmp_path / name
    out.write_text("{}")
    assert write_circuit_page(page_reports.circuit_report(), out) == tmp_path / page
    assert out.read_text() == "{}" and (tmp_path / page).read_bytes() == pages()["circuit"]


def test_every_kind_of_page_is_tested():
    assert tuple(pages()) == KINDS
    sources = [file.read_text() for file in Path(stitch.pages.__file__).parent.glob("*.py")]
    made = {name for source in sources for name in re.findall(r"^def (\w+_page)\(", source, re.MULTILINE)}
    assert made - {"write_circuit_page"} == {name for name in vars(page_reports) if name.endswith("_page")}


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_shows_its_numbers_in_tables_without_javascript(kind):
    text = [" ".join(row) for row in Parsed(pages()[kind]).rows]
    expected = {
        "join": "composite (affine) 3.500 3.400 – 3.600", "chain": "model demo:gpt2 3.400", "sweep": "0 +0.40 +0.35",
        "depth": "1 +0.15* +0.16", "circuit": "head 0.1 1 +0.4000", "graft": "host, grafted 98.0%",
        "conversion": "converted 3.3000 3.200 – 3.400", "transfer": "transferred (written) 0.400", "certificate": "host, grafted",
        "tool": "a c odd even",
    }  # fmt: skip
    assert any(expected[kind] in row for row in text), text


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_small_and_loads_nothing(kind):
    assert len(pages()[kind]) < 1.2 * MEGABYTE  # 3 MB with as many features as fit, below
    parsed = Parsed(pages()[kind])
    loading = {"src", "srcset", "data", "poster", "action", "formaction", "background", "ping"}
    assert [one for one in parsed.attributes if one[1] in loading] == []
    assert [
        value for _, name, value in parsed.attributes if name in ("href", "xlink:href") and not value.startswith("#")
    ] == []
    assert not {"link", "iframe", "object", "embed", "base"} & set(parsed.tags)
    style = pages()[kind].decode().partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style and "@import" not in style
    data = "".join(text for found, text in parsed.scripts if found.get("type") == "application/json")
    assert '"url":' not in data and "://" not in data and "://" not in parsed.text


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_scripts_of_a_page_may_run(kind):
    parsed = Parsed(pages()[kind])
    (policy,) = [
        value
        for tag, name, value in parsed.attributes
        if tag == "meta" and name == "content" and "default-src" in value
    ]
    scripts = [text for found, text in parsed.scripts if "type" not in found]
    allowed = re.search(r"script-src ([^;]*);", policy)[1].split()
    assert allowed == [
        f"'sha256-{base64.b64encode(hashlib.sha256(one.encode()).digest()).decode()}'" for one in scripts
    ]
    assert policy.startswith("default-src 'none';") and "unsafe-eval" not in policy
    assert not [one for one in parsed.attributes if one[1].startswith("on")]
    assert not any("<!--" in one or "</script" in one for one in scripts)


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_the_same_every_time(kind):
    assert page_reports.pages()[kind] == pages()[kind]


def test_text_of_a_corpus_stays_text():
    page = pages()["join"].decode()
    assert (
        HOSTILE not in page and "window.broken=1</script>" not in page and "\u2028" not in page.split("<noscript>")[0]
    )
    parsed = Parsed(pages()["join"])
    (data,) = parsed.data(id="features-data")
    assert data["pieces"][3] == HOSTILE
    assert "img" not in parsed.tags
    assert any(HOSTILE.strip() in cell for row in parsed.rows for cell in row)


def test_names_of_models_are_escaped():
    report = join_report()
    report["models"]["a"] = HOSTILE
    parsed = Parsed(html(join_page(report)))
    assert "img" not in parsed.tags and HOSTILE in parsed.text
    assert len(parsed.scripts) == len(Parsed(html(join_page(join_report()))).scripts)


def test_json_in_a_page_survives_what_html_and_javascript_read_differently():
    value = {"<!--": ["</script>", "\u2028\u2029&", math.nan, math.inf, 1.5, None]}
    text = script_json(value)
    assert not re.search("[<>&\u2028\u2029]", text)
    assert json.loads(text) == {"<!--": ["</script>", "\u2028\u2029&", None, None, 1.5, None]}


def test_as_many_pairs_are_shown_as_there_is_room_for_and_the_others_are_counted():
    features = page_reports.features(500)
    some = browser_data(features, {"a": "A", "b": "B"}, 8192, most=60_000)
    size = len(script_json(some).encode())
    assert 50_000 < size < 62_000
    assert [pair["b"] for pair in some["pairs"]] == list(range(len(some["pairs"]))) and 0 < len(some["pairs"]) < 500
    assert some["left_out"] == 7 + 500 - len(some["pairs"])
    words = " ".join(features_section(features, {"a": "A", "b": "B"}, 8192).words)
    assert "500 pairs" in words and "7 others" in words


def test_the_largest_page_stays_below_three_megabytes():
    report = join_report()
    many, deep = list(range(SITES)), [[0.1234] * SITES] * SITES
    sites = {"a": many, "b": many}
    report["matching_by_block"] |= {"sites": sites, "correlation": deep, "null": deep}
    page = html(join_page(report, page_reports.features(20_000, text="x" * 2000)))
    assert 2 * MEGABYTE < len(page) < 3 * MEGABYTE


def test_reports_without_newer_keys_have_a_page():
    report = join_report()
    for key in ("breakdown", "verdict", "alternatives", "matching_by_block"):
        del report[key]
    for found in report["results"]:
        for key in ("flops", "bytes", "parameters", "bytes_read"):
            found.pop(key, None)
    report["native"] = {"change": "without block 3", "blocks": 7, "of": 8, "family": "llama"}
    assert "demo:gpt2 without block 3" in Parsed(html(join_page(report))).text


@pytest.mark.parametrize("kind", KINDS)
def test_a_card_shows_the_main_chart_of_its_page(kind):
    page = page_reports.made()[kind]
    files = card_files(model_card(join_report()), page)
    assert files["chart.png"].startswith(b"\x89PNG") and len(files["chart.png"]) < 200_000
    charts = {chart.name: chart for section in page.sections for chart in section.charts}
    title = charts["rows" if kind == "chain" else next(iter(charts))].title
    if kind in ("join", "chain"):  # whose charts have groups
        title += ". 6 of 10 rows. Also in the table: floors and ceilings, nulls, more than 1.5 nats worse"
    assert f"![{title}](chart.png)" in files["README.md"].decode()
    assert files == card_files(model_card(join_report()), page)


def test_a_picture_says_how_many_rows_it_has_and_where_the_others_are():
    def words(report: dict) -> str:
        svg = vl_convert.vegalite_to_svg({**with_legend(rows_chart(report)), "config": CONFIG}, vl_version=VEGA_LITE)
        return " ".join(text for text in ElementTree.fromstring(svg).itertext() if text.strip())

    report = join_report()
    shown = words(report)
    names = [row["name"] for row in report["results"]]
    assert f"{sum(name in shown.split() for name in names)} of {len(names)} rows" in shown
    assert "nulls" in shown and "null:no-source" not in shown.split()
    report["results"] = [row for row in report["results"] if row["name"] in ("a", "b", "composite")]
    assert " rows" not in words(report)


def legend_ends(chart) -> tuple[list[float], float]:
    """The right ends of a picture's legend entries with their texts, as Vega measures them, and the picture's width."""
    spec = {**with_legend(chart), "width": WIDTH, "config": CONFIG}
    root = ElementTree.fromstring(vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE))
    found: list[float] = []

    def walk(element, x: float, in_legend: bool) -> None:
        moved = re.match(r"translate\(([-\d.]+)", element.get("transform", ""))
        x += float(moved[1]) if moved else 0
        in_legend |= "role-scope" in element.get("class", "")
        if in_legend and element.get("class") == "background":
            found.append(x + float(re.findall(r"M0,0h([\d.]+)", element.get("d", ""))[0]))
        for child in element:
            walk(child, x, in_legend)

    walk(root, 0, False)
    return found, float(root.get("width", 0))


@pytest.mark.parametrize("models", [("demo:gpt2", "demo:llama"), ("an-organisation/a-model-135M-Instruct", "x" * 60)])
def test_a_picture_has_room_for_its_whole_legend(models):
    report = join_report()
    report["models"] = dict(zip("ab", models, strict=True))
    ends, width = legend_ends(rows_chart(report))
    assert len(ends) == 6 and max(ends) <= width


@pytest.mark.parametrize("text", ["\x1b[31m", "\x00", "\uffff", "\ud800", "\u202e", "<script>&"])
def test_names_that_are_no_text_have_a_picture(text):
    report = join_report()
    report["models"]["a"] = text  # in the legend
    report["results"][0]["name"] = f"reference:{text}"
    chart = rows_chart(report)
    assert png(dataclasses.replace(chart, title=text))


def test_without_a_picture_there_is_a_page(monkeypatch):
    card, page = model_card(join_report()), join_page(join_report())
    monkeypatch.setattr("stitch.pages.card.png", lambda chart: None)
    assert page_and_card(page, card) == {"report.html": html(page), "README.md": card.to_bytes()}
    assert b"chart.png" not in card.to_bytes()


def test_a_card_of_a_page_without_charts_has_no_picture():
    page = Page(title="a model without a document", sections=[Section(name="tensors", heading="Tensors")])
    assert card_files(model_card(join_report()), page).keys() == {"README.md"}


def luminance(colour: str) -> float:
    channels = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_colours_stand_out_from_their_background(mode):
    behind = luminance(BACKGROUND[mode])
    for name, role in ROLES.items():
        here = luminance(getattr(role, mode))
        contrast = (max(here, behind) + 0.05) / (min(here, behind) + 0.05)
        assert contrast >= 3, f"{name}: {contrast:.2f}"  # WCAG 2.2, 1.4.11


def test_numbers_can_be_read_on_every_colour_of_a_map():
    for place, shade in enumerate(HEAT):
        here, ink = luminance(shade), luminance(ink_on_heat(place / (len(HEAT) - 1)))
        assert (max(here, ink) + 0.05) / (min(here, ink) + 0.05) > 4
        assert shade != FRAME


# Full dichromacy, by Machado, Oliveira & Fernandes 2009, on linear RGB.
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


def lab(colour: str, seen: np.ndarray) -> np.ndarray:
    channels = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(to_xyz @ np.clip(seen @ linear, 0, 1) / [0.9505, 1, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("blindness", BLINDNESS)
def test_roles_differ_for_every_reader_by_colour_and_by_shape(mode, blindness):
    assert len({role.shape for role in ROLES.values()}) == len(ROLES)
    shades = {name: lab(getattr(role, mode), BLINDNESS[blindness]) for name, role in ROLES.items()}
    close = {
        (one, other): round(float(np.linalg.norm(shades[one] - shades[other])), 1)
        for one in shades
        for other in shades
        if one < other and np.linalg.norm(shades[one] - shades[other]) < 15
    }
    assert not close
