"""Write a report as one HTML file, with its tables as CSV and its figures as PNG and SVG."""

from __future__ import annotations

import csv
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree as ET

from lpfamily.report.contents import INK, TEXT, Cell, Column, Item, Plot, Table
from lpfamily.report.drawing import rendered
from lpfamily.training import runs

_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_MARKUP = re.compile(r"`(?P<code>[^`]+)`|\[(?P<text>[^]]+)]\((?P<link>https?://[^\s)]+)\)")


@dataclass(frozen=True)
class Section:
    """A heading with paragraphs, tables and figures.

    Paragraphs, like the notes of tables and figures, are plain text in which only `code` between backticks
    and [links](https://example.org) are markup.
    """

    title: str
    text: tuple[str, ...] = ()
    items: tuple[Item, ...] = ()


@dataclass(frozen=True)
class Summary:
    """The top of the page, for readers who read no further; its texts have the markup of a section."""

    facts: tuple[tuple[str, str], ...]
    """Names and values, such as the date."""
    findings: tuple[tuple[str, str], ...]
    """Sentences, each with the name of the table or figure that shows its numbers."""


def write(
    folder: Path,
    title: str,
    sections: Sequence[Section],
    facts: Sequence[tuple[str, str]] = (),
    warn: Callable[[str], None] = warnings.warn,
    summary: Summary | None = None,
) -> Path:
    """Write a report and return the path of its page, folder/index.html.

    The page loads nothing, so it can be mailed or opened from a disk. The folder also holds NAME.csv for each
    table, with numbers in full precision, and NAME.png and NAME.svg for each figure. Equal reports have equal
    bytes.

    Parameters
    ----------
    folder : Path
        Created if needed; files of the same names are replaced.
    title : str
        The title of the page.
    sections : sequence of Section
        The sections in reading order.
    facts : sequence of (name, value)
        How the report was made: commands, seeds, versions, times. Values may have the markup of text.
    warn : function of a line
        Called for each figure that cannot be drawn; the page then has the figure in words only.
    summary : Summary, optional
        The top of the page.

    Raises
    ------
    ValueError
        A name cannot be a file name or is used twice, or a row does not have one cell per column.
    """
    items = [item for section in sections for item in section.items]
    _check(items)
    folder.mkdir(parents=True, exist_ok=True)
    shown = {item.name: _write_item(item, folder, warn) for item in items}
    body = [
        f"<header>\n<h1>{escape(title)}</h1>\n</header>",
        _summary(summary, items) if summary else "",
        _contents(sections, facts),
        *(_section(number, section, shown) for number, section in enumerate(sections, 1)),
        _facts(facts),
    ]
    style, template = (
        files("lpfamily.report").joinpath(name).read_text("utf-8") for name in ("page.css", "page.html")
    )
    page = template.format(title=escape(title), css=style, body="\n".join(filter(None, body)))
    path = folder / "index.html"
    runs.replace(path, page.encode(errors="backslashreplace"))  # a path in a command may be invalid Unicode
    return path


def _check(items: Sequence[Item]) -> None:
    names = [item.name for item in items]
    for item in items:
        if not _NAME.fullmatch(item.name):
            raise ValueError(
                f"a table or figure must have a name of a-z, 0-9, - and _ that begins with a letter; got "
                f"{item.name!r}, which cannot name its files"
            )
        if names.count(item.name) > 1:
            raise ValueError(f"two tables or figures are named {item.name}: give each its own name")
        if isinstance(item, Table):
            for number, row in enumerate(item.rows, 1):
                if len(row) != len(item.columns):
                    raise ValueError(
                        f"row {number} of {item.name} must have a cell for each of its {len(item.columns)} "
                        f"columns; got {len(row)}: {row}"
                    )


def _titled(tag: str, name: str, title: str, parts: Iterable[str], attributes: str = "") -> str:
    """Return an element with a heading, which also labels it."""
    heading = f'<h2 id="section.{name}">{escape(title)}</h2>'
    return "\n".join([f'<{tag} aria-labelledby="section.{name}"{attributes}>', heading, *parts, f"</{tag}>"])


def _summary(summary: Summary, items: Sequence[Item]) -> str:
    facts = (f"<div><dt>{escape(name)}</dt><dd>{_prose(value)}</dd></div>" for name, value in summary.facts)
    parts = ["<dl>", *facts, "</dl>"]
    # "Table I" of the title "Table I. Test error of ..."
    names = {item.name: item.title.partition(". ")[0] for item in items}
    if summary.findings:
        entries = (
            f'<li>{_prose(text)} <a href="#{name}">{escape(names[name])}</a></li>'
            for text, name in summary.findings
        )
        parts += ["<ol>", *entries, "</ol>"]
    return _titled("section", "summary", "Summary", parts, ' class="summary"')


def _contents(sections: Sequence[Section], facts: Sequence[tuple[str, str]]) -> str:
    lines = []
    for number, section in enumerate(sections, 1):
        items = "".join(
            f'\n<li><a href="#{item.name}">{escape(item.title)}</a></li>' for item in section.items
        )
        inner = f"\n<ul>{items}\n</ul>\n" if items else ""
        lines.append(f'<li><a href="#section.{number}">{escape(section.title)}</a>{inner}</li>')
    if facts:
        lines.append('<li><a href="#section.facts">How this report was made</a></li>')
    return _titled("nav", "contents", "Contents", ["<ol>", *lines, "</ol>"])


