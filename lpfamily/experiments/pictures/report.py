"""Report section III: Figures 1 to 4 and the tables and figures that belong to them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from lpfamily.experiments.definitions import Chapter, Experiment, Json, Setting
from lpfamily.experiments.networks import NETWORKS, network_notes
from lpfamily.experiments.pictures import measure
from lpfamily.report.contents import COLOURS, INK, PERCENT, TEXT, Cell, Item, Plot, Table, columns
from lpfamily.training.data.mnist import MNIST

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CHANCE = 1 - 1 / MNIST.classes
FUZZY, CLEAR = "becomes fuzzy", "stays clear"
IN_PAPER = (
    *(CLEAR, CLEAR, "becomes a 7", "becomes an 8", FUZZY),
    *(FUZZY, "becomes a 5", FUZZY, FUZZY, CLEAR),
)
SHORT = {"sigmoid-p2": "p = 2", "sigmoid-plain": "plain"}


def plain_axes(figure: Figure, rows: int, columns: int = MNIST.classes) -> Sequence[Sequence[Axes]]:
    """Return rows of axes without ticks, with thin frames, close to one another."""
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    grid: Sequence[Sequence[Axes]] = figure.subplots(rows, columns, squeeze=False).tolist()
    for axes in figure.axes:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(visible=True, linewidth=0.4)
    return grid


def _network_rows(
    figure: Figure, result: Json, names: Sequence[str] = measure.PICTURED
) -> Iterator[tuple[Sequence[Axes], Json]]:
    """Yield for each network a row of axes, one per digit, and its measurements."""
    for row, name in zip(plain_axes(figure, len(names)), names, strict=True):
        row[0].set_ylabel(SHORT[name], fontsize=8)
        yield row, result["digits"][name]


def _grey(axes: Axes, values: ArrayLike, low: float = 0.0) -> None:
    axes.imshow(measure.square(values), cmap="gray", vmin=low, vmax=1, interpolation="nearest")


def _signed(axes: Axes, values: ArrayLike, most: float, outline: ArrayLike) -> None:
    """Draw a perturbation: blue removes ink, red adds it, 0 is transparent; the digit is an outline."""
    from matplotlib.colors import to_rgba

    image = measure.square(values) / (most or 1.0)
    less, more = (np.array(to_rgba(colour)) for colour in COLOURS[:2])
    pixels = np.where((image < 0)[..., None], less, more)
    pixels[..., 3] = np.minimum(1, np.abs(image)) ** 0.7
    axes.imshow(pixels, interpolation="nearest")
    axes.contour(measure.square(outline), levels=[0.5], colors=INK, linewidths=0.5)


def _write_label(axes: Axes, label: int, probability: float, right: int) -> None:
    colour, weight = (INK, "normal") if label == right else (COLOURS[1], "bold")
    axes.set_xlabel(f"{label}: {probability:.0%}", fontsize=7.5, color=colour, weight=weight, labelpad=2)


_PERTURBED = (
    "The paper shows one sigmoid network and does not say whether it was trained with gradient perturbation. "
    "Here the network of the row p = 2 was, that of the row plain was not. Each image is perturbed for the "
    "network of its row.",
    "Pixels are shown from black, 0, to white, 1; values outside are clipped for the picture.",
)
_INK = "Red adds ink and blue removes it; "


def _figure(name: str, title: str, sigma: float, names: Sequence[str], *remarks: str) -> Experiment:
    """Return the figure of x + sigma eps, with one row per network."""

    def report(setting: Setting, result: Json) -> Iterator[Item]:
        def draw(figure: Figure) -> None:
            for row, each in _network_rows(figure, result, names):
                images = np.array(each["x"]) + sigma * np.array(each["eps"])
                predicted = each["predicted"][f"{sigma:g}"]
                shown = zip(
                    row, images, predicted["label"], predicted["probability"], each["labels"], strict=True
                )
                for axes, image, label, probability, right in shown:
                    _grey(axes, image)
                    _write_label(axes, label, probability, right)

        counts = []
        for network in names:
            each = result["digits"][network]
            right = np.sum(np.equal(each["predicted"][f"{sigma:g}"]["label"], each["labels"]))
            counts.append(f"{NETWORKS[network].label} predicts {right} of 10 right")
        alt = f"The digits 0 to 9 and the predictions for them: {', '.join(counts)}."
        notes = (
            "The digits are the first MNIST test example of each class; the paper picked its digits at "
            "random.",
            "Below each image: the network's prediction and its probability, coloured and bold if it is "
            "wrong.",
            *remarks,
            *network_notes(setting, {network: result["runs"][network] for network in names}),
        )
        yield Plot(name, title, alt, draw, (7.0, 0.1 + 0.9 * len(names)), notes)

    return Experiment(name, (measure.DIGITS,), report)


def _figure3(setting: Setting, result: Json) -> Iterator[Item]:
    def draw(figure: Figure) -> None:
        for row, each in _network_rows(figure, result):
            for axes, eps in zip(row, each["eps"], strict=True):
                _grey(axes, 10 * np.array(eps), -1)

    notes = (
        _PERTURBED[0],
        "One column per digit. After magnification, mid-grey is 0, white +1 and black -1.",
        *network_notes(setting, result["runs"]),
    )
    smooth = ", ".join(
        f"{measure.neighbours_agree(result['digits'][name]['eps']):.2f} for {NETWORKS[name].label}"
        for name in measure.PICTURED
    )
    alt = (
        f"The perturbations of ten digits. The correlation of neighbouring pixels, 1 for strokes and "
        f"0 for noise, is {smooth}."
    )
    title = "Figure 3. The perturbations of the digits of Figure 2 (p = 2, sigma 1), magnified ten times"
    yield Plot("figure3", title, alt, draw, (7.0, 1.5), notes)


def _figure4(setting: Setting, result: Json) -> Iterator[Item]:
    yield from FIGURE_4.report(setting, result)
    yield _digit_table(result)
    yield _class_table(result)


def _digit_table(result: Json) -> Table:
    heads = (f"{SHORT[name]}: {what}" for name in measure.PICTURED for what in ("runner-up", "becomes"))
    shown = columns((TEXT, "digit", "in the paper", *heads))
    digits = [result["digits"][name] for name in measure.PICTURED]
    pairs = [zip(each["runner_up"], each["predicted"]["10"]["label"], strict=True) for each in digits]
    rows = tuple(
        (str(k), in_paper, *(str(label) for pair in labels for label in pair))
        for k, (in_paper, *labels) in enumerate(zip(IN_PAPER, *pairs, strict=True))
    )
    notes = (
        "Columns: what the paper says of the digit, and for two sigmoid networks, trained with p = 2 and "
        "plain, the runner-up, which is the most probable wrong class of the clean image, and the "
        "prediction at sigma 10 (becomes).",
        "The paper's digits are other images, and it says what a reader sees, not what a network predicts.",
    )
    return Table(
        "figure4-digits",
        "Figure 4 in words. What sigmoid networks predict for its digits after a step of p = 2, sigma 10",
        shown,
        rows,
        notes,
    )


def _class_table(result: Json) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name in measure.PICTURED:
        for sigma, each in result["led_to"][name].items():
            right, led, other = each["right"], each["runner_up"], each["other"]
            changed = led + other
            of_changed = led / changed if changed else None
            rows.append((NETWORKS[name].label, sigma, right, led, other, of_changed))
    shares = (PERCENT, "still right", "runner-up", "other class"), ("{:.1%}", "runner-up among the wrong")
    heads = columns((TEXT, "network", "sigma"), *shares)
    notes = (
        f"Columns: the fraction of all {result['examples']:,} test examples that a sigmoid network still "
        "predicts right after the step (eq. 12), predicts as the runner-up, which is the most probable wrong "
        "class before the step, or as another class; the last column is the share of the runner-up among "
        "those not right. The paper argues that a perturbation injects the class with which the network "
        "confuses an image (III-B), and measures nothing.",
    )
    title = (
        "Section III-B. What sigmoid networks predict for MNIST test digits after a step of p = 2, by sigma"
    )
    return Table("figure4-classes", title, heads, tuple(rows), notes)


def _mean_radius(radii: Sequence[float | None]) -> float | None:
    known = [each for each in radii if each is not None]
    return float(np.mean(known)) if known else None


def _exponents(setting: Setting, result: Json) -> Iterator[Item]:
    means = {p: _mean_radius(each["sigma"]) for p, each in result["steps"].items()}

    def draw(figure: Figure) -> None:
        for row, (p, each) in zip(
            plain_axes(figure, len(measure.EXPONENTS)), result["steps"].items(), strict=True
        ):
            for axes, x, eps, sigma in zip(row, result["x"], each["eps"], each["sigma"], strict=True):
                _signed(axes, eps, float(np.max(np.abs(eps))), x)
                if sigma is None:
                    axes.set_xlabel("none", fontsize=7)
            radius = "" if means[p] is None else f"mean $\\sigma$ {means[p]:.2g}"
            row[0].set_ylabel(f"p = {p}\n{radius}", fontsize=8)

    listed = ", ".join(f"{mean:.2g} at p = {p}" for p, mean in means.items() if mean is not None)
    notes = (
        "One row per p, one column per digit, the first MNIST test example of each class. Every step raises "
        "the loss of its image as much as the step of p = 2, sigma 1; its radius is found by bisection on "
        "the loss itself. The label of a row gives the mean radius.",
        _INK + "each image has its own scale. The line is the outline of the digit.",
        "The paper shows p = 2 only.",
        *network_notes(setting, result["runs"]),
    )
    alt = (
        "Perturbations of ten digits for five p, from a single pixel at p = 1 to equal changes of all "
        f"pixels at p = inf. Mean sigma: {listed}."
    )
    title = (
        "Perturbations of ten digits that raise the loss of a sigmoid network equally, by p: red adds ink, "
        "blue removes it"
    )
    yield Plot("figure-p", title, alt, draw, (7.0, 4.0), notes)


def _draw_classes(result: Json, figure: Figure) -> None:
    grid = plain_axes(figure, len(result["digits"]), measure.SHOWN + 3)
    for row, each in zip(grid, result["digits"], strict=True):
        most = max(float(np.max(np.abs(step))) for step in (each["eps"], *each["parts"]))
        _grey(row[0], each["x"])
        _signed(row[1], each["eps"], most, each["x"])
        missing = -each["coefficients"][0]
        row[0].set_xlabel(f"$1 - y_{each['label']}$ = {missing:.2g}", fontsize=8)
        row[1].set_xlabel("all classes", fontsize=8)
        whats = zip(each["classes"], each["coefficients"], each["parts"], each["shares"], strict=True)
        for k, (axes, (label, coefficient, part, share)) in enumerate(zip(row[2:], whats, strict=True)):
            _signed(axes, part, most, each["x"])
            name = "the others" if label is None else f"class {label}"
            caption = f"{name}: {round(share, 2) + 0:.0%}\n{coefficient / missing:+.2f}"
            axes.set_xlabel(caption, fontsize=8)
            sign = "=" if k == 0 else "+"
            axes.annotate(sign, (-0.13, 0.5), xycoords="axes fraction", ha="center", va="center")


def _classes(setting: Setting, result: Json) -> Iterator[Item]:
    listed = "; ".join(
        f"for the {each['label']}, its own class contributes {each['shares'][0]:.0%} and class "
        f"{each['classes'][1]} contributes {each['shares'][1]:.0%}"
        for each in result["digits"]
    )
    notes = (
        "One row per digit: the MNIST test image, with 1 - y, the probability that the sigmoid network "
        "gives to the wrong classes; its perturbation (p = 2, sigma 1); and the contributions of the "
        "classes that sum to it. Below a contribution: its share of the step's length, and (y - t) of its "
        f"class in units of 1 - y. {_INK}the line is the outline of the digit.",
        "The gradient determines only differences between the rows of J; their mean over the classes is set "
        "to 0.",
        "The paper calls y - t negative on a right prediction. Only the component of the true class is "
        "negative, and the components sum to 0.",
        *network_notes(setting, result["runs"]),
    )
    yield Plot(
        "figure-classes",
        "What each class contributes to a sigmoid network's perturbation of a digit (eq. 25, p = 2, sigma 1)",
        f"Digits, their perturbations, and the contributions of classes that sum to them: {listed}.",
        lambda figure: _draw_classes(result, figure),
        (7.0, 4.3),
        notes,
    )


def _averages(result: Json) -> dict[str, float]:
    """Return mean errors over the networks that have learned, by kind of input.

    `foreign` is under perturbations that were made for another network, `own` under those made for the same.
    """
    clean, noise, perturbed = result["clean"], result["noise"], result["perturbed"]
    learned = [name for name in perturbed if clean[name] < CHANCE / 2]
    errors = {
        "clean": [clean[name] for name in learned],
        "noise": [noise[name] for name in learned],
        "foreign": [perturbed[a][b] for a in learned for b in learned if a != b],
        "own": [perturbed[name][name] for name in learned],
    }
    return {name: float(np.mean(each)) if each else math.nan for name, each in errors.items()}


def _transfer_finding(_: Setting, result: Json) -> str:
    means = _averages(result)
    return (
        f"On average over networks the test error is {means['clean']:.2%} clean, {means['noise']:.2%} under "
        f"noise, {means['foreign']:.2%} under perturbations of the same norm that were made for another "
        f"network, and {means['own']:.2%} under perturbations made for the network itself."
    )


def _transfer(setting: Setting, result: Json) -> Iterator[Item]:
    clean, noise, perturbed = result["clean"], result["noise"], result["perturbed"]
    rows = (
        ("none (clean)", *clean.values()),
        ("noise of the same norm", *noise.values()),
        *((NETWORKS[source].label, *each.values()) for source, each in perturbed.items()),
    )
    learned = [name for name in perturbed if clean[name] < CHANCE / 2]
    means = _averages(result)
    labels = {name: NETWORKS[name].label for name in perturbed}
    notes = (
        f"On average over networks the test error is {means['clean']:.2%} clean, {means['noise']:.2%} under "
        f"noise of the same norm, {means['foreign']:.2%} under another network's perturbations, and "
        f"{means['own']:.2%} under a network's own.",
        *(
            f"{label} has learned too little at this budget and is left out of the averages."
            for name, label in labels.items()
            if name not in learned
        ),
        f"All {result['examples']:,} test examples; p = 2, sigma 1 (eq. 12). Each row names the network that "
        "the perturbations were made for, each column the network that is tested on them.",
        "The paper says that perturbations transfer (III-C) and gives no numbers.",
        *network_notes(setting, result["runs"]),
    )
    heads = columns((TEXT, "perturbation of"), (PERCENT, *labels.values()))
    title = "Section III-C. Test error on MNIST under perturbations made for another network (p = 2, sigma 1)"
    yield Table("table-transfer", title, heads, rows, notes)


FIGURE_4 = _figure(
    "figure4",
    "Figure 4. MNIST digits perturbed at p = 2, sigma 10, and what sigmoid networks predict",
    10.0,
    measure.PICTURED,
    *_PERTURBED,
)
CHAPTER = Chapter(
    "What a perturbation looks like (section III)",
    "The paper shows digits and their perturbations for a sigmoid network, and uses them to explain why "
    "perturbations transfer from one network to another.",
    (
        _figure(
            "figure1",
            "Figure 1. Clean MNIST digits, and what a sigmoid network predicts",
            0.0,
            measure.PICTURED[:1],
        ),
        _figure(
            "figure2",
            "Figure 2. MNIST digits perturbed at p = 2, sigma 1, and what sigmoid networks predict",
            1.0,
            measure.PICTURED,
            *_PERTURBED,
        ),
        Experiment("figure3", (measure.DIGITS,), _figure3),
        Experiment("figure4", (measure.DIGITS,), _figure4),
        Experiment("figure-p", (measure.EXPONENT_STEPS,), _exponents),
        Experiment("figure-classes", (measure.CLASS_PARTS,), _classes),
        Experiment("table-transfer", (measure.TRANSFERRED,), _transfer, finding=_transfer_finding),
    ),
)
