"""The memory layout of an array changes no result: every function, every argument, every layout."""

import math
import sys
import tempfile

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from helpers.calls import EVERY, EXAMPLES, SIZE, Call, curved, oscillating
from helpers.libraries_under_test import NAMES, UNDER_TEST
from lpfamily import (
    ascend,
    binary_error_log_odds,
    certify,
    cross_entropy,
    curvature,
    epsilon,
    error_log_odds,
    linear,
    margins,
    noise,
    norm,
    penalty,
    project,
)
from lpfamily.ascent import frank_wolfe

INF = math.inf
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FOREIGN = [library for library in UNDER_TEST if library.name != "numpy"]


def reversed_axes(a):
    turned = (slice(None, None, -1),) * a.ndim
    return a[turned].copy()[turned]


def every_second(a):
    large = np.ones([2 * n for n in a.shape], a.dtype)
    large[(slice(None, None, 2),) * a.ndim] = a
    return large[(slice(None, None, 2),) * a.ndim]


def packed(a):
    """Return a field of packed records: not aligned, and not next to each other."""
    records = np.ones(a.shape, [("tag", "u1"), ("value", a.dtype), ("more", "u1", 2)])
    records["value"] = a
    return records["value"]


def memory_map(a):
    with tempfile.NamedTemporaryFile() as file:
        file.write(a.tobytes())
        file.flush()
        return np.memmap(file.name, a.dtype, "r", shape=a.shape)


def other_byte_order(a):
    return a.astype(a.dtype.newbyteorder(">" if sys.byteorder == "little" else "<"))


COPIES = {
    "byte order": other_byte_order,
    "Fortran order": np.asfortranarray,
    "negative strides": reversed_axes,
    "every second": every_second,
    "columns": lambda a: np.concatenate([a, a], axis=-1)[..., : a.shape[-1]],
    "unaligned": lambda a: np.frombuffer(b"\1" + a.tobytes(), a.dtype, offset=1).reshape(a.shape),
    "packed records": packed,
    "memory map": memory_map,
}
"""Layouts that hold the values of any array."""

ALIKE = {
    "examples alike": lambda a: np.broadcast_to(a[:1], a.shape),
    "entries alike": lambda a: np.broadcast_to(a[..., :1], a.shape),
}
"""Zero strides, which hold the same value again and again."""


def native(a):
    return np.array(a, a.dtype.newbyteorder("="), order="C", subok=False)


def outcome(function, arrays):
    """Return the results, or the error that an argument meets."""
    try:
        return [np.asarray(result) for result in function(*arrays)]
    except (TypeError, ValueError) as error:
        return [f"{type(error).__name__}: {error}"]


def assert_same(found, expected):
    for result, other in zip(found, expected, strict=True):
        assert_array_equal(result, other, strict=True)


def more():
    """Return calls with arguments that `helpers.calls.EVERY` lacks."""
    rng = np.random.default_rng(4)
    grad, sigma = rng.standard_normal((EXAMPLES, SIZE)), rng.uniform(0.3, 1.2, EXAMPLES)
    x, mask = rng.uniform(0.2, 0.8, grad.shape), rng.random(grad.shape) < 0.7
    for p in 1, 1.5, 3, INF:
        yield Call(f"epsilon, {p}", lambda g, s, m, p=p: epsilon(g, p, s, mask=m), (grad, sigma, mask))
    yield Call(
        "project, mask, bounds",
        lambda v, s, m, x, low: project(v, 2, s, mask=m, x=x, bounds=(low, 1.0)),
        (grad, sigma, mask, x, x - 0.1),
    )
    for method in "adaptive", "projected", "frank-wolfe":
        yield Call(
            f"ascend, {method}, start",
            lambda x, s, m, start, low, method=method: ascend(
                oscillating, x, 2, s, 2, start=start, bounds=(low, 2.0), mask=m, method=method
            ),
            (x, sigma, mask, grad, x - 0.1),
        )
    yield Call(
        "ascend, step_size",
        lambda x, s, step: ascend(oscillating, x, INF, s, 2, step_size=step),
        (x, sigma, sigma / 2),
    )
    yield Call(
        "frank_wolfe",
        lambda x, s, start: frank_wolfe(lambda x: oscillating(x)[1], x, 3, s, 2, start),
        (x, sigma, 0.1 * grad),
    )
    for kind in "?", "i8", "f8":
        yield Call(f"binary_error_log_odds, {kind}", binary_error_log_odds, (grad, mask.astype(kind)))
    yield Call("rademacher", lambda x: curvature.rademacher(x, 3), (x,))
    yield Call(
        "measure",
        lambda m, x: tuple(
            curvature.measure(curved(m), x, [1.5], [0.1], probes=2, draws=2)[0].gaps().values()
        ),
        (x,),
        (np.eye(SIZE),),
    )


