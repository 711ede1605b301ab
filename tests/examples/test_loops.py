"""Loops of Hugging Face, Keras, Accelerate and torchrun: the networks of the examples withstand more."""

import contextlib
import importlib
import re
import socket
import subprocess
import sys

import numpy as np
import pytest

from helpers import ROOT
from helpers.commandline import ENVIRONMENT
from helpers.libraries_under_test import KERAS, NAMES

if KERAS is None:
    pytest.skip("neither torch nor JAX is under test", allow_module_level=True)

of_torch = [pytest.mark.torch, pytest.mark.skipif("torch" not in NAMES, reason="torch is not under test")]
pytestmark = pytest.mark.filterwarnings("ignore")  # their advice

EXAMPLES = ROOT / "examples"


@pytest.fixture
def example(monkeypatch):
    """Import an example."""
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])
    return importlib.import_module


def withstand_more(printed, by):
    """Check lines of errors: first plain training, then trainings that err less on perturbed inputs."""
    lines = printed.splitlines()
    rows = [[float(figure) for figure in re.findall(r"([\d.]+)%", line)] for line in lines]
    (clean, moved), *others = rows
    assert others, printed
    assert clean < 25, printed
    assert all(other[0] < 25 and other[1] < moved - by for other in others), printed


@pytest.mark.parametrize("backend", [KERAS])
def test_keras(backend, example, capsys):
    keras_digits = example("keras_digits")
    assert keras_digits.keras.backend.backend() == backend
    keras_digits.main(["--epochs", "4"])
    withstand_more(capsys.readouterr().out, by=10)


@pytest.mark.skipif(KERAS != "torch", reason="it is another backend's")
@pytest.mark.parametrize("backend", ["torch"])
def test_keras_finds_its_seeds_and_statistics_as_they_were(backend, example):
    digits = example("keras_digits")
    layers = digits.keras.layers
    model = digits.keras.Sequential(
        [digits.keras.Input((6,)), layers.BatchNormalization(), layers.Dropout(0.5), layers.Dense(3)]
    )
    x, y = digits.torch.rand(5, 6), digits.torch.tensor([0, 1, 2, 0, 1])

    def state():
        return [variable.numpy().copy() for variable in model.variables]

    def training(x):
        return model(x, training=True)

    before = state()
    digits.perturb(training, digits.losses, x, y, sigma=0.5)
    for variable, kept in zip(state(), before, strict=True):
        np.testing.assert_array_equal(variable, kept)
    training(x)
    assert not all(map(np.array_equal, state(), before))  # as an ordinary call moves them


@pytest.mark.parametrize("backend", [pytest.param("torch", marks=of_torch)])
def test_hugging_face(backend, example, capsys):
    example("huggingface_text").main([])
    withstand_more(capsys.readouterr().out, by=10)


@pytest.mark.parametrize("backend", [pytest.param("torch", marks=of_torch)])
def test_accumulated_microbatches_give_the_step_of_the_batch_in_hugging_faces_trainer(
    backend, example, tmp_path
):
    text = example("huggingface_text")
    text.set_seed(0)
    batch = text.sentences(12)
    rows = [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]
    config = text.BertConfig(
        vocab_size=text.WORDS, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        max_position_embeddings=text.LENGTH, num_labels=text.TOPICS, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip

    def trained(parts):
        text.set_seed(0)
        model = text.BertForSequenceClassification(config)
        settings = text.TrainingArguments(
            tmp_path, max_steps=1, per_device_train_batch_size=12 // parts, gradient_accumulation_steps=parts,
            optim="sgd", learning_rate=1.0, max_grad_norm=0.0, use_cpu=True, save_strategy="no",
            logging_strategy="no", report_to="none", disable_tqdm=True,
        )  # fmt: skip
        # a radius of 0, as each part has a median of its own
        text.RobustTrainer(model, settings, train_dataset=rows, p=2, sigma=0.0).train()
        return text.torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    text.set_seed(0)
    before = text.BertForSequenceClassification(config)
    begin = text.torch.cat([parameter.detach().flatten() for parameter in before.parameters()])
    at_once, in_parts = trained(1) - begin, trained(3) - begin
    assert at_once.norm() > 0.01
    assert (at_once - in_parts).norm() < 1e-4 * at_once.norm()


SCRIPT = """
import contextlib, multiprocessing, os, sys

examples, folder, *ports = sys.argv[1:]
sys.path.insert(0, examples)
import accelerate_digits, ddp_digits, torch._dynamo  # once for both processes


def process(rank):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    for loop, port in zip((ddp_digits, accelerate_digits), ports, strict=True):
        os.environ["MASTER_PORT"] = port
        with open(f"{folder}/{loop.__name__}-{rank}", "w") as file, contextlib.redirect_stdout(file):
            loop.main(["--epochs", "4"])


processes = [multiprocessing.get_context("fork").Process(target=process, args=(rank,)) for rank in (0, 1)]
for each in processes:
    each.start()
for each in processes:
    each.join()
sys.exit(any(each.exitcode for each in processes))
"""


@pytest.mark.parametrize("backend", [pytest.param("torch", marks=of_torch)])
def test_two_processes(backend, tmp_path):
    with contextlib.ExitStack() as free:
        servers = [free.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        ports = [str(server.getsockname()[1]) for server in servers]
    command = [sys.executable, "-c", SCRIPT, EXAMPLES, tmp_path, *ports]
    result = subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    for name in "ddp_digits", "accelerate_digits":
        withstand_more((tmp_path / f"{name}-0").read_text(), by=5)
        assert (tmp_path / f"{name}-1").read_text() == ""
