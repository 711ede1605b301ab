"""Attacks for foolbox and ART: the maximiser for every p, no less gain than theirs, and no trace of it."""

import copy
import functools
import math
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from helpers.backends_under_test import NAMES
from helpers.laws import norms

if "torch" not in NAMES:
    pytest.skip("torch is not under test", allow_module_level=True)

import foolbox
import torch
from art.attacks.evasion import FastGradientMethod
from art.estimators.classification import PyTorchClassifier, SklearnClassifier
from art.estimators.regression import PyTorchRegressor
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import lpfamily
from lpfamily import certify, epsilon
from lpfamily.ecosystem.art import LpGradientMethod
from lpfamily.ecosystem.foolbox import LpAscentAttack, LpDistance, LpFastGradientAttack

pytestmark = pytest.mark.torch

EXPONENTS = 1, 1.01, 1.05, 1.1, 1.5, 2, 3, 30, 100, 1000, math.inf
BOX = (0.0, 1.0)


def radius(p):
    """Return the norm of a step of 0.05 in all 64 pixels."""
    return 0.05 * 64 ** (1 / p)


@pytest.fixture(scope="module")
def trained():
    """Return a network so confident that 1 - p_y is often 0 in float32, and its test set."""
    digits = load_digits()
    x, labels = torch.tensor(digits.data / 16), torch.tensor(digits.target)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10)).double()
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x[:1200]), labels[:1200]).backward()
        optimizer.step()
    with torch.no_grad():
        for weight in net[2].parameters():
            weight *= 5
    return net, x[1200:1500].numpy(), labels[1200:1500].numpy()


class Scaled(torch.nn.Module):
    def __init__(self, net, factor):
        super().__init__()
        self.net, self.factor = net, factor

    def forward(self, x):
        return self.factor * self.net(x.flatten(1))


def logsumexp_of_the_wrong(logits, labels):
    right = torch.nn.functional.one_hot(torch.as_tensor(labels), 10).bool()
    return torch.logsumexp(logits.masked_fill(right, -math.inf), 1) - logits[right]


def setting(trained, dtype="float32", factor=1.0, examples=300, shape=(64,)):
    """Return the network for foolbox and for ART, the inputs, and their gradients in float64."""
    net, x, labels = trained
    x, labels = x[:examples].astype(dtype).reshape(-1, *shape), labels[:examples]
    leaf = torch.tensor(x.astype("float64"), requires_grad=True)
    (grad,) = torch.autograd.grad(logsumexp_of_the_wrong(Scaled(net, factor)(leaf), labels).sum(), leaf)
    model = Scaled(copy.deepcopy(net).to(getattr(torch, dtype)), factor).eval()
    loss = torch.nn.CrossEntropyLoss()
    return SimpleNamespace(
        model=model,
        foolbox=foolbox.PyTorchModel(model, BOX, device="cpu"),
        art=PyTorchClassifier(model, loss, shape, 10, clip_values=BOX, device_type="cpu"),
        x=x,
        labels=labels,
        grad=grad.numpy(),
    )


def in_foolbox(attack, s, sigma, criterion=None):
    criterion = torch.tensor(s.labels) if criterion is None else criterion
    return attack(s.foolbox, torch.tensor(s.x), criterion, epsilons=sigma)[1].numpy()


def ours_in_foolbox(s, p, sigma):
    return in_foolbox(LpFastGradientAttack(p), s, sigma)


def ours_in_art(s, p, sigma):
    return LpGradientMethod(s.art, p, sigma).generate(s.x, s.labels)


def theirs_in_foolbox(s, p, sigma):
    name = {1: "L1", 2: "L2", math.inf: "Linf"}[p]
    return in_foolbox(getattr(foolbox.attacks, f"{name}FastGradientAttack")(), s, sigma)


def theirs_in_art(s, p, sigma):
    with np.errstate(all="ignore"):
        return FastGradientMethod(s.art, p, sigma, eps_step=sigma).generate(s.x, s.labels)


OURS = pytest.mark.parametrize("attack", [ours_in_foolbox, ours_in_art])
BESIDE = [
    pytest.param(ours, theirs, p, id=f"{theirs.__name__}-{p}")
    for ours, theirs, exponents in (
        (ours_in_foolbox, theirs_in_foolbox, (1, 2, math.inf)),
        (ours_in_art, theirs_in_art, EXPONENTS),
    )
    for p in exponents
]


