"""Measured robustness: laws of the errors, and the findings that reveal a broken network."""

import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.image import imread
from numpy.testing import assert_allclose, assert_array_equal

from helpers.backends_under_test import trainer_on_digits
from helpers.figures import readable
from helpers.laws import norms
from lpfamily import evaluate
from lpfamily.margins import boundary_distance
from lpfamily.report.contents import Plot
from lpfamily.report.plots import robustness_curves
from lpfamily.training import robustness
from lpfamily.training.evaluation import ONE_STEP
from lpfamily.training.progress import Progress
from lpfamily.training.recipes import Recipe, default, matched_radius

RECIPE = Recipe(p=2.0, sigma=1.0, dtype="float64")


BALLS = ["1", "2", "inf"]


NO_QUANTILES = dict.fromkeys(["0.1", "0.25", "0.5", "0.75", "0.9"])


@dataclass(frozen=True)
class Stub:
    """A network of two classes: the first has the margin, and there is some gradient."""

    margin: Callable
    gradient: Callable

    def logits(self, x):
        return np.stack([self.margin(x), np.zeros(len(x))], axis=1)

    def input_gradients(self, x, labels):
        return self.gradient(x)


def stub(margin, slope):
    """A margin of the first input alone, and the derivative that its gradient claims."""

    def gradient(x):
        return np.where(np.arange(x.shape[1]) == 0, -slope(x[:, :1]), 0.0)

    return Stub(lambda x: margin(x[:, 0]), gradient)


def measured(trainer, x, recipe=RECIPE, *, ps=ONE_STEP, multiples=robustness.MULTIPLES, **options):
    radii = robustness.matched_radii(recipe, ps, multiples, x.shape[1])
    return robustness.measure(trainer, x, np.zeros(len(x), int), recipe, radii, steps=5, **options)


def kinds(result):
    return {re.split(r" at |:", finding)[0] for finding in robustness.findings(result)}


def linear(seed=0, examples=60):
    """Two classes, in four inputs: trainer, x and the rows that are right, and how far each is from wrong."""
    rng = np.random.default_rng(seed)
    normal, x = rng.standard_normal(4), rng.standard_normal((examples, 4))
    trainer = Stub(lambda x: x @ normal + 0.5, lambda x: np.tile(-normal, (len(x), 1)))
    weights, bias = np.stack([normal, 0 * normal], axis=1), np.array([0.5, 0.0])
    return trainer, x, lambda p: boundary_distance(weights, bias, x, np.zeros(examples, int), p)


@pytest.fixture(scope="module", params=["float32", "float64"])
def digits(request):
    """The measured robustness of a network trained on clean digits."""
    trainer, x, labels = trainer_on_digits(request.param)
    recipe = replace(default("sigmoid-mlp", "digits", "plain", 2.0, 64), dtype=request.param)
    return robustness.measure(trainer, x[:100], labels[:100], recipe, steps=5)


def test_the_error_after_many_steps_grows_with_sigma_and_is_at_least_that_after_one(digits):
    assert list(digits["balls"]) == BALLS
    for ball in digits["balls"].values():
        one, many = np.array(ball["one_step"]), np.array(ball["multi_step"])
        assert np.all(np.diff(many) >= 0)
        assert np.all(many >= one)
        assert many[-1] > many[0]


def test_at_sigma_0_all_errors_are_the_clean_error(digits):
    for ball in digits["balls"].values():
        assert ball["sigma"][0] == ball["repaired"][0] == 0
        assert ball["one_step"][0] == ball["multi_step"][0] == digits["clean"]
        assert ball["noise"][0]["mean"] == pytest.approx(digits["clean"])
        assert ball["noise"][0]["standard_error"] == pytest.approx(0, abs=1e-15)


