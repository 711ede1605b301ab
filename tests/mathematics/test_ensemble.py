"""The robustness of any model: all attacks fail on a robust example, and the numbers agree."""

import csv
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from helpers.backends_under_test import NAMES
from helpers.commandline import joined
from helpers.laws import norms
from lpfamily import ensemble, robustness
from lpfamily.ensemble import boundary

BALLS = {1: (0.5, 1.5), 1.5: (0.3, 1.0), 2: (0.1, 0.6), math.inf: (0.02, 0.15)}


def problem(n=60, d=12, classes=4, seed=0):
    """Return a linear classifier, inputs in the unit box, and labels of which some are wrong."""
    rng = np.random.default_rng(seed)
    weights, x = rng.standard_normal((d, classes)), rng.random((n, d))
    y = (x @ weights).argmax(axis=1)
    y[: n // 10] = (y[: n // 10] + 1) % classes
    return weights, x, y


def linear(weights):
    return lambda x: (x @ weights, lambda cotangent: cotangent @ weights.T)


def distances(weights, x, y, p):
    """Return the distance of each example to the nearest other class, without a box: Hölder's inequality."""
    q = {1: math.inf, math.inf: 1}.get(p) or p / (p - 1)
    z = x @ weights
    result = np.full(len(x), math.inf)
    for t in range(weights.shape[1]):
        slope = np.linalg.norm(weights[:, [t]] - weights[:, y], ord=q, axis=0)
        gap = z[np.arange(len(x)), y] - z[:, t]
        result = np.where(t == y, result, np.minimum(result, gap / np.where(slope, slope, 1)))
    return np.maximum(result, 0)


NEAREST = {"quick": 1.06, "standard": 1.02}
"""What the median smallest radius may be, in units of the exact one."""


@pytest.mark.parametrize(("effort", "ps"), [("quick", tuple(BALLS)), ("standard", (2,))])
def test_a_linear_classifier_has_the_errors_that_hoelder_says(effort, ps):
    weights, x, y = problem()
    found = robustness(linear(weights), x, y, p=ps, sigma=BALLS, effort=effort, batch_size=25, progress=False)
    for p in ps:
        sigmas = BALLS[p]
        exact = distances(weights, x, y, p)
        for sigma in sigmas:
            error = found.error(p, sigma)
            assert error.value == np.mean(exact < sigma)
            assert_allclose(error.standard_error, np.std(exact < sigma) / math.sqrt(len(x)))
        smallest = found.smallest(p)
        assert np.all(smallest >= exact * (1 - 1e-6))
        assert_array_equal(smallest == 0, found.predicted != y)
        assert_array_equal(np.isfinite(smallest), exact < sigmas[-1])
        inside = (exact > 0) & np.isfinite(smallest)
        assert np.median(smallest[inside] / exact[inside]) < NEAREST[effort]
        assert sum(found.parts(p).values()) == round(found.error(p, sigmas[-1]).value * len(x))
    assert not [finding for finding in found.findings() if "weak" not in finding]


@pytest.mark.parametrize(("ways", "near"), [((), False), (boundary.WAYS[:1], False), (boundary.WAYS, True)])
def test_only_the_margin_finds_the_boundary_of_an_unsure_network(monkeypatch, ways, near):
    """The log-odds push an input away from every class alike."""
    weights, x, y = problem(classes=12)
    monkeypatch.setattr(boundary, "WAYS", ways)
    for p in (1, 2, math.inf):
        options = {"p": p, "sigma": BALLS[p][-1], "effort": "quick", "progress": False}
        smallest = robustness(linear(0.01 * weights), x, y, **options).smallest(p)
        exact = distances(weights, x, y, p)
        inside = (exact > 0) & np.isfinite(smallest)
        assert (np.median(smallest[inside] / exact[inside]) < NEAREST["quick"]) == near


def curved(seed=0, scale=3.0):
    """Return a small network with bends, inputs and labels."""
    rng = np.random.default_rng(seed)
    v, w, x = scale * rng.standard_normal((10, 20)), rng.standard_normal((20, 5)), rng.random((80, 10))

    def model(x):
        h = np.tanh(x @ v)
        return h @ w, lambda cotangent: ((cotangent @ w.T) * (1 - h * h)) @ v.T

    return model, x, model(x)[0].argmax(axis=1)


PLAN = ensemble.Plan(10, 2, 5, 1, walk=6)


def attacked(monkeypatch, plan=PLAN):
    """Measure, and record which attack tried which example, and every eps that fooled the model."""
    model, x, y = curved()
    asked, fooling = {}, []
    climb, fools = ensemble.Batch.climb, ensemble.Batch.fools

    def noted(self, rows, p, sigma, steps, rank=None, start=None, stop=True):
        name = "margins" if rank is not None else "log-odds" if start is None else "restarts"
        if np.ndim(sigma) == 0 and stop:
            asked.setdefault((p, sigma, name), []).append(rows)
        return climb(self, rows, p, sigma, steps, rank, start, stop)

    def seen(self, rows, eps):
        hit = fools(self, rows, eps)
        fooling.append((rows[hit], np.asarray(eps)[hit]))
        return hit

    with monkeypatch.context() as patched:
        patched.setitem(ensemble.EFFORTS, "quick", plan)
        patched.setattr(ensemble.Batch, "climb", noted)
        patched.setattr(ensemble.Batch, "fools", seen)
        ball = {"p": (1, 2, 3), "sigma": (0.05, 0.1, 0.2), "bounds": (0, 1)}
        found = robustness(model, x, y, **ball, effort="quick", progress=False)
    return found, asked, fooling, x, y, model


def every_part_has_attacked(found, asked):
    for p, ball in found.balls.items():
        for k, sigma in enumerate(ball.sigmas):
            robust = np.flatnonzero(~ball.fooled[k])
            assert len(robust)
            for name, times in (("log-odds", 1), ("margins", 2), ("restarts", 1)):
                rows = asked.get((p, sigma, name), [])
                assert len(rows) == times
                assert all(set(robust) <= set(each) for each in rows)


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_in_float32_smallest_is_at_most_sigma_where_an_example_is_fooled(p):
    """0.1 is larger in float32."""
    weights, x, y = (np.asarray(each, np.float32) for each in problem(n=400))
    options = {"sigma": (0.1, 0.3), "effort": "quick", "progress": False}
    ball = robustness(linear(weights), x, y.astype(int), p=p, **options).balls[p]
    for sigma, fooled in zip(ball.sigmas, ball.fooled, strict=True):
        assert_array_equal(ball.smallest <= sigma, fooled)


def test_a_robust_example_withstood_every_attack(monkeypatch):
    found, asked, *_ = attacked(monkeypatch)
    every_part_has_attacked(found, asked)
    for p, ball in found.balls.items():
        errors = [found.error(p, sigma).value for sigma in (0, *ball.sigmas)]
        assert errors == sorted(errors)
        assert not np.any(ball.one_step & ~ball.fooled)
        assert_array_equal(ball.fooled[-1], ball.part >= 0)
        assert np.all(ball.smallest[ball.fooled[0]] <= ball.sigmas[0])
        assert {-1, 1, 2} <= set(np.unique(ball.part))


@pytest.mark.parametrize("mutant", [{"targets": 1}, {"targets": 0}, {"restarts": 0}], ids=str)
def test_leaving_out_an_attack_breaks_the_law(monkeypatch, mutant):
    found, asked, *_ = attacked(monkeypatch, replace(PLAN, **mutant))
    with pytest.raises(AssertionError):
        every_part_has_attacked(found, asked)


def test_every_eps_lies_in_ball_and_box_and_fools(monkeypatch):
    found, _, fooling, x, y, model = attacked(monkeypatch)
    rows, eps = (np.concatenate(each) for each in zip(*fooling, strict=True))
    assert np.all((x[rows] + eps > -1e-9) & (x[rows] + eps < 1 + 1e-9))
    assert np.all(model(x[rows] + eps)[0].argmax(axis=1) != y[rows])
    for p, ball in found.balls.items():
        least = np.full(len(x), math.inf)
        np.minimum.at(least, rows, norms(eps, p).astype(float))
        known = np.isfinite(ball.smallest) & (ball.smallest > 0)
        assert np.all(least[known] <= ball.smallest[known] * (1 + 1e-9))


@pytest.mark.parametrize(("effort", "most"), [("quick", 100), ("standard", 1000)])
def test_no_example_takes_more_gradients_than_its_effort_allows(effort, most):
    weights, x, y = problem(n=6, classes=12)
    y = (x @ weights).argmax(axis=1)
    for sigma in 1e-6, 0.02, 0.2:  # of which the first fools none
        found = robustness(linear(weights), x, y, p=2, sigma=sigma, effort=effort, progress=False)
        assert found.balls[2].gradients <= most * len(x)
        assert found.balls[2].gradients > 0.7 * most * len(x) or sigma > 1e-6


def test_files_have_the_numbers_of_the_table(tmp_path):
    model, x, y = curved()
    found = robustness(
        model, x, y, p=(1, math.inf), sigma={1: 0.2, math.inf: (0.05, 0.02)}, effort="quick", progress=False
    )
    found.save(tmp_path / "new")
    content = json.loads((tmp_path / "new" / "robustness.json").read_text())
    with (tmp_path / "new" / "errors.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(float(row["p"]), float(row["sigma"])) for row in rows] == [
        (1, 0), (1, 0.2), (math.inf, 0), (math.inf, 0.02), (math.inf, 0.05)
    ]  # fmt: skip
    table = found.table()
    for row in rows:
        error = found.error(float(row["p"]), float(row["sigma"]))
        assert (float(row["error"]), float(row["standard error"])) == error
        assert str(error) in table
    for p in (1, math.inf):
        ball = content["balls"][f"{p:g}"]
        assert ball["error"] == [found.error(p, sigma).value for sigma in ball["sigma"]]
        assert ball["fooled_first_by"] == found.parts(p)
        smallest = np.array([math.inf if s is None else s for s in ball["smallest"]])
        for sigma, error in zip(ball["sigma"], ball["error"], strict=True):
            assert np.mean(smallest <= sigma) == error
    assert content["findings"] == found.findings()
    page = (tmp_path / "new" / "index.html").read_text()
    assert all(f"{found.error(p, s).value:.2%}" in page for p, s in ((1, 0.2), (math.inf, 0.05)))
    assert (tmp_path / "new" / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert "<svg" in (tmp_path / "new" / "curves.svg").read_text()
    figure = found.plot()
    assert [axes.get_title() for axes in figure.axes] == ["p = 1", "p = inf"]
    assert [axes.get_xlabel() for axes in figure.axes] == ["sigma (units of the input)"] * 2
    assert figure.get_suptitle() == f"Error in Lp balls of radius sigma, {len(x)} examples"
    assert found.compare(other=found).count(str(found.error(1, 0.2))) == 2


def test_findings_warn_of_meaningless_numbers():
    weights, x, y = problem(n=200)
    options = {"p": 2, "sigma": 0.3, "effort": "quick", "progress": False}

    def findings(model, labels=y, **others):
        return " ".join(robustness(model, x, labels, **options | others).findings())

    assert findings(linear(weights)) == ""
    assert "predicts class 2 for all 200" in findings(
        lambda x: (np.eye(4)[np.full(len(x), 2)] + 0 * x @ weights, lambda c: 0 * c @ weights.T)
    )
    assert "at chance" in findings(linear(weights), np.random.default_rng(0).integers(0, 4, 200))
    masked = findings(lambda x: (np.round(9 * x @ weights), lambda c: 0 * (c @ weights.T)))
    assert "200 of 200 examples have a gradient that is zero" in masked
    assert "random points fool" in masked
    rng = np.random.default_rng(0)
    assert "the model is random" in findings(
        lambda x: (x @ weights + 0.1 * rng.standard_normal((len(x), 4)), lambda c: c @ weights.T)
    )
    # the step goes where the label is more probable, and the wrong 10 % become right
    leaking = findings(lambda x: (x @ weights, lambda c: -(c @ weights.T)), sigma=3)
    assert "label leaking at p = 2, sigma = 3: the error is 0.00% after one step and 10.00%" in leaking


def test_findings_name_an_attack_that_was_still_improving():
    weights, x, y = problem(n=200)
    y = (x @ weights).argmax(axis=1)
    for last, improving in (28, True), (12, False):
        calls = []

        def model(x, last=last, calls=calls):
            calls.append(x)  # as a model whose mistakes lie deep, it errs after so many passes
            turned = 1 if len(calls) < last else -1
            return turned * (x @ weights), lambda c: c @ weights.T

        found = robustness(model, x, y, p=2, sigma=1e-3, effort="quick", progress=False)
        told = [line for line in found.findings() if "still improving when it stopped, at p = 2" in line]
        assert bool(told) == improving
        assert found.parts(2)["log-odds"] > 190


def test_pairs_of_batches_give_the_result_of_whole_arrays(capsys):
    weights, x, y = problem()
    options = {"p": 2, "sigma": 0.3, "effort": "quick"}
    whole = robustness(linear(weights), x, y, **options)
    assert "batch 1 of 1, p = 2" in capsys.readouterr().err
    pairs = ((x[i : i + 7], y[i : i + 7]) for i in range(0, 60, 7))
    by_pairs = robustness(linear(weights), pairs, **options, progress=False)
    assert capsys.readouterr().err == ""
    assert by_pairs.error(2, 0.3) == whole.error(2, 0.3)
    assert_allclose(by_pairs.smallest(2), whole.smallest(2), rtol=1e-6)


def test_an_error_says_what_was_given():
    weights, x, y = problem(n=10)
    good = {"x": x, "y": y, "sigma": 0.1, "progress": False}
    for change, match in (
        ({"effort": "much"}, "effort must be one of 'quick', 'standard', 'thorough'; got 'much'"),
        ({"sigma": 0}, "sigma must be one or more radii .* the largest above 0; got 0"),
        ({"sigma": {2: 0.1}}, r"sigma has no radius for p = 1; it has radii for \[2\]"),
        ({"p": ()}, "p must name at least one exponent"),
        ({"p": 0.5}, r"p must lie in \[1, inf\]"),
        ({"y": y[:9]}, "x and y must have the same length; got 10 inputs and 9 labels"),
        ({"y": y + 0.5}, "y must be integers"),
        ({"y": y + 4}, "y must be classes from 0 to 3, one per logit; got 4 to 7"),
        ({"y": y - 1}, "y must be classes from 0 to 3, one per logit; got -1 to 2"),
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"x": x[:0], "y": y[:0]}, "at least one example"),
        ({"bounds": (0.5, 1)}, "clip x"),
    ):
        with pytest.raises((TypeError, ValueError), match=match):
            robustness(linear(weights), **(good | change))
    with pytest.raises(ValueError, match="at least two classes"):
        robustness(
            lambda x: ((x @ weights)[:, :1], lambda c: c @ weights[:, :1].T),
            x,
            0 * y,
            sigma=0.1,
            progress=False,
        )
    with pytest.raises(ValueError, match=r"p = 3, sigma = 0\.1 was not tested; tested radii: p = 2: 0\.1"):
        robustness(linear(weights), x, y, p=2, sigma=0.1, effort="quick", progress=False).error(3, 0.1)