CALLS = [*EVERY, *more()]
every = pytest.mark.parametrize("call", CALLS, ids=str)


def rounded(call, dtype):
    return [a.astype(dtype) if a.dtype.kind == "f" else a for a in call.arrays]


@every
def test_every_layout_gives_the_result_of_the_native_array(call):
    for dtype in "f2", "f8":
        arrays = rounded(call, dtype)
        expected = outcome(call, arrays)
        for layout in COPIES.values():
            assert_same(outcome(call, map(layout, arrays)), expected)
    for layout in ALIKE.values():
        laid = list(map(layout, arrays))
        assert_same(outcome(call, laid), outcome(call, map(native, laid)))


@every
def test_every_argument_may_have_another_layout(call):
    arrays = rounded(call, "f4")
    expected = outcome(call, arrays)
    for layout in "byte order", "negative strides", "packed records":
        for k, array in enumerate(arrays):
            laid = [*arrays[:k], COPIES[layout](array), *arrays[k + 1 :]]
            assert_same(outcome(call, laid), expected)


# bfloat16 in NumPy, as numpy.asarray makes it of a JAX array.


@every
def test_bfloat16_is_computed_in_float32(call):
    """Where no function of the user's computes in bfloat16, the result is that in float32, rounded once."""
    low = rounded(call, BFLOAT16)
    found = call(*low)
    expected = call(*(a.astype("f4") if a.dtype == BFLOAT16 else a for a in low))
    users = call.name.startswith(("ascend", "frank_wolfe", "measure", "second_order", "worst_residual"))
    for result, other in zip(found, expected, strict=True):
        if users:
            assert_allclose(result.astype("f4"), other, rtol=0.05, atol=0.1)
        else:
            assert_array_equal(result, other.astype(result.dtype), strict=True)
    if not call.name.startswith(("certify", "hutchinson", "measure")):
        assert {result.dtype for result in found} == {BFLOAT16}


def test_float16_and_bfloat16_together_are_computed_in_float32():
    distances, sigma = np.ones((2, 3), BFLOAT16), np.ones(2, "f2")
    assert_array_equal(
        noise.union_bound(distances, sigma), noise.union_bound(distances.astype("f4"), sigma), strict=True
    )


def test_other_float_dtypes_are_errors():
    rows = np.ones((2, 3), "f4")
    for dtype in np.longdouble, ml_dtypes.float8_e4m3fn, ml_dtypes.int4:
        bad = rows.astype(dtype)
        with pytest.raises(TypeError, match=f"grad must be float16, .*; got {bad.dtype}: convert it"):
            epsilon(bad, 2, 1.0)
    for call in (
        lambda bad: epsilon(rows, 2, bad[:, 0]),
        lambda bad: epsilon(rows, 2, 1.0, x=bad, bounds=(0, 1)),
        lambda bad: noise.union_bound(rows, bad[:, 0]),
    ):
        with pytest.raises(TypeError, match=r"must be .*; got float8_e4m3fn"):
            call(rows.astype(ml_dtypes.float8_e4m3fn))


# NumPy arrays beside those of another library.


