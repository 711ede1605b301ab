"""Tracing, mapping, compiling and differentiating agree with the plain call."""

import functools
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from helpers.calls import EVERY
from helpers.laws import assert_rows_close, cases, closed_form, dual, norms
from helpers.libraries import P
from helpers.libraries_under_test import NAMES
from lpfamily import ascend, certify, cross_entropy, epsilon, norm, penalty, project
from lpfamily.steepest import steepest

needs_torch = pytest.mark.skipif("torch" not in NAMES, reason="torch is not under test")
needs_jax = pytest.mark.skipif("jax" not in NAMES, reason="JAX is not under test")
SMOOTH = [1.2, 4 / 3, 1.5, 2, 2.7, 3, 9.0]
COMPILED = {"fullgraph": True, "backend": "aot_eager", "dynamic": False}
seeds = st.integers(0, 2**32 - 1)
every = pytest.mark.parametrize("call", EVERY, ids=str)


@functools.cache
def mapped(lib, p):
    return lib.jit(lib.vmap(lambda g, s: epsilon(g, p, s, batch_ndim=0)))


@pytest.mark.parametrize("bounds", [None, (0, 1)], ids=["ball", "box"])
def test_masks_map_too(autodiff, bounds):
    rng = np.random.default_rng(0)
    x, mask = rng.random((4, 6)).astype("float32"), rng.random((4, 6)) < 0.7

    def ascended(x, mask, batch_ndim):
        def value_and_grad(at):
            return (at * at).sum(axis=-1), 2 * at

        return ascend(value_and_grad, x, 2, 0.2, 3, bounds=bounds, mask=mask, batch_ndim=batch_ndim)

    mapped = autodiff.jit(autodiff.vmap(lambda x, mask: ascended(x, mask, 0)))
    found = mapped(autodiff.from_numpy(x), autodiff.from_numpy(mask))
    assert_allclose(autodiff.to_numpy(found), ascended(x, mask, 1), atol=1e-6)


@given(p=st.sampled_from(P), seed=seeds)
def test_vmap_is_the_batch(autodiff, p, seed):
    rng = np.random.default_rng(seed)
    grad = autodiff.from_numpy(rng.standard_normal((4, 9)), "float32")
    sigma = autodiff.from_numpy(rng.random(4), "float32")
    one = mapped(autodiff, p)(grad, sigma)
    assert_allclose(autodiff.to_numpy(one), autodiff.to_numpy(epsilon(grad, p, sigma)), rtol=4e-6, atol=1e-24)


# Every function, in float64, against NumPy's plain call.


def given_to(lib, call):
    """Return the call's arrays in a library; call it within the library's scope."""
    return [lib.from_numpy(a, "float64" if a.dtype.kind == "f" else None) for a in call.arrays]


def assert_same(lib, found, expected):
    assert len(found) == len(expected)
    for got, number in zip(found, expected, strict=True):
        assert_allclose(lib.to_numpy(got), number, rtol=1e-9, atol=1e-12)


@every
def test_every_function_maps(autodiff, call):
    with autodiff.scope():
        arrays = given_to(autodiff, call)
        shared, own = arrays[: len(call.shared)], arrays[len(call.shared) :]
        found = autodiff.jit(autodiff.vmap(lambda *own: call(*shared, *own)))(*own)
    assert_same(autodiff, found, call(*call.arrays))


def weighted(xp, call, weights, floats, whole):
    """Return a number: the results of a call, weighted and summed."""
    arrays = list(whole)
    for i, array in zip(call.floating, floats, strict=True):
        arrays[i] = array
    return sum(xp.sum(w * result) for w, result in zip(weights, call(*arrays), strict=True))


def weights_of(call):
    rng = np.random.default_rng(21)
    return [rng.standard_normal(np.shape(result)) for result in call(*call.arrays)]


@functools.cache
def slopes_of(call):
    """Return the central differences of `weighted` in each floating argument."""
    weights, floats = weights_of(call), [call.arrays[i] for i in call.floating]

    def moved(k, x):
        return weighted(np, call, weights, [x if j == k else a for j, a in enumerate(floats)], call.arrays)

    return [differences(lambda x, k=k: moved(k, x), array) for k, array in enumerate(floats)]