def same_as_numpy(found, x, y, model, **options):
    expected = robustness(model, x, y, progress=False, **options)
    for p, ball in expected.balls.items():
        assert_array_equal(found.balls[p].fooled, ball.fooled)
        # a ball shrinks where an example is fooled, so that rounding at the boundary leads some another way
        assert np.mean(np.isclose(found.smallest(p), ball.smallest, rtol=1e-6)) > 0.8
        assert_allclose(found.smallest(p), ball.smallest, rtol=0.05)


def parted(x):
    """Return rows of 10 entries as a tree."""
    return {"a": x[:, :3], "b": [x[:, 3:9].reshape(-1, 2, 3), x[:, 9]]}


def whole(tree):
    a, (b, c) = tree.values()
    return np.concatenate([a, b.reshape(-1, 6), c[:, None]], axis=1)


@pytest.mark.parametrize("bounds", [None, (0, 1), (-0.1, 1.5)], ids=["ball", "box", "box of trees"])
def test_a_tree_is_as_robust_as_its_rows(monkeypatch, bounds):
    """In batches, restarts too; the model is given trees."""
    monkeypatch.setitem(ensemble.EFFORTS, "quick", PLAN)
    model, x, y = curved()

    def of_trees(tree):
        logits, pullback = model(whole(tree))
        return logits, lambda weights: parted(pullback(weights))

    options = OPTIONS | {"bounds": bounds, "batch_size": 33}
    if bounds == (-0.1, 1.5):
        options["bounds"] = (-0.1, {"a": 1.5, "b": [np.full((2, 3), 1.5), np.array(1.5)]})
    found = robustness(of_trees, parted(x), y, progress=False, **options)
    same_as_numpy(found, x, y, model, **(options | {"bounds": bounds}))


