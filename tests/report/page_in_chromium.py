"""The report as a browser shows it: on a wide and on a narrow screen, light and dark, and on paper."""

import itertools
import json
import re
import shutil

import pytest
from selenium import webdriver

from helpers import ROOT
from helpers import sample_report as sample
from lpfamily.report import page
from lpfamily.report.contents import Plot


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    path = page.write(folder, sample.TITLE, sample.SECTIONS, sample.FACTS, summary=sample.SUMMARY)
    return path.as_uri()


@pytest.fixture(scope="module")
def chromium():
    options = webdriver.ChromeOptions()
    options.binary_location = program("chromium", "chromium-browser", "google-chrome")
    options.add_argument("--headless=new")
    options.add_argument("--no-sandbox")  # in a container the user is root, and the page is our own
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(program("chromedriver")))
    yield driver
    driver.quit()


def program(*names):
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        raise FileNotFoundError(f"install Chromium and its driver: none of {', '.join(names)} was found")
    return found


def show(driver, url, width, scheme="light", media="screen"):
    screen = {"width": width, "height": 800, "deviceScaleFactor": 2, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
    driver.get(url)


@pytest.fixture(params=itertools.product((390, 1280, 1920), ("light", "dark")), ids=str)
def shown(request, chromium, url):
    """Return a browser with the page on a screen of so many pixels' width."""
    show(chromium, url, *request.param)
    return chromium


def messages(driver, method):
    entries = (json.loads(entry["message"])["message"] for entry in driver.get_log("performance"))
    return [entry["params"] for entry in entries if entry["method"] == method]


def test_the_console_is_silent_and_nothing_else_is_loaded(shown, url):
    assert shown.get_log("browser") == []
    loaded = {sent["request"]["url"] for sent in messages(shown, "Network.requestWillBeSent")}
    assert {address for address in loaded if not address.startswith("data:")} == {url}


def test_nothing_is_wider_than_the_screen(shown):
    width, screen = shown.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert width <= screen
    beyond = shown.execute_script(
        "return [...document.querySelectorAll('main *:not(.scroll *)')]"
        ".filter(e => e.getBoundingClientRect().right > innerWidth).map(e => e.outerHTML)"
    )
    assert beyond == []


def test_a_table_shows_its_last_column_or_can_be_scrolled_to_it(shown):
    wide = shown.execute_script("return innerWidth") >= 1280
    for scroll in (False, True):
        seen = shown.execute_script(
            "return [...document.querySelectorAll('.scroll:has(table)')].map(box => {"
            "  if (arguments[0]) box.scrollLeft = box.scrollWidth;"
            "  const last = box.querySelector('thead th:last-child').getBoundingClientRect();"
            "  const edge = box.getBoundingClientRect();"
            "  return [last.left, last.right, Math.min(edge.right, document.documentElement.clientWidth)];"
            "})",
            scroll,
        )
        assert len(seen) == 5
        if wide or scroll:
            assert all(0 < left < right <= edge + 1 for left, right, edge in seen)


def test_captions_and_prose_begin_where_the_page_does(shown):
    edges = shown.execute_script(
        "const all = 'h1, h2, section > p, figcaption, caption span, table, svg, .notes p, dl';"
        "return [...document.querySelectorAll(all)].map(e => e.getBoundingClientRect().left)"
    )
    assert min(edges) >= 16
    assert max(edges) - min(edges) < 1


def test_every_figure_is_seen_and_holds_its_text(shown):
    figures = shown.execute_script(
        "const box = e => { const r = e.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom] };"
        "return [...document.querySelectorAll('svg')].map("
        "svg => [box(svg), [...svg.querySelectorAll('text')].map(text => [text.textContent, box(text)])])"
    )
    assert len(figures) == 4
    for (left, top, right, bottom), texts in figures:
        assert right - left > 300
        assert bottom - top > 100
        for text, box in texts:
            assert left - 1 <= box[0] <= box[2] <= right + 1, text
            assert top - 1 <= box[1] <= box[3] <= bottom + 1, text


def test_all_text_stands_out_from_what_is_behind_it(shown):
    weakest = shown.execute_script(
        """
        const light = text => {
          const [r, g, b] = text.match(/[0-9.]+/g).map(Number).map(v => v / 255)
            .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
          return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const behind = e => {
          const colour = getComputedStyle(e).backgroundColor;
          return /, 0\\)$/.test(colour) ? behind(e.parentElement) : colour;
        };
        const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
        let weakest = [99, ""];
        while (walker.nextNode()) {
          const e = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
          if (!text || e.closest("desc")) continue;
          const ink = getComputedStyle(e)[e.closest("svg") ? "fill" : "color"];
          const [low, high] = [light(ink), light(behind(e))].sort((a, b) => a - b);
          const contrast = (high + 0.05) / (low + 0.05);
          if (contrast < weakest[0]) weakest = [contrast, text];
        }
        return weakest;
        """
    )
    assert weakest[0] >= 4.5, weakest


def test_every_figure_has_a_text_for_those_who_do_not_see_it(shown):
    said = shown.execute_script(
        "return [...document.querySelectorAll('svg, img, canvas')].map(e => e.getAttribute('alt') || "
        "document.getElementById(e.getAttribute('aria-labelledby')).textContent)"
    )
    assert said == [
        item.alt for section in sample.SECTIONS for item in section.items if isinstance(item, Plot)
    ]


def test_text_stands_out_in_either_scheme_and_in_figures(shown):
    scheme = shown.execute_script("return matchMedia('(prefers-color-scheme: dark)').matches")
    paper, text, figure, axis = shown.execute_script(
        "const style = query => getComputedStyle(document.querySelector(query)), body = style('body');"
        "return [body.backgroundColor, body.color, style('svg text').fill, style('svg use').stroke]"
    )
    assert (brightness(paper) < 60) == scheme
    assert abs(brightness(paper) - brightness(text)) > 150
    assert text == figure == axis


def brightness(colour):
    red, green, blue = (int(part) for part in re.findall(r"\d+", colour)[:3])
    return (red + green + blue) / 3


def test_a_caption_and_the_rows_names_stay_where_a_table_is_scrolled(chromium, url):
    show(chromium, url, 390)
    left = (
        "return ['caption span', 'tbody th', 'tbody td'].map("
        "q => document.querySelector('#errors ' + q).getBoundingClientRect().left)"
    )
    before = chromium.execute_script(left)
    chromium.execute_script("document.querySelector('#errors .scroll').scrollLeft = 60")
    after = chromium.execute_script(left)
    assert [round(a - b) for a, b in zip(after, before, strict=True)] == [0, 0, -60]


def test_paper_cuts_nothing_off_and_is_not_dark(chromium, url):
    a4 = round((210 - 2 * 16) / 25.4 * 96)  # px between the margins
    show(chromium, url, a4, "dark", "print")
    cut = chromium.execute_script(
        "return [...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length"
    )
    text = chromium.execute_script("return getComputedStyle(document.body).color")
    assert cut == 0
    assert brightness(text) < 60


FORMULA = """<!DOCTYPE html><link rel="stylesheet" href="{css}"><math display="block"><mrow><mo>(</mo>
<mfrac><mi>g</mi><mfrac><mi>h</mi><mi>p</mi></mfrac></mfrac><mo>)</mo></mrow></math>"""


def test_parentheses_stretch_without_a_font_for_mathematics_on_the_machine(chromium, tmp_path):
    css = ROOT / "docs/_static/pages.css"
    (tmp_path / "formula.html").write_text(FORMULA.format(css=css.as_uri()))
    show(chromium, (tmp_path / "formula.html").as_uri(), 1280)
    heights = chromium.execute_async_script(
        "const done = arguments[0]; document.fonts.ready.then(() => done(['mo', 'mfrac'].map("
        "q => document.querySelector(q).getBoundingClientRect().height)))"
    )
    assert heights[0] >= 0.9 * heights[1] > 30
