"""Check that the numbers of a finding in the summary stand in the table or figure that it names."""

import re

from lpfamily.report.contents import Plot

NUMBER = re.compile(r"\d+(?:\.\d+)?%?")


def check(experiment, setting, *results):
    """Return the finding of an experiment; raise unless the first item of its report has all its numbers."""
    item = next(iter(experiment.report(setting, *results)))
    text = [item.title, *item.notes]
    if isinstance(item, Plot):
        text.append(item.alt)
    else:
        text += [column.head for column in item.columns]
        cells = [pair for row in item.rows for pair in zip(row, item.columns, strict=True)]
        text += [
            cell if isinstance(cell, str) else c.format.format(cell) for cell, c in cells if cell is not None
        ]
    finding = experiment.finding(setting, *results)
    missing = set(NUMBER.findall(finding)) - set(NUMBER.findall(" ".join(text)))
    assert not missing, (finding, missing)
    return finding