def test_the_smallest_radii_agree_with_the_errors(digits):
    for ball in digits["balls"].values():
        smallest = ball["smallest"]["multi_step"]
        right, last = 1 - digits["clean"], ball["multi_step"][-1]
        assert smallest["never"] * right == pytest.approx(1 - last)
        for q, radius in smallest["quantiles"].items():
            changed = np.interp(float(q), [0, 1], [digits["clean"], 1])  # of all examples, at this radius
            if radius is None:
                assert changed > last
            else:
                k = np.searchsorted(ball["sigma"], radius)
                assert ball["multi_step"][k - 1] - 0.011 <= changed <= ball["multi_step"][k] + 1e-9
                assert radius <= (ball["smallest"]["one_step"]["quantiles"][q] or math.inf)


def test_a_network_that_was_trained_well_has_no_findings(digits):
    assert robustness.findings(digits) == []


@pytest.mark.parametrize("p", [1, 1.5, 2, 3, math.inf])
def test_a_linear_network_has_the_errors_and_radii_of_its_distances(p):
    trainer, x, distances = linear()
    result = measured(trainer, x, ps=[p])
    (ball,) = result["balls"].values()
    far = distances(p)
    assert_allclose(ball["sigma"], [k * matched_radius(RECIPE, p, 4) for k in robustness.MULTIPLES])
    expected = [np.mean(far <= sigma) for sigma in ball["sigma"]]
    assert 0 < expected[0] < expected[-1]
    assert_array_equal(ball["one_step"], expected)
    assert_array_equal(ball["multi_step"], expected)
    assert robustness.findings(result) == []
    least = np.sort(far[far > 0])
    for smallest in ball["smallest"].values():
        for q, radius in smallest["quantiles"].items():
            exact = least[math.ceil(float(q) * len(least)) - 1]
            if exact > ball["sigma"][-1]:
                assert radius is None
            else:
                assert radius == pytest.approx(exact, rel=1e-6)
        assert smallest["never"] == np.mean(least > ball["sigma"][-1])


def test_many_steps_find_the_radius_where_one_step_finds_none():
    # class 0 holds along the first axis, where the gradient points at 0, and is lost at 0.3 along the second
    trainer = Stub(
        lambda x: 0.3 - x[:, 1],
        lambda x: np.where(np.abs(x[:, :1]) + np.abs(x[:, 1:]) > 0, [[0.0, 1.0]], [[1.0, 0.0]]),
    )
    ball = measured(trainer, np.zeros((4, 2)), ps=[math.inf], recipe=replace(RECIPE, p=math.inf))["balls"][
        "inf"
    ]
    assert ball["one_step"] == [0] * 6
    assert ball["multi_step"] == [0, 0, 0, 1, 1, 1]
    assert ball["smallest"]["one_step"] == {
        "quantiles": NO_QUANTILES,
        "never": 1,
    }
    for radius in ball["smallest"]["multi_step"]["quantiles"].values():
        assert 0.3 <= radius <= 0.31


def test_a_change_along_the_direction_that_the_steps_jump_over_counts():
    # wrong from 0.24 to 0.26 alone; steps of sigma / 2 go there and back
    trainer = stub(lambda t: (t - 0.24) * (t - 0.26), lambda t: 2 * t - 0.5)
    ball = measured(trainer, np.zeros((3, 2)), ps=[2], multiples=[1.0, 2.0])["balls"]["2"]
    assert (ball["one_step"], ball["multi_step"]) == ([0, 0, 0], [0, 1, 1])
    for smallest in ball["smallest"].values():
        assert 0.24 <= smallest["quantiles"]["0.5"] <= 0.26


def test_without_a_correct_example_there_is_no_radius():
    trainer = stub(lambda t: t - 1e9, np.ones_like)
    for smallest in measured(trainer, np.zeros((3, 2)))["balls"]["2"]["smallest"].values():
        assert smallest == {"quantiles": NO_QUANTILES, "never": None}


@pytest.mark.parametrize("inputs", [2, 64, 784])
@pytest.mark.parametrize("p", [1, 1.5, 2, 3, math.inf])
def test_noise_has_the_requested_mean_norm(p, inputs):
    noise = np.random.default_rng(0).standard_normal((1000, inputs))
    lengths = norms(robustness.noise_std(p, 0.7, inputs) * noise, p).astype(float)
    order = 1 if p == math.inf else p
    average, spread = np.mean(lengths**order), np.std(lengths**order) / math.sqrt(1000)
    assert average == pytest.approx(0.7**order, abs=4 * spread)
    assert spread < 0.08 * average


