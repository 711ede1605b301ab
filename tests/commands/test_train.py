"""The train command: what a run leaves behind, what it says, and how it refuses bad input."""

import functools
import gzip
import json
import os
import pty
import re
import signal
import struct
import termios
from dataclasses import fields
from importlib.metadata import version

import numpy as np
import pytest
from safetensors.numpy import load_file

from helpers.backends_under_test import NAMES, trainer_on_digits
from helpers.commandline import (
    FILES,
    NAME,
    SOFTMAX,
    assert_refused,
    idx,
    in_process,
    metrics,
    python,
    small_mnist,
    start,
    tabled,
    timeless,
    train,
    trained,
    unchanged,
    wait_for_epochs,
)
from helpers.run_edits import arrays, changed
from lpfamily.report import drawing, plots
from lpfamily.training import backends, data, evaluation, runs
from lpfamily.training.recipes import Recipe

OBJECTIVES = {
    "plain": (),
    "noise": ("--sigma", "0.2"),
    "perturb": ("--p", "1.5", "--steps", "3", "--random-start", "--clean-weight", "0.5", "--sigma-ramp", "2"),
    "penalty": ("--p", "inf"),
    "penalty-difference": ("--penalty-by", "difference", "--p", "1"),
}


# The files of a run


@pytest.fixture(scope="module", params=NAMES)
def backend(request):
    return request.param