def is_the_maximiser(adversarial, s, p, sigma, mask=True):
    assert adversarial.dtype == s.x.dtype
    assert np.all((adversarial >= BOX[0]) & (adversarial <= BOX[1]))
    rounding = max(32 * np.finfo(s.x.dtype).eps / 0.05, 1e-9)
    # judged in float64: what float32 has lost is lost
    at = s.x.astype("float64")
    eps, grad = adversarial - at, np.where(mask, s.grad, 0.0)
    assert_array_equal(eps[~np.broadcast_to(mask, eps.shape)], 0.0)
    found = certify(grad, eps, p, sigma, at, BOX)
    assert np.all(found.norm_used <= 1 + rounding), found.summary()
    assert np.all(found.gain >= 1 - rounding), found.summary()


@OURS
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_p_is_the_maximiser_in_ball_and_box(trained, attack, dtype):
    s = setting(trained, dtype)
    for p in EXPONENTS:
        is_the_maximiser(attack(s, p, radius(p)), s, p, radius(p))


@OURS
@pytest.mark.parametrize("factor", [1e-30, 1e-15, 1e20])
def test_the_scale_of_the_logits_does_not_change_the_step(trained, attack, factor):
    s = setting(trained, factor=factor)
    for p in 1, 1.5, 2, 3:
        is_the_maximiser(attack(s, p, radius(p)), s, p, radius(p))


def of_powers(grad, p, sigma):
    q = p / (p - 1)
    norm = np.sum(np.abs(grad) ** q, axis=1, keepdims=True) ** (1 / q)
    return sigma * np.sign(grad) * (np.abs(grad) / np.where(norm, norm, np.inf)) ** (q - 1)


def clipped(grad, p, sigma):
    return epsilon(grad, p, sigma)


def projected_by_powers(grad, p, sigma):
    eps = epsilon(grad, p, sigma)
    norm = np.sum(np.abs(eps) ** np.float32(p), axis=1, keepdims=True) ** (1 / p)
    return eps * np.where(norm, np.minimum(1, sigma / norm), 0)


def floored(grad, p, sigma):
    return sigma * grad / np.maximum(np.linalg.norm(grad, axis=1, keepdims=True), 1e-12)


def divided_by_its_norm(grad, p, sigma):
    return sigma * grad / np.sum(np.abs(grad), axis=1, keepdims=True)


@OURS
@pytest.mark.parametrize(
    ("mutant", "p", "factor"),
    [
        (of_powers, 1.01, 1.0),
        (of_powers, 1.1, 1e-15),
        (projected_by_powers, 1000, 1.0),
        (floored, 2, 1e-15),
        (divided_by_its_norm, 1, 1.0),
        (clipped, 1, 1.0),
        (clipped, 1.5, 1.0),
        (clipped, 2, 1.0),
    ],
)
@pytest.mark.filterwarnings("ignore:.*were not moved")
def test_a_step_with_their_mistake_breaks_the_law(trained, attack, mutant, p, factor, monkeypatch):
    def step(grad, p, *_, **__):
        with np.errstate(all="ignore"):
            eps = np.nan_to_num(mutant(np.asarray(grad), p, radius(p))).astype("float32")
        return torch.from_numpy(eps) if isinstance(grad, torch.Tensor) else eps

    s = setting(trained, factor=factor)
    monkeypatch.setattr(lpfamily, "epsilon", step)
    with pytest.raises(AssertionError):
        is_the_maximiser(attack(s, p, radius(p)), s, p, radius(p))


@OURS
@pytest.mark.filterwarnings("ignore:.*were not moved")
def test_the_direction_of_the_cross_entropy_in_float32_breaks_the_law(trained, attack, monkeypatch):
    s = setting(trained)
    ours = robust(s, attack(s, 2, 1.0))
    own = functools.partial(torch.nn.functional.cross_entropy, reduction="none")
    monkeypatch.setattr(lpfamily, "error_log_odds", own)
    adversarial = attack(s, 2, 1.0)
    with pytest.raises(AssertionError):
        is_the_maximiser(adversarial, s, 2, 1.0)
    assert robust(s, adversarial) > ours + 0.1


