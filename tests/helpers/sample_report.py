"""A made-up report with every kind of thing that a page holds."""

import math

import numpy as np

from lpfamily.report.contents import COLOURS, INK, Column, Plot, Table
from lpfamily.report.page import Section, Summary

TITLE = "The Lp family <on> made-up data & what it says"

ERRORS = Table(
    "errors",
    "Test errors of a network that is trained with each member of the family",
    (
        Column("training"),
        Column("p"),
        Column("sigma", "{:g}"),
        Column("error", "{:.2%}"),
        Column("standard error", "{:.2%}"),
        Column("paper", "{:.2%}"),
        Column("remark"),
    ),
    (
        ("clean", None, None, 0.0094000000000001, 0.0004, 0.0094, 'as in "maxout", or so'),
        ("steepest step", 1, 2.0, 1 / 113, 0.0003, 0.0084, "<b>not bold</b>"),
        ("steepest step", 2, 1.0, 0.0078, 0.0003, 0.0078, ""),
        ("steepest step", math.inf, 0.1, 0.0084, 0.0002, None, "two\nlines, a comma"),
    ),
    ("3 seeds of 60 epochs; the paper has one run and does not say how long.", "`sigma` is of an example."),
)

DISTANCES = Table(
    "distances",
    "Distance to the boundary",
    (Column("weight decay"), Column("mean", "{:.3f}"), Column("deviation", "{:.3f}")),
    ((1e-5, 0.2744, 0.1511), (5e-5, 0.4722, 0.2531), (5e-3, 1.2718, 0.6654)),
)

NOISE = Table(
    "noise",
    "Errors under Gaussian noise",
    (Column("noise"), Column("plain", "{:.1%}"), Column("ours", "{:.1%}"), Column("change", "{:+.1%}")),
    (("none", 0.0131, 0.0123, -0.0008), ("0.1", 0.12, 0.0916, -0.0284), ("0.3", 0.4007, 0.1133, -0.2874)),
    ("Ten draws, not clipped.",),
)

TIMES = Table(
    "times",
    "Seconds an epoch",
    (
        Column("library"),
        Column("plain", "{:.1f}"),
        Column("regularized", "{:.1f}"),
        Column("ratio", "{:.2f}"),
    ),
    (("numpy", 21.4, 35.2, 35.2 / 21.4), ("torch", 9.1, 15.0, 15.0 / 9.1), ("jax", 8.8, 14.1, 14.1 / 8.8)),
)


PREDICTED = Table(
    "predicted",
    "Table IX. Error that noise adds, measured and predicted",
    (
        Column("model"),
        *(
            Column(head, "{:.3%}")
            for head in (
                *("actual, paper", "actual", "standard error", "right to wrong", "wrong to right"),
                *(
                    "predicted, paper",
                    "predicted, through zero",
                    "predicted, one-sided",
                    "predicted, two-sided",
                ),
            )
        ),
    ),
    tuple(
        (f"lambda = 1e-4, {name}", *(0.00123 * k for k in range(9)))
        for name in ("imitated, training", "converged, training", "converged, test")
    ),
)


def lines(figure):
    axes = figure.subplots()
    epochs = np.arange(1, 101)
    for colour, p, last in zip(COLOURS, ("1", "2", "inf"), (0.9, 0.78, 0.84), strict=False):
        errors = last + 6 * np.exp(-epochs / 9) + 0.04 * np.sin(epochs * (1 + last))
        axes.plot(epochs, errors, color=colour, label=f"p = {p}")
    axes.set(xlabel="epoch", ylabel="error on held-out examples (%)", yscale="log", yticks=[1, 2, 5])
    axes.set_yticks([], minor=True)
    axes.set_yticklabels(["1", "2", "5"])
    axes.grid(color=INK, alpha=0.12)
    axes.legend()


