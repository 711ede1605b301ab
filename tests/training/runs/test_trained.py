"""`lpfamily.training.load`: it returns the network that a run has trained, in every library."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import lpfamily.training
from helpers.backends_under_test import NAMES
from helpers.commandline import ENVIRONMENT, begun_with, in_process, metrics, python, trained
from lpfamily.training import data
from lpfamily.training.errors import BadInput
from lpfamily.training.networks import initial_state
from lpfamily.training.protocol import stages
from lpfamily_reference import networks
from lpfamily_reference.definitions import central_difference

# rates that grow in every step: the second epoch is worse than the first, which is then kept
GROWING = ("--batch-size", 20, "--lr", 0.1, "--lr-factor", 0.97, "--epochs", 2, "--patience", 1)
PIECES, PADDING, POOL, STRIDE = 3, 1, 3, 2
MODELS = {
    "sigmoid-mlp": ("--units", "30,20", *GROWING),
    "maxout": ("--units", "20,10", "--pieces", PIECES, "--init", 0.2, *GROWING),
    "softmax": ("--epochs", 2, "--patience", 2, "--second-stage", "continue", "--second-epochs", 1),
}
CONVOLUTIONS = (
    *("--units", "4,3", "--pieces", PIECES, "--kernel", "3,3", "--padding", PADDING, "--pool", POOL),
    *("--stride", STRIDE, "--dropout", "0.8,0.5,0.5", "--max-norm", 2, "--init", 0.5, "--epochs", 1),
)
TEST = data.load("digits").test


@pytest.fixture(scope="module", params=NAMES)
def backend(request):
    return request.param


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return request.param


@pytest.fixture(scope="module")
def run(backend, model, tmp_path_factory):
    """The folder of a finished run of each backend with each model."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    trained(folder, "--backend", backend, "--model", model, *MODELS[model])
    return folder


def dense(parameters, index, x):
    weight, bias = parameters[f"layers.{index}.weight"], parameters[f"layers.{index}.bias"]
    return networks.dense(x.reshape(len(x), -1), weight, bias)


def softmax(parameters, x):
    return dense(parameters, 0, x)


def sigmoid_mlp(parameters, x):
    for index in 0, 1:
        x = networks.sigmoid(dense(parameters, index, x))
    return dense(parameters, 2, x)


def maxout(parameters, x):
    for index in 0, 1:
        x = networks.maxout(dense(parameters, index, x), PIECES)
    return dense(parameters, 2, x)


def conv_maxout(parameters, x):
    x = x.reshape(-1, 1, 8, 8)
    for index in 0, 1:
        weight, bias = parameters[f"layers.{index}.weight"], parameters[f"layers.{index}.bias"]
        pieces = networks.convolution(x, weight, bias, PADDING)
        x = networks.max_pooling(networks.maxout(pieces, PIECES), POOL, STRIDE)
    return dense(parameters, 2, x)


FORWARD = {"softmax": softmax, "sigmoid-mlp": sigmoid_mlp, "maxout": maxout, "conv-maxout": conv_maxout}


def forward(run, x):
    """Return the logits of a run's network, written out, in float64."""
    parameters = {name: array.astype(np.float64) for name, array in run.parameters.items()}
    return FORWARD[run.recipe.model](parameters, x.astype(np.float64))


def call(name, model, x):
    """Return model(x) as an array of NumPy."""
    if name == "torch":
        import torch

        return model(torch.tensor(x)).detach().numpy()
    return np.asarray(model(x))


def error_log_odds(logits, labels):
    wrong = np.where(np.arange(logits.shape[1]) == labels[:, None], -np.inf, logits)
    return np.logaddexp.reduce(wrong, axis=1) - logits[np.arange(len(labels)), labels]


def input_gradient(name, model, x, labels):
    """Return the input gradient of the error log-odds, differentiated by the library."""
    if name == "torch":
        import torch

        at = torch.tensor(x, requires_grad=True)
        lpfamily.error_log_odds(model(at), torch.tensor(labels)).sum().backward()
        return at.grad.numpy()
    import jax

    odds = jax.grad(lambda at: lpfamily.error_log_odds(model(at), labels).sum())
    return np.asarray(odds(jax.numpy.asarray(x)))