def test_a_tree_of_the_wrong_structure_is_an_error():
    model, x, y = curved()
    ball = {"p": 2, "sigma": 0.1, "progress": False}
    with pytest.raises(ValueError, match=r"x\['b'\]\[1\] and y .* got 79 inputs and 80 labels"):
        robustness(model, {"a": x, "b": [x, x[1:]]}, y, **ball)
    for grad, error, match in (
        (x, TypeError, "grad must be a tree like x; got ndarray"),
        ({"a": x[:, :2]}, ValueError, r"grad\['a'\] must have the shape of x\['a'\]"),
    ):
        with pytest.raises(error, match=match):
            robustness(lambda tree, grad=grad: (tree["a"], lambda _: grad), {"a": x}, y, **ball)
    with pytest.raises(ValueError, match="x must hold at least one array"):
        robustness(model, [({}, y)], **ball)


OPTIONS = {
    "p": (1, 2, math.inf),
    "sigma": {1: 0.4, 2: (0.05, 0.2), math.inf: 0.05},
    "effort": "quick",
    "bounds": (0, 1),
}


@pytest.mark.skipif("torch" not in NAMES, reason="torch is not under test")
@pytest.mark.torch
def test_torch_finds_what_numpy_finds_and_leaves_the_model():
    import torch

    import lpfamily_torch

    rng = np.random.default_rng(0)
    v, w, x = 3 * rng.standard_normal((10, 20)), rng.standard_normal((20, 5)), rng.random((80, 10))
    model, _, y = curved()
    net = torch.nn.Sequential(
        torch.nn.Linear(10, 20, bias=False), torch.nn.Tanh(), torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(20),
        torch.nn.Linear(20, 5, bias=False),
    ).double()  # fmt: skip
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor(v.T))
        net[4].weight.copy_(torch.tensor(w.T * math.sqrt(1 + 1e-5)))
    net[4].weight.grad = torch.ones(5, 20, dtype=torch.float64)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.random.get_rng_state()
    at, labels = torch.tensor(x), torch.tensor(y, dtype=torch.int32)
    found = lpfamily_torch.robustness(net, at, labels, progress=False, **OPTIONS)
    same_as_numpy(found, x, y, model, **OPTIONS)
    assert found.findings() == robustness(model, x, y, progress=False, **OPTIONS).findings()
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert net.training
    assert torch.equal(net[4].weight.grad, torch.ones(5, 20, dtype=torch.float64))
    assert net[0].weight.grad is None
    assert torch.equal(torch.random.get_rng_state(), state)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(at, labels), batch_size=80)
    again = lpfamily_torch.robustness(net, loader, progress=False, **OPTIONS)
    assert_array_equal(again.smallest(2), found.smallest(2))