def robust(s, adversarial):
    with torch.no_grad():
        return np.mean(s.model(torch.tensor(adversarial)).argmax(1).numpy() == s.labels)


def gains(s, adversarial):
    return np.sum(s.grad * (adversarial - s.x.astype("float64")), axis=1)


@pytest.mark.parametrize(("ours", "theirs", "p"), BESIDE)
def test_our_attack_gains_at_least_as_much_as_theirs(trained, ours, theirs, p):
    s = setting(trained)
    own, other = (gains(s, attack(s, p, radius(p))) for attack in (ours, theirs))
    assert np.all(own >= other - 1e-4 * np.abs(own))


@pytest.mark.parametrize(
    ("ours", "theirs", "p"), [case for case in BESIDE if case.values[2] in (1, 2, math.inf)]
)
def test_no_more_examples_withstand_our_attack_than_theirs(trained, ours, theirs, p):
    # The maximiser of the linearised loss, so a law to first order only: single examples do go the other
    # way, and a network might be found of which more do. Of 6 such networks and 32 radii none was.
    s = setting(trained)
    shares = {
        r: [robust(s, attack(s, p, r * radius(p))) for attack in (ours, theirs)] for r in (0.4, 1, 2, 4)
    }
    assert all(own <= other for own, other in shares.values()), shares
    assert any(own < other for own, other in shares.values()), shares


MANY = {
    "foolbox": lambda s, p, sigma, **options: in_foolbox(LpAscentAttack(p, **options), s, sigma),
    "art": lambda s, p, sigma, **options: LpGradientMethod(s.art, p, sigma, **options).generate(
        s.x, s.labels
    ),
}


def odds_in_double(trained, s, adversarial):
    with torch.no_grad():
        logits = trained[0](torch.tensor(adversarial.astype("float64")))
    return logsumexp_of_the_wrong(logits, s.labels).numpy()


@pytest.mark.parametrize("package", MANY)
@pytest.mark.parametrize("how", ["adaptive", "projected", "frank-wolfe", "small steps", "random start"])
@pytest.mark.parametrize("p", [1, 1.5, 2, math.inf])
def test_many_steps_stay_inside_and_gain_as_much_as_one(trained, package, how, p):
    options = {
        "adaptive": {},
        "projected": {"method": "projected"},
        "frank-wolfe": {"method": "frank-wolfe"},
        "small steps": {"step_size": radius(p) / 4},
        "random start": {"random_start": np.random.default_rng(0)},
    }[how]
    s = setting(trained, examples=30)
    many, one = MANY[package](s, p, radius(p), steps=8, **options), ours_in_art(s, p, radius(p))
    assert np.all((many >= 0) & (many <= 1))
    assert np.all(norms(many - s.x, p) <= radius(p) * (1 + 1e-5))
    before, after, least = (odds_in_double(trained, s, x) for x in (s.x, many, one))
    assert np.all(after >= before) or how == "random start"
    assert np.mean(after - before) > 0.98 * np.mean(least - before)


@pytest.mark.parametrize("package", MANY)
def test_a_random_start_is_random_and_can_be_repeated(trained, package):
    s = setting(trained, examples=5)
    a, b, c, d = (
        MANY[package](s, 2, 0.4, steps=1, step_size=0.01, random_start=start)
        for start in (np.random.default_rng(0), np.random.default_rng(0), True, True)
    )
    assert_array_equal(a, b)
    assert np.all(np.any(a != c, axis=1))
    assert np.all(np.any(c != d, axis=1))


class OwnLoss(torch.nn.Module):
    def forward(self, outputs, labels):
        return torch.nn.functional.cross_entropy(outputs, labels.argmax(1))


@pytest.mark.parametrize("method", [None, "projected", "frank-wolfe"])
def test_a_custom_loss_returns_the_last_iterate(trained, method):
    # at the first iterates it is 0 in float32, as at the start; only the last ones are near the sphere
    s = setting(trained, factor=0.3, examples=30)
    s.art = PyTorchClassifier(s.model, OwnLoss(), (64,), 10, clip_values=BOX, device_type="cpu")
    adversarial = MANY["art"](s, 2, radius(2), steps=8, method=method)
    assert np.all(norms(adversarial - s.x, 2) > 0.9 * radius(2))
    assert np.all(norms(adversarial - s.x, 2) <= radius(2) * (1 + 1e-5))
    with pytest.raises(ValueError, match="'adaptive' needs the value of each example"):
        MANY["art"](s, 2, radius(2), steps=8, method="adaptive")


