"""Report Tables I to V: test errors over seeds, clean and under Gaussian noise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from lpfamily.experiments.definitions import Chapter, Experiment, Measurement, Setting, Verdict
from lpfamily.experiments.errors.measure import CIFAR, CONV, DENSE
from lpfamily.experiments.networks import NETWORKS, Outcome, budget_note, chance_notes, count_test_examples
from lpfamily.report.contents import PERCENT, TEXT, Cell, Item, Table, columns

Runs = Mapping[str, Sequence[Outcome]]
"""The runs of each network, one per seed."""

STDS = ("0", "0.1", "0.3")
SIGNIFICANT = 0.05
"""A difference with a p-value below this counts as significant."""

CLEAN = {
    "sigmoid-p2": 0.0093,
    "relu-plain": 0.0085,
    "maxout-plain": 0.0094,
    "maxout-pinf": 0.0084,
    "maxout-p2": 0.0078,
    "conv-plain": 0.0045,
    "conv-pinf-0.1": 0.0041,
    "conv-p2": 0.0039,
    "cifar-plain-40k": 0.1405,
    "cifar-p2-40k": 0.1326,
    "cifar-plain-50k": 0.1293,
    "cifar-p2-50k": 0.1228,
}
"""The paper's errors in Tables I to III by network, as fractions."""
TABLE_4_DENSE = {"maxout-plain": (0.0094, 0.0114, 0.0242), "maxout-p2": (0.0078, 0.0083, 0.0129)}
TABLE_4_CONV = {"conv-plain": (0.0045, 0.0076, 0.2017), "conv-p2": (0.0039, 0.0044, 0.1436)}
TABLE_5 = {"cifar-plain-50k": (0.1308, 0.1337, 0.1688), "cifar-p2-50k": (0.1228, 0.1281, 0.1680)}
"""The paper's errors under the noise of `STDS`."""


COLUMNS = (
    "Columns: the mean test error over seeds and its standard deviation; the number of seeds; the p-value of "
    "a two-sided t-test, paired by seed, against the same network trained on clean inputs alone "
    "(`--objective plain`); the paper's error; and, with `--budget paper`, whether our error is ahead of it, "
    "level with it or behind, by Student's test at 5 % of whether the paper's run is one more seed of ours."
)


def _clean_table(name: str, title: str, measurement: Measurement, *remarks: str) -> Experiment:
    errors, tests = (PERCENT, "test error", "deviation over seeds"), ("{:.2g}", "p-value against plain")
    heads = columns(
        *((TEXT, "network"), errors, ("{:d}", "seeds"), tests),
        *((PERCENT, "the paper"), (TEXT, "against the paper")),
    )

    def report(setting: Setting, outcomes: Runs) -> Iterator[Item]:
        rows, against = [], verdicts(setting, outcomes) if setting.budget == "paper" else {}
        for network in measurement.networks:
            errors, plain = (_clean(outcomes[each]) for each in (network, NETWORKS[network].plain))
            label = NETWORKS[network].label
            row = label, *mean_and_deviation(errors), len(errors), paired_p_value(errors, plain)
            rows.append((*row, CLEAN.get(network), against.get(label)))
        notes = COLUMNS, *remarks, *_notes(setting, outcomes, measurement.networks)
        yield Table(name, title, heads, tuple(rows), notes)

    def finding(setting: Setting, outcomes: Runs) -> str:
        return _clean_finding(outcomes, measurement.networks[-1], _examples(setting, outcomes))

    def verdicts(setting: Setting, outcomes: Runs) -> dict[str, Verdict]:
        return {
            NETWORKS[each].label: verdict(_clean(outcomes[each]), CLEAN[each], _examples(setting, outcomes))
            for each in measurement.networks
            if each in CLEAN
        }

    return Experiment(name, (measurement,), report, finding=finding, verdicts=verdicts)


def _clean_finding(outcomes: Runs, network: str, examples: int) -> str:
    """Compare the error of a network with that of the same network trained plain."""
    plain = NETWORKS[network].plain
    (ours, first), (other, second) = (
        (mean_and_deviation(_clean(outcomes[name]))[0], CLEAN[name]) for name in (network, plain)
    )
    if notes := chance_notes({name: outcomes[name] for name in (network, plain)}, examples):
        return notes[0]
    p_value = paired_p_value(_clean(outcomes[network]), _clean(outcomes[plain]))
    if p_value is None:
        noise = 2 * math.sqrt(2) * resolution(other, examples)
        significant, how = abs(ours - other) > noise, "by the size of the test set"
    else:
        significant, how = p_value < SIGNIFICANT, f"p-value {p_value:.2g} over {len(outcomes[network])} seeds"
    verdict = "no significant difference" if not significant else "a gain" if ours < other else "a loss"
    return (
        f"{NETWORKS[network].label} has a test error of {ours:.2%}, and {other:.2%} without the "
        f"perturbation in training: {verdict} ({how}). The paper reports {first:.2%} and {second:.2%}."
    )


