"""The figure of a run: it shows the metrics, on axes that a person can read."""

import functools

import pytest

from lpfamily.report import drawing, plots


def epochs(count, **errors):
    """Return metrics whose errors begin at those that are given, and fall by a tenth with each epoch."""
    return [
        {"epoch": k, "stage": 1, "loss": 3 * 0.9**k} | {name: e * 0.9**k for name, e in errors.items()}
        for k in range(1, count + 1)
    ]


LOOKS = {"monitor_clean": 0.3, "monitor_one_step": 0.5, "monitor_multi_step": 0.7}


CURVES = {
    "two epochs": epochs(2, error=0.9, validation_error=0.4, **LOOKS),
    "one": epochs(1, error=0.9),
    "a hundred": epochs(100, error=0.9, validation_error=0.4, **LOOKS),
    "errors of nothing": epochs(60, error=0.9, validation_error=0.0, **LOOKS),
    "a second stage": [
        *epochs(40, error=0.9, validation_error=0.4, **LOOKS),
        *({**line, "epoch": 41, "stage": 2, "held_out_loss": 0.2} for line in epochs(1, error=0.1, **LOOKS)),
    ],
    "nothing learnt": [{"epoch": k, "stage": 1, "loss": 2.302, "error": 0.9} for k in range(1, 9)],
    "a loss that grows": [{"epoch": k, "stage": 1, "loss": 10.0**k, "error": 0.9} for k in range(1, 30)],
}


def ticks(axis):
    """Return the labels of the ticks that lie within the limits of an axis."""
    low, high = axis.get_view_interval()
    shown = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
    assert not any(text.get_text() for text in axis.get_minorticklabels())
    return [text.get_text() for at, text in shown if low <= at <= high]


@pytest.mark.parametrize("metrics", CURVES.values(), ids=CURVES)
def test_curves_show_the_metrics_on_axes_that_a_person_can_read(metrics):
    with drawing.drawn(
        functools.partial(plots.training_curves, metrics=metrics, monitor_steps=5), plots.TRAINING_SIZE
    ) as figure:
        drawing.entitle(figure, "A title")
        figure.draw_without_rendering()
        errors, loss = figure.axes
        for axes, unit, names in (
            (errors, 100, ("validation_error", "monitor_one_step", "monitor_multi_step", "error")),
            (loss, 1, ("held_out_loss", "loss")),
        ):
            shown = [line for line in axes.get_lines() if not line.get_label().startswith("second stage")]
            drawn = {}
            for line in shown:  # one for each stage
                drawn[line.get_label()] = drawn.get(line.get_label(), {}) | dict(
                    zip(*line.get_data(), strict=True)
                )
            there = [name for name in names if any(name in each for each in metrics)]
            for name, points in zip(there, drawn.values(), strict=True):
                also = name.replace("validation_error", "monitor_clean")  # where all examples are trained on
                values = {each["epoch"]: each.get(name, each.get(also)) for each in metrics}
                assert points == {epoch: unit * value for epoch, value in values.items() if value is not None}
            assert all(text.isdecimal() for text in ticks(axes.xaxis))
            assert len(ticks(axes.xaxis)) >= min(2, len(metrics))
            assert len([float(text) for text in ticks(axes.yaxis)]) >= 3
            low, high = axes.get_ylim()
            assert min(y for line in shown for y in line.get_ydata()) >= low
            assert max(y for line in shown for y in line.get_ydata()) < high
        (legend,) = figure.legends
        labels = [text.get_text() for text in legend.get_texts()]
        assert set(labels) == {line.get_label() for axes in figure.axes for line in axes.get_lines()}
        box, title = (each.get_window_extent() for each in (legend, figure._suptitle))
        inside = figure.bbox.padded(1)
        assert all(inside.contains(*corner) for each in (box, title) for corner in each.corners())
        for axes in figure.axes:
            around = axes.get_tightbbox()
            assert not around.overlaps(box)
            assert not around.overlaps(title)
