"""This project's own backends, under the laws for any."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from backends_under_test import NAMES

from lpfamily.training import backends
from lpfamily.training.testing import NETWORKS, BackendTests, _state, _task


@pytest.mark.parametrize("name", NAMES)
def test_what_does_not_fit_into_memory_is_a_memory_error(name):
    """Here some views of one example, copied: more than any address reaches."""
    task, state = (made(NETWORKS["sigmoid"]) for made in (_task, _state))
    trainer = backends.find(name).trainer(task, state)
    with pytest.raises(MemoryError):
        trainer.logits(np.broadcast_to(task.x[:1], (10**13, task.network.inputs)))


if "numpy" in NAMES:

    class TestNumpy(BackendTests):
        backend = "numpy"


if "torch" in NAMES:
    import torch

    class TestTorch(BackendTests):
        backend = "torch"

        def called(self, model, x):
            return model(torch.tensor(x)).detach().numpy()

        @pytest.mark.parametrize("before", [False, True])
        @pytest.mark.parametrize("tf32", [False, True])
        def test_its_policy_on_tf32_is_that_of_the_task_and_leaves_the_processes(
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
                self.find().trainer(replace(task, tf32=policy), state) for policy in (before, tf32)
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

    class TestJax(BackendTests):
        backend = "jax"