def _noise_finding(outcomes: Runs, paper: Mapping[str, tuple[float, ...]], examples: int) -> str:
    """Compare the last network of a paper's table with the plain one, under the largest of `STDS`."""
    network, std = list(paper)[-1], STDS[-1]
    plain = NETWORKS[network].plain
    ours, other = (noisy_error(outcomes[name], std, examples)[0] for name in (network, plain))
    return (
        f"Under Gaussian noise of std {std}, {NETWORKS[network].label} has a test error of {ours:.2%}, and "
        f"{other:.2%} without the perturbation in training. The paper reports {paper[network][-1]:.2%} and "
        f"{paper[plain][-1]:.2%}."
    )


def _noise_table(
    name: str, title: str, *sources: tuple[Measurement, Mapping[str, tuple[float, ...]]], within: str = ""
) -> Experiment:
    heads = columns((TEXT, "network"), *((PERCENT, f"std {s}", "standard error", "the paper") for s in STDS))
    measurements, papers = zip(*sources, strict=True)

    def report(setting: Setting, *outcomes: Runs) -> Iterator[Item]:
        rows: list[tuple[Cell, ...]] = []
        notes = [
            "Columns: for each standard deviation (std) of the noise, in units of the inputs, the mean test "
            "error over seeds, its standard error and the paper's error. The noise is not clipped and is "
            "drawn ten times for each network. With one seed the standard error is that of the mean over "
            "draws, or, at std 0, the one that the size of the test set gives."
        ]
        for paper, measured in zip(papers, outcomes, strict=True):
            examples = _examples(setting, measured)
            for network, published in paper.items():
                row: list[Cell] = [NETWORKS[network].label]
                for std, number in zip(STDS, published, strict=True):
                    row += [*noisy_error(measured[network], std, examples), number]
                rows.append(tuple(row))
            notes += _notes(setting, measured, paper)
        yield Table(name, title, heads, tuple(rows), tuple(dict.fromkeys(notes)))

    def finding(setting: Setting, *outcomes: Runs) -> str:
        return _noise_finding(outcomes[0], papers[0], _examples(setting, outcomes[0]))

    def verdicts(setting: Setting, *outcomes: Runs) -> dict[str, Verdict]:
        return {
            f"{NETWORKS[each].label}, noise {std}": verdict(
                [run["noise"][std]["mean"] for run in measured[each]], number, _examples(setting, measured)
            )
            for paper, measured in zip(papers, outcomes, strict=True)
            for each, published in paper.items()
            for std, number in zip(STDS[1:], published[1:], strict=True)
        }

    return Experiment(name, measurements, report, within, finding, verdicts)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean over seeds and the standard deviation of a seed, None if there is only one seed."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def paired_p_value(errors: Sequence[float], plain: Sequence[float]) -> float | None:
    """Return the two-sided p-value of the t-test paired by seed; None if the test is undefined.

    It is undefined for one seed, and where all differences are equal up to rounding. Equal differences do
    occur, as errors are counts over a test set.
    """
    from scipy import stats  # here because it takes longer to import than all commands do

    differences, largest = np.subtract(errors, plain), np.max(np.abs([errors, plain]))
    if len(differences) < 2 or np.ptp(differences) <= 4 * np.finfo(float).eps * largest:
        return None
    return float(stats.ttest_rel(errors, plain).pvalue)


def verdict(errors: Sequence[float], published: float, examples: int) -> Verdict:
    """Compare the mean error over seeds with the paper's error, which is that of one run.

    Student's two-sided test of whether the paper's run is one more seed of ours: the mean of n seeds of
    standard deviation s differs from another seed by about s sqrt(1 + 1/n). With one seed, s is the standard
    deviation of an error counted over `examples`. s is at least one example, the resolution of a count.
    """
    from scipy import stats

    mean, deviation = mean_and_deviation(errors)
    spread = resolution(published, examples) if deviation is None else deviation
    t = (mean - published) / (max(spread, 1 / examples) * math.sqrt(1 + 1 / len(errors)))
    tail = stats.norm.sf(abs(t)) if deviation is None else stats.t.sf(abs(t), len(errors) - 1)
    if 2 * tail >= SIGNIFICANT:
        return "level with"
    return "ahead of" if t < 0 else "behind"


def noisy_error(runs: Sequence[Outcome], std: str, examples: int) -> tuple[float, float]:
    """Return the mean error on `examples` under noise of standard deviation `std`, and its standard error."""
    if std == "0":
        means = _clean(runs)
        single = resolution(means[0], examples)
    else:
        means = [run["noise"][std]["mean"] for run in runs]
        single = runs[0]["noise"][std]["standard_error"]
    mean, deviation = mean_and_deviation(means)
    return mean, single if deviation is None else deviation / math.sqrt(len(means))