@pytest.mark.skipif("torch" not in NAMES, reason="torch is not under test")
@pytest.mark.torch
def test_torch_gives_the_model_its_arguments():
    """By position or by name; a leaf that the model ignores stays; a loader turns a tuple into a list."""
    import torch

    import lpfamily_torch

    model, x, y = curved()
    rng = np.random.default_rng(0)
    v, w = (torch.tensor(rng.standard_normal(shape)) for shape in ((10, 20), (20, 5)))

    class Net(torch.nn.Module):
        def forward(self, image, text, unused=None):
            return torch.tanh(torch.cat([image.flatten(1), text.double()], dim=1) @ (3 * v)) @ w

    image, text, labels = torch.tensor(x[:, :6]).reshape(-1, 2, 3), torch.tensor(x[:, 6:]), torch.tensor(y)
    for given in (image, text), {"text": text, "image": image, "unused": torch.zeros(len(x), 1)}:
        sure = OPTIONS | {"bounds": None}
        same_as_numpy(
            lpfamily_torch.robustness(Net(), given, labels, progress=False, **sure), x, y, model, **sure
        )
    pairs = [((i, t), label) for i, t, label in zip(image, text.float(), labels, strict=True)]
    loader = torch.utils.data.DataLoader(pairs, batch_size=80)
    found = lpfamily_torch.robustness(Net(), loader, progress=False, **OPTIONS)
    expected = robustness(model, x, y, progress=False, **OPTIONS)
    assert abs(found.error(2, 0.2).value - expected.error(2, 0.2).value) < 0.05