def test_a_linear_model_of_scikit_learn(trained):
    _, x, labels = trained
    model = LogisticRegression(max_iter=200).fit(x, labels)
    estimator = SklearnClassifier(model, clip_values=BOX)
    for p in EXPONENTS:
        adversarial = LpGradientMethod(estimator, p, radius(p)).generate(x, labels)
        # the gradient of its cross-entropy, by hand
        wrong = model.predict_proba(x) - np.eye(10)[labels]
        found = certify(wrong @ model.coef_, adversarial - x, p, radius(p), x, BOX)
        assert np.all(found.gain > 1 - 1e-6)


def test_a_regressor_has_values_and_no_classes(trained):
    s = setting(trained, "float32", examples=20)
    net = torch.nn.Linear(64, 1)
    estimator = PyTorchRegressor(net, torch.nn.MSELoss(), (64,), clip_values=BOX, device_type="cpu")
    y = s.labels.astype("float32")
    adversarial = LpGradientMethod(estimator, 2, 0.5).generate(s.x, y)
    before, after = (np.abs(estimator.predict(x).reshape(-1) - y) for x in (s.x, adversarial))
    assert np.all(after > before)


# What goes in and what comes out.


def test_labels_are_indices_or_one_hot_and_none_means_the_predictions(trained):
    s = setting(trained)
    attack = LpGradientMethod(s.art, 2, 0.5)
    predicted = s.art.predict(s.x).argmax(1)
    assert np.any(predicted != s.labels)
    assert_array_equal(attack.generate(s.x, s.labels), attack.generate(s.x, np.eye(10)[s.labels]))
    assert_array_equal(attack.generate(s.x), attack.generate(s.x, predicted))
    assert np.any(attack.generate(s.x) != attack.generate(s.x, s.labels))


def test_soft_labels_use_the_gradient_of_the_loss(trained):
    s = setting(trained, "float64", examples=20)
    s.model.factor = 0.1
    soft = np.full((20, 10), 0.05) + 0.5 * np.eye(10)[s.labels]
    leaf = torch.tensor(s.x, requires_grad=True)
    torch.nn.functional.cross_entropy(s.model(leaf), torch.tensor(soft)).backward()
    expected = s.x + epsilon(leaf.grad.numpy(), 2, 0.5, x=s.x, bounds=BOX)
    assert_allclose(LpGradientMethod(s.art, 2, 0.5).generate(s.x, soft), expected, rtol=1e-6)


def test_a_targeted_attack_approaches_its_target(trained):
    s = setting(trained, examples=60)
    targets = (s.labels + 1) % 10
    by_foolbox = foolbox.criteria.TargetedMisclassification(torch.tensor(targets))
    for p in 1, 2, math.inf:
        one = in_foolbox(LpFastGradientAttack(p), s, radius(p), by_foolbox)
        in_art = LpGradientMethod(s.art, p, radius(p), targeted=True).generate(s.x, targets)
        assert_allclose(one, in_art, atol=1e-6)
        many = in_foolbox(LpAscentAttack(p), s, 4 * radius(p), by_foolbox)
        towards = SimpleNamespace(**vars(s) | {"labels": targets})
        assert np.all(odds_in_double(trained, towards, one) < odds_in_double(trained, towards, s.x))
        assert robust(towards, many) > 0.6  # as they are then


def test_a_mask_spends_nothing_outside(trained):
    s = setting(trained, examples=100)
    for mask in np.arange(64) % 3 > 0, np.random.default_rng(0).random(s.x.shape) < 0.5:
        outside = ~np.broadcast_to(mask, s.x.shape)
        for kind in bool, "float32":
            attack = LpGradientMethod(s.art, 1.5, radius(1.5), batch_size=30)
            one = attack.generate(s.x, s.labels, mask=mask.astype(kind))
            is_the_maximiser(one, s, 1.5, radius(1.5), mask)
            attack.set_params(steps=4)
            many = attack.generate(s.x, s.labels, mask=mask.astype(kind))
            assert_array_equal(many[outside], s.x[outside])
            assert np.all(odds_in_double(trained, s, many) >= odds_in_double(trained, s, s.x))


