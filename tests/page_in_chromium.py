"""The report as a browser shows it: on a wide and on a narrow screen, light and dark, and on paper."""

import json
import re
import shutil

import pytest
import sample_report as sample
from selenium import webdriver

from lpfamily.report import page


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return page.write(folder, sample.TITLE, sample.SECTIONS, sample.FACTS).as_uri()


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


@pytest.fixture(params=[(1200, "light"), (1200, "dark"), (360, "light"), (360, "dark")], ids=str)
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
    show(chromium, url, 360)
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
