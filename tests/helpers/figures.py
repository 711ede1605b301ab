"""A figure of the report, drawn as its page shows it."""

import xml.etree.ElementTree as ET

from matplotlib.collections import Collection
from matplotlib.colors import to_hex
from matplotlib.image import imread
from matplotlib.text import Text

from lpfamily.report import page
from lpfamily.report.contents import COLOURS, INK
from lpfamily.report.drawing import drawn


def readable(plot, folder):
    """Return the drawn figure.

    Raise unless its PNG has a white background, its SVG none, and all but images has the page's colours.
    """
    page.write(folder, "", (page.Section("", (), (plot,)),))
    assert imread(folder / f"{plot.name}.png")[0, 0].tolist() == [1, 1, 1, 1]
    svg = ET.parse(folder / f"{plot.name}.svg")  # noqa: S314 - our own
    groups = [each for each in svg.findall(".//{*}g") if each.get("id", "").startswith(("figure_", "axes_"))]
    with drawn(plot.draw, plot.size) as figure:
        figure.draw_without_rendering()
    assert len(groups) == 1 + len(figure.axes)
    assert {each.find("{*}g/{*}path").get("style") for each in groups} == {"fill: none"}
    texts = [text.get_color() for text in figure.findobj(Text) if text.get_text()]
    edges = [colour for each in figure.findobj(Collection) for colour in each.get_edgecolor()]
    spines = [
        spine.get_edgecolor() for axes in figure.axes for spine in axes.spines.values() if spine.get_visible()
    ]
    assert texts
    assert {to_hex(colour) for colour in (*texts, *edges, *spines)} <= {INK, *COLOURS}
    return figure