def test_noise_is_what_the_seed_draws():
    trainer, x, _ = linear()
    first, again, other = (measured(trainer, x, seed=seed)["balls"] for seed in (1, 1, 2))
    assert first == again
    for p in BALLS:
        assert first[p]["noise"] != other[p]["noise"]
        assert first[p]["one_step"] == other[p]["one_step"]


def test_progress_grows_to_the_whole():
    told = []
    trainer, x, _ = linear(examples=5)
    measured(trainer, x, tick=lambda done, of, what: told.append((done / of, what)))
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0, 1)
    assert len({what.partition(",")[0] for _, what in told[:-1]}) == len(BALLS)


@pytest.mark.parametrize("options", [{"multiples": [0.0]}, {"recipe": replace(RECIPE, sigma=0.0)}])
def test_a_radius_must_be_above_0(options):
    trainer, x, _ = linear(examples=5)
    with pytest.raises(ValueError, match="a radius must be above 0; got none for p = 1"):
        measured(trainer, x, **options)


ZEROS = np.zeros((40, 64))  # noise in as many inputs has about its norm always


COLLAPSED = stub(
    lambda t: (t - 0.3) * (t - 0.7), lambda t: 2 * t - 1
)  # wrong between, right where a step ends


def test_catastrophic_overfitting_is_found_at_the_p_that_was_trained():
    result = measured(COLLAPSED, ZEROS)
    ball = result["balls"]["2"]
    assert (ball["one_step"][4], ball["multi_step"][4]) == (0, 1)
    assert "catastrophic overfitting at p = 2, sigma = 1: the error is 0.00% after one step and 100.00%" in (
        " ".join(robustness.findings(result))
    )
    elsewhere = robustness.findings({**result, "p": "3"})
    assert [line for line in elsewhere if line.startswith("one step is too weak at p = 2, sigma = 1: ")]
    assert kinds({**result, "objective": "plain"}) == {"one step is too weak"}


def test_beyond_the_radius_that_was_trained_one_step_may_miss():
    assert (
        kinds(measured(COLLAPSED, ZEROS, ps=[2], recipe=replace(RECIPE, sigma=0.25), multiples=[1, 4]))
        == set()
    )
    assert kinds(measured(COLLAPSED, ZEROS, ps=[2], recipe=replace(RECIPE, sigma=1.0), multiples=[1, 4])) == {
        "catastrophic overfitting"
    }


def test_a_few_examples_give_no_finding():
    assert kinds(measured(COLLAPSED, np.repeat([[0.0, 0], [9, 0]], [1, 3], axis=0), ps=[2])) == set()


def test_label_leaking_is_found():
    # the gradient points to where the label is more probable; most examples are far from where it matters
    x = np.concatenate([np.full((15, 2), -0.6), np.full((25, 2), 50.0)])
    result = measured(stub(lambda t: t, lambda t: -np.ones_like(t)), x, ps=[2])
    assert result["balls"]["2"]["repaired"] == [0, 0, 0, 0, 15 / 40, 15 / 40]
    assert kinds(result) == {"label leaking"}
    assert kinds(measured(stub(lambda t: t, np.ones_like), x, ps=[2])) == set()
    few = np.concatenate([x[:2], x[15:]])
    assert kinds(measured(stub(lambda t: t, lambda t: -np.ones_like(t)), few, ps=[2])) == set()


def test_masked_gradients_are_found_where_noise_does_more_harm_than_steps():
    # what matters is the second input, and the gradient points along the first
    trainer = Stub(lambda x: 0.05 - x[:, 1], lambda x: np.tile(np.arange(64.0) == 0, (len(x), 1)) * 1.0)
    result = measured(trainer, ZEROS, ps=[2])
    assert result["balls"]["2"]["multi_step"] == [0] * 6
    assert result["balls"]["2"]["noise"][4]["mean"] > 0.3
    assert kinds(result) == {"masked gradients"}