@pytest.mark.skipif("torch" not in NAMES, reason="torch is not under test")
@pytest.mark.torch
def test_torch_processes_share_the_batches_and_all_have_the_result(tmp_path):
    from helpers.torch_processes import save_robustness

    save_robustness(tmp_path / "alone")
    joined(2, "-m", "helpers.torch_processes", "save_robustness_by_rank", tmp_path, cwd=tmp_path)
    alone, first, second = (
        (tmp_path / name / "robustness.json").read_bytes() for name in ("alone", "0", "1")
    )
    assert alone == first == second


@pytest.mark.skipif("jax" not in NAMES, reason="JAX is not under test")
@pytest.mark.jax
def test_jax_finds_what_numpy_finds():
    import jax
    import jax.numpy as jnp

    import lpfamily_jax

    rng = np.random.default_rng(0)
    v, w, x = 3 * rng.standard_normal((10, 20)), rng.standard_normal((20, 5)), rng.random((80, 10))
    model, _, y = curved()
    with jax.enable_x64(True):
        found = lpfamily_jax.robustness(
            lambda x: jnp.tanh(x @ v) @ w, jnp.asarray(x), y, progress=False, **OPTIONS
        )
    same_as_numpy(found, x, y, model, **OPTIONS)
    parts = {"a": x[:, :3], "b": [x[:, 3:]]}
    with jax.enable_x64(True):
        found = lpfamily_jax.robustness(
            lambda tree: jnp.tanh(jnp.concatenate([tree["a"], *tree["b"]], axis=1) @ v) @ w,
            jax.tree.map(jnp.asarray, parts),
            y,
            progress=False,
            **OPTIONS,
        )
    same_as_numpy(found, x, y, model, **OPTIONS)
