"""The backends of this project pass the tests for any backend."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from helpers.backends_under_test import DEVICE, NAMES
from lpfamily.training import backends
from lpfamily.training.backends import Machine, Objective, Optimiser, Rates
from lpfamily.training.draws import Draws
from lpfamily.training.testing import NETWORKS, BackendTests, _state, _task


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_beyond_memory_is_a_memory_error(name):
    """Here some views of one example, copied: more than any address reaches."""
    task, state = (made(NETWORKS["sigmoid"]) for made in (_task, _state))
    trainer = backends.find(name).trainer(task, state)
    with pytest.raises(MemoryError):
        trainer.logits(np.broadcast_to(task.x[:1], (10**13, task.network.inputs)))


@pytest.mark.parametrize("name", NAMES)
def test_trainers_report_progress_within_an_epoch(name):
    task, state = (made(NETWORKS["sigmoid"]) for made in (_task, _state))
    assert hasattr(backends.find(name).trainer(task, state), "tick")


if "numpy" in NAMES:

    @pytest.mark.numpy
    class TestNumpy(BackendTests):
        backend = "numpy"


if "torch" in NAMES:
    import torch

    @pytest.mark.torch
    class TestTorch(BackendTests):
        backend = "torch"
        device = DEVICE

        def called(self, model, x):
            return model(torch.tensor(x)).detach().numpy()

        @pytest.mark.parametrize("kind", [Objective(), Objective("perturb", 2.0, random_start=True)])
        def test_steps_replayed_from_a_graph_are_the_same(self, monkeypatch, kind):
            """What a CUDA graph replays is here called again, on the tensors that it was recorded with."""
            from lpfamily_torch import compiling
            from lpfamily_torch import trainer as module

            def record(recorded, owner, tensors):
                kept, state = tensors.map(torch.clone), owner._state

                def replay():
                    now, owner._state = owner._state, state
                    recorded._method(owner, kept)
                    owner._state = now

                return kept, SimpleNamespace(replay=replay)

            monkeypatch.setattr(compiling.Recorded, "_record", record)
            monkeypatch.setattr(module, "RECORDED", 3)
            recording = type("Recording", (module.TorchTrainer,), {"_records": True})
            average = Optimiser(ema=0.9)
            task = replace(_task(NETWORKS["maxout"]), objective=kind, batch_size=2, optimiser=average)
            order, rates = (
                np.arange(40) % 7,
                Rates(*(np.linspace(size / 2, size, 20) for size in (0.05, 0.5, 0.5, 0.9))),
            )
            state = _state(task.network, averaged=True)
            one, many = (made(task, state) for made in (self.find().trainer, recording))
            for epoch in range(3):
                if epoch == 2:
                    many.load(many.state())  # what was recorded is of other tensors
                expected, found = (each.epoch(order[:39], rates, Draws(5, epoch)) for each in (one, many))
                assert found == pytest.approx(expected, rel=1e-9)
            for name, array in one.state().items():
                np.testing.assert_allclose(many.state()[name], array, rtol=1e-9, atol=1e-12)

        @pytest.mark.parametrize("before", [False, True])
        @pytest.mark.parametrize("tf32", [False, True])
        def test_tf32_follows_the_task_and_the_policy_of_the_process_is_restored(
            self, monkeypatch, tf32, before
        ):
            from lpfamily_torch import trainer as module

            policies, seen, original = (torch.backends.cuda.matmul, torch.backends.cudnn), [], module.logits

            def watched(*arguments):
                seen.extend(policy.allow_tf32 for policy in policies)
                return original(*arguments)

            monkeypatch.setattr(module, "logits", watched)
            task, state = (made(NETWORKS["convolutions"], "float32") for made in (_task, _state))
            outer, inner = (
                self.find().trainer(replace(task, machine=Machine(tf32=policy)), state)
                for policy in (before, tf32)
            )
            with outer._precision():
                inner.logits(task.x)
                assert seen == [tf32, tf32]
                assert [policy.allow_tf32 for policy in policies] == [before, before]

        @pytest.mark.skipif(not shutil.which("g++"), reason="there is no C++ compiler")
        def test_it_compiles_where_there_is_a_compiler(self):
            """Else the law of compiled steps would be skipped without a word."""
            assert self.find().compile_problem("cpu") == ""


if "jax" in NAMES:

    @pytest.mark.jax
    class TestJax(BackendTests):
        backend = "jax"
        device = DEVICE