@pytest.mark.parametrize("nothing", [0.0, math.nan, math.inf])
def test_gradients_without_a_direction_are_counted_and_change_nothing(nothing):
    trainer = stub(lambda t: t + 9, lambda t: np.where(t > 0, 1.0, nothing))
    x = np.repeat([[0.0, 0], [1, 0]], [3, 7], axis=0)
    result = measured(trainer, x, multiples=[20.0], ps=[2])
    assert result["no_direction"] == 0.3
    assert result["balls"]["2"]["one_step"] == result["balls"]["2"]["multi_step"] == [0, 0.7]
    (finding,) = (line for line in robustness.findings(result) if "direction" in line or "zero" in line)
    assert finding.startswith("masked gradients: 3 of 10 examples have a gradient that is zero or not finite")


def test_the_monitor_sees_what_the_whole_measurement_sees():
    labels = np.zeros(40, int)
    seen = robustness.monitor(COLLAPSED, ZEROS, labels, 2.0, 1.0)
    assert seen == {"examples": 40, "clean": 0, "one_step": 0, "multi_step": 1}
    assert not robustness.is_healthy(seen)
    trainer, x, distances = linear()
    seen = robustness.monitor(trainer, x, np.zeros(60, int), 1, 0.5)
    far = distances(1)
    assert seen["clean"] == np.mean(far == 0) < seen["one_step"] == seen["multi_step"] == np.mean(far <= 0.5)
    assert robustness.is_healthy(seen)


@pytest.mark.parametrize(
    ("clean", "one", "many", "examples", "healthy"),
    [
        (0.0, 0.1, 0.29, 10**6, True),
        (0.0, 0.1, 0.31, 10**6, False),
        (0.2, 0.1, 0.31, 10**6, True),  # many steps include none
        (0.0, 0.1, 0.4, 20, True),  # 0.3 is 2.9 times sqrt(0.3 * 0.7 / 20)
        (0.0, 0.1, 0.4, 22, False),  # and 3.07 times sqrt(0.3 * 0.7 / 22)
        (0.7, 0.7, 0.7, 10, True),
    ],
)
def test_health_needs_a_gap_that_is_large_and_sure(clean, one, many, examples, healthy):
    seen = {"clean": clean, "one_step": one, "multi_step": many, "examples": examples}
    assert robustness.is_healthy(seen) is healthy


def test_the_curves_are_the_errors(digits, tmp_path):
    draw = functools.partial(robustness_curves, result=digits)
    figure = readable(Plot("curves", "", "", draw, (9.0, 3.4)), tmp_path)
    assert [axes.get_title() for axes in figure.axes] == [f"p = {p}" for p in BALLS]
    assert {axes.get_xlabel() for axes in figure.axes} == {"sigma (units of the input)"}
    assert figure.axes[0].get_ylabel() == "test error (%)"
    for axes, ball in zip(figure.axes, digits["balls"].values(), strict=True):
        one, many, noise, matched = axes.get_lines()
        for line, errors in (one, ball["one_step"]), (many, ball["multi_step"]):
            assert_allclose(line.get_xydata(), np.transpose([ball["sigma"], np.multiply(100, errors)]))
        assert_allclose(noise.get_ydata(), [100 * each["mean"] for each in ball["noise"]])
        assert_allclose(matched.get_xdata(), ball["sigma"][robustness.MULTIPLES.index(1)])


def test_the_file_of_curves_is_on_white_whatever_the_users_settings(digits, tmp_path):
    evaluate._draw(digits, RECIPE, tmp_path / "default.png", Progress())
    with mpl.rc_context({"font.size": 20, "text.color": "white", "axes.facecolor": "black"}):
        evaluate._draw(digits, RECIPE, tmp_path / "dark.png", Progress())
    assert (tmp_path / "dark.png").read_bytes() == (tmp_path / "default.png").read_bytes()
    assert imread(tmp_path / "dark.png")[0, 0].tolist() == [1, 1, 1, 1]