# The returned networks


@pytest.mark.parametrize("name", sorted({"numpy", *NAMES}))
def test_every_backend_returns_the_network_that_one_has_trained(run, name):
    found = lpfamily.training.load(run)
    logits = call(name, found.model(name), TEST.x)
    assert logits.dtype == np.float32
    assert np.ptp(logits) > 1
    np.testing.assert_allclose(logits, forward(found, TEST.x), rtol=1e-4, atol=1e-4)
    assert np.mean(logits.argmax(axis=1) != TEST.labels) == found.result["test_error"]["clean"]


def test_the_parameters_are_those_that_were_tested(run, model):
    found, kept = lpfamily.training.load(str(run)), load_file(run / "checkpoint.safetensors")
    best = "" if model == "softmax" else "best."
    assert found.epoch == (3 if model == "softmax" else 1)
    kept_result = json.loads((run / "result.json").read_text())
    assert kept_result == found.result | {name: kept_result[name] for name in ("format", "sha256")}
    assert set(found.parameters) == {name for name in kept if name.startswith("layers.")}
    for name, array in found.parameters.items():
        np.testing.assert_array_equal(array, kept[best + name])
        if best and name.endswith("weight"):
            assert not np.array_equal(array, kept[name])


@pytest.mark.parametrize("model", ["sigmoid-mlp", "maxout"], indirect=True)
@pytest.mark.parametrize("backend", [name for name in NAMES if name != "numpy"], indirect=True)
def test_the_input_gradient_is_that_of_the_written_out_network(run, backend):
    found, x, labels = lpfamily.training.load(run), TEST.x[:3], TEST.labels[:3]
    gradients = input_gradient(backend, found.model(backend), x, labels)
    for row, label, gradient in zip(x.astype(np.float64), labels[:, None], gradients, strict=True):
        expected = central_difference(
            lambda at, label=label: error_log_odds(forward(found, at[None]), label)[0], row, 1e-6
        )
        np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", [name for name in NAMES if name != "numpy"])
def test_backends_return_convolutions_and_numpy_refuses_them(name, tmp_path):
    trained(
        tmp_path / "run", "--backend", name, "--model", "conv-maxout", *CONVOLUTIONS, "--test-examples", 20
    )
    found = lpfamily.training.load(tmp_path / "run")
    expected = forward(found, TEST.x)
    assert np.ptp(expected) > 0.1
    for other in NAMES:
        if other != "numpy":
            logits = call(other, found.model(other), TEST.x)
            np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(BadInput, match="'numpy' does not train ConvMaxout layers, only Dense, Maxout"):
        found.model("numpy")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with NumPy, whatever is under test."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    trained(folder, "--model", "maxout", *MODELS["maxout"])
    return folder


def test_an_unfinished_run_has_no_result(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "result.json").unlink()
    found = lpfamily.training.load(folder)
    assert (found.result, found.epoch) == (None, 1)
    assert found.recipe.model == "maxout"
    assert found.network.inputs == 64


@pytest.mark.parametrize("name", data.NAMES)
def test_no_data_is_needed_to_know_its_shape(finished, tmp_path, name):
    """The checkpoint of a network for digits is refused by what it is, whether or not MNIST is there."""
    folder = shutil.copytree(finished, tmp_path / "run")
    changed({"data": name})(folder)
    if name == "digits":
        assert lpfamily.training.load(folder).network.image == (1, 8, 8)
        return
    inputs = {"mnist": 784, "cifar10": 3072}[name]
    with pytest.raises(BadInput, match=rf"layers.0.weight is float32 \(64, 60\) and .* \({inputs}, 60\)"):
        lpfamily.training.load(folder)


def test_a_float64_run_gives_a_float64_model_in_numpy(tmp_path):
    trained(tmp_path / "run", "--model", "softmax", "--epochs", 1, "--dtype", "float64")
    found = lpfamily.training.load(tmp_path / "run")
    x = TEST.x.astype(np.float64)
    np.testing.assert_allclose(found.model("numpy")(x), forward(found, x), rtol=1e-12)