def test_a_radius_for_each_example(trained):
    s = setting(trained, examples=50)
    sigma = np.linspace(0, 1, 50)[:, None].astype("float32")
    adversarial = LpGradientMethod(s.art, 3, sigma, batch_size=7).generate(s.x, s.labels)
    is_the_maximiser(adversarial, s, 3, sigma[:, 0].astype("float64"))


def test_batches_make_no_difference(trained):
    s = setting(trained, examples=50)
    a, b = (LpGradientMethod(s.art, 2, 0.4, batch_size=n).generate(s.x, s.labels) for n in (7, 50))
    assert_allclose(a, b, atol=1e-6)
    assert LpGradientMethod(s.art, 2, 0.4).generate(s.x[:0], s.labels[:0]).shape == (0, 64)


@pytest.mark.parametrize(("of_model", "of_x"), [("float32", "float64"), ("float64", "float32")])
def test_inputs_need_not_have_the_dtype_of_the_model(trained, of_model, of_x):
    s = setting(trained, of_model, examples=50)
    expected = ours_in_art(s, 2, 0.4)
    s.x = s.x.astype(of_x)
    found = ours_in_art(s, 2, 0.4)
    assert found.dtype == of_x
    assert_allclose(found, expected, atol=1e-6)


def test_a_list_of_radii_gives_the_result_of_each_radius(trained):
    s = setting(trained, examples=30)
    x, labels = torch.tensor(s.x), torch.tensor(s.labels)
    for attack in LpFastGradientAttack(1.5), LpAscentAttack(2, steps=3):
        raw, within, success = attack(s.foolbox, x, labels, epsilons=[0.0, 0.2, 1.0])
        assert success.shape == (3, 30)
        assert_array_equal(within[0].numpy(), s.x)
        for sigma, adversarial, found in zip([0.2, 1.0], within[1:], success[1:], strict=True):
            assert_array_equal(attack(s.foolbox, x, labels, epsilons=sigma)[1].numpy(), adversarial.numpy())
            assert_array_equal(s.model(adversarial).argmax(1) != labels, found)
        assert torch.equal(raw[0], x)
        best = attack.repeat(2)(s.foolbox, x, labels, epsilons=1.0)
        assert torch.equal(best[2], success[2])


@OURS
def test_images_are_examples_whatever_their_shape(trained, attack):
    flat, images = setting(trained, examples=30), setting(trained, examples=30, shape=(1, 8, 8))
    adversarial = attack(images, 1.5, radius(1.5))
    assert adversarial.shape == (30, 1, 8, 8)
    assert_array_equal(adversarial.reshape(30, 64), attack(flat, 1.5, radius(1.5)))


def test_bounds_and_radii_in_units_of_255(trained):
    # where |x| ** 1000 overflows and foolbox's own distance would take the perturbation back
    s = setting(trained)
    model = foolbox.PyTorchModel(s.model, BOX, device="cpu").transform_bounds((0, 255))
    _, adversarial, _ = LpFastGradientAttack(1000)(
        model, torch.tensor(255 * s.x), torch.tensor(s.labels), epsilons=255 * radius(1000)
    )
    is_the_maximiser((adversarial / 255).numpy(), s, 1000, radius(1000))


@pytest.mark.parametrize("p", EXPONENTS)
def test_the_distance_is_the_norm(p):
    rng = np.random.default_rng(0)
    x = rng.random((40, 3, 4)) * 10.0 ** rng.integers(-3, 3, (40, 1, 1))
    y = x + rng.standard_normal(x.shape) * 10.0 ** rng.integers(-6, 6, (40, 1, 1))
    expected = norms((y - x).reshape(40, 12), p).astype(float)
    distance = LpDistance(p)
    assert_allclose(distance(x, y), expected, rtol=1e-12)
    radii = np.median(expected)
    within = distance.clip_perturbation(x, y, radii)
    assert np.all((within >= np.minimum(x, y)) & (within <= np.maximum(x, y)))
    assert_allclose(distance(x, within), np.minimum(expected, radii), rtol=1e-9)


