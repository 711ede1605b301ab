"""The code in README.md and docs/ runs, and prints what the page says that it prints."""

import contextlib
import io
import re
import runpy

import pytest
from PIL import Image

import lpfamily
from helpers import ROOT
from helpers.libraries_under_test import KERAS, NAMES, UNDER_TEST

PAGES = sorted((ROOT / "docs").rglob("*.md"))
LIBRARIES = {
    name: re.compile(rf"^(?:import|from) {name}\b", re.MULTILINE) for name in ("torch", "jax", "dask")
}
KERAS_BACKEND = re.compile(r'"KERAS_BACKEND"\] = "(\w+)"')
BLOCK = re.compile(r"```python\n(?P<code>.*?)```(?:\n+```text\n(?P<printed>.*?)```)?", re.DOTALL)


def blocks():
    """Yield each block that the libraries under test can run, marked with those that it needs."""
    for page in (ROOT / "README.md", *PAGES):
        found = list(BLOCK.finditer(page.read_text()))
        assert found or page.name == "index.md" or page.parent.name == "api", page
        for number, block in enumerate(found, 1):
            needs = [name for name, imports in LIBRARIES.items() if imports.search(block["code"])]
            if set(needs) <= set(NAMES) and set(KERAS_BACKEND.findall(block["code"])) <= {KERAS}:
                marks = [getattr(pytest.mark, name) for name in needs]
                yield pytest.param(page, block, id="-".join([page.stem, str(number), *needs]), marks=marks)


@pytest.mark.parametrize(("page", "block"), list(blocks()))
def test_a_page_prints_what_it_says(page, block):
    with contextlib.ExitStack() as scopes:
        for library in UNDER_TEST:
            scopes.enter_context(library.looking())
        printed = scopes.enter_context(contextlib.redirect_stdout(io.StringIO()))
        exec(compile(block["code"], page.name, "exec"), {})  # noqa: S102 (the page is ours)
    assert printed.getvalue() == (block["printed"] or "")


FIGURE = re.compile(r"```\{figure\} (?P<path>\S+)\n:alt: (?P<alt>.+)\n\n(?P<caption>(?:(?!```).+\n)+)```\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT / "docs")))
def test_a_directive_begins_without_a_backtick(page):
    # with one in its caption a directive is shown as text, and Sphinx's -W does not see it
    assert not re.search(r"^```\{.*`", page.read_text(), re.MULTILINE)


def test_each_figure_exists_and_has_a_description():
    shown, with_figures = set(), set()
    for page in PAGES:
        text = page.read_text()
        found = list(FIGURE.finditer(text))
        assert len(found) == text.count("{figure}") + text.count("![") + text.count("<img"), page
        with_figures |= {page.name for _ in found}
        for figure in found:
            assert len(figure["alt"]) > 80
            assert len(figure["caption"]) > 200
            shown.add((page.parent / figure["path"]).resolve())
    assert shown == set((ROOT / "docs/figures").iterdir())
    assert with_figures == {"index.md", "robustness.md", "noise.md", "objectives.md"}


def test_the_figures_are_what_their_command_draws(tmp_path, capsys):
    runpy.run_path(str(ROOT / "docs/figures.py"))["main"](tmp_path)
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {path.name for path in (ROOT / "docs/figures").iterdir()} - {"figure-p.png"}
    for name in drawn:
        path = ROOT / "docs/figures" / name
        assert path.stat().st_size < 50_000
        with Image.open(path) as kept, Image.open(tmp_path / name) as anew:
            assert kept.size == anew.size


def test_the_reference_begins_with_the_step_and_has_all_that_is_public():
    functions = re.findall(r"autofunction:: lpfamily\.(\w+)", (ROOT / "docs/api/core.md").read_text())
    assert functions[0] == "epsilon"
    assert sorted(functions) == sorted(lpfamily.__all__)