if "torch" in NAMES:
    import torch

    @pytest.mark.torch
    def test_a_torch_module_is_an_ordinary_one(finished):
        found = lpfamily.training.load(finished)
        model, x = found.model("torch"), torch.tensor(TEST.x)
        assert isinstance(model, torch.nn.Module)
        state = model.state_dict()
        assert list(state) == list(found.parameters)
        for name, array in found.parameters.items():
            np.testing.assert_array_equal(state[name].numpy(), array)
        expected = model(x)
        assert torch.equal(model.train()(x), expected)
        assert torch.equal(model.eval()(x), expected)
        expected.sum().backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())
        assert model.to("meta")(x.to("meta")).device.type == "meta"

    @pytest.mark.torch
    def test_a_torch_module_compiles_and_maps(finished):
        model, x = lpfamily.training.load(finished).model("torch"), torch.tensor(TEST.x[:5])
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), model(x))
        state = {name: 2 * parameter.detach() for name, parameter in model.named_parameters()}
        doubled = torch.func.functional_call(model, state, (x,))
        single = torch.func.vmap(lambda row: torch.func.functional_call(model, state, (row[None],))[0])
        torch.testing.assert_close(single(x), doubled)
        assert not torch.allclose(doubled, model(x))
        assert torch.func.vmap(torch.func.jacrev(lambda row: model(row[None])[0]))(x).shape == (5, 10, 64)


if "jax" in NAMES:
    import jax

    @pytest.mark.jax
    def test_a_jax_model_is_a_pure_function_and_a_pytree(finished):
        found = lpfamily.training.load(finished)
        model, x = found.model("jax"), jax.numpy.asarray(TEST.x[:5])
        expected = model(x)
        np.testing.assert_allclose(jax.jit(model)(x), expected, rtol=1e-5)
        np.testing.assert_allclose(jax.jit(lambda model, x: model(x))(model, x), expected, rtol=1e-5)
        mapped = jax.vmap(lambda row: model(row[None])[0])(x)
        np.testing.assert_allclose(mapped, expected, rtol=1e-5)
        gradient = jax.grad(lambda model: model(x).sum())(model)
        assert gradient.parameters.keys() == found.parameters.keys()
        np.testing.assert_allclose(gradient.parameters["layers.2.bias"], 5.0)

    @pytest.mark.jax
    def test_a_jax_model_of_float64_needs_jax_to_have_it(tmp_path):
        trained(tmp_path / "run", "--model", "softmax", "--epochs", 1, "--dtype", "float64")
        found, x = lpfamily.training.load(tmp_path / "run"), TEST.x.astype(np.float64)
        with jax.enable_x64(False), pytest.raises(BadInput, match="jax_enable_x64"):
            found.model("jax")
        with jax.enable_x64(True):
            np.testing.assert_allclose(found.model("jax")(x), forward(found, x), rtol=1e-12)


@pytest.mark.parametrize("second_stage", ["continue", "scratch"])
def test_a_run_that_stops_as_its_second_stage_begins_has_what_that_begins_with(
    tmp_path, monkeypatch, second_stage
):
    def stop(training):
        raise KeyboardInterrupt

    monkeypatch.setattr(stages._Training, "second_stage", stop)
    flags = ("--model", "softmax", "--epochs", 4, "--patience", 4, "--second-stage", second_stage)
    folder = tmp_path / "run"
    assert in_process(*flags, "--quiet", "--out", folder).returncode == 130
    found = lpfamily.training.load(folder)
    errors = [line["validation_error"] for line in metrics(folder)]
    assert found.epoch == (1 + np.argmin(errors) if second_stage == "continue" else 0)
    fresh = initial_state(found.network, 0, "float32")["layers.0.weight"]
    assert np.array_equal(found.parameters["layers.0.weight"], fresh) == (second_stage == "scratch")


# Errors


def changed(recipe):
    """Return an edit that rewrites a run as if it had begun with another recipe."""
    return lambda folder: begun_with(folder, lambda config: config["recipe"].update(recipe))


def removed(name):
    return lambda folder: (folder / name).unlink()