# What is left behind.


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("package", MANY)
def test_an_attack_leaves_the_model_unchanged(trained, package, training):
    s = setting(trained, examples=20)
    s.model.train(training)
    s.model.net[0].weight.requires_grad_(False)
    s.model.net[2].bias.grad = torch.arange(10.0)
    before = copy.deepcopy(s.model)
    loss, grads = s.art.loss, [weight.grad for weight in s.model.parameters()]
    random = torch.random.get_rng_state()
    for steps in 1, 3:
        MANY[package](s, 2, 0.3, steps=steps)
    with torch.no_grad():
        ours_in_foolbox(s, 2, 0.3)
    with pytest.raises(ValueError, match="must"):
        LpGradientMethod(s.art, 2, 0.3).generate(s.x + 2, s.labels)
    assert s.art.loss is loss
    assert torch.equal(torch.random.get_rng_state(), random)
    for (name, now), then in zip(s.model.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(now, then), name
        assert now.requires_grad == then.requires_grad, name
    assert all(weight.grad is grad for weight, grad in zip(s.model.parameters(), grads, strict=True))
    assert torch.equal(s.model.net[2].bias.grad, torch.arange(10.0))
    assert [module.training for module in s.model.modules()] == [training] * 5


@OURS
def test_an_example_without_a_gradient_stays_and_is_counted(trained, attack):
    s = setting(trained, examples=20)
    with torch.no_grad():
        s.model.net[0].weight[:] = 0
    with pytest.warns(UserWarning, match="20 of 20 examples were not moved"):
        assert_array_equal(attack(s, 2, 0.5), s.x)
    with torch.no_grad():
        s.model.net[0].weight[:] = math.nan
    with pytest.warns(UserWarning, match="20 of 20 examples were not moved"):
        assert_array_equal(attack(s, 2, 0.5), s.x)


def test_an_error_says_what_was_given(trained):
    s = setting(trained, examples=4)
    for p in 0.5, math.nan:
        with pytest.raises(ValueError, match=r"p must lie in \[1, inf\]; got"):
            LpFastGradientAttack(p)
        with pytest.raises(ValueError, match=r"p must lie in \[1, inf\]; got"):
            LpGradientMethod(s.art, p)
    for options, match in (
        ({"eps": -0.1}, "eps must be at least 0; got -0.1"),
        ({"steps": 0}, "steps must be at least 1; got 0"),
        ({"method": "newton"}, "method must be .*; got 'newton'"),
        ({"method": "adaptive", "step_size": 0.1}, "step_size needs method='projected'"),
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
    ):
        with pytest.raises(ValueError, match=match):
            LpGradientMethod(s.art, **options)
    with pytest.raises(ValueError, match="cannot be set"):
        LpGradientMethod(s.art).set_params(norm=2)
    with pytest.raises(ValueError, match="a targeted attack needs y"):
        LpGradientMethod(s.art, targeted=True).generate(s.x)
    with pytest.raises(ValueError, match=r"of shape \(4, 1\); got an array of shape \(64,\)"):
        LpGradientMethod(s.art, eps=np.arange(64.0)).generate(s.x)
    with pytest.raises(ValueError, match="broadcast"):
        LpGradientMethod(s.art, eps=np.ones((3, 1))).generate(s.x)
    one = PyTorchClassifier(torch.nn.Linear(64, 1), torch.nn.BCEWithLogitsLoss(), (64,), 2, device_type="cpu")
    with pytest.raises(ValueError, match=r"predictions of shape \(4, 1\) name no class"):
        LpGradientMethod(one).generate(s.x)
    numpy = foolbox.NumPyModel(lambda x: x[:, :10], BOX)
    with pytest.raises(TypeError, match="a NumPy model has no gradients"):
        LpFastGradientAttack(2)(numpy, s.x, s.labels, epsilons=0.1)
    both = foolbox.Misclassification(torch.tensor(s.labels)) & foolbox.Misclassification(
        torch.tensor(s.labels)
    )
    with pytest.raises(ValueError, match="criterion must be Misclassification or TargetedMisclassification"):
        in_foolbox(LpFastGradientAttack(2), s, 0.1, both)
    with pytest.raises(TypeError, match="unexpected keyword"):
        LpFastGradientAttack(2)(s.foolbox, torch.tensor(s.x), torch.tensor(s.labels), epsilons=0.1, mask=1)