def beside(lib):
    """Return calls of a lead of this library's with a NumPy array beside it."""
    rng = np.random.default_rng(5)
    values, eps, x = rng.standard_normal((3, 4, 6)).astype("f4")[:, :, :5]
    lead, labels = lib.from_numpy(values), np.array([1, 0, 2, 1])
    mask, weights = values > -0.5, rng.standard_normal((5, 3)).astype("f4")
    yield "sigma", lambda s: epsilon(lead, 2, s), np.array([1.0, 0.5, 2.0, 0.25])
    yield "mask", lambda m: epsilon(lead, 2, 1.0, mask=m), mask
    yield "x", lambda x: epsilon(lead, INF, 1.0, x=x, bounds=(-5, 5)), x
    yield "low", lambda low: project(lead, INF, 1.0, x=x, bounds=(low, 5)), x - 0.1
    yield "eps", lambda eps: certify(lead, eps, 2, 1.0).norm_used, eps
    yield "start", lambda start: ascend(oscillating, lead, 2, 1.0, 2, start=start), eps
    yield "labels", lambda y: error_log_odds(lead, y), labels
    yield "probabilities", lambda t: cross_entropy(lead, t), np.abs(eps)
    yield "outputs", lambda y: binary_error_log_odds(lead, y), mask.astype("f4")
    yield "weights", lambda w: margins.boundary_distance(w, np.ones(3, "f4"), lead, labels, 2), weights
    yield "direction", lambda d: margins.flip_distance((weights, np.ones(3, "f4")), lead, d, labels), eps
    yield "hessian", lambda h: curvature.gauss_newton(lead, h), rng.standard_normal((4, 4)).astype("f4")
    yield "dimension", lambda d: noise.dimension_bound(d, lead * lead), 1 + np.abs(eps)


@pytest.mark.parametrize("lib", FOREIGN, ids=str)
def test_numpy_arrays_go_with_others_in_every_layout(lib):
    for name, call, array in beside(lib):
        expected = lib.to_numpy(call(array.copy()))
        for layout in "byte order", "negative strides", "packed records", "memory map":
            found = lib.to_numpy(call(COPIES[layout](array)))
            assert_array_equal(found, expected, err_msg=f"{name}, {layout}")
        if array.dtype.kind == "f":
            low = array.astype(BFLOAT16)
            assert_array_equal(lib.to_numpy(call(low)), lib.to_numpy(call(low.astype("f4"))), err_msg=name)


# Views and sparse arrays of torch and JAX.


def not_dense(lead):
    """Return the name of each argument and a call with it beside the lead, rows of three classes."""
    labels, mask = np.array([0, 2]), np.ones(3, dtype=bool)
    yield "grad", lambda a: epsilon(a, 2, 1.0)
    yield "grad", lambda a: penalty(a, 2, 1.0, batch_ndim=0)
    yield "sigma", lambda a: epsilon(lead, 2, a)
    yield "mask", lambda a: epsilon(lead, 2, 1.0, mask=a)
    yield "x", lambda a: epsilon(lead, 2, 1.0, mask=mask, x=a, bounds=(0, 1))
    yield "low", lambda a: project(lead, 2, 1.0, x=0.0, bounds=(a, 1))
    yield "v", lambda a: project(a, 2, 1.0)
    yield "x", lambda a: norm(a, 2)
    yield "eps", lambda a: certify(lead, a, 2, 1.0)
    yield "x", lambda a: ascend(oscillating, a, 2, 1.0)
    yield "start", lambda a: ascend(oscillating, lead, 2, 1.0, start=a)
    yield "logits", lambda a: error_log_odds(a, labels)
    yield "labels", lambda a: error_log_odds(lead, a)
    yield "logits", lambda a: cross_entropy(a, labels)
    yield "labels", lambda a: cross_entropy(lead, a)
    yield "logits", lambda a: binary_error_log_odds(a, mask)
    yield "labels", lambda a: binary_error_log_odds(lead, a)
    yield "y", lambda a: curvature.probability_hessian(a, labels)
    yield "jacobian", lambda a: curvature.gauss_newton(a, lead)
    yield "hessian", lambda a: curvature.gauss_newton(lead, a)
    yield "probes", lambda a: curvature.hutchinson(lambda v: v, a)
    yield "x", lambda a: curvature.rademacher(a, 1)
    yield "weights", lambda a: margins.boundary_distance(a, lead[0], lead, labels, 2)
    yield "direction", lambda a: margins.flip_distance((lead, lead[0]), lead, a, labels)
    yield "theta", lambda a: linear.residual_bound(a, lead, 2, 1.0)
    yield "residual", lambda a: linear.worst_residual(lead, a, 2, 1.0)
    yield "distances", lambda a: noise.union_bound(a, 1.0)
    yield "sigma", lambda a: noise.error_under_noise(0.1, lead, lead, a)


