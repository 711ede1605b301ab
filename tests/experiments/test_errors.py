"""Tables I to V: what they show of measured errors, and what is found in them."""

import math
from dataclasses import replace

import numpy as np
import pytest

from helpers import findings
from helpers.measurements import result, silent
from lpfamily import reproduce
from lpfamily.experiments import catalogue
from lpfamily.experiments.definitions import Setting
from lpfamily.experiments.errors import measure, report
from lpfamily.experiments.networks import QUICK
from lpfamily.experiments.records import depends


def test_a_paired_test_is_students():
    # differences 1, 2, 3: t = 2 sqrt(3), two degrees of freedom; their tail is 1/2 - t / (2 sqrt(t^2 + 2))
    t = 2 * math.sqrt(3)
    expected = 2 * (0.5 - t / (2 * math.sqrt(t**2 + 2)))
    assert report.paired_p_value([11, 22, 33], [10, 20, 30]) == pytest.approx(expected, rel=1e-9)
    assert report.paired_p_value([1], [2]) is None


def test_equal_differences_have_no_p_value_and_others_that_of_their_counts():
    assert report.paired_p_value([0.0094, 0.0095, 0.0096], [0.0093, 0.0094, 0.0095]) is None
    assert report.paired_p_value([0.01, 0.02], [0.01, 0.02]) is None
    rng = np.random.default_rng(0)
    for examples in (300, 1_000, 9_999, 10_000, 60_000):
        for _ in range(50):
            plain, apart = rng.integers(examples // 2, size=3), rng.integers(100)
            assert report.paired_p_value((plain + apart) / examples, plain / examples) is None
            counts = plain + apart + [0, 0, 1]
            expected = report.paired_p_value(counts, plain)
            assert report.paired_p_value(counts / examples, plain / examples) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("measurement", "budget", "given", "count"),
    [
        (measure.DENSE, "quick", None, 3),
        (measure.DENSE, "quick", 1, 1),
        (measure.CONV, "quick", None, 1),
        (measure.CONV, "quick", 2, 2),
        (measure.CIFAR, "quick", 3, 3),
        (measure.CIFAR, "paper", None, 3),
    ],
)
def test_as_many_seeds_are_trained_as_asked_for(monkeypatch, measurement, budget, given, count):
    monkeypatch.setattr(measure, "all_finished", lambda setting, wanted, tick: wanted)
    monkeypatch.setattr(measure, "result", lambda setting, name, folder: folder)
    setting = Setting(None, None, budget=budget, seeds=given)
    found = measurement.measure(setting, silent)
    assert found == {name: [(name, seed) for seed in range(count)] for name in found}
    assert depends(setting, replace(measurement, data=()))["seeds"] == count


def test_a_verdict_accounts_for_the_spread_over_seeds():
    """Student's with two degrees of freedom: the tail of t is 1/2 - t / (2 sqrt(t^2 + 2))."""
    seeds = [0.0099, 0.0100, 0.0101]
    # at which the tails have 5 %, 1 + 1/3 times the variance of a seed
    apart = math.sqrt(2 * 0.95**2 / (1 - 0.95**2)) * 0.0001 * math.sqrt(4 / 3)
    for sign, beyond in (1, "ahead of"), (-1, "behind"):
        assert report.verdict(seeds, 0.01 + sign * apart * 0.999, 10**6) == "level with"
        assert report.verdict(seeds, 0.01 + sign * apart * 1.001, 10**6) == beyond
    # as many seeds that are alike are not surer than one error
    assert report.verdict([0.01] * 3, 0.0104, 10_000) == "level with"
    # one has the deviation of a count: 1.96 sqrt(2) times 9.95 of 100 errors
    assert report.verdict([0.0100 + 0.0027], 0.0100, 10_000) == "level with"
    assert report.verdict([0.0100 + 0.0029], 0.0100, 10_000) == "behind"


def test_the_summary_compares_each_network_with_the_paper(tmp_path):
    table = catalogue.EXPERIMENTS["table1"]
    found = {name: [result(0.02, 0), result(0.03, 1)] for name in measure.DENSE.networks}
    found["maxout-p2"] = [result(0.0078, 0), result(0.0079, 1)]
    verdicts = table.verdicts(Setting(tmp_path, None, budget="paper"), found)
    assert verdicts == {
        report.NETWORKS[name].label: report.verdict([run["clean"] for run in found[name]], error, 10_000)
        for name, error in report.CLEAN.items()
        if name in found
    }
    facts = dict(reproduce._against_the_paper({"A": "behind", "B": "ahead of", "C": "behind"}))
    assert facts == {"ahead of the paper": "1 of 3: B", "behind the paper": "2 of 3: A; C"}