@every
def test_every_function_is_numpys_and_its_derivative_the_central_difference(lib, call):
    """Jitted, if the library can, as one program: of two, the compiler would take almost twice the time."""

    def both(arrays):
        if not lib.derivative:
            return call(*arrays), ()
        floats = tuple(arrays[i] for i in call.floating)
        slopes = lib.derivative(lambda floats: weighted(lib.xp, call, weights, floats, arrays))(floats)
        return call(*arrays), slopes

    with lib.scope():
        weights = [lib.from_numpy(w, "float64") for w in weights_of(call)]
        value, slopes = lib.jit(both)(given_to(lib, call))
    assert_same(lib, value, call(*call.arrays))
    if lib.derivative:
        expected = [0] * len(slopes) if call.constant else slopes_of(call)
        for got, slope in zip(slopes, expected, strict=True):
            assert_allclose(lib.to_numpy(got), slope, rtol=1e-6, atol=1e-6)


# Derivatives.


@functools.cache
def slope(lib, function, p):
    """Return the gradient of the sum of function(x, p, ...), compiled where that is what makes it fast."""
    return lib.jit(lib.derivative(lambda x, *rest: lib.xp.sum(function(x, p, *rest))))


def gain(operands, p, weights):
    grad, radii = operands
    return weights * epsilon(grad, p, radii)


def smooth_gradients(seed):
    """Return examples away from the kinks of |x|, weights and radii."""
    rng = np.random.default_rng(seed)
    grad = rng.standard_normal((2, 5))
    return grad + np.copysign(0.3, grad), rng.standard_normal((2, 5)), rng.uniform(0.5, 2, 2)


def differences(function, x, h=1e-5):
    """Return the central differences of a scalar function of an array."""
    steps = h * np.eye(x.size).reshape(-1, *x.shape)
    return (
        np.array([(function(x + s) - function(x - s)) / (2 * h) for s in steps])
        .astype(float)
        .reshape(x.shape)
    )


@given(p=st.sampled_from(SMOOTH), seed=seeds)
def test_derivatives_of_epsilon_are_those_of_the_closed_form(autodiff, p, seed):
    x, w, sigma = smooth_gradients(seed)
    with autodiff.scope():
        weights, radii, grad = (autodiff.from_numpy(a, "float64") for a in (w, sigma, x))
        by_x, by_sigma = slope(autodiff, gain, p)((grad, radii), weights)
    expected = differences(lambda x: np.sum(w * closed_form(x, p, sigma)), x)
    assert_allclose(autodiff.to_numpy(by_x), expected, atol=1e-6, rtol=1e-6)
    assert_allclose(
        autodiff.to_numpy(by_sigma),
        np.sum(w * closed_form(x, p, np.ones(2)), axis=1).astype(float),
        rtol=1e-12,
        atol=1e-13,
    )