def cut(name):
    def edit(folder):
        (folder / name).write_bytes((folder / name).read_bytes()[:-10])

    return edit


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        pytest.param(shutil.rmtree, ["run: holds no config.json", "give the folder"], id="no folder"),
        pytest.param(removed("config.json"), ["run: holds no config.json"], id="no config"),
        pytest.param(cut("config.json"), ["config.json", "restore"], id="cut config"),
        pytest.param(changed({"data": "svhn"}), ["config.json", "'svhn'", "restore"], id="data"),
        pytest.param(
            changed({"units": [20, 20]}), ["checkpoint.safetensors", "of another network"], id="units"
        ),
        pytest.param(changed({"pieces": [3, 2, 1]}), ["config.json", "--pieces", "restore"], id="pieces"),
        pytest.param(changed({"epochs": 1}), ["checkpoint.safetensors", "epoch 2", "restore"], id="epochs"),
        pytest.param(changed({"dtype": "float64"}), ["checkpoint.safetensors", "float64"], id="dtype"),
        pytest.param(removed("checkpoint.safetensors"), ["checkpoint.safetensors", "restore"], id="none"),
        pytest.param(cut("checkpoint.safetensors"), ["checkpoint.safetensors", "restore"], id="cut"),
        pytest.param(cut("result.json"), ["result.json", "restore"], id="result"),
    ],
)
def test_a_damaged_run_is_one_line_that_names_the_file(finished, tmp_path, damage, parts):
    folder = shutil.copytree(finished, tmp_path / "run")
    damage(folder)
    with pytest.raises(BadInput) as raised:
        lpfamily.training.load(folder)
    message = str(raised.value)
    assert len(message.splitlines()) == 1
    assert message.startswith(str(folder))
    for part in parts:
        assert part in message


def test_the_error_for_an_unknown_backend_lists_the_backends(finished):
    with pytest.raises(BadInput, match=r"^unknown backend 'tensorflow'; installed: ") as raised:
        lpfamily.training.load(finished).model("tensorflow")
    assert all(name in str(raised.value) for name in ("jax", "numpy", "torch"))


@pytest.mark.parametrize(
    ("missing", "remedy"),
    [
        ("jax", 'pip install "lpfamily[jax]"'),
        ("torch", 'pip install "lpfamily[torch]"'),
    ],
)
def test_a_missing_library_is_named_with_its_install_command(finished, tmp_path, missing, remedy):
    code = """
import sys
sys.modules[sys.argv[2]] = None
import lpfamily.training
from lpfamily.training.errors import BadInput
try:
    lpfamily.training.load(sys.argv[1]).model(sys.argv[2])
except BadInput as problem:
    print(problem)
"""
    result = python(code, finished, missing, cwd=tmp_path)
    assert (result.returncode, result.stderr, len(result.stdout.splitlines())) == (0, "", 1), result
    assert missing in result.stdout
    assert remedy in result.stdout


def test_no_library_is_needed_to_read_a_checkpoint(finished, tmp_path):
    code = """
import sys
sys.modules["safetensors"] = None
import lpfamily.training
print(*lpfamily.training.load(sys.argv[1]).parameters)
"""
    result = python(code, finished, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.split() == list(lpfamily.training.load(finished).parameters)


def test_importing_training_loads_no_heavy_package(tmp_path):
    result = python("import sys; from lpfamily.training import load; print(*sys.modules)", cwd=tmp_path)
    loaded = set(result.stdout.split())
    assert "lpfamily.training.runs.trained" in loaded
    assert not loaded & {"torch", "jax", "sklearn", "matplotlib", "tqdm", "safetensors", "lpfamily_numpy"}


def test_a_backend_of_another_distribution_returns_its_model(finished, tmp_path):
    (tmp_path / "strange_backend.py").write_text("from lpfamily_numpy import backend\n")
    info = tmp_path / "strange-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: strange\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lpfamily.backends]\nstrange = strange_backend:backend\n")
    path = str(tmp_path) + (f":{before}" if (before := ENVIRONMENT.get("PYTHONPATH")) else "")
    code = """
import sys, numpy, lpfamily.training
print(lpfamily.training.load(sys.argv[1]).model("strange")(numpy.ones((2, 64))).shape)
"""
    result = python(code, Path(finished), cwd=tmp_path, PYTHONPATH=path)
    assert (result.stdout, result.stderr) == ("(2, 10)\n", "")