def resolution(error: float, examples: int) -> float:
    """Return the standard deviation of an error measured on n examples: sqrt(e (1 - e) / n)."""
    return math.sqrt(error * (1 - error) / examples)


def _clean(runs: Sequence[Outcome]) -> list[float]:
    return [run["clean"] for run in runs]


def _examples(setting: Setting, outcomes: Runs) -> int:
    """Return the number of test examples; results of earlier versions lack it, so it is counted anew."""
    name, runs = next(iter(outcomes.items()))
    return runs[0].get("test_examples") or count_test_examples(setting, name)


def _notes(setting: Setting, outcomes: Runs, networks: Iterable[str]) -> list[str]:
    first, count = next(iter(networks)), _examples(setting, outcomes)
    error = outcomes[first][0]["clean"]
    deviation = resolution(error, count)
    notes = [
        f"Tested on {count:,} examples: a single run with {error * count:.0f} errors "
        f"({NETWORKS[first].label}) has a standard deviation of {deviation * count:.1f} errors from the size "
        f"of the test set alone, so a difference below {2 * math.sqrt(2) * deviation:.2%} between two single "
        "runs is within noise."
    ]
    notes += chance_notes({network: outcomes[network] for network in networks}, count)
    if setting.budget == "quick":
        notes.append(budget_note(networks))
        if min(error for network in networks for error in _clean(outcomes[network])) > 0.5:
            notes.append(
                "After so few steps these networks have learned almost nothing, so their errors say nothing "
                "about the objectives."
            )
    if len(outcomes[first]) < 2:
        notes.append("With one seed there is no deviation over seeds, and no test against plain training.")
    return notes


CHAPTER = Chapter(
    "Test errors (section IV)",
    "Networks trained on x + eps, where eps is the steepest ascent step of the loss in an Lp ball (eq. 3), "
    "and the same networks trained without it. Each row summarises runs of `lpfamily.train`, one per seed.",
    (
        _clean_table(
            "table1",
            "Table I. Test error of dense networks on permutation-invariant MNIST, trained on clean and on "
            "perturbed inputs",
            DENSE,
            "The paper reports one run per row. 78 errors of 10,000 have a standard deviation of 8.8, so "
            "0.78 %, 0.84 % and 0.94 % are within noise of each other.",
            "The paper quotes the ReLU row from Poole, Sohl-Dickstein and Ganguli (2014), who add noise to "
            "the inputs, before a nonlinearity or after it. Here the noise is added before the nonlinearity "
            "of each hidden layer, and dropout follows. The sizes, the standard deviation and the schedule "
            "are ours; `lpfamily/training/recipes/published.py` explains them.",
            "The paper quotes the row p = inf from the paper of the fast gradient sign method, which uses "
            "sigma 0.25 and a clean weight of one half. The perturbations of the rows are therefore not "
            "equally strong. Trained on L(x + eps) alone, as in the other rows, such a network learns to "
            "read the label off its own step: with seed 0, its error on clean held-out images was at least "
            "12.75 % after each of 115 epochs (`python -m lpfamily.train --data mnist --model maxout --p "
            "inf --sigma 0.25`).",
        ),
        _clean_table(
            "table2",
            "Table II. Test error of convolutional networks on MNIST, trained on clean and on perturbed "
            "inputs",
            CONV,
        ),
        _clean_table(
            "table3",
            "Table III. Test error of convolutional networks on CIFAR-10, trained on clean and on perturbed "
            "inputs, with 40,000 or all 50,000 images",
            CIFAR,
            "The paper quotes 12.93 % from the authors of the network. It does not say who measured the "
            "13.08 % of Table V, most likely the paper itself; the fair comparison is then 13.08 with "
            "12.28. The 50K rows are trained from scratch on all 50,000 images, until the loss on the "
            "images held out before has fallen to the training loss that the first stage recorded.",
        ),
        _noise_table(
            "table4",
            "Table IV. Test error on MNIST under Gaussian noise of three standard deviations (std), of "
            "networks trained on clean and on perturbed inputs",
            (CONV, TABLE_4_CONV),
            (DENSE, TABLE_4_DENSE),
        ),
        _noise_table(
            "table4-dense",
            "Table IV, dense rows. Test error on MNIST under Gaussian noise of three standard deviations "
            "(std), of dense networks trained on clean and on perturbed inputs",
            (DENSE, TABLE_4_DENSE),
            within="table4",
        ),
        _noise_table(
            "table5",
            "Table V. Test error on CIFAR-10 under Gaussian noise of three standard deviations (std), of "
            "convolutional networks trained on clean and on perturbed inputs",
            (CIFAR, TABLE_5),
        ),
    ),
)