@pytest.fixture(scope="module", params=OBJECTIVES)
def run(request, backend, tmp_path_factory):
    """A finished run of each backend with each objective: its folder, its stdout."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    objective = request.param.removesuffix("-difference")
    flags = ("--backend", backend, *SOFTMAX, "--objective", objective, *OBJECTIVES[request.param])
    return folder, tabled(folder, *flags)


def test_a_run_leaves_its_five_files(run):
    folder, _ = run
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert [line["epoch"] for line in metrics(folder)] == [1, 2]
    for line in metrics(folder):
        assert line["loss"] > 0
        assert 0 < line["error"] < 1
        assert 0 < line["validation_error"] < 1
        assert line["seconds"] > 0
    png = (folder / "curves.png").read_bytes()
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert png.endswith(b"IEND\xaeB`\x82")
    assert min(struct.unpack(">II", png[16:24])) > 200


def test_the_result_is_that_of_the_network_in_the_checkpoint(run):
    folder, _ = run
    result = json.loads((folder / "result.json").read_text())
    assert set(result) == {
        "test_error",
        "one_step_unused",
        "unlearnt",
        "seconds_per_epoch",
        "epochs",
        "parameters",
        "tested_on",
        "test_examples",
        "checkpoint",
        "format",
        "sha256",
    }
    assert result["one_step_unused"] == {"1": 0, "2": 0, "inf": 0}
    errors = result["test_error"]
    assert set(errors) == {"clean", "noise", "one_step"}
    state, test = load_file(folder / "checkpoint.safetensors"), data.load("digits").test
    logits = test.x @ state["layers.0.weight"] + state["layers.0.bias"]
    assert errors["clean"] == pytest.approx(np.mean(logits.argmax(axis=1) != test.labels), abs=1 / 300)
    assert set(errors["noise"]) == {"0.1", "0.3"}
    for noise in errors["noise"].values():
        assert 0 < noise["standard_error"] < 0.02 < noise["mean"] < 1
    assert list(errors["one_step"]) == ["1", "2", "inf"]
    assert all(errors["clean"] <= value <= 1 for value in errors["one_step"].values())
    assert 0 < result["seconds_per_epoch"] < 60
    assert result["epochs"] == 2
    assert result["parameters"] == "after the last epoch, 2"
    assert result["tested_on"] == "digits, 300 test examples"
    assert result["test_examples"] == 300


def test_the_table_has_the_numbers_of_the_result(run):
    folder, stdout = run
    result = json.loads((folder / "result.json").read_text())
    errors = result["test_error"]
    assert result["tested_on"] in stdout
    assert result["parameters"] in stdout
    assert re.search(rf"clean +{errors['clean']:.2%}\n", stdout)
    for std, noise in errors["noise"].items():
        assert re.search(rf"std {std} +{noise['mean']:.2%} \+- {noise['standard_error']:.2%}\n", stdout)
    for p, value in errors["one_step"].items():
        assert re.search(rf"p = {p}, sigma \S+ +{value:.2%}\n", stdout)


@pytest.mark.parametrize("run", ["perturb"], indirect=True)
def test_the_config_repeats_the_run_to_the_byte(run, tmp_path):
    folder, _ = run
    config = json.loads((folder / "config.json").read_text())
    assert list(config["recipe"]) == [field.name for field in fields(Recipe)]
    for name in ("lpfamily", "numpy", "scipy", "safetensors"):
        assert config["versions"][name] == version(name)
    repeat = ["--backend", config["backend"], "--device", config["device"]]
    for name, value in config["recipe"].items():
        if value is not False and value != []:  # what is off by default, and what a model may not have
            text = ",".join(map(str, value)) if isinstance(value, list) else value
            repeat += ["--" + name.replace("_", "-"), *([] if value is True else [text])]
    assert {"--p", "--sigma", "--seed"} < set(repeat)
    trained(tmp_path / "again", *repeat)
    assert timeless(tmp_path / "again") == timeless(folder)


def test_another_seed_is_another_run(tmp_path):
    small_mnist(tmp_path / "mnist")
    for seed in "01":
        flags = ("--data", "mnist", "--data-dir", tmp_path, "--validation", 5, "--seed", seed)
        trained(tmp_path / seed, *SOFTMAX, *flags)
    zero, one = (load_file(tmp_path / seed / "checkpoint.safetensors") for seed in "01")
    assert zero.keys() == one.keys()
    assert np.mean(np.abs(zero["layers.0.weight"] - one["layers.0.weight"])) > 0.1


def test_without_out_the_folder_is_named_after_the_run(tmp_path):
    result = train(*SOFTMAX, "--p", "inf", "--sigma", "0.125", cwd=tmp_path)
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"softmax-digits-perturb-pinf-sigma0.125-\d{8}-\d{6}", folder.name)
    assert result.stderr.startswith(f"run folder: runs/{folder.name}\n")


# Progress and help


@pytest.mark.parametrize("validation", [197, 0])
def test_a_log_gets_one_line_per_epoch(tmp_path, validation):
    result = train(*SOFTMAX, "--validation", validation, "--out", tmp_path / "run", cwd=tmp_path)
    first, *lines, last = result.stderr.splitlines()
    assert first == f"run folder: {tmp_path / 'run'}"
    assert last == "testing on 300 examples: clean, noisy and perturbed"
    assert len(lines) == 2
    for epoch, line in enumerate(lines, 1):
        number = r"[\d.,]+"
        assert re.fullmatch(
            rf"epoch {epoch}/2: loss {number}, .*error {number}%.*, {number} examples/s, \d+ s left", line
        )


def test_a_terminal_gets_a_bar(tmp_path):
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 120))
    with start(*SOFTMAX, "--out", tmp_path / "run", cwd=tmp_path, stderr=slave) as process:
        os.close(slave)
        shown = b""
        try:
            while block := os.read(master, 1 << 16):
                shown += block
        except OSError:  # how Linux says that the other side is closed
            pass
        os.close(master)
        table, _ = process.communicate()
    assert process.returncode == 0
    assert table.startswith("test error (digits")
    bar = shown.decode().split("\r")[-3]
    pattern = r"100%\|█+\| 2.0/2 \[\d\d:\d\d, .*loss [\d.]+, .*error [\d.]+%.*examples/s, 0 s left"
    assert re.search(pattern, bar)


def test_help_lists_flags_and_backends_and_imports_nothing_heavy(tmp_path):
    code = """
import sys
from lpfamily.train import main
try:
    main(["--help"])
finally:
    print(*sys.modules, file=sys.stderr)
