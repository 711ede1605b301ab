"""The implementations of this project, and the definitions alone, pass the tests for any library."""

import sys

import numpy as np
import pytest

from helpers.libraries_under_test import NAMES
from lpfamily import epsilon
from lpfamily.box import step_in_box
from lpfamily.libraries import library_of, library_of_generator, on_numpy
from lpfamily.libraries.testing import LibraryTests
from lpfamily.nearest import nearest
from lpfamily.steepest import dual_norm, steepest

if "numpy" in NAMES:

    @pytest.mark.numpy
    class TestNumpy(LibraryTests):
        from_numpy = staticmethod(np.asarray)


def clipped(p, x, sigma, room):
    """Clip the step of the ball, which leaves budget unspent."""
    return np.clip(steepest.value(p, x, sigma), -room, room)


def short(p, x, sigma):
    return 0.999 * steepest.value(p, x, sigma)


def blind(p, x, sigma, *room):
    """Return the step instead of the nearest point."""
    return steepest.value(p, x, sigma)


@pytest.mark.parametrize(
    ("primitive", "wrong", "law"),
    [
        (steepest, short, "test_the_step_is_the_closed_form"),
        (steepest, short, "test_the_step_depends_on_the_direction_alone"),
        (
            dual_norm,
            lambda p, x, sigma: sigma[:, 0] * np.abs(x).sum(axis=1),
            "test_the_penalty_is_the_gain_of_the_step",
        ),
        (step_in_box, clipped, "test_the_step_in_a_box_is_the_maximiser"),
        (nearest, blind, "test_the_projection_is_the_nearest_point"),
    ],
)
def test_a_wrong_implementation_breaks_a_law(monkeypatch, primitive, wrong, law):
    class Tests(LibraryTests):
        from_numpy = staticmethod(np.asarray)

    monkeypatch.setattr(on_numpy.library, "implementations", {primitive: wrong})
    with pytest.raises(AssertionError):
        getattr(Tests(), law)(1.5, *([1e290] if "direction" in law else []))


@pytest.mark.parametrize(
    ("method", "wrong"),
    [
        ("iterate", lambda step, state, numbers: step(state, numbers[0])),
        ("branch", lambda condition, function, state: function(state)),
        ("branch", lambda condition, function, state: state),
        ("places", lambda mask: np.flatnonzero(~mask)),
    ],
)
def test_a_wrong_loop_or_choice_breaks_its_law(monkeypatch, method, wrong):
    class Tests(LibraryTests):
        from_numpy = staticmethod(np.asarray)

    monkeypatch.setattr(library_of(np.zeros(1)), method, wrong)
    with pytest.raises(AssertionError):
        Tests().test_iterate_branch_and_places_match_python()


@pytest.mark.numpy
def test_the_former_name_of_the_package_warns():
    for name in "lpfamily.kernels", "lpfamily.kernels.testing":
        sys.modules.pop(name, None)
    with pytest.warns(DeprecationWarning, match="import it by that name"):
        from lpfamily.kernels import testing
    assert testing.LibraryTests is LibraryTests
    assert sys.modules["lpfamily.kernels"].library_of is library_of


@pytest.mark.numpy
def test_the_former_entry_point_group_is_read_with_a_warning(tmp_path, monkeypatch):
    class Generator:
        """A random generator of that library."""

    Generator.__module__ = "strange"
    (tmp_path / "strange_library.py").write_text(
        "from lpfamily.libraries import Library\nlibrary = Library()\n"
    )
    info = tmp_path / "strange-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: strange\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lpfamily.kernels]\nstrange = strange_library:library\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.warns(DeprecationWarning, match=r"'strange' is now lpfamily\.libraries"):
        library = library_of_generator(Generator())
    import strange_library

    assert library is strange_library.library


@pytest.mark.numpy
@pytest.mark.parametrize(
    ("module", "says"),
    [
        ("mlx.core", r"got mlx's Foreign: pass numpy.asarray\(grad\['a'\]\)$"),
        ("paddle", r"got paddle's Foreign: pass grad\['a'\].numpy\(\)$"),
        (
            "tensorflow.python.framework.ops",
            r"pass tensorflow.convert_to_tensor\(grad\['a'\]\).numpy\(\), or",
        ),
        ("xarray.core", r"got xarray's Foreign: pass grad\['a'\].data, or"),
        ("unheard.of", "got Foreign: convert it first"),
    ],
)
def test_an_error_says_how_to_convert_what_does_not_follow_the_standard(module, says):
    class Foreign:
        """As MLX's, which has the standard's method and not all arguments of its functions."""

        dtype, shape, ndim = np.dtype("float32"), (2, 3), 2

    Foreign.__module__ = module
    if module == "mlx.core":
        Foreign.__array_namespace__ = lambda self, **_: np
    with pytest.raises(TypeError, match=says):
        epsilon({"a": Foreign()}, 2, 1.0)


if "array-api-strict" in NAMES:
    import array_api_strict

    @getattr(pytest.mark, "array-api-strict")
    class TestStrict(LibraryTests):
        from_numpy = staticmethod(array_api_strict.asarray)


if "ndonnx" in NAMES:
    import ndonnx

    @pytest.mark.ndonnx
    class TestNdonnx(LibraryTests):
        from_numpy = staticmethod(ndonnx.asarray)
        to_numpy = staticmethod(ndonnx.Array.unwrap_numpy)
        test_it_is_a_library = None  # it does not show its values to SciPy, whose function this calls
        test_the_adaptive_ascent_finds_the_top = None  # a minute


if "torch" in NAMES:
    import torch

    @pytest.mark.torch
    class TestTorch(LibraryTests):
        from_numpy = staticmethod(torch.tensor)
        to_numpy = staticmethod(torch.Tensor.numpy)
        gradient = staticmethod(torch.func.grad)


if "jax" in NAMES:
    import jax

    @pytest.mark.jax
    class TestJax(LibraryTests):
        from_numpy = staticmethod(jax.numpy.asarray)
        gradient = staticmethod(jax.grad)

        @pytest.fixture(autouse=True)
        def in_float64(self):
            with jax.enable_x64(True):
                yield


if "dask" in NAMES:
    import dask
    import dask.array

    @pytest.mark.dask
    class TestDask(LibraryTests):
        from_numpy = staticmethod(lambda x: dask.array.from_array(x, chunks=2))
        to_numpy = staticmethod(lambda x: x.compute(scheduler="synchronous"))

        @pytest.fixture(autouse=True)
        def computed(self):
            """`Library.repeat` looks at values."""
            with dask.config.set(scheduler="synchronous"):
                yield
