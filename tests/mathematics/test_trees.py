"""A tree is one point per example: every function treats it as a row of the entries of all its leaves."""

import dataclasses
import functools
import math
from collections import OrderedDict, defaultdict, namedtuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from helpers.laws import LAWS, cases, norms
from helpers.libraries import array_api_strict, numpy_readonly
from helpers.libraries_under_test import NAMES, UNDER_TEST
from lpfamily import ascend, certify, epsilon, norm, penalty, project
from lpfamily._arrays import namespace_of
from lpfamily.libraries import library_of
from lpfamily.libraries import rows as rows_of_numpy
from lpfamily.trees import mapped, named_leaves, rebuilt

EXPONENTS = 1, 1.1, 1.5, 2, 3, math.inf
SHAPES = {"image": (2, 2, 2), "text": [(3,), {"a": ()}]}
"""Of one example, whose leaves have 8, 3 and 1 entries."""
N = 4
Pair = namedtuple("Pair", "first second")

needs_torch = pytest.mark.skipif("torch" not in NAMES, reason="torch is not under test")
needs_jax = pytest.mark.skipif("jax" not in NAMES, reason="JAX is not under test")


def is_shape(x):
    return isinstance(x, tuple) and not hasattr(x, "_fields")


def grown(make, shapes=SHAPES):
    """Return a tree like `shapes`, with make(shape) for each shape."""
    if is_shape(shapes):
        return make(shapes)
    children = shapes.items() if isinstance(shapes, dict) else enumerate(shapes)
    made = {key: grown(make, each) for key, each in children}
    return made if isinstance(shapes, dict) else list(made.values())


def leaves(tree):
    return [leaf for _, leaf in named_leaves(tree, "")]


def drawn(lib, seed, dtypes=("float64",) * 3, scales=(1.0,) * 3):
    """Return a tree of random numbers, its leaves of these dtypes and scales."""
    rng, each = np.random.default_rng(seed), iter(zip(dtypes, scales, strict=True))

    def make(shape):
        dtype, scale = next(each)
        return lib.from_numpy(scale * rng.standard_normal((N, *shape)), dtype)

    return grown(make)


def rows(lib, tree):
    """Return all entries as NumPy's rows."""
    return np.concatenate([lib.to_numpy(leaf).reshape(N, -1) for leaf in leaves(tree)], axis=1)


def joined(lib, tree):
    """Return all entries as rows of the library."""
    return lib.xp.concat([lib.xp.reshape(leaf, (N, -1)) for leaf in leaves(tree)], axis=-1)


def near(lib, target):
    """Return a concave value per example, of an array or a tree, and its gradient."""

    def value_and_grad(x, rows=slice(None)):
        aims = (t if isinstance(rows, slice) else t[rows] for t in leaves(target))
        rest = rebuilt(x, (t - leaf for t, leaf in zip(aims, leaves(x), strict=True)))
        squares = [
            lib.xp.sum(lib.xp.reshape(leaf * leaf, (leaf.shape[0], -1)), axis=-1) for leaf in leaves(rest)
        ]
        return -functools.reduce(lambda a, b: a + b, squares), rest

    return value_and_grad


def judged(lib, grad, p, sigma, **options):
    """Return a certificate of a step that is not the best, as one array."""
    eps = mapped(lambda leaf: 0.9 * leaf, epsilon(grad, p, sigma, **options))
    found = certify(grad, eps, p, sigma, **{k: v for k, v in options.items() if k != "mask"})
    xp = namespace_of(found.gain)
    return xp.stack([found.norm_used, found.gain, xp.astype(found.underused, found.gain.dtype)], axis=-1)


def ascended(lib, at, p, sigma, method="adaptive", target=None, x=None, **options):
    return ascend(near(lib, target), at, p, sigma, 1 if lib.slow else 4, method=method, **options)


CALLS = {
    "epsilon": lambda lib, g, p, s, **o: epsilon(g, p, s, **o),
    "project": lambda lib, g, p, s, **o: project(g, p, s, **o),
    "norm": lambda lib, g, p, s, **o: norm(g, p, **o),
    "penalty": lambda lib, g, p, s, **o: penalty(g, p, s, **o),
    "certify": judged,
    "ascend": ascended,
    "ascend, projected": functools.partial(ascended, method="projected"),
}
"""function(library, tree or rows, p, sigma, **options)."""
GIVEN = {name: ["ball"] if name in ("norm", "penalty") else ["ball", "box", "box of trees"] for name in CALLS}
for name in GIVEN.keys() - {"norm", "penalty", "certify"}:
    GIVEN[name] += ["mask", "mask and box"]
