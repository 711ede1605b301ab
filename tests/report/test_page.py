"""The report's page and the files beside it."""

import csv
import math
import re
import struct
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from xml.etree import ElementTree as ET

import matplotlib as mpl
import matplotlib.image
import numpy as np
import pytest

from helpers import sample_report as sample
from lpfamily.report import page
from lpfamily.report.contents import COLOURS, INK, Column, Plot, Table

VOID = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta", "source", "wbr"}
CSS = files("lpfamily.report").joinpath("page.css").read_text("utf-8")


class Page(HTMLParser):
    """The content of a page, parsed without knowledge of how it was written."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.elements, self.text = [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)), f"{tag} has an attribute twice: {names}"
        self.tags.append((len(self.open), tag))
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def values(self, name, of=None):
        return [e[name] for tag, e in self.elements if name in e and (of is None or tag == of)]


def written(folder, *items, title="", sections=None, facts=(), summary=None):
    """Return the page of a report, by default of one section with some items, and its text."""
    path = page.write(folder, title, sections or (page.Section("", (), items),), facts, summary=summary)
    return Page(path.read_text("utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    page.write(folder / "new", sample.TITLE, sample.SECTIONS, sample.FACTS, summary=sample.SUMMARY)
    return folder / "new"


@pytest.fixture(scope="module")
def whole(folder):
    return Page((folder / "index.html").read_text("utf-8"))


ITEMS = [item for section in sample.SECTIONS for item in section.items]
TABLES = [item for item in ITEMS if isinstance(item, Table)]
PLOTS = [item for item in ITEMS if isinstance(item, Plot)]


def test_a_file_for_each_table_and_two_for_each_plot(folder):
    expected = {f"{table.name}.csv" for table in TABLES}
    expected |= {f"{plot.name}.{suffix}" for plot in PLOTS for suffix in ("png", "svg")}
    assert {path.name for path in folder.iterdir()} == expected | {"index.html"}


def test_the_page_loads_no_other_file(whole):
    tags = {tag for tag, _ in whole.elements}
    assert [tag for tag, _ in whole.elements].count("style") == 1
    assert not tags & {"metadata", "script", "iframe", "object", "embed", "audio", "video", "base"}
    assert all(value.startswith(("data:", "#")) for element in whole.elements for value in loaded(*element))
    assert not {"src", "srcset", "poster", "background"} & {name for _, e in whole.elements for name in e}
    assert not re.search(r"url\(|@import|@font-face", CSS)


def loaded(tag, element):
    return [element[name] for name in ("href", "xlink:href") if name in element and tag != "a"]


def test_every_link_and_label_leads_somewhere(folder, whole):
    ids = whole.values("id")
    assert len(ids) == len(set(ids))
    for label in whole.values("aria-labelledby"):
        assert label in ids
    for link in whole.values("href", "a"):
        if link.startswith("#"):
            assert link[1:] in ids
        elif not link.startswith("https://"):
            assert (folder / link).is_file()
    assert {f"#{item.name}" for item in ITEMS} <= set(whole.values("href", "a"))


NASTY = '<script>alert(1)</script> </svg> --> <!-- " onload="x" \' &amp; {title} {0} id="a" url(#b)'


def everywhere(text):
    """Return the parts of a report that has a text in every place."""

    def draw(figure):
        figure.subplots().plot([1, 2], label=text)
        figure.axes[0].set(title=text, gid=text)
        figure.axes[0].legend()

    items = (
        Table("t", text, (Column(text), Column(text)), ((text, text), (text, 1.0)), (text,)),
        Plot("f", text, text, draw, (12, 3), notes=(text,)),
    )
    return {
        "title": text,
        "sections": (page.Section(text, (text, f"{text} `{text}`", f'[{text}](https://x.org/<&")'), items),),
        "facts": ((text, text),),
        "summary": page.Summary(((text, text),), ((text, "t"),)),
    }


def test_a_page_begins_with_its_summary(whole):
    text = " ".join(part.strip() for part in whole.text)
    places = [
        text.index(said) for said in ("Summary", "2026-11-29", "Noise adds 0.12%. Table IX", "Contents")
    ]
    assert places == sorted(places)
    assert {"#errors", "#predicted"} <= set(whole.values("href", "a"))


def test_text_is_escaped(tmp_path):
    plain, nasty = written(tmp_path, **everywhere("plain")), written(tmp_path, **everywhere(NASTY))
    assert nasty.tags == plain.tags
    said = "".join(nasty.text)
    assert said.count(NASTY) == "".join(plain.text).count("plain") > 15
    assert nasty.values("href", "a").count('https://x.org/<&"') == 1
    assert f"f.{NASTY}" in nasty.values("id")


def test_code_and_links_are_the_only_markup(tmp_path):
    text = "a `b *c*` [d](https://e.org/f?g=h&i) [j](javascript:k) *l* `m"
    shown = written(tmp_path, sections=(page.Section("", (text,)),))
    assert [tag for _, tag in shown.tags].count("code") == 1
    assert "https://e.org/f?g=h&i" in shown.values("href", "a")
    assert "".join(shown.text).strip().endswith("a b *c* d [j](javascript:k) *l* `m")


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_a_csv_holds_the_numbers_as_they_are(folder, table):
    data = (folder / f"{table.name}.csv").read_bytes()
    assert data.count(b"\r\n") == len(table.rows) + 1
    with (folder / f"{table.name}.csv").open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file, strict=True)
    assert head == [column.head for column in table.columns]
    for row, expected in zip(rows, table.rows, strict=True):
        for text, cell in zip(row, expected, strict=True):
            assert (text if isinstance(cell, str) else float(text) if text else None) == cell


def test_numpys_numbers_are_numbers(tmp_path):
    third = np.float64(1 / 3)
    shown = written(tmp_path, Table("t", "", (Column("a"), Column("b", "{:.1%}")), (("x", third),)))
    assert "33.3%" in shown.text
    assert (tmp_path / "t.csv").read_text("utf-8").split() == ["a,b", f"x,{1 / 3!r}"]


def test_each_cell_of_a_table_has_a_row_and_a_column_header(tmp_path):
    columns = (Column("p", "{:g}"), Column("error", "{:.2%}"), Column("remark"))
    rows = ((math.inf, 0.00784, "one"), (2, None, "two"), (1.5, "none", None))
    shown = written(tmp_path, Table("t", "Errors", columns, rows))
    cells = [
        (tag, e.get("scope"), e.get("class")) for tag, e in shown.elements if tag in {"caption", "th", "td"}
    ]
    head = [("th", "col", None), ("th", "col", "number"), ("th", "col", None)]
    row = [("th", "row", None), ("td", None, "number"), ("td", None, None)]
    assert cells == [("caption", None, None), *head, *row, *row, *row]
    text = [part.strip() for part in shown.text if part.strip()]
    begin = text.index("p")
    assert text[begin : begin + 9] == ["p", "error", "remark", "inf", "0.78%", "one", "2", "two", "1.5"]


@pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: plot.name)
def test_a_plot_is_described_for_screen_readers(whole, plot):
    (label,) = (
        e["aria-labelledby"]
        for tag, e in whole.elements
        if tag == "svg" and e["aria-labelledby"].startswith(f"{plot.name}.")
    )
    assert ("desc", {"id": label}) in whole.elements
    assert plot.alt in whole.text
    assert whole.values("role", "svg") == ["img"] * len(PLOTS)


@pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: plot.name)
def test_a_plots_files_have_its_size(folder, plot):
    png = (folder / f"{plot.name}.png").read_bytes()
    width, height = struct.unpack(">II", png[16:24])
    assert width == round(150 * plot.size[0])
    assert 20 < height - 150 * plot.size[1] < 50  # the line of its title
    corner = matplotlib.image.imread(folder / f"{plot.name}.png")[0, 0]
    assert corner.tolist() == [1, 1, 1, 1]
    box = ET.parse(folder / f"{plot.name}.svg").getroot().attrib["viewBox"]  # noqa: S314 - our own
    assert [float(part) for part in box.split()] == pytest.approx([0, 0, *(72 * s for s in plot.size)])


@pytest.mark.parametrize(
    "title", ["$x_1$ costs $2", "\udcff", "\u4f60\u597d", "a \n\\frac{1}", "word " * 60, "w" * 400]
)
def test_a_title_may_be_any_text(tmp_path, title):
    page.write(tmp_path, "", (page.Section("", (), (replace(sample.BARS, title=title),)),), warn=pytest.fail)
    assert (tmp_path / "bars.png").stat().st_size > 1000


def test_a_plot_has_the_colour_of_the_pages_text(folder):
    html, svg = (folder / "index.html").read_text("utf-8"), (folder / "bars.svg").read_text("utf-8")
    assert INK in svg
    assert INK not in html
    assert "fill: currentColor" in html
    assert "fill: #ffffff" not in html + svg
    assert COLOURS[0] in html


def test_two_plots_of_one_picture_share_no_ids(tmp_path):
    shown = written(tmp_path, replace(sample.LINES, name="one"), replace(sample.LINES, name="two"))
    ids = shown.values("id")
    assert len(ids) == len(set(ids))
    owner, seen = None, set()
    for tag, element in shown.elements:
        if tag == "svg":
            owner = element["aria-labelledby"].partition(".")[0]
        used = [found for value in element.values() for found in re.findall(r"url\(#(.*?)\)", value)]
        used += [value[1:] for value in loaded(tag, element) if value.startswith("#")]
        assert set(used) <= set(ids)
        assert all(name.startswith(f"{owner}.") for name in used)
        seen |= {owner} if used else set()
    assert seen == {"one", "two"}


def test_a_report_is_the_same_bytes_whatever_the_users_settings(folder, tmp_path):
    settings = {"font.size": 20, "axes.facecolor": "red", "svg.hashsalt": "salt", "svg.fonttype": "path"}
    with mpl.rc_context(settings):
        before = dict(mpl.rcParams)
        page.write(tmp_path, sample.TITLE, sample.SECTIONS, sample.FACTS, summary=sample.SUMMARY)
        assert dict(mpl.rcParams) == before
    for path in folder.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_report_replaces_an_older_one(tmp_path):
    for title in "old", "new":
        shown = written(tmp_path, title=title)
    assert "new" in shown.text
    assert "old" not in shown.text


def schemes():
    light, dark = re.findall(r":root \{(.*?)\}", CSS, re.DOTALL)
    first = dict(re.findall(r"--(\w+): (#\w{6});", light))
    return {"light": first, "dark": first | dict(re.findall(r"--(\w+): (#\w{6});", dark))}


def contrast(one, other):
    """Return the ratio of two colours' luminances, as WCAG 2.2 defines it: from 1 to 21."""

    def luminance(colour):
        parts = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_computed_as_wcag_defines_it():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.005)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_series_stand_out(scheme):
    colours = schemes()[scheme]
    for text in "ink", "dim", "link":
        assert contrast(colours[text], colours["paper"]) >= 4.5
        assert contrast(colours[text], colours["code"]) >= 4.5
    for series in COLOURS:
        assert contrast(series, colours["paper"]) >= 3, series
    assert schemes()["dark"].keys() == schemes()["light"].keys()


def test_the_two_schemes_differ():
    light, dark = schemes()["light"], schemes()["dark"]
    assert all(light[name] != dark[name] for name in light)


ROW = Table("t", "", (Column("a"), Column("b")), (("x", 1), ("y",)))
BAD = {
    r"must have a name of a-z.*got 'Table 6'": (replace(sample.NOISE, name="Table 6"),),
    r"must have a name of a-z.*got '../x'": (replace(sample.BARS, name="../x"),),
    r"two tables or figures are named noise": (sample.NOISE, replace(sample.BARS, name="noise")),
    r"row 2 of t must have a cell for each of its 2 columns; got 1: \('y',\)": (ROW,),
}


@pytest.mark.parametrize(("message", "items"), BAD.items(), ids=BAD)
def test_a_bad_report_writes_nothing(tmp_path, message, items):
    with pytest.raises(ValueError, match=message):
        page.write(tmp_path / "new", "", (page.Section("", (), items),))
    assert not (tmp_path / "new").exists()