@pytest.mark.skipif("torch" not in NAMES, reason="torch is not under test")
class TestTorch:
    @every
    def test_a_view_gives_the_result_of_its_values(self, call):
        import torch

        views = {
            "columns first": lambda a: torch.tensor(a.mT.copy()).mT if a.ndim > 1 else torch.tensor(a),
            "every second": lambda a: torch.tensor(np.repeat(a, 2, axis=-1))[..., ::2],
            "negative": lambda a: (
                torch.tensor(-1j * a).conj().imag if a.dtype.kind == "f" else torch.tensor(a)
            ),
            "expanded": lambda a: torch.tensor(a[:1]).expand(a.shape),
        }
        for view in views.values():
            laid = list(map(view, call.arrays))
            found, expected = (
                call(*laid),
                call(*(torch.tensor(tensor.numpy(force=True).copy()) for tensor in laid)),
            )
            for result, other in zip(found, expected, strict=True):
                assert_allclose(result, other, rtol=1e-13, atol=1e-14)

    def layouts(self):
        import torch

        rows = torch.arange(6.0).reshape(2, 3)
        parts = [rows[0], rows[1, :2]]
        yield rows.to_sparse(), "layout torch.sparse_coo", "{0}.coalesce().values()"
        yield rows.to_sparse_csr(), "layout torch.sparse_csr", "{0}.to_dense()"
        yield rows.to_sparse_csc(), "layout torch.sparse_csc", "{0}.to_dense()"
        yield rows.to_mkldnn(), "layout torch._mkldnn", "{0}.to_dense()"
        yield torch.nested.nested_tensor(parts), "nested", "{0}.to_padded_tensor(0.0)"
        yield torch.nested.nested_tensor(parts, layout=torch.jagged), "nested", "{0}.to_padded_tensor(0.0)"
        yield torch.quantize_per_tensor(rows, 0.1, 0, torch.quint8), "quantised", "{0}.dequantize()"

    @pytest.mark.filterwarnings(
        "ignore:Sparse C:UserWarning",
        "ignore:The PyTorch API of nested:UserWarning",
        "ignore:torch.quantize_per:UserWarning",
    )
    def test_a_tensor_that_is_not_dense_is_an_error_that_says_what_to_pass(self):
        import torch

        for tensor, layout, remedy in self.layouts():
            for name, call in not_dense(torch.ones(2, 3)):
                with pytest.raises(TypeError) as caught:
                    call(tensor)
                message = str(caught.value)
                assert message.startswith(f"{name} must be a dense tensor; got "), message
                assert layout in message
                assert remedy.format(name) in message

    def test_the_values_of_a_sparse_gradient_are_perturbed(self):
        import torch

        table = torch.nn.Embedding(9, 3, sparse=True)
        table(torch.tensor([4, 1, 4])).square().sum().backward()
        values = table.weight.grad.coalesce().values()
        dense = epsilon(table.weight.grad.to_dense(), 1.5, 0.1)
        assert_allclose(epsilon(values, 1.5, 0.1), dense[[1, 4]], rtol=1e-6)


def test_sparse_arrays_are_errors_that_say_what_to_pass():
    from scipy import sparse

    for kind in sparse.csr_array, sparse.coo_matrix:
        for name, call in not_dense(np.ones((2, 3))):
            with pytest.raises(
                TypeError, match=rf"{name} must be an array .*sparse, pass {name}.toarray\(\)"
            ):
                call(kind(np.eye(2, 3)))


@pytest.mark.skipif("jax" not in NAMES, reason="JAX is not under test")
def test_jax_sparse_arrays_are_errors_that_say_what_to_pass():
    import jax
    from jax.experimental import sparse

    for kind in sparse.BCOO, sparse.BCSR:
        array = kind.fromdense(jax.numpy.eye(2, 3))
        for name, call in not_dense(jax.numpy.ones((2, 3))):
            with pytest.raises(
                TypeError, match=rf"{name} must be .*; got {kind.__name__}.*{name}.todense\(\)"
            ):
                call(array)
