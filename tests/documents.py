"""The pages of docs: what their Python prints, and what they say that it prints."""

import contextlib
import io
import re
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def printed_and_promised(page: str) -> tuple[str, str]:
    """Run the ```python block of a page; return what it prints and the ```text block after it."""
    text = (DOCS / page).read_text()
    (code, promised), *others = re.findall(r"```python\n(.*?)```\s+```text\n(.*?)```", text, re.DOTALL)
    assert not others
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(code, {})  # noqa: S102 - the page's own code
    return out.getvalue(), promised
