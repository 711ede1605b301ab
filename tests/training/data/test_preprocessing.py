"""Contrast normalisation and ZCA are their definitions."""

import numpy as np
import pytest
import scipy.linalg

from lpfamily.training.data import preprocessing
from lpfamily.training.data.preprocessing import global_contrast_normalise, whiten, zca


def test_contrast_normalisation_is_its_definition() -> None:
    """Image by image: minus its mean, divided by its norm, times 55; a constant image is 0."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (2 * preprocessing.BLOCK + 3, 12), dtype=np.uint8)
    images[5], images[-1] = 7, 255
    found = global_contrast_normalise(images)
    assert (found.dtype.name, found.shape) == ("float32", images.shape)
    for image, values in zip(images.tolist(), found, strict=True):
        centred = [pixel - sum(image) / 12 for pixel in image]
        norm = sum(value**2 for value in centred) ** 0.5
        expected = [55 * value / norm if norm else 0 for value in centred]
        np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-6)
    assert not found[5].any()
    assert not found[-1].any()


@pytest.mark.parametrize("n", [1, 4, 2 * preprocessing.BLOCK + 3])
def test_zca_is_its_definition(n: int) -> None:
    """(C + 0.1)^-1/2 of the covariance over n, for many examples and for fewer than inputs."""
    rng = np.random.default_rng(2)
    x = (rng.normal(size=(n, 6)) @ rng.normal(size=(6, 6)) + 3).astype(np.float32)
    mean, matrix = zca(x)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean(axis=0), rtol=1e-12)
    centred = exact - exact.mean(axis=0)
    covariance = centred.T @ centred / n  # before NumPy 2.2, np.cov took a single row for a column
    expected = np.linalg.inv(scipy.linalg.sqrtm(covariance + 0.1 * np.eye(6)).real)
    np.testing.assert_allclose(matrix, expected, rtol=1e-9, atol=1e-9)


def test_whitened_training_examples_have_the_covariance_that_is_stated() -> None:
    """V diag(e / (e + 0.1)) V', around the mean 0."""
    rng = np.random.default_rng(3)
    x = (rng.normal(size=(2500, 8)) * np.geomspace(0.01, 10, 8) + 5).astype(np.float32)
    values, vectors = np.linalg.eigh(np.cov(x.astype(np.float64), rowvar=False, bias=True))
    mean, matrix = zca(x)
    whiten(x, mean.astype(np.float32), matrix.astype(np.float32))
    assert x.dtype == np.float32
    np.testing.assert_allclose(x.mean(axis=0, dtype=np.float64), 0, atol=1e-5)
    expected = (vectors * (values / (values + 0.1))) @ vectors.T
    np.testing.assert_allclose(np.cov(x, rowvar=False, bias=True), expected, atol=1e-4)
