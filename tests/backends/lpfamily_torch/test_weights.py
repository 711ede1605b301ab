"""`perturbed_weights` moves all weights of a torch model in one ball, and afterwards leaves no trace."""

import contextlib
import copy
import functools
import math

import numpy as np
import pytest
from numpy.testing import assert_allclose

from helpers.laws import closed_form
from helpers.libraries_under_test import NAMES

if "torch" not in NAMES:
    pytest.skip("torch is not under test", allow_module_level=True)

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import lpfamily
from helpers.commandline import joined
from helpers.torch_models import flat
from lpfamily_torch import perturbed_weights, regularized_loss

pytestmark = pytest.mark.torch

P = (1, 1.1, 1.5, 2, 3, math.inf)
SCALES = (None, "weights")


class Network(nn.Module):
    """A convolution, a frozen layer, one that is shared, one without use, and two kinds of statistics."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4)
        self.frozen = nn.Linear(16, 16).requires_grad_(False)
        self.shared, self.unused = nn.Linear(16, 16), nn.Linear(2, 2)
        self.again, self.last = self.shared, nn.Linear(16, 3)
        self.register_buffer("mean", torch.zeros(16))

    def forward(self, x):
        hidden = torch.tanh(self.norm(self.first(x[:, None]))).flatten(1)
        self.mean = 0.9 * self.mean + 0.1 * hidden.detach().mean(dim=0)
        return self.last(torch.tanh(self.again(self.shared(self.frozen(hidden - self.mean)))))


def batch(n=8, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator, dtype=dtype)
    return x, torch.randint(3, (n,), generator=generator)


def with_gradients(scale=1.0):
    """Return a network after a backward pass."""
    model, (x, y) = Network().double(), batch()
    (scale * cross_entropy(model(x), y)).backward()
    return model


def bits(model):
    """Return the identity and the bytes of each tensor."""
    return {
        name: (id(tensor), tensor.detach().numpy().tobytes())
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }


# The laws, of `perturbed_weights` or something broken.


def moves_by_the_closed_form(context, p, scale, magnitude=1.0):
    model = with_gradients(magnitude)
    moving = [weight for weight in model.parameters() if weight.grad is not None]
    still = [weight for weight in model.parameters() if weight.grad is None]
    before, grad, stays = flat(moving), flat(weight.grad for weight in moving), flat(still)
    size = np.abs(before) if scale else np.ones_like(before)
    with context(model, p=p, sigma=0.3, scale=scale):
        step = flat(moving) - before
        assert (flat(still) == stays).all()
    expected = size * closed_form((size * grad)[None], p, [0.3])[0]
    assert_allclose(step, expected.astype(float), rtol=1e-9, atol=1e-14)
    assert_allclose(lpfamily.norm(step[size > 0] / size[size > 0], p), 0.3)  # the biases of a norm are 0


def puts_everything_back(context):
    model, (x, y) = with_gradients(), batch(seed=1)
    before, modes = bits(model), [each.training for each in model.modules()]
    with context(model, sigma=0.3):
        cross_entropy(model(x), y).backward()
        assert all(bits(model)[name] != before[name] for name in ("last.weight", "mean", "norm.running_var"))
    assert bits(model) == before
    assert [each.training for each in model.modules()] == modes


def puts_everything_back_after_an_exception(context):
    model = with_gradients()
    before = bits(model)
    with pytest.raises(ZeroDivisionError), context(model, sigma=0.3):
        cross_entropy(model(batch(seed=1)[0]), torch.zeros(8, dtype=int)).backward(torch.ones(1 // 0))
    assert bits(model) == before


LAWS = (
    *(functools.partial(moves_by_the_closed_form, p=p, scale=scale) for p in P for scale in SCALES),
    *(
        functools.partial(moves_by_the_closed_form, p=p, scale=scale, magnitude=magnitude)
        for p in (1.5, 2)
        for scale in SCALES
        for magnitude in (1e-250, 1e250)
    ),
    puts_everything_back,
    puts_everything_back_after_an_exception,
)


@pytest.mark.parametrize("place", range(len(LAWS)))
def test_the_block_obeys_every_law(place):
    LAWS[place](perturbed_weights)


@contextlib.contextmanager
def by_hand(
    model,
    *,
    p=2.0,
    sigma,
    scale=None,
    floor=0.0,
    of_each=False,
    twice=False,
    everything=False,
    scaled="both",
    subtracts=False,
    buffers=True,
    always=True,
):
    """Move all weights and put them back, with a mistake for each option."""
    named = dict(model.named_parameters(remove_duplicate=not twice))
    moving = [weight for weight in named.values() if weight.grad is not None]
    if everything:
        for weight in model.parameters():
            if weight.grad is None:
                weight.grad = torch.ones_like(weight)
        moving = list(model.parameters())
    sizes = [weight.detach().abs() if scale else torch.ones_like(weight) for weight in moving]
    grads = [(size if scaled != "after" else 1) * w.grad for size, w in zip(sizes, moving, strict=True)]
    parts = [[grad] for grad in grads] if of_each else [grads]
    with torch.no_grad():
        steps = [step for part in parts for step in lpfamily.epsilon(part, p, sigma, batch_ndim=0)]
        shrink = 1 / (1 + floor / torch.cat([grad.flatten() for grad in grads]).norm())
        steps = [
            shrink * step * (size if scaled != "before" else 1)
            for size, step in zip(sizes, steps, strict=True)
        ]
        entries = [(each._buffers, dict(each._buffers)) for each in model.modules()]
        kept = [*model.parameters(), *(model.buffers() if buffers else ())]
        copies = [tensor.detach().clone() for tensor in kept]
        for weight, step in zip(moving, steps, strict=True):
            weight += step
    raised = True
    try:
        yield
        raised = False
    finally:
        if always or not raised:
            with torch.no_grad():
                for table, own in entries if buffers else ():
                    table.update(own)
                for tensor, copied in zip(kept, copies, strict=True):
                    tensor.copy_(copied)
                if subtracts:
                    for weight, step in zip(moving, steps, strict=True):
                        weight.copy_((weight + step) - step)


MUTANTS = {
    "a ball per parameter": ({"of_each": True}, functools.partial(moves_by_the_closed_form, p=2, scale=None)),
    "a floor of 1e-12": (
        {"floor": 1e-12},
        functools.partial(moves_by_the_closed_form, p=2, scale=None, magnitude=1e-20),
    ),
    "a shared weight twice": ({"twice": True}, functools.partial(moves_by_the_closed_form, p=2, scale=None)),
    "frozen weights too": (
        {"everything": True},
        functools.partial(moves_by_the_closed_form, p=2, scale=None),
    ),
    "the scale before alone": (
        {"scaled": "before"},
        functools.partial(moves_by_the_closed_form, p=2, scale="weights"),
    ),
    "the scale after alone": (
        {"scaled": "after"},
        functools.partial(moves_by_the_closed_form, p=2, scale="weights"),
    ),
    "eps subtracted": ({"subtracts": True}, puts_everything_back),
    "statistics of the moved weights": ({"buffers": False}, puts_everything_back),
    "moved after an exception": ({"always": False}, puts_everything_back_after_an_exception),
}


@pytest.mark.parametrize(("mistake", "law"), MUTANTS.values(), ids=MUTANTS)
def test_a_mistake_breaks_its_law(mistake, law):
    law(by_hand)
    with pytest.raises(AssertionError):
        law(functools.partial(by_hand, **mistake))


# Loops.


def gradient_at(model, x, y, step):
    """Return the gradient of the mean loss at weights moved by `step`, a dict, without moving any."""
    weights = {name: w.detach().clone() for name, w in model.named_parameters()}

    def mean(weights):
        return cross_entropy(torch.func.functional_call(copy.deepcopy(model), weights, (x,)), y)

    return torch.func.grad(mean)({name: w + step.get(name, 0) for name, w in weights.items()})


def test_a_step_is_that_of_sharpness_aware_minimisation():
    """Eq. 2 and 3 of Foret et al., of two micro-batches whose gradients add up, whatever scales them."""
    model, (x, y) = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double(), batch()
    start = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    clean = gradient_at(model, x, y, {})
    norm = torch.sqrt(sum((grad**2).sum() for grad in clean.values()))
    slope = gradient_at(model, x, y, {name: 0.05 * grad / norm for name, grad in clean.items()})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def accumulate(factor):
        for rows in torch.arange(len(x)).split(4):
            (factor * cross_entropy(model(x[rows]), y[rows]) / 2).backward()

    accumulate(2.0**-100)
    with perturbed_weights(model):
        optimizer.zero_grad()
        accumulate(1.0)
    optimizer.step()
    for name, weight in model.named_parameters():
        assert_allclose(weight.detach(), start[name] - 0.1 * slope[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", SCALES)
def test_gradients_may_be_given(scale):
    """So that param.grad collects those of several blocks."""
    model, given = with_gradients(), with_gradients()
    found = [weight.grad for weight in model.parameters() if weight.requires_grad]
    given.zero_grad()
    given.last.weight.grad = torch.full_like(given.last.weight, math.nan)
    moved = []
    for each, grads in (model, None), (given, iter(found)):
        with perturbed_weights(each, grads, p=1.5, scale=scale):
            moved.append(flat(each.parameters()))
    assert (moved[0] == moved[1]).all()
    assert given.last.weight.grad.isnan().all()


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
@pytest.mark.parametrize("how", ["foreach", "fused", "for loop"])
def test_an_optimiser_that_steps_inside_is_an_error(optimizer, how):
    model = with_gradients()
    options = {} if how == "for loop" else {how: True}
    optimizer = getattr(torch.optim, optimizer)(
        [w for w in model.parameters() if w.requires_grad], 0.1, **options
    )
    before = bits(model)
    with (
        pytest.raises(RuntimeError, match=r"step\(\) .* inside of perturbed"),
        perturbed_weights(model),
    ):
        optimizer.step()
    assert bits(model) == before
    assert not optimizer.state
    other = nn.Linear(1, 1)
    other(torch.ones(1)).backward()
    with perturbed_weights(model):
        torch.optim.SGD(other.parameters(), 0.1).step()
    optimizer.step()
    assert bits(model) != before


def test_blocks_may_be_nested():
    """As for two steps of ascent."""
    model, (x, y) = with_gradients(), batch()
    before = bits(model)
    with perturbed_weights(model, p=math.inf):
        outer = bits(model)
        cross_entropy(model(x), y).backward()
        seen = bits(model)
        with perturbed_weights(model, p=2):
            assert bits(model)["last.weight"] != outer["last.weight"]
        assert bits(model) == seen
    assert bits(model) == before


@pytest.mark.parametrize("p", [1, 2, math.inf])
@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0])
def test_bad_gradients_leave_nothing_behind(p, bad):
    model, (x, _) = with_gradients(), batch()
    before = bits(model)
    for weight in model.parameters():
        if weight.grad is not None:
            weight.grad.fill_(bad)
    with perturbed_weights(model, p=p):
        inside = flat(model.parameters())
        assert np.isnan(inside).any() == math.isnan(bad)
        model(x)
    assert bits(model) == before


def test_a_scaler_that_is_too_large_finds_its_scale():
    model, (x, y) = Network(), batch(64, dtype=torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)
    optimizer, skipped = torch.optim.SGD([w for w in model.parameters() if w.requires_grad], 0.1), 0
    for _ in range(24):
        before = flat(model.parameters())
        for block in contextlib.nullcontext(), perturbed_weights(model):
            with block:
                optimizer.zero_grad()
                with torch.autocast("cpu", torch.float16):
                    loss = cross_entropy(model(x), y)
                scaler.scale(loss).backward()
        size = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        skipped += scaler.get_scale() < size
        assert (flat(model.parameters()) == before).all() == (scaler.get_scale() < size)
    assert 0 < skipped < 24
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def test_weights_may_have_several_dtypes():
    model = Network().double()
    model.first.half()
    model.last.bfloat16()
    moving = [*model.first.parameters(), *model.last.parameters(), *model.shared.parameters()]
    for k, weight in enumerate(moving):
        weight.grad = torch.full_like(weight, k + 1.0)
    before, bytes_before = flat(moving), [w.detach().view(torch.uint8).clone() for w in moving]
    grad = flat(weight.grad for weight in moving)
    with perturbed_weights(model, sigma=3.0):
        step = flat(moving) - before
    assert_allclose(step, 3 * grad / np.linalg.norm(grad), atol=4e-3)  # bfloat16's rounding of w + eps
    assert all(torch.equal(w.view(torch.uint8), kept) for w, kept in zip(moving, bytes_before, strict=True))


def test_inputs_and_weights_may_be_perturbed_together():
    model, (x, y) = Network().double(), batch()
    before = bits(model)

    def losses_of(outputs, y):
        return cross_entropy(outputs, y, reduction="none")

    regularized_loss(model, losses_of, x, y, p=math.inf, sigma=0.1).backward()
    after, first = bits(model), flat([model.last.weight.grad])
    assert after["mean"] != before["mean"]
    with perturbed_weights(model, p=math.inf, sigma=0.01):
        model.zero_grad()
        regularized_loss(model, losses_of, x, y, p=math.inf, sigma=0.1).backward()
    assert bits(model) == after
    assert (flat([model.last.weight.grad]) != first).all()


def test_a_compiled_model_sees_the_moved_weights():
    model, (x, y) = nn.Sequential(nn.Linear(6, 3), nn.Tanh()).double(), batch()
    compiled = torch.compile(model, backend="aot_eager")
    before = compiled(x)
    cross_entropy(before, y).backward()
    with perturbed_weights(compiled):
        assert_allclose(compiled(x).detach(), model(x).detach(), rtol=1e-9, atol=1e-12)
        assert not torch.allclose(compiled(x), before)
    assert torch.equal(compiled(x), before)


def test_processes_follow_one(tmp_path):
    joined(2, "-m", "helpers.torch_processes", "move_weights_as_one", cwd=tmp_path)


def sparse():
    model = nn.Embedding(4, 3, sparse=True)
    model(torch.tensor([1, 2])).sum().backward()
    return model


ERRORS = [
    (Network, {}, ValueError, r"no parameter has a gradient: call backward\(\) before"),
    (
        with_gradients,
        {"grads": [torch.ones(3)]},
        ValueError,
        r"one for each .* model.parameters\(\), 10; got 1",
    ),
    (
        lambda: nn.Linear(3, 1),
        {"grads": [torch.ones(3), None]},
        ValueError,
        r"gradient of weight must have its shape, \(1, 3\); got \(3,\)",
    ),
    (with_gradients, {"scale": 0.1}, ValueError, "scale must be None or 'weights'; got 0.1"),
    (with_gradients, {"p": 0.5}, ValueError, r"p must lie in \[1, inf\]"),
    (with_gradients, {"sigma": -1.0}, ValueError, r"sigma is the ball's radius"),
    (sparse, {}, TypeError, r"grad\['weight'\] must be a dense tensor"),
]


@pytest.mark.parametrize(("make", "options", "error", "says"), ERRORS, ids=range(len(ERRORS)))
def test_unsupported_calls_are_errors(make, options, error, says):
    model = make()
    before = bits(model)
    with pytest.raises(error, match=says), perturbed_weights(model, **options):
        pass
    assert bits(model) == before


def test_weights_sharded_by_fsdp_are_an_error(monkeypatch):
    from torch.distributed import fsdp

    monkeypatch.setattr(fsdp, "FSDPModule", Network)
    with (
        pytest.raises(ValueError, match="FSDP no process has them all: use DistributedDataParallel"),
        perturbed_weights(with_gradients()),
    ):
        pass
