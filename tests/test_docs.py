"""The code in README.md and docs/ runs, and prints what the page says that it prints."""

import contextlib
import io
import re
from pathlib import Path

import pytest
from conftest import NAMES, UNDER_TEST

ROOT = Path(__file__).parent.parent
LIBRARIES = {
    name: re.compile(rf"^(?:import|from) {name}\b", re.MULTILINE) for name in ("torch", "jax", "dask")
}
BLOCK = re.compile(r"```python\n(?P<code>.*?)```(?:\n+```text\n(?P<printed>.*?)```)?", re.DOTALL)


def blocks():
    """Yield each block that the libraries under test can run, marked with those that it needs."""
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        found = list(BLOCK.finditer(page.read_text()))
        assert found or page.name == "index.md" or page.parent.name == "api", page
        for number, block in enumerate(found, 1):
            needs = [name for name, imports in LIBRARIES.items() if imports.search(block["code"])]
            if set(needs) <= set(NAMES):
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
