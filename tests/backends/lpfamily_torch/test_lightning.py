"""The Lightning callback: training_step sees x + eps, and nothing else changes."""

import importlib
import math
import sys

import pytest

from helpers.libraries_under_test import NAMES

if "torch" not in NAMES:
    pytest.skip("torch is not under test", allow_module_level=True)

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from helpers.torch_models import batch, losses_of, network
from lpfamily_torch import perturb
from lpfamily_torch.lightning import PerturbInputs

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore"),  # Lightning advises on workers, loggers and its like
]


class Model(LightningModule):
    """Keeps its weights, and what it has seen."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.layers = network(nn.BatchNorm1d(5), nn.Dropout(0.5), dtype=dtype)
        self.seen = []

    def forward(self, x):
        return self.layers(x)

    def training_step(self, batch, index):
        x, y = batch.values() if isinstance(batch, dict) else batch
        self.seen.append(x)
        return losses_of(self(x), y).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit(model, data, *callbacks, **options):
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(model, DataLoader(data, batch_size=4, collate_fn=getattr(data, "collate_fn", None)))


def test_torch_a_step_sees_perturbed_inputs():
    model, (x, y) = Model(), batch(7, dtype=torch.float32)
    kept = x.clone()
    expected = [
        rows + perturb(model.layers, losses_of, rows, labels, p=1.5, sigma=0.3, bounds=(0, 1))
        for rows, labels in zip(x.split(4), y.split(4), strict=True)
    ]
    fit(model, TensorDataset(x, y), PerturbInputs(losses_of, p=1.5, sigma=0.3, bounds=(0, 1)))
    assert len(model.seen) == 4
    for seen, wanted in zip(model.seen, expected * 2, strict=True):
        assert torch.allclose(seen, wanted, atol=1e-6)
    assert torch.equal(x, kept)


def test_torch_the_radius_may_follow_a_schedule():
    model, (x, y) = Model(), batch(4, dtype=torch.float32)
    fit(model, TensorDataset(x, y), PerturbInputs(losses_of, p=2, sigma=lambda t: 0.1 * t.current_epoch))
    norms = [(seen - x).norm(dim=1) for seen in model.seen]
    assert torch.allclose(norms[0], torch.zeros(4))
    assert torch.allclose(norms[1], torch.full((4,), 0.1), rtol=1e-5)


class Records(Dataset):
    """Examples as dicts."""

    collate_fn = None

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return {"image": self.x[index], "label": self.y[index]}


def test_torch_batches_may_be_dicts_and_precision_half():
    model, (x, y) = Model(), batch(4, dtype=torch.float32)
    callback = PerturbInputs(losses_of, p=math.inf, sigma=0.25, inputs="image", labels="label")
    types = []
    model.layers[0].register_forward_hook(lambda _, __, output: types.append(output.dtype))
    fit(model, Records(x, y), callback, precision="bf16-mixed")
    assert set(types) == {torch.bfloat16}
    assert torch.allclose((model.seen[0] - x).abs(), torch.tensor(0.25), atol=1e-6)


def test_torch_a_batch_that_cannot_be_changed_is_an_error():
    with pytest.raises(TypeError, match="perturb in training_step"):
        PerturbInputs(losses_of, sigma=0.1, leaf="image")
    data = Records(*batch(4, dtype=torch.float32))
    data.collate_fn = lambda records: tuple(torch.stack([r[k] for r in records]) for k in ("image", "label"))
    with pytest.raises(TypeError, match=r"a batch must be a list or a dict.*got tuple: return one from"):
        fit(Model(), data, PerturbInputs(losses_of, sigma=0.1))


def test_without_lightning_it_says_how_to_install_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "lpfamily_torch.lightning")
    for name in "lightning", "lightning.pytorch":
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=r"^lightning is not installed; pip install lightning$"):
        importlib.import_module("lpfamily_torch.lightning")