@pytest.mark.parametrize("p", SMOOTH)
def test_forward_mode_is_reverse_mode(autodiff, p):
    x, w, _ = smooth_gradients(5)
    with autodiff.scope():
        weights, grad = autodiff.from_numpy(w, "float64"), autodiff.from_numpy(x, "float64")
        jacobian = autodiff.to_numpy(autodiff.jacobian(lambda g: epsilon(g, p, 0.5))(grad))
        reverse = autodiff.derivative(lambda g: autodiff.xp.sum(weights * epsilon(g, p, 0.5)))(grad)
    assert_allclose(np.einsum("ij,ijkl->kl", w, jacobian), autodiff.to_numpy(reverse), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("p", [1.2, 1.5, 2, 3])
def test_second_derivatives_are_differences_of_the_first(autodiff, p):
    x, w, _ = smooth_gradients(6)

    def first(g, weights):
        return autodiff.derivative(lambda g: autodiff.xp.sum(weights * epsilon(g, p, 0.5)))(g)

    with autodiff.scope():
        weights = autodiff.from_numpy(w, "float64")
        second = autodiff.derivative(lambda g: autodiff.xp.sum(first(g, weights) ** 2))(
            autodiff.from_numpy(x, "float64")
        )
        expected = differences(
            lambda x: np.sum(autodiff.to_numpy(first(autodiff.from_numpy(x, "float64"), weights)) ** 2), x
        )
    assert_allclose(autodiff.to_numpy(second), expected, rtol=1e-6, atol=1e-6)


@given(data=st.data())
def test_the_derivative_of_penalty_is_epsilon(data, autodiff):
    case = data.draw(cases(autodiff))
    with autodiff.scope():
        grad = autodiff.from_numpy(case.grad, case.floats.name)
        radii = autodiff.from_numpy(case.radii, case.floats.compute)
        derivative = slope(autodiff, penalty, case.p)(grad, radii)
    assert derivative.dtype == grad.dtype
    # float16 carries the cotangent too, and so the rounding, and the range, of sigma
    assume(case.floats.name != "float16" or np.all(case.radii < case.floats.largest))
    got = autodiff.to_numpy(derivative).reshape(case.rows.shape)
    assert_rows_close(got, case.step_rows(epsilon), case, extra=case.tolerance)


@given(data=st.data())
def test_the_derivative_of_norm_attains_it(data, autodiff):
    case = data.draw(cases(autodiff))
    with autodiff.scope():
        grad = autodiff.from_numpy(case.grad, case.floats.name)
        derivative = slope(autodiff, norm, case.p)(grad)
    got = autodiff.to_numpy(derivative).reshape(case.rows.shape)
    size = norms(got, dual(case.p))
    expected = case.rows.any(axis=1)
    underflow = 2 * case.floats.least * case.rows.shape[1]
    assert np.all(np.abs(size - expected) <= (case.tolerance * 2 + underflow) * expected), case


@pytest.mark.parametrize("p", SMOOTH)
def test_at_a_radius_of_zero_second_derivatives_are_numbers(autodiff, p):
    x = np.array([[3.0, -4.0, 1.0]])

    def along(grad, radii):
        first = autodiff.derivative(lambda g: autodiff.xp.sum(epsilon(g, p, radii)[:, 0]))(grad)
        return autodiff.xp.sum(first)

    with autodiff.scope():
        grad, radii = autodiff.from_numpy(x, "float64"), autodiff.from_numpy(np.zeros(1), "float64")
        mixed = autodiff.derivative(lambda radii: along(grad, radii))(radii)
    assert np.isfinite(autodiff.to_numpy(mixed)).all()


@given(data=st.data())
def test_derivatives_are_never_nan(data, autodiff):
    case = data.draw(cases(autodiff))
    w = case.rng.standard_normal(case.grad.shape)
    with autodiff.scope():
        weights, grad = (autodiff.from_numpy(a, case.floats.name) for a in (w, case.grad))
        radii = autodiff.from_numpy(case.radii, case.floats.compute)
        by_x, by_sigma = slope(autodiff, gain, case.p)((grad, radii), weights)
    assert not np.isnan(autodiff.to_numpy(by_x)).any(), case
    assert not np.isnan(autodiff.to_numpy(by_sigma)).any(), case


@pytest.mark.parametrize("p", P)
def test_there_is_no_derivative_at_a_kink(autodiff, p):
    rows = np.array([[0.0, 0.0, 0.0], [0.0, 1.0, -2.0]])
    with autodiff.scope():
        grad = autodiff.from_numpy(rows, "float64")
        derivative = autodiff.derivative(lambda g: autodiff.xp.sum(epsilon(g, p, 1.0)))(grad)
    derivative = autodiff.to_numpy(derivative)
    assert_allclose(derivative[0], 0)
    if p > 2 or p == 1:
        assert derivative[1, 0] == 0


# torch.


@pytest.mark.jax
@needs_jax
@pytest.mark.parametrize("function", [epsilon, project, certify, ascend])
def test_jax_runs_an_eager_call_in_few_programs(function):
    """An operation outside of compiled functions is compiled for every shape, and started by itself."""
    import jax

    def value_and_grad(x):
        return x[:, 0], x

    x = jax.numpy.zeros((3, 4))
    arguments = {certify: (x, x), ascend: (value_and_grad, x)}.get(function, (x,))
    more = {"steps": 1} if function is ascend else {"x": x}
    for p in 1, 2, math.inf:

        def called(scale, p=p):
            function(*arguments, p, 0.1, bounds=(0, 1), scale=scale, **more)

        assert 0 < len(jax.make_jaxpr(called)(x).eqns) <= (60 if function is ascend else 15)


@pytest.mark.torch
@needs_torch
@pytest.mark.parametrize("p", [1, 1.5, 2, math.inf])
def test_torch_an_empty_array_on_a_device_gives_an_empty_array(p):
    import torch

    for shape in (0,), (0, 3), (3, 0), (2, 0, 4):
        nothing = torch.zeros(shape, device="meta", requires_grad=True)
        for eps in epsilon(nothing, p, 1.0), epsilon(nothing, p, 1.0, x=nothing, bounds=(0, 1)):
            assert eps.shape == project(eps, p, 1.0).shape == shape
            assert eps.device.type == "meta"


@pytest.mark.torch
@needs_torch
def test_torch_a_negated_view_is_read_as_its_values():
    import torch

    grad = torch.tensor([[1 + 3j, 2 - 4j]]).conj().imag
    assert grad.is_neg()
    assert_allclose(epsilon(grad, 2, 1.0), [[-0.6, 0.8]], rtol=1e-6)
    assert_allclose(penalty(grad, 2, 1.0), [5], rtol=1e-6)


@pytest.mark.torch
@needs_torch
class TestTorch:
    @pytest.fixture(autouse=True)
    def _fresh(self):
        import torch

        torch._dynamo.reset()

    # what is between is among the calls below, and a compiler sees the same lines
    @pytest.mark.parametrize("p", [1, 1 + 1e-12, 2.7, 1e9, math.inf])
    @pytest.mark.parametrize(
        ("dtype", "requires_grad"), [("float32", True), ("float32", False), ("bfloat16", True)]
    )
    def test_a_compiled_step_is_the_eager_step(self, p, requires_grad, dtype):
        import torch

        step = torch.compile(lambda g, s: epsilon(g, p, s), **COMPILED)
        rng = np.random.default_rng(7)
        for scale in 1e-30, 1.0, 1e30:
            grad = torch.tensor(rng.standard_normal((4, 9)) * scale).to(getattr(torch, dtype))
            grad[3] = 0
            sigma = torch.tensor(rng.random(4), dtype=torch.float32)
            results, slopes = [], []
            for function in step, lambda g, s: epsilon(g, p, s):
                leaf = grad.clone().requires_grad_(requires_grad)
                result = function(leaf, sigma)
                assert result.requires_grad == requires_grad
                if requires_grad:
                    result[:, 1].sum().backward()
                    slopes.append(leaf.grad)
                results.append(result.detach())
            tolerance = {"rtol": 1e-2 if dtype == "bfloat16" else 1e-5, "atol": 1e-6}
            torch.testing.assert_close(*results, **tolerance)
            if requires_grad:
                slopes = [slope * scale for slope in slopes]
                torch.testing.assert_close(*slopes, rtol=tolerance["rtol"], atol=1e-5)

    # without gradients it is primitives that take lines of their own, and all else is made of them
    @pytest.mark.parametrize(
        ("call", "requires_grad"),
        [(call, True) for call in EVERY] + [(call, False) for call in EVERY if call.is_primitive],
        ids=str,
    )
    def test_every_function_compiles_whole(self, call, requires_grad):
        import torch

        weights, results, slopes = [torch.tensor(w) for w in weights_of(call)], [], []
        # of other functions it is the graph that is new; what it is compiled to is that of the primitives
        options = COMPILED if call.is_primitive else COMPILED | {"backend": "eager"}
        for function in torch.compile(call.function, **options), call.function:
            arrays = [torch.tensor(array) for array in call.arrays]
            for i in call.floating:
                arrays[i].requires_grad_(requires_grad)
            result = function(*arrays)
            results.append(result if isinstance(result, tuple) else (result,))
            if requires_grad and not call.constant:
                sum(torch.sum(w * part) for w, part in zip(weights, results[-1], strict=True)).backward()
                slopes.append([arrays[i].grad for i in call.floating])
        torch.testing.assert_close(*results)
        if slopes:
            torch.testing.assert_close(*slopes)

    @every
    def test_every_derivative_of_one_example_maps(self, call):
        import torch

        weights, arrays = [torch.tensor(w) for w in weights_of(call)], list(map(torch.tensor, call.arrays))
        first = len(call.shared)
        shared, own = arrays[:first], arrays[first:]
        floats = [arrays[i] for i in call.floating if i >= first]

        def total(floats, own, weights):
            return weighted(torch, call, weights, [*shared, *floats], [*shared, *own])

        found = torch.func.vmap(torch.func.grad(total))(floats, own, weights)
        expected = [0] * len(floats) if call.constant else slopes_of(call)[first:]
        for got, slope in zip(found, expected, strict=True):
            assert_allclose(got, slope, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("mode", ["real", "symbolic"])
    @pytest.mark.parametrize("p", [1, 2, 3])
    def test_a_recorded_graph_computes_other_values_too(self, p, mode):
        import torch
        from torch.fx.experimental.proxy_tensor import make_fx

        grad, other = torch.tensor([[3.0, -4, 0], [1, 2, 2]]), torch.tensor([[1.0, 0, 0], [0, 0, 5]])

        def in_box(function, g):
            return function(g, p, 0.5, x=torch.zeros_like(g), bounds=(-0.3, 0.3))

        for function in epsilon, project:
            for called in functools.partial(function, p=p, sigma=0.5), functools.partial(in_box, function):
                recorded = make_fx(called, tracing_mode=mode)(grad)
                torch.testing.assert_close(recorded(other), called(other))

    def test_p_and_sigma_may_change_between_compiled_calls(self):
        import torch

        step = torch.compile(epsilon, fullgraph=True, backend="aot_eager")
        grad = torch.randn(4, 9)
        for p, sigma in (1.5, 0.1), (2.5, 0.2), (3.5, 0.3), (math.inf, 0.4), (1, 0.5), (2, 0.6):
            torch.testing.assert_close(step(grad, p, sigma), epsilon(grad, p, sigma))

    def test_strides_and_no_grad_do_not_change_the_step(self):
        import torch

        grad = torch.randn(9, 4, 3, requires_grad=True).permute(1, 2, 0)[:, ::2]
        assert not grad.is_contiguous()
        expected = epsilon(grad.detach().contiguous(), 1.5, 0.5)
        torch.testing.assert_close(epsilon(grad, 1.5, 0.5).detach(), expected)
        with torch.no_grad():
            step = epsilon(grad, 1.5, 0.5)
        assert not step.requires_grad
        torch.testing.assert_close(step, expected)
        with torch.inference_mode():
            torch.testing.assert_close(epsilon(grad, 1.5, 0.5), expected)

    @pytest.mark.parametrize("p", SMOOTH)
    def test_torch_agrees_that_the_derivatives_are_right(self, p):
        import torch

        x, _, sigma = (torch.tensor(a) for a in smooth_gradients(8))
        operands = x.requires_grad_(), sigma[:, None].requires_grad_()
        assert torch.autograd.gradcheck(lambda x, s: steepest(p, x, s), operands)
        assert torch.autograd.gradgradcheck(lambda x, s: steepest(p, x, s), operands)
        assert torch.autograd.gradgradcheck(lambda x: penalty(x, p, 0.5), operands[:1])

    def test_a_training_loop_leaves_the_graph_alone(self):
        import torch

        weight = torch.randn(5, 9, requires_grad=True)
        x = torch.randn(4, 9, requires_grad=True)
        (grad,) = torch.autograd.grad(cross_entropy(x @ weight.T, torch.tensor([0, 1, 2, 3])).sum(), x)
        step = epsilon(grad, 2, 0.1)
        assert not step.requires_grad
        assert weight.grad is None


# JAX.


@functools.cache
def jitted(p):
    import jax

    return jax.jit(lambda g, s: epsilon(g, p, s))


@pytest.mark.jax
@needs_jax
class TestJax:
    @given(p=st.sampled_from(P), seed=seeds)
    def test_jit_is_eager(self, p, seed):
        import jax

        step = jitted(p)
        rng = np.random.default_rng(seed)
        scale = np.exp2(rng.integers(-100, 100, (4, 1)))
        grad = jax.numpy.asarray(scale * rng.standard_normal((4, 9)), dtype="float32")
        sigma = jax.numpy.asarray(rng.random(4), dtype="float32")
        with jax.disable_jit():  # each operation by itself
            expected = epsilon(grad, p, sigma)
        assert_allclose(step(grad, sigma), expected, rtol=1e-5, atol=1e-30)

    @pytest.mark.parametrize("p", [1, 2])
    def test_a_shard_is_computed_as_its_array(self, p):
        import jax

        def value_and_grad(x):
            return x[:, 0], jax.numpy.cos(x)

        def of_shard(function, x):
            mesh, spec = jax.sharding.Mesh(np.array(jax.devices()[:1]), "d"), jax.sharding.PartitionSpec("d")
            return jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec)(x)

        x = jax.numpy.asarray([[0.3, -0.4, 0], [0.1, 0.2, 0.2]])
        for function in (
            lambda v: project(v, p, 0.2),
            lambda v: epsilon(v, p, 0.2, x=0.0, bounds=(-0.1, 0.1)),
            lambda v: ascend(value_and_grad, v, p, 0.2, steps=5, bounds=(-1, 1)),
        ):
            assert_allclose(of_shard(function, x), function(x), rtol=1e-6)

    @pytest.mark.parametrize("p", [1.2, 2, 3])
    def test_hessian_is_the_jacobian_of_epsilon(self, p):
        import jax

        x, _, _ = smooth_gradients(9)
        with jax.enable_x64(True):
            hessian = jax.hessian(lambda g: penalty(g, p, 0.5, batch_ndim=0))(jax.numpy.asarray(x[0]))
            columns = [
                differences(lambda x, i=i: closed_form(x[None], p, [0.5])[0, i], x[0]) for i in range(5)
            ]
        assert_allclose(hessian, np.array(columns), rtol=1e-6, atol=1e-7)

    def test_a_traced_radius_outside_the_range_spoils_its_row(self):
        import jax

        step = jax.jit(lambda g, s: epsilon(g, 2, s))(
            jax.numpy.ones((3, 2)), jax.numpy.asarray([1.0, -1.0, math.nan])
        )
        assert_allclose(np.isnan(step), [[False] * 2, [True] * 2, [True] * 2])
