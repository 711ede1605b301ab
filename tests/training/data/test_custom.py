"""Custom data: training uses exactly what is in the file, and unusable data is refused in one line."""

import gzip
import json
import os
import pickle
import shutil
import sys
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from sklearn.preprocessing import MinMaxScaler, StandardScaler

import lpfamily.training
from helpers.commandline import (
    assert_refused,
    in_process,
    of_an_earlier_version,
    timeless,
    trained,
    unchanged,
)
from helpers.data_files import idx
from lpfamily import evaluate
from lpfamily.training import data, runs
from lpfamily.training.data import npz
from lpfamily.training.errors import BadInput

SHORT = ("--units", "8", "--epochs", "4")
CLASSES = 3


def arrays(shape=(3, 4), dtype="f8", n=90):
    """Return x, y, x_test and y_test, in the order of the classes, as files often are."""
    rng = np.random.default_rng(0)
    found = {}
    for name, count in ("", n), ("_test", n // 3):
        y = np.sort(np.arange(count) % CLASSES)
        x = rng.random((count, *shape)) * 50 + 40 * y.reshape(-1, *[1] * len(shape))
        found |= {f"x{name}": x.astype(dtype), f"y{name}": y}
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return the current folder, which has mine.npz."""
    monkeypatch.chdir(tmp_path)
    np.savez_compressed("mine.npz", **arrays())
    return tmp_path


# Arrays in a file


@pytest.mark.parametrize("shape", [(5,), (3, 4), (3, 4, 2), (2, 3, 2, 2)])
def test_examples_of_any_shape_are_those_of_the_file_in_another_order(shape, folder):
    given = arrays(shape)
    np.savez("mine.npz", **given)
    found = data.load("mine.npz")
    assert found.shape == ((1, *shape) if len(shape) == 2 else shape)
    assert found.classes == CLASSES
    assert_array_equal(found.test.x, given["x_test"].reshape(30, -1))
    assert_array_equal(found.test.labels, given["y_test"])
    rows = np.column_stack([given["x"].reshape(90, -1), given["y"]])
    mixed = np.column_stack([found.train.x, found.train.labels])
    assert sorted(map(tuple, rows)) == sorted(map(tuple, mixed))
    assert {*found.train.labels[-15:].tolist()} == {0, 1, 2}  # which are held out


@pytest.mark.parametrize("dtype", ["u1", "i2", "i8", "f2", "f4", ">f8", "?", "F"])
def test_numbers_keep_their_values_and_bytes_are_pixels(dtype, folder):
    """As large a float as the numbers need; only complex numbers are none."""
    given = arrays(dtype=dtype)
    given["x"].flat[:2] = given["x_test"].flat[:2] = 0, 1
    np.savez("mine.npz", **given)
    if dtype == "F":
        with pytest.raises(BadInput, match="x must be numbers; got complex64"):
            data.load("mine.npz")
        return
    found = data.load("mine.npz")
    assert found.test.x.dtype == ("f8" if dtype in ("i8", ">f8") else "f4")
    expected = given["x_test"].reshape(30, -1).astype("f8") / (255 if dtype == "u1" else 1)
    assert_allclose(found.test.x, expected, rtol=1e-7)


def test_a_run_of_a_file_is_evaluated_and_loaded(folder, capsys):
    """Its errors are those that the model makes on the arrays of the file, scaled as scikit-learn does."""
    given = arrays((12,))
    np.savez("mine.npz", **given)
    trained(folder / "run", "--data", "mine.npz", "--scale", "standard", *SHORT)
    found = lpfamily.training.load(folder / "run")
    scaler = StandardScaler().fit(given["x"])
    x = scaler.transform(given["x_test"])
    assert_allclose(found.inputs(given["x_test"]), x, rtol=1e-5, atol=1e-6)
    wrong = np.mean(found.model("numpy")(x.astype("f4")).argmax(axis=1) != given["y_test"])
    assert found.result["test_error"]["clean"] == wrong
    assert found.result["tested_on"] == "mine.npz scaled to standard, sigma in these units, 30 test examples"
    assert evaluate.main([str(folder / "run"), "--p", "2", "--steps", "2", "--quiet"]) == 0
    assert "mine.npz scaled to standard, sigma in these units" in capsys.readouterr().out
    measured = json.loads((folder / "run/robustness.json").read_text())
    assert (measured["clean"], measured["scale"]) == (wrong, "standard")
    with pytest.raises(ValueError, match=r"\(n, 12\), flattened; got \(30, 6\)"):
        found.inputs(given["x_test"][:, :6])


@pytest.mark.parametrize(("scale", "of"), [("standard", StandardScaler), ("unit", MinMaxScaler)])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_scales_are_those_of_scikit_learn(scale, of, dtype, folder):
    """A large offset keeps its digits, tiny numbers are no zeros, and one that never changes becomes 0."""
    given = arrays((5,), dtype)
    for x in given["x"], given["x_test"]:
        x[:, 0] = 0.1
        x[:, 2] *= 1e-30 if dtype == "f4" else 1e-200
        x[:, 1] += 1e9 if dtype == "f8" else 1e3
    np.savez("mine.npz", **given)
    found = data.load("mine.npz").scaled(scale)
    wide = {name: each.astype("f8") for name, each in given.items()}
    for x in wide["x"], wide["x_test"]:
        x[:, 2] /= 1e-30 if dtype == "f4" else 1e-200  # what scikit-learn takes for a constant
    kind = of().fit(wide["x"])
    assert_allclose(found.test.x, kind.transform(wide["x_test"]), rtol=3e-5, atol=1e-6)
    assert not found.test.x[:, 0].any()
    assert found.train.x.dtype == dtype
    assert found.sha256() == data.load("mine.npz").sha256()


@pytest.mark.parametrize(
    "layout",
    [lambda a: a.astype(a.dtype.newbyteorder(">")), np.asfortranarray, lambda a: a[::-1].copy()[::-1]],
    ids=["byte order", "Fortran order", "negative strides"],
)
def test_the_memory_layout_of_arrays_does_not_change_the_data(tmp_path, monkeypatch, layout):
    monkeypatch.chdir(tmp_path)
    np.savez("native.npz", **arrays())
    np.savez("other.npz", **{name: layout(array) for name, array in arrays().items()})
    found, expected = data.load("other.npz"), data.load("native.npz")
    assert found.sha256() == expected.sha256()
    np.testing.assert_array_equal(found.train.x, expected.train.x, strict=True)
    np.testing.assert_array_equal(found.train.labels, expected.train.labels, strict=True)


@pytest.mark.parametrize("name", ["digits", "mine.npz"])
def test_images_are_scaled_by_channel(name, folder):
    np.savez("mine.npz", **arrays((3, 5, 4), "u1"))
    before = data.load(name)
    after = before.scaled("standard")
    images = before.train.x.astype("f8").reshape(-1, *before.shape)
    mean, std = (of(images, axis=(0, 2, 3), keepdims=True) for of in (np.mean, np.std))
    expected = (before.test.x.reshape(-1, *before.shape) - mean) / std
    assert_allclose(after.test.x, expected.reshape(after.test.x.shape), rtol=1e-4, atol=1e-5)
    assert after.scaling.subtract == pytest.approx(mean.ravel().tolist())


def test_an_example_that_is_beyond_the_scale_is_named(folder):
    given = arrays((5,), "f4")
    given["x"] /= 100
    given["x"][:, 0], given["x_test"][0, 0] = np.linspace(0, 1e-30, 90), 1e30
    np.savez("mine.npz", **given)
    assert_refused(in_process("--data", "mine.npz", "--scale", "unit", "--out", "no"), "--scale", "float32")
    assert not Path("no").exists()


# Runs on custom data


def test_a_full_disk_loses_nothing_and_the_run_goes_on_to_the_same_bytes(folder, monkeypatch):
    """The scaling is that of the beginning: nothing is computed anew."""
    flags = ("--data", "mine.npz", "--scale", "standard", *SHORT)
    trained(folder / "whole", *flags)
    save = runs.Run.save

    def full(run, arrays, position, *rest):
        if position["epoch"] == 3:
            raise OSError(28, "No space left on device")
        return save(run, arrays, position, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(runs.Run, "save", full)
        stopped = in_process(*flags, "--out", "run", "--quiet")
    assert (stopped.returncode, len(stopped.stderr.splitlines())) == (2, 1)
    assert "No space left on device" in stopped.stderr
    (folder / "elsewhere").mkdir()
    Path("mine.npz").rename("elsewhere/mine.npz")
    gone = unchanged(folder / "run", lambda: in_process("--resume", "run"))
    assert_refused(gone, folder / "mine.npz", "there is no such file", "--data-dir")
    monkeypatch.setattr(data.datasets.scaling, "fit", None)
    assert in_process("--resume", "run", "--data-dir", "elsewhere", "--quiet").returncode == 0
    assert timeless(folder / "run") == timeless(folder / "whole")


def test_a_file_that_has_changed_is_refused_and_one_packed_anew_is_not(folder):
    """The run folder has the file's name, or the beginning of it."""
    name = f"{'n' * 200}.npz"
    Path("mine.npz").rename(name)
    begun = in_process("--data", name, *SHORT, "--quiet")
    assert begun.stderr.startswith(f"warning: {name} has inputs up to 129.8, on which networks learn badly;")
    run = Path(begun.stdout.strip())
    assert run.name.startswith(f"sigmoid-mlp-{'n' * 40}-perturb-p2-sigma0.1237-")
    (run / "result.json").unlink()
    for changed in arrays():
        given = arrays()
        given[changed][[0, -1]] = given[changed][[-1, 0]]
        np.savez(name, **given)
        for command in (
            lambda: in_process("--resume", run),
            lambda: in_process(run, command=evaluate.main),
        ):
            refused = unchanged(folder, command)
            assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
            assert f"other {name} data; give its --data-dir" in refused.stderr
    np.savez(name, **arrays())
    again = in_process("--resume", run, "--quiet")
    assert (again.returncode, "inputs up to" in again.stderr) == (0, False)


def test_a_run_from_before_there_were_scales_can_be_resumed(folder):
    """Its config has no checksum either, which would show that a field is missing."""
    trained(folder / "run", "--data", "digits", "--model", "softmax", "--epochs", "1")
    config = json.loads((of_an_earlier_version(folder / "run") / "config.json").read_text())
    for added in "scale", "size", "monitor", "ema":
        del config["recipe"][added]
    (folder / "run/config.json").write_text(json.dumps(config))
    (folder / "run/result.json").unlink()
    assert in_process("--resume", "run", "--quiet").returncode == 0
    assert lpfamily.training.load("run").recipe.scale == "none"


def test_runs_of_other_data_or_another_scale_are_not_compared(folder):
    """sigma would be in other units."""
    for first, (name, scale) in enumerate((("one", "standard"), ("two", "standard"), ("scaled", "unit"))):
        Path(name).mkdir()
        given = arrays()
        given["x"][0, 0, 0] = first
        np.savez(f"{name}/mine.npz", **given)
        trained(folder / f"{name}/run", "--data", f"{name}/mine.npz", "--scale", scale, *SHORT)
    for other, said in (
        ("two", "on other mine.npz scaled to standard"),
        ("scaled", "on mine.npz scaled to unit"),
    ):
        refused = in_process("one/run", f"{other}/run", "--sigma", "1", command=evaluate.main)
        assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
        assert said in refused.stderr


# Unusable files

BAD = {
    "no x_test": ({"x_test": None}, ["has no array 'x_test', only"]),
    "objects": ({"y": np.array([object()] * 90)}, ["not an .npz file of plain arrays", "Python objects"]),
    "one axis": ({"x": np.zeros(90)}, ["x must have an axis of examples and others; got shape (90,)"]),
    "no axis": ({"x": np.zeros(())}, ["x must have an axis of examples and others; got shape ()"]),
    "no examples": ({"x": np.zeros((0, 3, 4)), "y": np.zeros(0, int)}, ["x must have an axis"]),
    "texts": ({"x": np.full((90, 3), "1")}, ["x must be numbers; got <U1"]),
    "times": ({"x": np.zeros((90, 3), "M8[s]")}, ["x must be numbers; got datetime64"]),
    "records": ({"x": np.zeros((90, 3), [("a", "f4")])}, ["x must be numbers"]),
    "other shapes": ({"x_test": np.zeros((30, 4, 3))}, ["of shape (3, 4), and x_test of (4, 3)"]),
    "fewer labels": ({"y": np.zeros(89, int)}, ["y must be integers", "(90,); got int64 of shape (89,)"]),
    "one-hot": ({"y": np.eye(90, dtype=int)}, ["y must be integers", "of shape (90, 90)"]),
    "floats as labels": ({"y": arrays()["y"] * 1.0}, ["y must be integers", "got float64"]),
    "texts as labels": ({"y_test": np.full(30, "cat")}, ["y_test must be integers", "got <U3"]),
    "negative labels": ({"y": arrays()["y"] - 1}, ["from 0 without gaps; got -1, 0, 1; numpy.unique"]),
    "gaps": ({"y": arrays()["y"] * 5}, ["from 0 without gaps; got 0, 5, 10; numpy.unique"]),
    "huge labels": ({"y": np.arange(90, dtype="u8") + 2**63}, ["got 9223372036854775808, ", ", ..., "]),
    "one class": ({"y": np.zeros(90, int)}, ["y has one class"]),
    "a class in the test set alone": ({"y_test": np.arange(30) % 4}, ["y_test has the class 3, of which y"]),
    "NaN": ({"x": np.where(arrays()["x"] > 100, np.nan, 1)}, ["x is not finite in", "of 90 examples"]),
    "infinite": ({"x_test": np.full((30, 3, 4), -np.inf)}, ["x_test is not finite in 30 of 30"]),
    "beyond float32": ({"x": np.full((90, 3, 4), 1e39)}, ["x is not finite in 90 of 90", "beyond float32"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_npz_file_is_refused_in_one_line_and_leaves_nothing(case, folder):
    changes, parts = BAD[case]
    np.savez("mine.npz", **{name: each for name, each in (arrays() | changes).items() if each is not None})
    refused = unchanged(folder, lambda: in_process("--data", "mine.npz", *SHORT))
    assert_refused(refused, "mine.npz", *parts)
    assert not Path("runs").exists()


class Harm:
    """What unpickling would do."""

    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_files_that_are_no_plain_archive_are_refused_and_nothing_is_unpickled(folder):
    whole = Path("mine.npz").read_bytes()
    np.savez("pickle.npz", **arrays() | {"y": np.array([Harm()], object)})
    np.save("one.npy", np.zeros(3))
    cases = {
        "half": whole[: len(whole) // 2],
        "empty": b"",
        "one": Path("one.npy").read_bytes(),
        "bare": pickle.dumps(Harm()),
        "pickle": Path("pickle.npz").read_bytes(),
    }
    for name, content in cases.items():
        Path(f"{name}.npz").write_bytes(content)
        assert_refused(in_process("--data", f"{name}.npz"), folder / f"{name}.npz")
    with zipfile.ZipFile("mine.npz") as archive, zipfile.ZipFile("bz2.npz", "w", zipfile.ZIP_BZIP2) as other:
        for name in archive.namelist():
            other.writestr(name, archive.read(name))
    os.mkfifo("pipe.npz")
    for name, part in {
        "bz2.npz": "is not compressed as by numpy.savez_compressed",
        "pipe.npz": "is a pipe or a device",
        "none.npz": "there is no such file or folder",
        "one.npy": "is neither an .npz file nor a folder",
        "nothing": "'nothing': there is no such data set; choose one of digits, mnist, cifar10",
    }.items():
        assert_refused(in_process("--data", name), part)
    assert not Path("harm").exists()


@contextmanager
def outcome():
    """Give a list of what `BadInput` has said, which is empty or has one line; all else is raised."""
    said = []
    try:
        yield said
    except BadInput as problem:
        said.append(str(problem))


def test_any_damage_to_a_file_is_noticed(folder):
    """The archive's own checksums, or what is in the way of reading it: never a traceback, nor other data."""
    content, sound = Path("mine.npz").read_bytes(), data.load("mine.npz").sha256()
    rng = np.random.default_rng(0)
    noticed = 0
    for _ in range(100):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), rng.integers(1, 4)):
            damaged[place] = rng.integers(0, 256)
        Path("mine.npz").write_bytes(damaged)
        with outcome() as said:
            assert data.load("mine.npz").sha256() == sound  # a date in the archive, say
        assert not said or said[0].startswith(str(folder / "mine.npz"))
        noticed += len(said)
    assert noticed > 60


def test_an_archive_that_expands_beyond_reason_is_not_read(folder, monkeypatch):
    monkeypatch.setattr(npz, "SMALL", 1 << 20)
    np.savez_compressed("bomb.npz", **arrays() | {"x": np.zeros((5000, 100))})
    assert_refused(in_process("--data", "bomb.npz"), "bomb.npz: expands to ", "times its size")
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1}
    with monkeypatch.context() as patch:
        patch.setattr(os, "sysconf", pages.__getitem__)
        assert_refused(in_process("--data", "mine.npz"), "GB, and this machine has 0.0 GB of memory")
    liar = {"descr": "<f8", "fortran_order": False, "shape": (10**9, 10**6)}
    with zipfile.ZipFile("mine.npz") as whole, zipfile.ZipFile("liar.npz", "w") as archive:
        for name in whole.namelist():
            with archive.open(name, "w") as member:
                if name == "x.npy":
                    np.lib.format.write_array_header_1_0(member, liar)
                else:
                    member.write(whole.read(name))
    assert_refused(in_process("--data", "liar.npz"), "its header says (1000000000, 1000000) float64")


def test_a_size_for_arrays_and_a_grid_over_the_inputs_are_refused(folder):
    assert_refused(in_process("--data", "mine.npz", "--size", "4"), "--size: is for folders of images")
    assert_refused(in_process("--size", "4"), "--size: is for folders of images, and digits is none")
    for grid in "scale=none/unit", "size=4/5":
        assert_refused(in_process("--data", "mine.npz", "--grid", grid), "a run has one data set")


# Images


def images(folder, counts, size=(6, 5), mode="RGB", kind="png"):
    """Write so many images of each class, (height, width), and return them by path."""
    rng, found = np.random.default_rng(len(str(counts))), {}
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (*size, 3)[: 3 if mode == "RGB" else 2], np.uint8)
            path = folder / name / f"{number}.{kind}"
            Image.fromarray(pixels).save(path)
            found[path] = pixels
    return found


def rows(split):
    return sorted((*x, label) for x, label in zip(split.x.tolist(), split.labels.tolist(), strict=True))


@pytest.mark.parametrize(("mode", "kind"), [("RGB", "png"), ("RGB", "bmp"), ("L", "png"), ("L", "tiff")])
def test_images_are_pixels_by_class_channels_first(mode, kind, tmp_path):
    counts = {"train/dog": 4, "train/cat": 5, "Val/cat": 2, "Val/dog": 1}
    pixels = images(tmp_path / "pets", counts, mode=mode, kind=kind)
    for stray in "pets/readme.txt", "pets/train/labels.csv", "pets/train/cat/.DS_Store":
        (tmp_path / stray).write_text("no image")
    found = data.load(str(tmp_path / "pets"))
    channels = 3 if mode == "RGB" else 1
    assert (found.name, found.shape, found.classes) == ("pets/", (channels, 6, 5), 2)
    for split, part in (found.train, "train"), (found.test, "Val"):
        expected = sorted(
            (*(np.moveaxis(each.reshape(6, 5, -1), -1, 0) / np.float32(255)).ravel().tolist(), label)
            for label, name in enumerate(["cat", "dog"])
            for path, each in pixels.items()
            if path.parent == tmp_path / "pets" / part / name
        )
        assert rows(split) == expected


def test_without_test_images_a_fifth_of_each_class_is_the_test_set(tmp_path):
    pixels = images(tmp_path / "pets", {"a": 10, "b": 15, "train": 4})
    found = data.load("pets", tmp_path)
    assert np.bincount(found.test.labels).tolist() == [2, 3, 1]
    assert np.bincount(found.train.labels).tolist() == [8, 12, 3]
    everything = {*map(tuple, np.vstack([found.train.x, found.test.x]).tolist())}
    assert len(everything) == len(pixels)
    assert_array_equal(found.test.x, data.load("pets", tmp_path).test.x)


def test_grey_images_among_coloured_ones_and_other_sizes(tmp_path):
    """A grey image is its own red, green and blue; one of a single colour has that at any size."""
    images(tmp_path, {"a": 3})
    images(tmp_path, {"b": 3}, mode="L")
    found = data.load(str(tmp_path))
    assert found.shape == (3, 6, 5)
    for x, label in zip(found.train.x.reshape(-1, 3, 30), found.train.labels, strict=True):
        assert (x == x[0]).all() == (label == 1)
    images(tmp_path, {"c": 2}, size=(7, 5))
    with pytest.raises(BadInput, match=r"c/\d.png: is of 7 x 5 pixels, and .* of 6 x 5; give --size"):
        data.load(str(tmp_path))
    for path in tmp_path.rglob("*.png"):
        Image.new("RGB", (9, 8), (255, 102, 0)).save(path)
    sized = data.load(str(tmp_path), size=(2, 4))
    assert sized.shape == (3, 2, 4)
    assert_allclose(sized.train.x[0].reshape(3, 8), np.repeat([[1.0], [0.4], [0.0]], 8, axis=1), rtol=1e-6)


def test_a_run_of_images_knows_its_size_and_its_files(tmp_path, monkeypatch):
    """The names of data sets come first, and a folder with such a name needs a slash."""
    monkeypatch.chdir(tmp_path)
    images(tmp_path / "digits", {"a": 6, "b": 6})
    assert data.load("digits").shape == (1, 8, 8)
    trained(tmp_path / "run", "--data", "digits/", "--size", "4", *SHORT)
    assert lpfamily.training.load(tmp_path / "run").network.image == (3, 4, 4)
    (tmp_path / "run/result.json").unlink()
    assert in_process("--resume", "run", "--quiet").returncode == 0
    assert evaluate.main(["run", "--p", "2", "--steps", "2", "--quiet"]) == 0
    (tmp_path / "run/result.json").unlink()
    (tmp_path / "digits/a/0.png").rename(tmp_path / "digits/b/6.png")
    assert_refused(in_process("--resume", "run"), "other digits/ data")


def test_a_wrong_folder_of_images_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images(tmp_path / "pets", {"a": 3, "b": 3})
    whole = (tmp_path / "pets/a/0.png").read_bytes()
    sixteen = np.zeros((6, 5), np.uint16)
    Image.fromarray(sixteen).save("deep.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    Image.new("L", (9, 9)).save("bomb.png")
    for content, part in (
        (whole[: len(whole) // 2], "cannot be read as an image"),
        (b"", "cannot be read as an image (none that Pillow knows)"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 6\n%%EndComments\n", "none that Pillow knows"),
        (Path("deep.png").read_bytes(), "mode I;16, which does not have 8 bits per number"),
        (Path("bomb.png").read_bytes(), "decompression bomb"),
    ):
        (tmp_path / "pets/b/1.png").write_bytes(content)
        refused = unchanged(tmp_path, lambda: in_process("--data", "pets"))
        assert_refused(refused, tmp_path / "pets/b/1.png", part)
    (tmp_path / "pets/b/1.png").unlink()
    (tmp_path / "pets/c").mkdir()
    assert_refused(
        in_process("--data", "pets"), "pets/c: has no images; put some there, or remove the folder"
    )
    assert_refused(in_process("--data", "pets/a"), "pets/a: has no folder of images")
    assert_refused(in_process("--data", "pets", "--size", "1,2,3"), "--size 1,2,3: must be height,width")
    assert_refused(in_process("--data", "pets", "--size", "1000000000"), "pets/c: has no images")
    images(tmp_path / "pets/train", {"a": 3, "b": 3})
    assert_refused(in_process("--data", "pets"), "has train and no folder of test images")
    images(tmp_path / "pets/test", {"a": 1, "z": 1})
    assert_refused(in_process("--data", "pets"), "test/z: is a class that", "has no images of")
    shutil.rmtree("pets/test/z")
    assert_refused(in_process("--data", "pets", "--size", "1000000000"), "images of --size would take")
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert_refused(in_process("--data", "pets"), "Pillow", 'pip install "lpfamily[train]"')


def test_a_damaged_image_is_refused_in_one_line_or_is_another_picture(tmp_path):
    images(tmp_path, {"a": 2, "b": 2})
    path = tmp_path / "a/0.png"
    content, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), 3):
            damaged[place] = rng.integers(0, 256)
        path.write_bytes(damaged)
        with outcome() as said:
            data.load(str(tmp_path))
        assert not said or "a/0.png" in said[0]


# IDX files


def idx_files(folder, names, size=(28, 28), classes=10, first=0):
    """Write a set in MNIST's format, by names with {} for the part, and return its arrays."""
    rng, found = np.random.default_rng(1), []
    for part, count in ("train", 2 * classes), ("t10k", classes):
        pixels, labels = rng.integers(0, 256, (count, *size)), np.arange(count) % classes + first
        for name, array in zip(names, (pixels, labels), strict=True):
            path = folder / name.format(part)
            path.parent.mkdir(parents=True, exist_ok=True)
            content = idx(array)
            path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
        found.append((pixels, labels - first))
    return found


LAYOUTS = {
    "dots": ("{}-images.idx3-ubyte", "{}-labels.idx1-ubyte"),
    "torchvision": ("MNIST/raw/{}-images-idx3-ubyte", "MNIST/raw/{}-labels-idx1-ubyte"),
    "compressed dots": ("mnist/{}-images.idx3-ubyte.gz", "mnist/{}-labels.idx1-ubyte.gz"),
    "folders": ("{0}-images-idx3-ubyte/{0}-images-idx3-ubyte", "{0}-labels-idx1-ubyte/{0}-labels-idx1-ubyte"),
    "nested": ("mnist/archive/a/{}-images-idx3-ubyte", "mnist/archive/b/{}-labels-idx1-ubyte"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_mnist_is_read_under_all_common_file_names(layout, tmp_path):
    """Another set of the same format beside MNIST is not mistaken for it."""
    idx_files(
        tmp_path, [f"FashionMNIST/raw/{name}" for name in ("{}-images-idx3-ubyte", "{}-labels-idx1-ubyte")]
    )
    with pytest.raises(BadInput, match="no train-images-idx3-ubyte"):
        data.load("mnist", tmp_path)
    (train, labels), (test, _) = idx_files(tmp_path, LAYOUTS[layout])
    found = data.load("mnist", tmp_path)
    assert_array_equal(found.train.x, (train.reshape(20, -1) / 255).astype("f4"))
    assert_array_equal(found.test.x, (test.reshape(10, -1) / 255).astype("f4"))
    assert_array_equal(found.train.labels, labels)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("first", [0, 1])
def test_a_folder_of_idx_files_is_a_data_set_of_any_size_and_classes(layout, first, tmp_path):
    """As EMNIST, whose letters are counted from 1."""
    names = [
        name.replace("{}", "emnist-letters-{}", 1) if layout == "dots" else name for name in LAYOUTS[layout]
    ]
    train, test = idx_files(tmp_path / "set", names, (5, 4), 26, first)
    found = data.load("set", tmp_path)
    assert (found.name, found.shape, found.classes) == ("set/", (1, 5, 4), 26)
    for split, (pixels, labels) in (found.train, train), (found.test, test):
        x = (pixels.reshape(len(pixels), -1) / 255).astype("f4").tolist()
        assert rows(split) == sorted((*each, label) for each, label in zip(x, labels, strict=True))


def test_several_or_incomplete_idx_sets_are_refused_in_one_line(tmp_path):
    idx_files(tmp_path / "a", LAYOUTS["dots"])
    (tmp_path / "a/t10k-labels.idx1-ubyte").rename(tmp_path / "a/labels")
    with pytest.raises(BadInput, match=r"a has .*a/\S+, and lacks an IDX file of test labels"):
        data.load("a", tmp_path)
    (tmp_path / "a/labels").rename(tmp_path / "a/t10k-labels.idx1-ubyte")
    idx_files(tmp_path / "b", LAYOUTS["torchvision"])
    with pytest.raises(BadInput, match="give the folder of one set alone"):
        data.load(str(tmp_path))
    (tmp_path / "a/t10k-labels.idx1-ubyte").write_bytes(idx(np.arange(10) + 3))
    with pytest.raises(BadInput, match=r"t10k-labels.idx1-ubyte has the class 10, of which train-labels"):
        data.load("a", tmp_path)


# CIFAR-10's pickles


@pytest.mark.parametrize(
    "name", ["cifar-10-batches-py/data_batch_1", "cifar-10-python.tar.gz", "data_batch_1"]
)
def test_the_pickled_cifar10_is_refused_with_the_right_archive(name, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(pickle.dumps(Harm()))
    asked = [("--data", "cifar10", "--data-dir", tmp_path), ("--data", tmp_path)]
    for flags in [*asked, ("--data", tmp_path / name), ("--data", tmp_path / "cifar-10-batches-py")]:
        if Path(flags[-1]).exists():
            refused = in_process(*flags)
            assert_refused(
                refused, "Python pickles", "cifar-10-binary.tar.gz of https://www.cs.toronto.edu/~kriz/"
            )


# Other distributions

TOY = """
import numpy as np
from lpfamily.training.data import Dataset, Source, Split

def read(folder):
    rng = np.random.default_rng(0)
    splits = []
    for n in 40, 20:
        labels = np.arange(n) % 3
        splits.append(Split((rng.random((n, 6)) + labels[:, None]).astype("f4"), labels))
    return {returned}

toy = Source("toy", (6,), 3, read, radius=0.25, has_files=False, recipe={recipe})
"""
GOOD = "toy.dataset(*splits)"
RECIPE = '{"epochs": 3, "validation": 6, "patience": 0, "second_stage": "none"}'


@pytest.fixture
def install(tmp_path, monkeypatch):
    """install(code, name, project) lays out a distribution that registers a data set, by default toy."""

    def lay_out(code=None, name="toy", project="stranger", returned=GOOD, recipe=RECIPE):
        module = f"{project}_of_data"
        (tmp_path / f"{module}.py").write_text(code or TOY.format(returned=returned, recipe=recipe))
        info = tmp_path / f"{project}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[lpfamily.datasets]\n{name} = {module}:toy\n")
        modules.append(module)

    modules = []
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield lay_out
    for module in modules:
        sys.modules.pop(module, None)


def test_a_data_set_of_another_distribution_is_used_like_any_other(install, tmp_path, monkeypatch):
    install()
    assert data.names() == ["digits", "mnist", "cifar10", "toy"]
    assert "stranger_of_data" not in sys.modules
    trained(tmp_path / "run", "--data", "toy", "--units", "5")
    assert evaluate.main(["run", "--p", "2", "--steps", "2", "--quiet"]) == 0
    monkeypatch.setattr(data.plugins, "entry_points", lambda **_: [])  # it is uninstalled
    found = lpfamily.training.load("run")
    assert (found.network.inputs, found.recipe.sigma, found.recipe.epochs) == (6, 0.25, 3)
    refused = in_process("run", "--force", command=evaluate.main)
    assert (refused.returncode, "no such data set" in refused.stderr) == (2, True)


@pytest.mark.parametrize(
    ("kinds", "parts"),
    [
        (
            {"code": "toy = 1"},
            ["data set 'toy' cannot be loaded", "no lpfamily.training.data.Source named 'toy'"],
        ),
        (
            {"code": "import nothing_like_it"},
            ["No module named 'nothing_like_it'", "install what stranger needs"],
        ),
        ({"returned": "1 / 0"}, ["data set 'toy' cannot be used (ZeroDivisionError"]),
        ({"returned": "None"}, ["data set 'toy' cannot be used (AttributeError"]),
        (
            {"returned": "toy.dataset(splits[0], Split(splits[1].x, splits[1].labels + 1))"},
            ["test.labels must be from 0 to 2"],
        ),
        (
            {"returned": "toy.dataset(splits[0], Split(splits[1].x * np.nan, splits[1].labels))"},
            ["test.x is not finite in 20 of 20"],
        ),
        (
            {"returned": "toy.dataset(splits[0], Split(splits[1].x[:, :5], splits[1].labels))"},
            ["test.x must be float32 or float64, (n, 6); got float32 (20, 5)"],
        ),
        ({"returned": "toy.dataset(splits[0], 5)"}, ["cannot be used (AttributeError"]),
        ({"recipe": '{"epoch": 3}'}, ["toy", "epoch"]),
        ({"recipe": '{"epochs": 0}'}, ["toy", "epochs"]),
    ],
)
def test_a_data_set_that_cannot_be_used_is_refused_in_one_line(kinds, parts, install):
    install(**kinds)
    assert_refused(in_process("--data", "toy", "--units", "5"), *parts)


def test_two_data_sets_of_one_name_are_refused(install):
    """The names of lpfamily's own data sets cannot be taken."""
    install(name="digits", project="other")
    assert data.load("digits").classes == 10
    install()
    install(project="another")
    assert_refused(in_process("--data", "toy"), "two data sets are named 'toy'", "uninstall one of them")