"""
    result = python(code, cwd=tmp_path)
    assert result.returncode == 0
    assert "one of jax, numpy, torch" in " ".join(result.stdout.split())
    for field in fields(Recipe):
        assert f"--{field.name.replace('_', '-')}" in result.stdout
    loaded = set(result.stderr.split())
    assert "lpfamily.training.recipes" in loaded
    assert not loaded & {"torch", "jax", "sklearn", "matplotlib", "tqdm", "safetensors"}


# Early ends


def test_ctrl_c_says_how_to_go_on(backend, tmp_path):
    folder = tmp_path / "run"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # else the child may ignore it too
    try:
        flags = ("--backend", backend, "--batch-size", 10, "--epochs", 10_000)
        with start(*flags, "--quiet", "--out", folder, cwd=tmp_path) as process:
            wait_for_epochs(folder, 1, process)
            process.send_signal(signal.SIGINT)
            stdout, stderr = process.communicate(timeout=60)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (process.returncode, stdout) == (130, "")
    assert f"stopped; go on with {NAME} --resume {folder}\n" in stderr
    assert "Traceback" not in stderr
    assert sorted(path.name for path in folder.iterdir()) == [
        name for name in FILES if name[:3] in "checonmet"
    ]


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(("--lr", 1, "--weight-decay", 50), id="weights"),
        pytest.param(("--lr", 1, "--lr-factor", 0.01), id="a rate past float32"),
        pytest.param(
            ("--lr", 1, "--lr-factor", 0.01, "--lr-scale", 1e10), id="a rate past float32 by its scale"
        ),
    ],
)
def test_a_run_whose_loss_is_not_finite_stops_and_keeps_the_last_finite_checkpoint(backend, tmp_path, flags):
    folder = tmp_path / "run"
    run = ("--backend", backend, "--model", "softmax", "--epochs", 4, *flags)
    result = in_process(*run, "--quiet", "--out", folder)
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (1, "", 1), result
    assert result.stderr.startswith(f"{NAME}: epoch 2 ")
    assert f"{folder} keeps the checkpoint after epoch 1; try a smaller --lr" in result.stderr
    assert not (folder / "result.json").exists()
    assert [line["epoch"] for line in metrics(folder)] == [1]
    state = load_file(folder / "checkpoint.safetensors")
    assert np.abs(state["layers.0.weight"]).max() > 1e10  # it is not the initial one
    assert all(np.isfinite(array).all() for array in state.values())


# Unused budget


@pytest.mark.parametrize("objective", ["perturb", "penalty", "plain"])
def test_zero_gradients_are_counted_and_reported_once(backend, tmp_path, objective):
    small_mnist(tmp_path / "mnist")
    flags = ("--data", "mnist", "--data-dir", tmp_path, "--validation", 0, "--batch-size", 10, "--epochs", 1)
    folder = tmp_path / "run"
    trained(folder, "--backend", backend, "--objective", objective, *flags)
    (folder / "result.json").unlink()
    changed(recipe={"epochs": 3})(folder)
    saturated = arrays(lambda state: state | {"layers.0.bias": np.full(600, 1e3, np.float32)}, epoch=1)
    saturated(folder)
    resumed = in_process("--resume", folder, "--quiet")
    assert resumed.returncode == 0, resumed
    *training, test = resumed.stderr.splitlines()
    for p in "1", "2", "inf":
        assert f"20 of 20 examples at p = {p}" in test
    assert test.startswith("warning: the one-step test leaves budget unused for")
    result = json.loads((folder / "result.json").read_text())
    assert result["one_step_unused"] == {"1": 1, "2": 1, "inf": 1}
    assert set(result["test_error"]["one_step"].values()) == {result["test_error"]["clean"]}
    if objective == "plain":
        assert training == []
        assert not any("unused" in line for line in metrics(folder))
        return
    assert [line["unused"] for line in metrics(folder)] == [0, 1, 1]
    (line,) = training
    assert line.startswith("warning: training leaves budget unused for 20 of 20 examples at p = 2: ")


class Stub:
    """A trainer whose input gradients are given; inputs are logits."""

    def __init__(self, gradients):
        self.gradients = gradients

    def input_gradients(self, x, labels):
        return self.gradients

    def logits(self, x):
        return x


@pytest.mark.parametrize(("sigma", "share"), [(0.5, 0.4), (0.0, 0.1)])
def test_examples_without_a_direction_are_counted_and_stay_clean(sigma, share):
    x = np.random.default_rng(0).standard_normal((10, 4)).astype(np.float32)
    gradients, labels = -x, x.argmax(axis=1)
    gradients[:3], gradients[3] = 0.0, np.nan
    gradients[4] *= 1e-38  # tiny is not zero
    found = evaluation.measure(Stub(gradients), data.Split(x, labels), Recipe(sigma=sigma))
    assert found["one_step_unused"] == dict.fromkeys(("1", "2", "inf"), share)
    strong = evaluation.measure(Stub(gradients), data.Split(x, labels), Recipe(sigma=sigma and 1e3))
    assert set(strong["test_error"]["one_step"].values()) == {0.6 if sigma else 0.0}


LAST = "layers.2.weight"


def test_with_a_zero_last_layer_all_examples_are_unused():
    trainer, x, labels = trainer_on_digits("float32")
    state = trainer.state()
    assert evaluation.measure(trainer, data.Split(x, labels), Recipe())["one_step_unused"]["2"] == 0
    trainer = backends.find("numpy").trainer(trainer.task, state | {LAST: 0 * state[LAST]})
    found = evaluation.measure(trainer, data.Split(x, labels), Recipe())
    assert found["one_step_unused"] == dict.fromkeys(("1", "2", "inf"), 1.0)


def test_a_run_trains_uncompiled_where_compiling_fails(tmp_path):
    """NumPy has no compiler; torch may lack one, and says so in the same words."""
    result = in_process(*SOFTMAX, "--compile", "--quiet", "--out", tmp_path / "run")
    assert result.returncode == 0, result
    assert result.stderr.startswith("warning: --compile has no effect: NumPy has no compiler")
    assert json.loads((tmp_path / "run/config.json").read_text())["compile"]


# Pictures


def test_the_result_is_written_before_the_curves_whose_drawing_may_fail(tmp_path, monkeypatch):
    folder = tmp_path / "run"

    def fail(figure, metrics, monitor_steps):
        assert (folder / "result.json").exists()
        raise RuntimeError("latex could not be\nfound")

    with monkeypatch.context() as patched:
        patched.setattr(plots, "training_curves", fail)
        result = in_process(*SOFTMAX, "--quiet", "--out", folder)
        assert (result.returncode, result.stdout) == (0, f"{folder}\n")
        warning = f"warning: {folder / 'curves.png'} could not be drawn (latex could not be found); "
        assert result.stderr == f"{warning}nothing else depends on it\n"
        again = unchanged(tmp_path, lambda: in_process("--resume", folder))
        finished = f"{folder} is finished; nothing to do\n"
        assert (again.returncode, again.stdout, again.stderr) == (0, finished, result.stderr)
    again = in_process("--resume", folder)
    assert (again.returncode, again.stdout, again.stderr) == (0, finished, "")
    trained(tmp_path / "undisturbed", *SOFTMAX)
    assert timeless(folder) == timeless(tmp_path / "undisturbed")


def test_curves_need_neither_the_users_settings_nor_a_window(tmp_path):
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfont.size: 30\nbackend: qtagg\n")
    result = train(*SOFTMAX, "--quiet", "--out", "run", cwd=tmp_path, MPLBACKEND="nonsense")
    assert (result.returncode, result.stderr) == (0, "")
    run = runs.find(tmp_path / "run")
    title = "softmax on digits, trained on perturbed inputs (p = 2, sigma = 0.2857)"
    draw = functools.partial(plots.training_curves, metrics=run.metrics(), monitor_steps=5)
    expected = drawing.rendered(draw, plots.TRAINING_SIZE, ["png"], "", pytest.fail, title)["png"]
    assert (tmp_path / "run/curves.png").read_bytes() == expected


# Options


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--backend", "tensorflow"], ["unknown backend 'tensorflow'", "installed: ", "numpy"]),
        (["--layer-noise", "0.1,-1"], ["--layer-noise: must be a finite number, 0 or more; got -1"]),
        (["--layer-noise", "0.1,0.2"], ["--layer-noise must have one number or 3; got 2"]),
        (["--model", "resnet"], ["--model", "'resnet'", "softmax", "sigmoid-mlp"]),
        (["--data", "svhn"], ["--data", "'svhn'", "digits", "mnist"]),
        (["--objective", "pertub"], ["--objective", "'pertub'", "perturb"]),
        (["--device", "cuda"], ["--device cuda", "cpu"]),
        (["--p", "0.5"], ["--p", "at least 1", "not convex", "0.5"]),
        (["--p", "two"], ["--p", "at least 1", "two"]),
        (["--p", "nan"], ["--p", "at least 1", "nan"]),
        (["--p", "two\nthree"], ["--p", "at least 1"]),
        (["--sigma", "-1"], ["--sigma", "0 or more", "-1"]),
        (["--sigma", "inf"], ["--sigma", "finite", "inf"]),
        (["--sigma", "1e300"], ["--sigma", "float32", "1e+300"]),
        (["--lr", "nan"], ["--lr", "above 0", "nan"]),
        (["--lr", "0"], ["--lr", "above 0", "got 0"]),
        (["--lr"], ["--lr", "argument"]),
        (["--epochs", "-3"], ["--epochs", "whole number from 1", "-3"]),
        (["--epochs", "1.5"], ["--epochs", "whole number from 1", "1.5"]),
        (["--batch-size", "0"], ["--batch-size", "whole number from 1"]),
        (["--clean-weight", "2"], ["--clean-weight", "0 to 1"]),
        (["--seed", "-1"], ["--seed", "whole number", "-1"]),
        (["--seed", str(2**64)], ["--seed", str(2**64)]),
        (["--seed", str(10**400)], ["--seed", "whole number"]),
        (["--init", "1e308", "--max-norm", "0"], ["--init 1e+308", "too large for float32"]),
        (
            ["--model", "conv-maxout", "--units", "4,4,8", "--padding", str(10**9)],
            ["--model conv-maxout: more parameters than memory has addresses"],
        ),
        (["--validation", "1497"], ["--validation 1497", "1497 training examples", "fewer"]),
        (["--sigam", "1"], ["--sigam", "did you mean --sigma?"]),
        (["--epoch=3"], ["--epoch=3", "did you mean --epochs?"]),
        (["mnist"], ["mnist", "--help"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_a_bad_option_is_named_with_what_is_allowed(tmp_path, flags, parts):
    assert_refused(unchanged(tmp_path, lambda: in_process(*flags, "--out", tmp_path / "run")), *parts)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        ("--layer-noise 0.1", "--layer-noise"),
        ("--label-smoothing 0.1", "--label-smoothing"),
        ("--steps 2 --method projected", "--method"),
        ("--objective trades", "--objective trades"),
        ("--ema 0.9", "--ema"),
        ("--bf16", "--bf16"),
    ],
)
def test_an_option_that_the_backend_does_not_know_is_refused(tmp_path, monkeypatch, flags, what):
    monkeypatch.setitem(vars(backends.find("numpy")), "options", frozenset())
    refused = in_process("--backend", "numpy", *flags.split(), "--out", tmp_path / "run")
    assert_refused(refused, f"backend 'numpy' does not know {what}; leave it out, or choose another")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ("--penalty-by difference", ["--penalty-by needs --objective penalty; give that too"]),
        ("--objective penalty --steps 5", ["--steps needs --objective perturb or trades"]),
        ("--objective plain --random-start", ["--random-start needs --objective perturb"]),
        ("--objective noise --clean-weight 0.3", ["--clean-weight needs --objective perturb"]),
        ("--objective noise --direction-dtype bfloat16", ["--direction-dtype needs --objective per"]),
        (
            "--direction-dropout same",
            ["--direction-dropout needs --objective perturb or trades with --dropout or --layer-noise;"],
        ),
        ("--objective plain --sigma-ramp 3", ["--sigma-ramp needs --objective noise or perturb or penalty"]),
        ("--dropout-scale 3", ["--dropout-scale needs --dropout"]),
        ("--bias untied", ["--bias needs --kernel"]),
        ("--model conv-maxout --kernel none --pool 4", ["--pool needs --kernel"]),
        ("--second-lr constant", ["--second-lr needs --second-stage continue"]),
        ("--epochs 20 --second-epochs 9", ["--second-epochs needs --second-stage continue or scratch"]),
        ("--lr-final 0.5", ["--lr-final needs --lr-decay linear"]),
        ("--lr-epochs 3 --lr-decay none", ["--lr-epochs needs --lr-decay linear"]),
        ("--lr-decay linear --lr-factor 2", ["--lr-factor needs --lr-decay exponential"]),
    ],
)
def test_an_option_without_effect_is_refused(tmp_path, flags, parts):
    assert_refused(in_process(*flags.split(), "--out", tmp_path / "run"), *parts)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("out", "parts"),
    [("file/run", ["choose another"]), ("file", ["choose another"]), (".", ["not empty", "--resume"])],
)
def test_a_folder_that_cannot_be_used_is_left_alone(tmp_path, out, parts):
    (tmp_path / "file").write_text("mine")
    result = unchanged(tmp_path, lambda: in_process(*SOFTMAX, "--out", tmp_path / out))
    assert_refused(result, f"--out {tmp_path / out}", *parts)


@pytest.mark.parametrize(
    ("module", "project"),
    [
        ("tqdm", "tqdm"),
        ("sklearn", "scikit-learn"),
        ("matplotlib", "matplotlib"),
        ("safetensors", "safetensors"),
    ],
)
def test_a_missing_package_is_named_with_its_install_command(tmp_path, module, project):
    code = "import sys; sys.modules[sys.argv[1]] = None; from lpfamily.train import main; sys.exit(main([]))"
    result = unchanged(tmp_path, lambda: python(code, module, cwd=tmp_path))
    assert_refused(result, f"needs {project}", 'pip install "lpfamily[train]"')


# Data


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
ONES = np.ones((40, 28, 28))


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        pytest.param(IMAGES, None, ["put the file there", "--data-dir"], id="missing"),
        pytest.param(IMAGES, idx(ONES)[:-1], ["only 31359 bytes", "download it again"], id="truncated"),
        pytest.param(
            IMAGES + ".gz", gzip.compress(idx(ONES))[:-9], ["damaged", "download it again"], id="damaged"
        ),
        pytest.param(IMAGES, b"PK\3\4" + idx(ONES), ["50 4b 03 04", "download it again"], id="magic"),
        pytest.param(IMAGES, idx(ONES[:, 1:]), ["27 x 28", "28 x 28"], id="size"),
        pytest.param(LABELS, idx(np.full(40, 10)), ["label 10 at index 0", "0 to 9"], id="label"),
        pytest.param(LABELS, idx(np.zeros(39)), ["40 images", "39 labels", "same source"], id="counts"),
    ],
)
def test_bad_data_is_named_with_its_remedy(tmp_path, name, content, parts):
    folder = small_mnist(tmp_path / "mnist")
    (folder / name.removesuffix(".gz")).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    flags = ("--data", "mnist", "--data-dir", tmp_path, "--validation", 5, "--out", tmp_path / "run")
    assert_refused(unchanged(tmp_path, lambda: in_process(*flags)), folder / name, *parts)
    assert not (tmp_path / "run").exists()


# Networks that have learnt nothing


@pytest.mark.parametrize(
    ("epochs", "flags", "said"),
    [
        (1, ("--lr", 1e-9), r"is at chance: its error without an attack is [\d.]+%"),
        (9, ("--lr", 1), ""),
    ],
)
def test_a_run_that_learnt_nothing_says_so(tmp_path, epochs, flags, said):
    result = in_process(*SOFTMAX, "--epochs", epochs, *flags, "--quiet", "--out", tmp_path / "run")
    assert result.returncode == 0, result
    found = re.findall("warning: the network (.*), so it has learnt nothing; train it longer", result.stderr)
    assert len(found) == bool(said), result.stderr
    assert all(re.search(said, each) for each in found)
    assert bool(json.loads((tmp_path / "run/result.json").read_text())["unlearnt"]) == bool(said)