def test_78_errors_have_a_deviation_of_8_point_8():
    assert report.resolution(0.0078, 10_000) * 10_000 == pytest.approx(8.8, abs=0.05)


def test_the_error_under_noise_is_that_of_the_seeds():
    one = [result(0.01, **{"0.1": 0.02})]
    assert report.noisy_error(one, "0.1", 10_000) == (0.02, 0.001)
    assert report.noisy_error(one, "0", 10_000) == (0.01, pytest.approx(math.sqrt(0.01 * 0.99 / 10_000)))
    three = [result(0.01, **{"0.1": mean}) for mean in (0.02, 0.03, 0.04)]
    assert report.noisy_error(three, "0.1", 10_000) == (
        pytest.approx(0.03),
        pytest.approx(0.01 / math.sqrt(3)),
    )


def test_table_1_shows_what_was_measured(tmp_path):
    found = {name: [result(0.02, 0), result(0.03, 1)] for name in measure.DENSE.networks}
    found["maxout-p2"] = [result(0.01, 0), result(0.024, 1)]
    experiment = catalogue.EXPERIMENTS["table1"]
    (table,) = experiment.report(Setting(tmp_path, None, budget="paper", seeds=2), found)
    rows = {row[0]: row[1:] for row in table.rows}
    deviation = 0.01 / math.sqrt(2)
    assert rows["Maxout + dropout"] == (
        *(pytest.approx(0.025), pytest.approx(deviation), 2, None),
        *(0.0094, "level with"),
    )
    p_value = 2 * (0.5 - math.atan(0.008 / 0.002) / math.pi)  # one degree of freedom: Cauchy
    assert rows["Maxout + dropout + gradient p = 2"][3:] == (
        pytest.approx(p_value),
        0.0078,
        "level with",
    )
    assert not any("Quick" in note for note in table.notes)
    (table,) = experiment.report(Setting(tmp_path, None, seeds=2), found)
    assert any(" ".join(QUICK["maxout"]) in note for note in table.notes)
    assert {row[-1] for row in table.rows} == {None}


def test_table_4_has_the_rows_of_both_measurements(tmp_path):
    noise = {"0.1": 0.05, "0.3": 0.25}
    dense, conv = (
        {name: [result(clean, **noise)] for name in part}
        for clean, part in ((0.02, measure.DENSE.networks), (0.01, measure.CONV.networks))
    )
    (table,) = catalogue.EXPERIMENTS["table4"].report(Setting(tmp_path, None), conv, dense)
    assert [row[1] for row in table.rows] == [0.01, 0.01, 0.02, 0.02]
    assert [row[4] for row in table.rows] == [0.05] * 4
    assert [row[9] for row in table.rows] == [0.2017, 0.1436, 0.0242, 0.0129]


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        ((0.010, 0.011, 0.0121), "a gain"),
        ((0.031, 0.032, 0.0331), "a loss"),
        ((0.018, 0.020, 0.025), "no significant difference"),
        ((0.010, 0.010, 0.010), "a gain"),  # by the size of the test set, as the differences are all alike
        ((0.021, 0.021, 0.021), "no significant difference"),
        ((0.91, 0.5, 0.5), "is at chance"),
    ],
)
def test_the_finding_of_table_1_follows_from_its_numbers(tmp_path, ours, said):
    setting, experiment = Setting(tmp_path, None, budget="paper"), catalogue.EXPERIMENTS["table1"]
    found = {name: [result(0.02, seed) for seed in range(3)] for name in measure.DENSE.networks}
    found["maxout-p2"] = [result(error, seed) for seed, error in enumerate(ours)]
    finding = findings.check(experiment, setting, found)
    assert said in finding
    assert "Maxout + dropout + gradient p = 2" in finding


def test_the_findings_of_tables_2_to_5_follow_from_their_numbers(tmp_path):
    noise = {"0.1": 0.05, "0.3": 0.25}
    for name in "table2", "table3", "table4", "table4-dense", "table5":
        experiment = catalogue.EXPERIMENTS[name]
        found = [
            {network: [result(0.02, **noise)] for network in m.networks} for m in experiment.measurements
        ]
        findings.check(experiment, Setting(tmp_path, None, budget="paper"), *found)


def test_every_finding_has_a_place_in_the_order_of_importance():
    assert sorted(catalogue.FINDINGS) == sorted(p.name for p in catalogue.EXPERIMENTS.values() if p.finding)
