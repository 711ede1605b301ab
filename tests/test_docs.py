"""The code in docs/ runs, and prints what the page says that it prints."""

import contextlib
import io
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"```python\n(?P<code>.*?)```(?:\n+prints\n+```text\n(?P<printed>.*?)```)?", re.DOTALL)


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_the_code_of_a_page_prints_what_the_page_says(page):
    blocks = list(BLOCK.finditer(page.read_text()))
    assert blocks
    for block in blocks:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(block["code"], page.name, "exec"), {})  # noqa: S102 (the page is ours)
        if block["printed"] is not None:
            assert printed.getvalue() == block["printed"]