for name in GIVEN:
    GIVEN[name] += ["scale"] if name in ("norm", "penalty") else ["scale", "scale and box"]


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize(("name", "given"), [(name, each) for name in GIVEN for each in GIVEN[name]])
def test_every_function_takes_a_tree_as_its_rows(lib, name, given, p):
    with lib.scope():
        tree, x = drawn(lib, 1), drawn(lib, 2)
        sigma = lib.from_numpy(np.array([0.3, 1.0, 2.0, 0.0]), "float64")
        options = {}
        if "mask" in given:
            rng = np.random.default_rng(3)
            options["mask"] = mapped(lambda leaf: lib.from_numpy(rng.random(leaf.shape) < 0.7), x)
        if "scale" in given:
            scales = iter([2.0, np.array([0.5, 0.0, 3.0]), 1.0])
            options["scale"] = grown(lambda _: next(scales))
        if "box" in given:
            if "trees" in given:
                low, high = (mapped(lambda leaf, d=d: leaf + d, x) for d in (-0.2, 0.3))
            else:
                low, high = -10.0, 10.0
            options |= {"x": x, "bounds": (low, high)}
        target = {"target": tree} if name.startswith("ascend") else {}
        point = x if target else tree
        found = CALLS[name](lib, point, p, sigma, **options, **target)
        flatly = {
            key: tuple(joined(lib, v) if isinstance(v, dict) else v for v in value)
            if key == "bounds"
            else joined(lib, value)
            for key, value in (options | target).items()
            if key != "scale"
        }
        if "scale" in options:
            flatly["scale"] = np.array([*[2.0] * 8, 0.5, 0.0, 3.0, 1.0])
        expected = CALLS[name](lib, joined(lib, point), p, sigma, **flatly)
        if isinstance(found, dict):
            for leaf, other in zip(leaves(found), leaves(point), strict=True):
                assert type(leaf) is type(other)
                assert leaf.dtype == other.dtype
                assert tuple(leaf.shape) == tuple(other.shape)
            found = rows(lib, found)
        else:
            found = lib.to_numpy(found)
    assert_allclose(found, lib.to_numpy(expected), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("name", CALLS)
def test_a_tree_of_one_leaf_is_that_leaf(lib, name, p):
    for dtype in ("bfloat16", "float32") if lib.compiles else lib.dtypes:
        with lib.scope():
            array, x = (
                lib.from_numpy(np.random.default_rng(k).standard_normal((N, 2, 3)), dtype) for k in (0, 1)
            )
            mask = lib.from_numpy(np.arange(6).reshape(2, 3) % 4 > 0)
            options = {"x": x, "bounds": (-5.0, 5.0)} if "box" in GIVEN[name] else {}
            options |= {"mask": mask} if "mask" in GIVEN[name] else {}
            found, expected = (
                CALLS[name](
                    lib,
                    wrap(x if name.startswith("ascend") else array),
                    p,
                    0.5,
                    **({"target": wrap(array)} if name.startswith("ascend") else {}),
                    **{key: wrap(value) if key in ("x", "mask") else value for key, value in options.items()},
                )
                for wrap in (lambda leaf: {"only": [leaf]}, lambda leaf: leaf)
            )
            found = leaves(found)[0]
            assert found.dtype == expected.dtype
        assert_array_equal(lib.to_numpy(found), lib.to_numpy(expected))


def as_a_tree(lib, function):
    """Return a function of an array that computes with a tree of two leaves."""

    def of_array(grad, p, sigma, *, mask=None):
        xp, shape = lib.xp, tuple(grad.shape)

        def halved(x):
            x = xp.reshape(x, (shape[0], -1))
            half = x.shape[1] // 2
            return {"a": x[:, :half], "b": (x[:, half:],)}

        mask = None if mask is None else halved(xp.broadcast_to(mask, shape))
        made = function(halved(grad), p, sigma, mask=mask)
        return xp.reshape(xp.concat([made["a"], made["b"][0]], axis=-1), shape)

    return of_array


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@given(data=st.data())
def test_every_law_of_the_step_holds_over_leaves(data, lib, law):
    law(as_a_tree(lib, epsilon), data.draw(cases(lib)))


@pytest.mark.parametrize("p", [2, math.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numpy_computes_leaves_separately_where_that_is_exact(monkeypatch, dtype, p):
    """Threads change no bit."""
    rng = np.random.default_rng(18)
    leaves = [rng.standard_normal((3, n)).astype(dtype) for n in (5, 4000, 1)]
    radii = np.array([[0.5], [0.0], [2.0]], dtype)
    library = library_of(leaves[0])
    found = library.steps_of_leaves(p, leaves, radii)
    expected = epsilon(np.concatenate(leaves, axis=1), p, radii[:, 0])
    assert_allclose(np.concatenate(found, axis=1), expected, rtol=4 * np.finfo(dtype).eps)
    monkeypatch.setattr(rows_of_numpy, "THREADS_FROM", 1)
    with rows_of_numpy.threads(2):
        for one, two in zip(found, library.steps_of_leaves(p, leaves, radii), strict=True):
            assert_array_equal(one, two)
    for entry in 0.0, math.nan, math.inf, np.finfo(dtype).smallest_subnormal, np.finfo(dtype).max:
        rows = [np.full((3, 2), entry, dtype), np.zeros((3, 1), dtype)]
        assert (library.steps_of_leaves(p, rows, radii) is None) == (p == 2)
        joined = epsilon(np.concatenate(rows, axis=1), p, 1.0)
        assert_array_equal(np.concatenate(epsilon(rows, p, 1.0), axis=1), joined)


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize(
    "dtypes", [("float64",) * 3, ("float32", "float64", "float32")], ids=["one dtype", "two"]
)
@pytest.mark.parametrize("down", [1, -1])
def test_leaves_may_differ_in_scale_by_1e60(lib, p, dtypes, down):
    """Budget and gain, in long floats, and the penalty and the certificate beside them."""
    with lib.scope():
        grad = drawn(lib, 4, dtypes, (10.0 ** (-30 * down), 10.0 ** (30 * down), 1e-20))
        eps, radii = epsilon(grad, p, 0.5), np.full(N, 0.5)
        gain, size = lib.to_numpy(penalty(grad, p, 0.5)), lib.to_numpy(norm(grad, p))
        seen = certify(grad, eps, p, 0.5)
        seen = {key: lib.to_numpy(getattr(seen, key)) for key in ("norm_used", "gain", "underused")}
        kept = project(grad, p, 0.5)
        for made, like in zip(leaves(eps), leaves(grad), strict=True):
            assert made.dtype == like.dtype
        g, e, y = (rows(lib, tree).astype(np.longdouble) for tree in (grad, eps, kept))
    rtol = 1e-13 if "float32" not in dtypes else 1e-6
    q = 1 if p == math.inf else math.inf if p == 1 else p / (p - 1)
    assert_allclose(norms(e, p).astype(float), radii, rtol=rtol)
    assert_allclose(gain, 0.5 * norms(g, q).astype(float), rtol=1e-13)
    assert_allclose(size, norms(g, p).astype(float), rtol=1e-13)
    assert_allclose(np.sum(g * e, axis=1).astype(float), gain, rtol=rtol)
    assert_allclose(norms(y, p).astype(float), radii, rtol=rtol)
    for key in "norm_used", "gain":
        assert_allclose(seen[key], 1, rtol=rtol)
    assert not seen["underused"].any()


def test_each_leaf_comes_back_in_its_own_dtype(lib):
    dtypes = [*lib.dtypes, *lib.dtypes][:3]
    with lib.scope():
        grad = drawn(lib, 5, dtypes)
        step = epsilon(grad, 2, 1.0)
        assert [leaf.dtype for leaf in leaves(step)] == [leaf.dtype for leaf in leaves(grad)]
        expected = rows(lib, grad) / np.linalg.norm(rows(lib, grad), axis=1, keepdims=True)
        coarsest = max(lib.floats[dtype].eps for dtype in dtypes)
        assert_allclose(rows(lib, step), expected, rtol=2 * coarsest)


@pytest.mark.parametrize("p", [1, 1.5, 2, math.inf])
def test_a_leaf_is_outside_its_box_by_its_own_rounding(lib, p):
    """A float32 leaf beside one of float64 stops at its bound as it would alone."""
    with lib.scope():
        x = {
            "a": lib.from_numpy(np.full((2, 3), 0.3) + 3e-8, "float32"),
            "b": lib.from_numpy(np.full((2, 2), 0.1), "float64"),
        }
        grad = mapped(lib.xp.ones_like, x)
        step = epsilon(grad, p, 0.5, x=x, bounds=(0.0, 0.3))
        judged = certify(grad, step, p, 0.5, x, (0.0, 0.3))
        alone = epsilon(grad["a"], p, 0.5, x=x["a"], bounds=(0.0, 0.3))
        assert_array_equal(lib.to_numpy(step["a"]), lib.to_numpy(alone))
        assert_array_equal(lib.to_numpy(step["a"]), 0)
        assert_allclose(lib.to_numpy(step["b"]), 0.2)
        assert_allclose(lib.to_numpy(judged.gain), 1)
        assert not lib.to_numpy(judged.underused).any()


@pytest.mark.parametrize("p", [1, 1.5, 2, math.inf])
def test_with_batch_ndim_0_all_leaves_are_one_point(lib, p):
    """With batch_ndim=0 leaves of any shapes are one point, numbers too."""
    rng = np.random.default_rng(6)
    arrays = [rng.standard_normal(shape) for shape in [(3, 2), (0, 4), (5,), ()]]
    with lib.scope():
        tree = tuple(lib.from_numpy(a, "float64") for a in arrays)
        step, size = epsilon(tree, p, 0.5, batch_ndim=0), norm(tree, p, batch_ndim=0)
        assert type(step) is tuple
        flatly = np.concatenate([np.ravel(lib.to_numpy(leaf)) for leaf in step])
        row = np.concatenate([np.ravel(a) for a in arrays])
        assert_allclose(flatly, epsilon(row, p, 0.5), rtol=1e-12)
        assert_allclose(lib.to_numpy(size), norm(row, p), rtol=1e-12)


def test_batch_ndim_none_means_the_first_axis_of_the_leaves(lib):
    """If no leaf has a second axis, the tree is one example."""
    with lib.scope():
        vectors = [lib.from_numpy(np.ones(3), "float64"), lib.from_numpy(np.ones(5), "float64")]
        assert tuple(norm(vectors, 2).shape) == ()
        beside = [vectors[0], lib.from_numpy(np.ones((3, 2)), "float64")]
        assert tuple(norm(beside, 2).shape) == (3,)
        assert_allclose(lib.to_numpy(norm(beside, 1)), 3)


NESTED = {
    "dict": lambda a, b: {"a": a, "b": b},
    "ordered": lambda a, b: OrderedDict(b=b, a=a),
    "default": lambda a, b: defaultdict(list, {1: a, "b": b}),
    "tuple": lambda a, b: (a, (b,)),
    "list": lambda a, b: [[a], b],
    "named": lambda a, b: Pair(a, {"x": Pair(b, None)}),
    "none": lambda a, b: {"a": a, "frozen": None, "b": [b, None]},
}


@pytest.mark.parametrize("make", NESTED.values(), ids=NESTED)
def test_the_result_has_the_structure(lib, make):
    with lib.scope():
        a, b = (lib.from_numpy(np.full((2, n), 1.0), "float64") for n in (3, 4))
        tree = make(a, b)
        step = epsilon(tree, 2, 1.0, mask=make(True, True), x=make(0.0, 0.0), bounds=(-1, make(1, 1)))

    def structure(tree):
        if tree is None or hasattr(tree, "shape"):
            return None if tree is None else tuple(tree.shape)
        keys = list(tree) if isinstance(tree, dict) else None
        return type(tree), keys, [structure(each) for each in (tree.values() if keys else tree)]

    assert structure(step) == structure(tree)
    for leaf in leaves(step):
        assert_allclose(lib.to_numpy(leaf), 7**-0.5)


def bad(lib):
    """Yield calls, with the error and what its message names."""
    a, b = (lib.from_numpy(np.ones((2, n)), "float32") for n in (3, 4))
    three, whole = lib.from_numpy(np.ones((3, 2)), "float32"), lib.from_numpy(np.ones((2, 2), int))
    tree = {"a": a, "b": [b]}
    yield lambda: epsilon({}, 2, 1.0), ValueError, "grad must hold at least one array"
    yield lambda: norm([{}, ()], 2), ValueError, "x must hold at least one array"
    yield lambda: ascend(None, [], 2, 1.0), ValueError, "x must hold at least one array"
    yield lambda: epsilon({"a": a, "b": [3.0]}, 2, 1.0), TypeError, r"grad\['b'\]\[0\] must be an array"
    yield lambda: epsilon({"a": a, "b": whole}, 2, 1.0), TypeError, r"grad\['b'\] must be float16"
    yield lambda: project({"a": a, "b": three}, 2, 1.0), ValueError, r"v\['b'\] \(3,\): with batch_ndim=0"
    yield lambda: penalty(tree, 2, 1.0, batch_ndim=3), ValueError, r"number of axes of grad\['a'\]"
    yield lambda: epsilon(tree, 2, 1.0, mask={"a": True}), ValueError, r"leaf grad\['b'\]\[0\], mask has none"
    yield (
        lambda: epsilon(tree, 2, 1.0, mask={"a": True, "b": [True], "c": True}),
        ValueError,
        r"leaf mask\['c'\]",
    )
    yield (
        lambda: epsilon(tree, 2, 1.0, x=tree, bounds=(0, {"a": 1})),
        ValueError,
        r"leaf grad\['b'\]\[0\], high",
    )
    yield (
        lambda: epsilon(tree, 2, 1.0, x=tree, bounds={"low": 0, "high": 1}),
        ValueError,
        "bounds must be a pair",
    )
    yield lambda: epsilon(tree, 2, 1.0, x=tree), ValueError, "belong together"
    yield (
        lambda: epsilon(tree, 2, 1.0, x={"a": 0, "b": [a]}, bounds=(0, 1)),
        ValueError,
        r"is grad\['b'\]\[0\]",
    )
    yield (
        lambda: epsilon(tree, 2, 1.0, mask={"a": True, "b": [whole > 0]}),
        ValueError,
        r"grad\['b'\]\[0\], \(2, 4\)",
    )
    yield lambda: certify(tree, a, 2, 1.0), TypeError, "eps must be a tree like grad"
    yield (
        lambda: certify(tree, {"a": a, "b": [a]}, 2, 1.0),
        ValueError,
        r"eps\['b'\]\[0\] must have the shape",
    )
    yield lambda: ascend(lambda x: (x, x), tree, 2, 1.0, start=a), TypeError, "start must be a tree like x"
    yield lambda: ascend(lambda x: (a[:, 0], a), tree, 2, 1.0), TypeError, "grad must be a tree like x"
    yield lambda: ascend(lambda x: (a[:, 0], {"a": a}), tree, 2, 1.0), ValueError, r"a leaf x\['b'\]\[0\]"


def test_an_error_names_the_leaf(lib):
    for call, error, message in bad(lib):
        with pytest.raises(error, match=message):
            call()


def test_leaves_of_two_libraries_are_an_error():
    strict = array_api_strict().from_numpy(np.ones((2, 3)))
    for tree in {"a": np.ones((2, 3)), "b": [strict]}, {"a": strict, "b": [np.ones((2, 3))]}:
        for function in epsilon, project, penalty:
            with pytest.raises(
                TypeError, match=r"leaves of \w+ must be arrays of one library; .*\['b'\]\[0\] of"
            ):
                function(tree, 2, 1.0)


def test_x_outside_its_bounds_names_the_leaf():
    lib = numpy_readonly()
    x = drawn(lib, 7)
    with pytest.raises(ValueError, match=r"x must lie within .* the leaf is grad\['text'\]\[1\]\['a'\]"):
        epsilon(x, 2, 1.0, x=x, bounds=({"image": -9, "text": [-9, {"a": 8}]}, 9))


def test_a_random_start_is_a_point_of_the_joint_ball():
    lib, x = numpy_readonly(), drawn(numpy_readonly(), 8)
    target = drawn(lib, 9)

    def still(at):
        value, grad = near(lib, target)(at)
        return 0 * value, grad

    eps = ascend(still, x, 2, 0.5, 1, start=np.random.default_rng(0))
    size = norm(eps, 2)
    assert np.all((size > 0) & (size <= 0.5))
    again = ascend(still, x, 2, 0.5, 1, start=eps)
    assert_array_equal(rows(lib, again), rows(lib, eps))


def test_stop_above_stops_an_example_in_every_leaf(lib):
    with lib.scope():
        x, target = drawn(lib, 10), drawn(lib, 10)
        target["image"] = target["image"] + 1.0
        found = ascend(near(lib, target), x, 2, 5.0, 6, stop_above=-1e-3)
        value = lib.to_numpy(near(lib, target)(added(x, found))[0])
    assert np.all(value > -1e-3)


def added(x, eps):
    return rebuilt(x, (a + b for a, b in zip(leaves(x), leaves(eps), strict=True)))


# Derivatives, maps and compilation.


@pytest.mark.parametrize("p", [1.5, 2, math.inf])
def test_the_derivative_of_the_penalty_is_the_step(autodiff, p):
    with autodiff.scope():
        grad = drawn(autodiff, 11, ("float32", "float64", "float64"))
        total = autodiff.jit(autodiff.derivative(lambda grad: autodiff.xp.sum(penalty(grad, p, 0.5))))
        found, step = total(grad), epsilon(grad, p, 0.5)
        assert [leaf.dtype for leaf in leaves(found)] == [leaf.dtype for leaf in leaves(grad)]
        assert_allclose(rows(autodiff, found), rows(autodiff, step), rtol=1e-6)


@pytest.mark.parametrize("p", [1.5, 2])
def test_the_derivative_of_the_step_is_that_of_its_rows(autodiff, p):
    with autodiff.scope():
        grad, weights = drawn(autodiff, 12), drawn(autodiff, 13)

        def weighted(grad, weights):
            step = epsilon(grad, p, 0.5)
            products = [autodiff.xp.sum(a * b) for a, b in zip(leaves(step), leaves(weights), strict=True)]
            return sum(products[1:], products[0])

        found = autodiff.derivative(weighted)(grad, weights)
        expected = autodiff.derivative(weighted)(joined(autodiff, grad), joined(autodiff, weights))
        assert_allclose(rows(autodiff, found), autodiff.to_numpy(expected), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_vmap_is_the_batch_of_trees(autodiff, p):
    with autodiff.scope():
        grad, x = drawn(autodiff, 14), drawn(autodiff, 15)

        def step(grad, x, batch_ndim):
            return epsilon(grad, p, 0.5, batch_ndim=batch_ndim, x=x, bounds=(-9, 9))

        one = autodiff.jit(autodiff.vmap(lambda grad, x: step(grad, x, 0)))(grad, x)
        assert_allclose(rows(autodiff, one), rows(autodiff, step(grad, x, 1)), rtol=1e-12)


@pytest.mark.torch
@needs_torch
@pytest.mark.parametrize("p", [1, 1.5, 2, math.inf])
def test_torch_compiles_a_tree_whole(p):
    import torch

    torch._dynamo.reset()

    def step(grad, x):
        mask = {"image": True, "text": [True, {"a": False}]}
        return epsilon(grad, p, 0.5), epsilon(grad, p, 0.5, x=x, bounds=(-9, 9), mask=mask)

    lib = UNDER_TEST[NAMES.index("torch")]
    grad, x = drawn(lib, 16, ("float32",) * 3), drawn(lib, 17, ("float32",) * 3)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(grad, x), step(grad, x))


@pytest.mark.torch
@needs_torch
def test_torch_the_gradients_of_all_parameters_are_one_point():
    """Some have none, as what is frozen."""
    import torch

    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    net[0].bias.requires_grad_(False)
    net(torch.ones(5, 3)).square().sum().backward()
    grads = {name: parameter.grad for name, parameter in net.named_parameters()}
    step = epsilon(grads, 2, 0.05, batch_ndim=0)
    assert step["0.bias"] is None
    flatly = torch.cat([each.flatten() for each in step.values() if each is not None])
    torch.testing.assert_close(flatly.norm(), torch.tensor(0.05))
    weights = dict(net.named_parameters())
    torch.testing.assert_close(
        norm(weights, 2, batch_ndim=0) ** 2, sum(w.square().sum() for w in weights.values())
    )


@pytest.mark.torch
@needs_torch
@pytest.mark.parametrize(
    "options", [{}, {"bounds": (-1.0, 1.0), "method": "projected"}, {"stop_above": 0.5}], ids=str
)
def test_torch_ascends_in_an_argument_that_is_a_tree(options):
    import torch

    import lpfamily_torch

    rng = np.random.default_rng(19)
    weights, x = torch.tensor(rng.standard_normal((6, 3))), torch.tensor(rng.uniform(-1, 1, (5, 6)))
    y = torch.tensor([0, 1, 2, 0, 1])

    def loss(z, y):
        return torch.nn.functional.cross_entropy(z, y, reduction="none")

    def model(scale, tree):
        return scale[:, None] * torch.sin(torch.cat([tree["a"], tree["b"][0].flatten(1)], dim=1) @ weights)

    tree = {"a": x[:, :2], "b": [x[:, 2:].reshape(-1, 2, 2)]}
    ball = {"p": 2, "sigma": 0.7, "steps": 6} | options
    found = lpfamily_torch.ascend(model, loss, (torch.ones(5), tree), y, leaf=1, **ball)
    expected = lpfamily_torch.ascend(lambda x: torch.sin(x @ weights), loss, x, y, **ball)
    assert found.keys() == tree.keys()
    torch.testing.assert_close(torch.cat([found["a"], found["b"][0].flatten(1)], dim=1), expected)
    with pytest.raises(TypeError, match=r"x\[1\]\['a'\] must be a floating tensor"):
        lpfamily_torch.ascend(model, loss, (torch.ones(5), {"a": y}), y, leaf=1, **ball)
    with pytest.raises(ValueError, match=r"x\[1\] must hold at least one tensor"):
        lpfamily_torch.ascend(model, loss, (torch.ones(5), {}), y, leaf=1, **ball)


@pytest.mark.jax
@needs_jax
def test_jax_takes_registered_pytrees():
    """Like those of Flax and Equinox: with names, without names, and with fields that are no leaves."""
    import jax
    from jax import numpy as jnp

    @dataclasses.dataclass
    class State:
        image: object
        kind: str
        rest: object = None

    class Boxed:
        def __init__(self, inside):
            self.inside = inside

    jax.tree_util.register_dataclass(State, ["image", "rest"], ["kind"])
    jax.tree_util.register_pytree_node(
        Boxed, lambda box: ((box.inside,), None), lambda _, inside: Boxed(*inside)
    )
    grad = State(jnp.ones((2, 3)), "photo", {"text": Boxed(jnp.ones((2, 6)))})
    for function in epsilon, jax.jit(epsilon, static_argnames="p"):
        step = function(grad, p=2, sigma=1.5)
        assert step.kind == "photo"
        assert_allclose(step.image, 0.5, rtol=1e-6)
        assert_allclose(step.rest["text"].inside, 0.5, rtol=1e-6)
    with pytest.raises(TypeError, match=r"grad\.rest\['text'\].*0.* must be float16"):
        epsilon(dataclasses.replace(grad, rest={"text": Boxed(jnp.ones((2, 6), int))}), 2, 1.0)

    def value_and_grad(at):
        return jnp.sum(at.image, axis=1) + jnp.sum(at.rest["text"].inside, axis=1), grad

    found = jax.jit(lambda x: ascend(value_and_grad, x, 2, 1.5, 3))(grad)
    assert_allclose(found.image, 0.5, rtol=1e-6)


@pytest.mark.jax
@needs_jax
def test_jax_the_parameters_of_a_module_come_back_as_parameters():
    """They have a shape and a dtype, and are no arrays."""
    import jax
    from flax import nnx

    params = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param)
    step = epsilon(params, 2, 0.1, batch_ndim=0)
    assert jax.tree.structure(step) == jax.tree.structure(params)
    assert_allclose(norm(step, 2, batch_ndim=0), 0.1, rtol=1e-6)
    one = epsilon(params["kernel"], 2, 0.1, batch_ndim=0)
    assert type(one) is type(params["kernel"])
    assert_allclose(one[...], epsilon(params["kernel"][...], 2, 0.1, batch_ndim=0))


@pytest.mark.jax
@needs_jax
def test_jax_a_sparse_array_is_no_tree():
    from jax import numpy as jnp
    from jax.experimental import sparse

    with pytest.raises(TypeError, match="it is sparse"):
        epsilon(sparse.BCOO.fromdense(jnp.ones((2, 3))), 2, 1.0)
