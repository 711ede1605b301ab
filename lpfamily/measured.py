"""The measured robustness of a classifier: errors by ball, smallest radii, and findings."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PARTS = ("clean", "one step", "log-odds", "margins", "restarts", "noise")
"""What may have fooled an example, in the order in which it is tried."""
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
GAP = 0.2
"""A finding needs an error of one step that is this much below that of many steps, or of all attacks."""
SURE = 3.0
"""A difference of more than this many standard errors is not an accident."""


class Error(NamedTuple):
    """A fraction of examples, and its standard error."""

    value: float
    standard_error: float

    @classmethod
    def of(cls, value: float, n: int) -> Error:
        """Return a fraction of n examples with its standard error."""
        return cls(value, math.sqrt(value * (1 - value) / n))

    def __str__(self) -> str:
        return f"{self.value:.2%} +- {self.standard_error:.2%}"


def _error(wrong: Mask) -> Error:
    return Error.of(float(np.mean(wrong)), len(wrong))


def deviation(square: float, mean: float, n: int) -> float:
    """Return the standard error of a mean over n examples, from the mean of their squares and the mean."""
    return math.sqrt(max(square - mean**2, 0.0) / n)


def is_gap(gap: float, n: int) -> bool:
    """Return whether the gap between two errors on n examples is large enough for a finding."""
    # the gap is a mean of ones and zeros: an example that one step fools counts as fooled by many, too
    return gap > GAP and gap > SURE * deviation(gap, gap, n)


def quantiles_of(radii: NDArray[np.floating]) -> dict[float, float]:
    """Return the `QUANTILES` of smallest radii, NaN if there are no radii."""
    if len(radii) == 0:
        return dict.fromkeys(QUANTILES, math.nan)
    values = np.quantile(radii, QUANTILES, method="inverted_cdf")
    return dict(zip(QUANTILES, values.tolist(), strict=True))


def beside_one_another(
    head: str, width: int, names: Sequence[str], rows: Iterable[tuple[str, Sequence[object]]]
) -> str:
    """Return a table as text: a first column of this head and width, then a column for each name."""
    column = max(18, *(len(name) + 2 for name in names))
    return "\n".join(
        first.ljust(width) + "".join(f"{cell!s:>{column}}" for cell in cells)
        for first, cells in [(head, names), *rows]
    )


def _concatenated(batches: Sequence[Any], *names: str) -> dict[str, Any]:
    """Return arrays of several batches by name, joined along the last axis, which indexes examples."""
    return {name: np.concatenate([getattr(batch, name) for batch in batches], axis=-1) for name in names}


def unlearnt(predicted: Ints, labels: Ints, classes: int) -> str:
    """Return a predicate that says why a network has learnt nothing; it is empty if it may have learnt."""
    n, error, counts = len(labels), _error(predicted != labels), np.bincount(predicted, minlength=classes)
    if counts.max() == n > 1 and len(set(labels.tolist())) > 1:
        return f"predicts class {counts.argmax()} for all {n} examples"
    if is_chance(error.value, n, classes):
        return f"is at chance: its error without an attack is {error}"
    return ""


def is_chance(error: float, n: int, classes: int) -> bool:
    """Return whether an error on n examples is that of guessing, within `SURE` standard errors."""
    return error + SURE * max(Error.of(error, n).standard_error, 1 / n) > 1 - 1 / classes


@dataclass(frozen=True, eq=False)
class Ball:
    """The result in the balls of one p; arrays have one entry per example, or one row per radius.

    Attributes
    ----------
    p, sigmas
        The exponent, and the radii above 0, in ascending order.
    smallest
        The norm of the smallest eps known to fool each example, an upper bound of the smallest of all. It is
        0 if the example is misclassified without an attack, inf if no attack has fooled it.
    part
        Which of `PARTS` fooled the example first, in the smallest ball; -1 for none.
    fooled
        Whether the example is misclassified in the ball, of shape (radii, examples).
    one_step
        Whether the example is misclassified after one step, of shape (radii, examples).
    late
        The number of examples that the ascent of the log-odds has fooled in the last quarter of its steps,
        for each radius.
    gradients
        The number of gradients taken, each of one example.
    """

    p: float
    sigmas: tuple[float, ...]
    smallest: Floats
    part: Ints
    fooled: Mask
    one_step: Mask
    late: Ints
    gradients: int

    @classmethod
    def joined(cls, balls: Sequence[Ball]) -> Ball:
        """Return the result for several batches of examples."""
        return replace(
            balls[0],
            **_concatenated(balls, "smallest", "part", "fooled", "one_step"),
            late=np.sum([ball.late for ball in balls], axis=0),
            gradients=sum(ball.gradients for ball in balls),
        )


@dataclass(frozen=True, eq=False)
class Robustness:
    """The error of a classifier in Lp balls, as measured by `lpfamily.robustness`.

    Attributes
    ----------
    labels, predicted
        The right classes, and those predicted without an attack, of shape (examples,).
    classes
        The number of classes.
    no_gradient
        Whether the gradient of the example is zero or not finite, of shape (examples,).
    random
        Whether the logits differed between two forward passes of the same inputs.
    effort, seed
        The arguments of the measurement.
    balls
        The results for each p, a `Ball` with one row per radius.
    """

    labels: Ints
    predicted: Ints
    classes: int
    no_gradient: Mask
    random: bool
    effort: str
    seed: int
    balls: dict[float, Ball]

    @classmethod
    def joined(cls, results: Sequence[Robustness]) -> Robustness:
        """Return the result for the examples of several results, measured in the same balls."""
        return replace(
            results[0],
            **_concatenated(results, "labels", "predicted", "no_gradient"),
            random=any(each.random for each in results),
            balls={p: Ball.joined([each.balls[p] for each in results]) for p in results[0].balls},
        )

    def __len__(self) -> int:
        return len(self.labels)

    def error(self, p: float | None = None, sigma: float = 0.0) -> Error:
        """Return the error in a ball, as a fraction with its standard error; it is a lower bound.

        Parameters
        ----------
        p
            The exponent of a ball that was tested, or None with sigma = 0, the error without an attack.
        sigma
            A radius that was tested, or 0.

        Raises
        ------
        ValueError
            For a ball that was not tested.
        """
        if sigma == 0:
            return _error(self.predicted != self.labels)
        ball = None if p is None else self.balls.get(p)
        if ball is None or sigma not in ball.sigmas:
            known = "; ".join(
                f"p = {each.p:g}: {', '.join(f'{s:g}' for s in each.sigmas)}" for each in self.balls.values()
            )
            raise ValueError(f"the ball of p = {p}, sigma = {sigma} was not tested; tested radii: {known}")
        return _error(ball.fooled[ball.sigmas.index(sigma)])

    def parts(self, p: float) -> dict[str, int]:
        """Return the number of examples that each attack fooled first, by the attack's name.

        "clean" is for examples that are misclassified without an attack.
        """
        return {name: int(np.count_nonzero(self.balls[p].part == k)) for k, name in enumerate(PARTS)}

    def smallest(self, p: float) -> Floats:
        """Return, for each example, the norm of the smallest eps known to fool it, an upper bound.

        It is 0 if the example is misclassified without an attack, inf if no attack has fooled it.
        """
        return self.balls[p].smallest

    def findings(self) -> list[str]:
        """Return reasons to doubt these numbers, one sentence each; empty if there are none."""
        n, findings = len(self), []
        if has_not_learnt := unlearnt(self.predicted, self.labels, self.classes):
            findings.append(f"the network {has_not_learnt}, so its robustness means nothing")
        if count := int(np.count_nonzero(self.no_gradient)):
            findings.append(
                f"masked gradients: {count} of {n} examples have a gradient that is zero or not finite, so "
                "no step changes them; that is no robustness"
            )
        if self.random:
            findings.append(
                "the model is random: two forward passes of the same inputs differ, so attacks aim at a "
                "moving target; take the expectation over passes, or put the model into evaluation mode"
            )
        for ball in self.balls.values():
            findings += self._findings_of(ball)
        return findings

    def _findings_of(self, ball: Ball) -> list[str]:
        n, clean, findings = len(self), self.predicted != self.labels, []
        gaps = [
            _error(all_ & ~one).value for all_, one in zip(ball.fooled, ball.one_step | clean, strict=True)
        ]
        worst = int(np.argmax(gaps))
        where = f"at p = {ball.p:g}, sigma = {ball.sigmas[worst]:.4g}"
        if is_gap(gaps[worst], n):
            one, most = _error(ball.one_step[worst] | clean).value, _error(ball.fooled[worst]).value
            findings.append(
                f"one step is too weak {where}: the error is {one:.2%} after one step and {most:.2%} after "
                "all attacks; in a network that was trained with this step it is catastrophic overfitting"
            )
        gains = [clean.mean() - one.mean() for one in ball.one_step]
        leak = int(np.argmax(gains))
        changed = float(np.mean(clean != ball.one_step[leak]))
        if gains[leak] > SURE * deviation(changed, gains[leak], n):
            findings.append(
                f"label leaking at p = {ball.p:g}, sigma = {ball.sigmas[leak]:.4g}: the error is "
                f"{ball.one_step[leak].mean():.2%} after one step and {clean.mean():.2%} before; the step "
                "gives the label away"
            )
        noise = int(np.count_nonzero(ball.part == PARTS.index("noise")))
        if noise > SURE * math.sqrt(noise):
            findings.append(
                f"masked gradients at p = {ball.p:g}: random points fool {noise} of {n} examples that no "
                "attack by gradients fools; the gradients do not show the way"
            )
        late, sigma = max(zip(ball.late.tolist(), ball.sigmas, strict=True))
        if late > max(SURE * math.sqrt(late), 0.01 * n):
            findings.append(
                f"an attack was still improving when it stopped, at p = {ball.p:g}, sigma = {sigma:.4g}: the "
                f"last quarter of its steps has fooled {late} of {n} examples; give more effort"
            )
        return findings

    def quantiles(self, p: float) -> dict[float, float]:
        """Return quantiles of the smallest sigma over the examples that are correct without an attack.

        They are keyed by their fraction, 0.1 to 0.9. A quantile is inf if no attack has fooled so many
        examples, NaN if no example is correct.
        """
        return quantiles_of(self.balls[p].smallest[self.predicted == self.labels])

    def table(self) -> str:
        """Return errors in percent by p and sigma, smallest radii, and findings, as text."""
        lines = [
            f"robustness ({len(self)} examples, effort {self.effort!r}): errors with standard errors",
            f"  clean {self.error()}",
        ]
        for p, ball in self.balls.items():
            quantiles = self.quantiles(p).items()
            radii = ((q, f"{radius:.4g}" if radius < math.inf else "-") for q, radius in quantiles)
            rows = {
                f"p = {p:g}, sigma": "".join(f"{sigma:>18.4g}" for sigma in ball.sigmas),
                "one step": "".join(f"{_error(wrong)!s:>18}" for wrong in ball.one_step),
                "all attacks": "".join(f"{_error(wrong)!s:>18}" for wrong in ball.fooled),
                "fooled by": "  " + ", ".join(f"{name} {n}" for name, n in self.parts(p).items() if n),
                "smallest sigma": "  " + ", ".join(f"{q:.0%} {radius}" for q, radius in radii),
            }
            lines += ["", *(f"  {name}".ljust(20) + cells for name, cells in rows.items())]
        lines += [
            "",
            "  all attacks: a lower bound of the error in the ball; smallest sigma: an upper bound of the",
            "  radius that changes the prediction, quantiles over the correctly classified examples",
        ]
        return "\n".join([*lines, *(f"warning: {finding}" for finding in self.findings())])

    def compare(self, **others: Robustness) -> str:
        """Return a table of the errors of this result, named "this", beside those of others by name."""
        results = {"this": self} | others
        rows: list[tuple[str, list[object]]] = [("  clean", [each.error() for each in results.values()])]
        balls = dict.fromkeys(
            (p, s) for each in results.values() for p, b in each.balls.items() for s in b.sigmas
        )
        for p, sigma in balls:
            tested = [p in each.balls and sigma in each.balls[p].sigmas for each in results.values()]
            errors: list[object] = [
                each.error(p, sigma) if there else "-"
                for each, there in zip(results.values(), tested, strict=True)
            ]
            rows.append((f"  p = {p:g}, sigma = {sigma:.4g}", errors))
        return beside_one_another("error in the ball, percent", 32, list(results), rows)

    def to_json(self) -> dict[str, Any]:
        """Return the result as values of JSON; infinite radii are None."""
        balls = {}
        for p, ball in self.balls.items():
            errors = [self.error(p, sigma) for sigma in ball.sigmas]
            balls[f"{p:g}"] = {
                "sigma": list(ball.sigmas),
                "error": [each.value for each in errors],
                "standard_error": [each.standard_error for each in errors],
                "one_step": [float(np.mean(wrong)) for wrong in ball.one_step],
                "fooled_first_by": self.parts(p),
                "quantiles": {f"{q:.0%}": s if s < math.inf else None for q, s in self.quantiles(p).items()},
                "gradients": ball.gradients,
                "smallest": [float(s) if s < math.inf else None for s in ball.smallest],
                "part": [PARTS[k] if k >= 0 else None for k in ball.part],
            }
        return {
            "examples": len(self),
            "effort": self.effort,
            "seed": self.seed,
            "clean": self.error()._asdict(),
            "labels": self.labels.tolist(),
            "predicted": self.predicted.tolist(),
            "balls": balls,
            "findings": self.findings(),
        }

    def plot(self) -> Any:
        """Return a matplotlib figure: error against sigma for each p, after one step and all attacks."""
        return _report().figure_of(self.to_json())

    def save(self, folder: str | Path, warn: Callable[[str], None] = warnings.warn) -> None:
        """Write the result into a folder, which is created if it does not exist.

        `robustness.json` has all numbers, also those of each example. `index.html` shows tables, curves and
        findings; beside it are `errors.csv`, `attacks.csv`, `smallest.csv`, `curves.png` and `curves.svg`.
        Files of these names are replaced. If the curves cannot be drawn, `warn` is called with the reason.
        """
        report, folder, content = _report(), Path(folder), self.to_json()
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(content, indent=2, allow_nan=False)
        (folder / "robustness.json").write_text(text + "\n", encoding="utf-8")
        report.save(content, folder, warn)


def _report() -> Any:
    try:
        return import_module("lpfamily.report.robust")
    except ImportError as cause:
        raise ImportError(
            f"{cause}: pip install 'lpfamily[train]' brings what plots and pages need"
        ) from cause