def histogram(figure):
    rng = np.random.default_rng(5)
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, colour, scale in (left, COLOURS[0], 0.28), (right, COLOURS[1], 0.47):
        axes.hist(rng.gamma(3.3, scale / 3.3, 4000), bins=40, color=colour)
        axes.axvline(scale, color=INK, linestyle="--", linewidth=1)
        axes.set(xlabel=r"distance along the gradient, $\sigma_p$", title=f"mean {scale}")
    left.set_ylabel("examples")


def grid(figure):
    y, x = np.mgrid[-1:1:28j, -1:1:28j]
    for column, axes in enumerate(figure.subplots(2, 6).T):
        ring = np.exp(-(((np.hypot(x, y) - 0.2 - 0.1 * column) / 0.15) ** 2))
        for axis, image in zip(axes, (ring, ring + 0.3 * np.sign(np.sin(9 * x * y))), strict=True):
            axis.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="none")
            axis.axis("off")
        axes[0].set_title(f"p = {1 + column / 5:g}", fontsize=9)


def bars(figure):
    axes = figure.subplots()
    for place, (plain, ours) in enumerate(((1.3, 1.2), (12.0, 9.2), (40.1, 11.3))):
        axes.bar(place - 0.2, plain, 0.38, color=COLOURS[0], label="plain" if not place else None)
        axes.bar(place + 0.2, ours, 0.38, color=COLOURS[1], label="regularized" if not place else None)
        axes.text(place - 0.2, plain, f"{plain} %", ha="center", va="bottom", fontsize=8, color=INK)
        axes.text(place + 0.2, ours, f"{ours} %", ha="center", va="bottom", fontsize=8, color=INK)
    axes.set(xticks=range(3), xticklabels=["none", "0.1", "0.3"], xlabel="noise", ylabel="error (%)")
    axes.legend()


LINES = Plot(
    "lines",
    "Errors in training & after",
    'Three falling curves; the one for p = 2 ends lowest, at 0.78 %, "as it should".',
    lines,
    notes=("One seed.",),
)
HISTOGRAM = Plot("histogram", "How far examples are", "Two skewed histograms of means 0.28, 0.47.", histogram)
GRID = Plot(
    "grid",
    "Rings and their perturbations",
    "Six blurred rings, and below each the same ring with a pattern of squares over it.",
    grid,
    size=(7.0, 2.4),
)
BARS = Plot("bars", "What noise does", "Bars: at 0.3, 40.1 % without and 11.3 % with.", bars, size=(4.5, 3.0))

SECTIONS = (
    Section(
        "What was trained",
        (
            "A network of two layers is trained on perturbed examples, as the paper does it (eq. 3). Each "
            "row of the table is the mean of 3 seeds. The paper's own number stands in the column beside "
            "it, and is of one run.",
            "The step is `lpfamily.epsilon(grad, p, sigma)`. It is explained in "
            "[the paper](https://arxiv.org/abs/1511.06385). Neither <script>alert(1)</script> nor &amp; is "
            "markup here.",
        ),
        (ERRORS, LINES),
    ),
    Section(
        "What the boundary looks like",
        ("Distances are along the gradient, so they are upper bounds of the distance to the boundary.",),
        (DISTANCES, HISTOGRAM, GRID),
    ),
    Section(
        "What noise does", ("The errors of a plain softmax grow fourfold.",), (NOISE, BARS, TIMES, PREDICTED)
    ),
)

SUMMARY = Summary(
    (("date", "2026-11-29"), ("data", "made up & <small>"), ("budget", "quick: `--epochs 15`")),
    (
        ("The error is 0.78%, and 0.94% without <perturbations>.", "errors"),
        ("Noise adds 0.12%.", "predicted"),
    ),
)

FACTS = (
    ("Command", "`python -m lpfamily.reproduce table6 --budget quick --seeds 3 --out runs/report`"),
    ("Seeds", "0, 1, 2"),
    ("Versions", "Python 3.11.7, NumPy 2.4.6, torch 2.13.0"),
    ("Budget", "20 epochs instead of the paper's 300"),
    ("Time", "12 minutes on 2 cores"),
)