def _section(number: int, section: Section, shown: dict[str, str]) -> str:
    text = (f"<p>{_prose(paragraph)}</p>" for paragraph in section.text)
    return _titled(
        "section", f"{number}", section.title, [*text, *(shown[item.name] for item in section.items)]
    )


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    rows = (f'<tr><th scope="row">{escape(name)}</th><td>{_prose(value)}</td></tr>' for name, value in facts)
    parts = ['<table class="facts">', "<tbody>", *rows, "</tbody>", "</table>"]
    return _titled("section", "facts", "How this report was made", parts) if facts else ""


def _write_item(item: Item, folder: Path, warn: Callable[[str], None]) -> str:
    """Write the files of a table or figure and return its HTML."""
    caption = f"{item.name}.caption"
    if isinstance(item, Table):
        runs.replace(folder / f"{item.name}.csv", _csv(item).encode())
        return _item(item, caption, _table(item), "csv")
    drawn = rendered(item.draw, item.size, ("png", "svg"), item.name, warn, item.title)
    for suffix, content in drawn.items():
        runs.replace(folder / f"{item.name}.{suffix}", content)
    heading = f'<figcaption id="{caption}">{escape(item.title)}</figcaption>\n'
    inner = _inline(drawn["svg"].decode(), item) if drawn else f"<p>{escape(item.alt)}</p>"
    return _item(item, caption, inner, *drawn, heading=heading)


def _item(item: Item, caption: str, inner: str, *suffixes: str, heading: str = "") -> str:
    # the box scrolls, so a keyboard must be able to focus it
    links = ", ".join(f'<a href="{item.name}.{suffix}">{suffix.upper()}</a>' for suffix in suffixes)
    notes = "".join(f"<p>{_prose(note)}</p>\n" for note in item.notes)
    return (
        f'<figure id="{item.name}">\n{heading}'
        f'<div class="scroll" role="group" aria-labelledby="{caption}" tabindex="0">\n{inner}\n</div>\n'
        f'<div class="notes">\n{notes}<p class="files">{links or "not drawn"}</p>\n</div>\n</figure>'
    )


def _prose(text: str) -> str:
    """Return text as HTML, in which only `code` and links are markup."""
    return _MARKUP.sub(_marked, escape(text))


def _marked(match: re.Match[str]) -> str:
    if match["code"]:
        return f"<code>{match['code']}</code>"
    return f'<a href="{match["link"]}">{match["text"]}</a>'


def _csv(table: Table) -> str:
    """Return a table as CSV (RFC 4180)."""
    text = StringIO()
    csv.writer(text).writerows([[column.head for column in table.columns], *table.rows])
    return text.getvalue()


def _table(table: Table) -> str:
    classes = [
        ' class="number"'
        if k and (column.format != TEXT or any(not isinstance(row[k], str | None) for row in table.rows))
        else ""
        for k, column in enumerate(table.columns)
    ]
    heads = (
        f'<th scope="col"{aligned}>{escape(column.head)}</th>'
        for column, aligned in zip(table.columns, classes, strict=True)
    )
    caption = f'<caption><span id="{table.name}.caption">{escape(table.title)}</span></caption>'
    lines = ["<table>", caption, "<thead>", "<tr>", *heads, "</tr>", "</thead>", "<tbody>"]
    for row in table.rows:
        first, *others = (_shown(cell, column) for cell, column in zip(row, table.columns, strict=True))
        cells = (f"<td{aligned}>{cell}</td>" for cell, aligned in zip(others, classes[1:], strict=True))
        lines.append(f'<tr><th scope="row">{first}</th>{"".join(cells)}</tr>')
    return "\n".join([*lines, "</tbody>", "</table>"])


def _shown(cell: Cell, column: Column) -> str:
    if cell is None:
        return ""
    return escape(cell if isinstance(cell, str) else column.format.format(cell))


def _inline(svg: str, plot: Plot) -> str:
    """Return an SVG to be embedded in the page, with the page's text colour and with ids unique in it."""
    root = ET.fromstring(svg)  # noqa: S314 - matplotlib wrote it a moment ago
    for parent in root.findall(".//*[{*}style]"):
        parent.clear()  # its style sheet would apply to the whole page
    for metadata in root.findall("{*}metadata"):
        root.remove(metadata)
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = {
            _local(key): _prefixed(_local(key), value, plot.name) for key, value in element.attrib.items()
        }
    box = root.attrib["viewBox"]
    root.attrib = {
        "viewBox": box,
        "role": "img",
        "aria-labelledby": f"{plot.name}.alt",
        "style": f"--points: {box.split()[2]}",
    }
    alt = ET.Element("desc", id=f"{plot.name}.alt")
    alt.text = plot.alt
    root.insert(0, alt)
    return ET.tostring(root, encoding="unicode")


def _prefixed(key: str, value: str, name: str) -> str:
    """Return the value of an attribute with the ids in it prefixed by a name, and INK as the text colour."""
    if key == "id":
        return f"{name}.{value}"
    if key == "href" and value.startswith("#"):
        return f"#{name}.{value[1:]}"
    return value.replace("url(#", f"url(#{name}.").replace(INK, "currentColor")


def _local(name: str) -> str:
    """Return a name of XML without its namespace."""
    return name.rpartition("}")[2]
