"""Early stopping and the second stage, with a backend whose errors and losses are a script."""

import json
import math
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from lpfamily.training import runs
from lpfamily.training.backends import Machine
from lpfamily.training.data import Dataset, Split
from lpfamily.training.errors import BadInput
from lpfamily.training.networks import Dense, initial_state
from lpfamily.training.progress import Progress
from lpfamily.training.protocol import epochs, stages
from lpfamily.training.recipes import continued_rates, default, rates
from lpfamily.training.runs import positions
from lpfamily.training.tasks import Objective, Task

EXAMPLES, HELD_OUT, BATCH = 12, 4, 3


@dataclass
class Script:
    """A backend whose weights count epochs, with errors and losses that depend on the count alone.

    `errors[k]` of the four held-out examples are wrong after k epochs, and every loss is `losses[k]`.
    """

    errors: list
    losses: list = field(default_factory=lambda: [1.0] * 99)
    layers: frozenset = frozenset({Dense})
    tasks: list = field(default_factory=list)
    states: list = field(default_factory=list)
    rates: list = field(default_factory=list)

    def trainer(self, task, state):
        self.tasks.append(task)
        return Scripted(self, task, state)


class Scripted:
    def __init__(self, script, task, state):
        self.script, self.task = script, task
        self.load(state)

    def load(self, state):
        self.arrays = {name: array.copy() for name, array in state.items()}
        self.script.states.append(self.arrays)

    def state(self):
        return {name: array.copy() for name, array in self.arrays.items()}

    @property
    def count(self):
        return round(float(self.arrays["layers.0.bias"][0]))

    def epoch(self, order, rates, draws):
        assert sorted(order) == list(range(len(self.task.x)))
        self.script.rates.append(rates)
        for name in self.arrays:  # velocities too
            self.arrays[name] = self.arrays[name] + 1
        return {"loss": 1.0, "error": 0.5}

    def logits(self, x):
        wrong = np.arange(len(x)) < self.script.errors[min(self.count, len(self.script.errors) - 1)]
        return np.stack([np.ones(len(x)), 2.0 * wrong], axis=1)

    def losses(self, x, labels):
        return np.full(len(x), self.script.losses[self.count])

    def input_gradients(self, x, labels):
        return np.ones_like(x)


def dataset():
    def split(count):
        return Split(np.zeros((count, 2), np.float32), np.zeros(count, np.int64))

    return Dataset("digits", split(EXAMPLES), split(HELD_OUT), 2, (1, 1, 2))


RECIPE = replace(
    default("softmax", "digits", "plain", 2.0, 2),
    validation=HELD_OUT, epochs=20, batch_size=BATCH, patience=3, second_stage="continue", second_epochs=6,
    momentum_epochs=10,
)  # fmt: skip


def trained(folder, script, recipe=RECIPE, resume=False):
    run = runs.Run(folder) if resume else runs.create(folder, {})
    result = stages.train(run, recipe, dataset(), script, Machine(), progress=Progress(quiet=True))
    return run, result


def test_stage_one_ends_without_a_new_least_error_and_stage_two_starts_from_the_best(tmp_path):
    # least at epoch 2, met again at 4, which is not new
    script = Script([4, 3, 1, 2, 1, 3, 0], losses=[1, 0.9, 0.5, 0.8, 0.6, 0.4, 0.3, *[0.1] * 99])
    run, result = trained(tmp_path / "run", script)
    lines = run.metrics()
    assert [line["stage"] for line in lines] == [1] * 5 + [2] * 3
    assert [line.get("validation_error") for line in lines] == [0.75, 0.25, 0.5, 0.25, 0.75, *[None] * 3]
    first, second = script.tasks
    assert len(first.x) == EXAMPLES - HELD_OUT
    assert len(second.x) == EXAMPLES
    assert script.states[-1]["layers.0.bias"] == pytest.approx(2 + 3)
    assert script.states[-1]["velocity.layers.0.bias"] == pytest.approx(0 + 3)
    assert [line["held_out_loss"] for line in lines[5:]] == [0.8, 0.6, 0.4]
    assert result["epochs"] == 8
    assert "begun with the parameters of epoch 2" in result["parameters"]
    assert "reached the 0.5" in result["parameters"]


@pytest.mark.parametrize(
    ("start", "judged", "until", "bests"),
    [
        ((0, 0, None), True, 99, [1, 2, 2, 2, 2]),
        ((0, 0, None), False, 99, [0] * 7),
        ((2, 2, 2.5), True, 99, [2, 2, 2]),
        ((0, 0, None), True, 2, [1, 2]),
        ((7, 0, None), True, 99, []),
    ],
)
def test_the_loop_ends_by_patience_by_its_caller_or_by_the_last_epoch(start, judged, until, bests):
    measured = iter([5.0, 3.0, 4.0, 3.0, 3.5, 2.0, 9.0])
    network, found = stages.check(RECIPE, dataset()), []
    task = Task(network, Objective(), np.zeros((EXAMPLES, 2), np.float32), np.zeros(EXAMPLES, int), BATCH)
    trained = epochs.train(
        Scripted(Script([]), task, initial_state(network, 0, "float32")),
        replace(RECIPE, patience=3),
        EXAMPLES,
        lambda epoch, batches: rates(RECIPE, epoch, batches),
        lambda scheduled: {"quantity": next(measured)},
        last=7,
        start=epochs.Standing(*start),
        judged="quantity" if judged else "",
        until=lambda: len(found) == until,
        remedy=str,
    )
    for epoch in trained:
        found.append(epoch)  # noqa: PERF402 (`until` looks at it meanwhile)
    assert [epoch.standing.best for epoch in found] == bests
    first = start[0] + 1
    assert [epoch.standing.epoch for epoch in found] == list(range(first, first + len(found)))
    assert all(epoch.metrics["loss"] == 1 and epoch.metrics["lr"] > 0 for epoch in found)


@pytest.mark.parametrize("second_lr", ["decay", "constant"])
def test_rates_of_the_second_stage(tmp_path, second_lr):
    recipe = replace(RECIPE, second_lr=second_lr, lr_factor=1.1)
    script = Script([4, 3, 1, 2, 2, 3], losses=[1, 0.9, 0.5, *[0.6] * 99])
    _, result = trained(tmp_path / "run", script, recipe)
    assert len(script.rates) == 5 + 6
    assert "did not reach the 0.5" in result["parameters"]
    before, steps = -(-(EXAMPLES - HELD_OUT) // BATCH), EXAMPLES // BATCH
    for number, found in enumerate(script.rates):
        if number < 5:
            expected = rates(recipe, number, before)
        else:
            expected = continued_rates(recipe, 2, before, number - 5, steps)
        np.testing.assert_array_equal(found.lr, expected.lr)
        np.testing.assert_array_equal(found.momentum, expected.momentum)


def test_from_scratch_the_schedule_and_the_weights_start_again(tmp_path):
    recipe = replace(RECIPE, second_stage="scratch", seed=7)
    script = Script([4, 3, 1, 2, 2, 3], losses=[1, 0.9, 0.5, *[0.6] * 99])
    _, result = trained(tmp_path / "run", script, recipe)
    steps = EXAMPLES // BATCH
    np.testing.assert_array_equal(script.rates[5].momentum, rates(recipe, 0, steps).momentum)
    np.testing.assert_array_equal(script.rates[5].lr, rates(recipe, 0, steps).lr)
    network = script.tasks[1].network
    fresh = initial_state(network, 7, "float32")
    np.testing.assert_allclose(script.states[-1]["layers.0.weight"], fresh["layers.0.weight"] + 2, rtol=1e-6)
    assert "reached the 0.5" in result["parameters"]
    assert "new weights" in result["parameters"]


def test_without_a_second_stage_the_best_parameters_are_tested(tmp_path):
    script = Script([4, 3, 1, 2, 2, 3])
    run, result = trained(tmp_path / "run", script, replace(RECIPE, second_stage="none"))
    assert result["test_error"]["clean"] == 0.25
    assert result["parameters"] == "of epoch 2 of 5, which had the least validation error"
    assert len(run.metrics()) == 5


def test_without_patience_the_last_parameters_are_tested(tmp_path):
    script = Script([4, 3, 1, 2, 2, 3])
    recipe = replace(RECIPE, second_stage="none", patience=0, epochs=7)
    _, result = trained(tmp_path / "run", script, recipe)
    assert result["test_error"]["clean"] == 0.75
    assert result["parameters"] == "after the last epoch, 7"


class Stopped(Exception):
    pass


@pytest.mark.parametrize("second_stage", ["continue", "scratch", "none"])
def test_a_run_stopped_at_any_write_resumes_to_the_same_result(tmp_path, monkeypatch, second_stage):
    recipe = replace(RECIPE, second_stage=second_stage)
    errors, losses = [4, 3, 1, 2, 2, 3], [1, 0.9, 0.5, *[0.6] * 7, 0.4, *[0.1] * 99]
    expected, result = trained(tmp_path / "whole", Script(errors, losses), recipe)
    writes = 2 * len(expected.metrics()) + 1 + (second_stage != "none")
    for stop in range(writes):
        folder, left = tmp_path / f"stopped at {stop}", [stop]

        def stopping(method, left=left):
            def wrapper(*args):
                method(*args)
                left[0] -= 1
                if left[0] < 0:
                    raise Stopped

            return wrapper

        with monkeypatch.context() as patch:
            patch.setattr(runs.Run, "save", stopping(runs.Run.save))
            patch.setattr(runs.Run, "log", stopping(runs.Run.log))
            with pytest.raises(Stopped):
                trained(folder, Script(errors, losses), recipe)
        found, again = trained(folder, Script(errors, losses), recipe, resume=True)
        for run in expected, found:
            lines = [json.loads(line) for line in (run.folder / runs.METRICS).read_text().splitlines()]
            assert [line["epoch"] for line in lines] == list(range(1, len(lines) + 1))
        assert (found.folder / runs.CHECKPOINT).read_bytes() == (
            expected.folder / runs.CHECKPOINT
        ).read_bytes()
        assert {**again, "seconds_per_epoch": 0} == {**result, "seconds_per_epoch": 0}
    assert writes > 10


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("after", [2, 3])
def test_a_deciding_loss_that_is_not_finite_stops_the_run(tmp_path, bad, after):
    losses = [1, 0.9, 0.5, 0.8, *[0.1] * 99]
    losses[after] = bad
    with pytest.raises(epochs.NotFinite, match=f"is {bad}; .* keeps the checkpoint after epoch 5"):
        trained(tmp_path / "run", Script([4, 3, 1, 2, 2, 3], losses=losses))


ONE_STAGE = replace(RECIPE, patience=0, second_stage="none")
BEST = {"epoch": 2, "best": 1, "best_error": 0.5}


IMPOSSIBLE = {
        "a second stage that the recipe does not have": (
            replace(RECIPE, second_stage="none"), BEST | {"first": 2, "target": 0.1}
        ),
        "a best epoch without patience": (ONE_STAGE, BEST),
        "a second stage from epoch 0": (RECIPE, {"epoch": 2, "first": 2, "target": 0.1}),
        "a best epoch without its error": (RECIPE, {"epoch": 2, "best": 1}),
        "epochs without a best one": (RECIPE, {"epoch": 2}),
        "epochs of stage two without their loss": (RECIPE, BEST | {"epoch": 3, "first": 2, "target": 0.1}),
        "a held-out loss in stage one": (RECIPE, BEST | {"held_out_loss": 0.1}),
        "an error that is not a number": (RECIPE, BEST | {"best_error": math.nan}),
        "a target that is not a number": (RECIPE, BEST | {"first": 2, "target": math.nan}),
}  # fmt: skip


@pytest.mark.parametrize(("recipe", "values"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_an_impossible_position_is_refused(recipe, values):
    network = stages.check(recipe, dataset())
    with pytest.raises(ValueError, match=r"epoch|second stage"):
        positions.expected_arrays(asdict(positions.Position()) | values, recipe, network)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"validation": 0}, "--validation 0 leaves none"),
        ({"patience": 0}, "give --patience 1 or more"),
        ({"validation": EXAMPLES}, "hold out fewer"),
    ],
)
def test_options_that_exclude_each_other_are_named(changes, part):
    with pytest.raises(BadInput, match=part):
        stages.check(replace(RECIPE, **changes), dataset())


class Overfit(Scripted):
    """After three epochs the step of training changes nothing, half of it everything."""

    def logits(self, x):
        length = np.linalg.norm(x, axis=1)
        wrong = (self.count in (3, 4)) & (length > 0.25) & (length < 0.75)
        return np.stack([np.ones(len(x)), 2.0 * wrong], axis=1)


@dataclass
class OverfitScript(Script):
    def trainer(self, task, state):
        return Overfit(self, task, state)


PERTURBED = replace(RECIPE, objective="perturb", sigma=1.0, epochs=5, patience=0, second_stage="none")


@pytest.mark.parametrize(("every", "seen"), [(1, {1: 0, 2: 0, 3: 1, 4: 1, 5: 0}), (2, {2: 0, 4: 1})])
def test_the_checkpoint_of_the_last_look_before_catastrophic_overfitting_is_kept(
    tmp_path, capsys, every, seen
):
    run, _ = trained(tmp_path / "run", OverfitScript([0]), replace(PERTURBED, monitor=every))
    looks = [line for line in run.metrics() if "monitor_clean" in line]
    found = {line["epoch"]: (line["monitor_one_step"], line["monitor_multi_step"]) for line in looks}
    assert found == {epoch: (0, many) for epoch, many in seen.items()}
    assert load_file(run.folder / runs.HEALTHY)["layers.0.bias"] == pytest.approx(2)
    said = capsys.readouterr().err
    assert (
        said.count("catastrophic overfitting: on 4 held-out examples the error is 0% after one step and 100%")
        == 1
    )


def test_a_run_that_continues_after_its_end_names_no_missing_checkpoint(tmp_path, capsys):
    recipe = replace(PERTURBED, monitor=2)
    run, _ = trained(tmp_path / "run", OverfitScript([0]), replace(recipe, epochs=3))
    trained(tmp_path / "run", OverfitScript([0]), recipe, resume=True)
    assert not (run.folder / runs.HEALTHY).exists()
    said = capsys.readouterr().err
    assert said.endswith("the error is 0% after one step and 100% after five\n")


@pytest.mark.parametrize("every", [1, 2, 9])
def test_a_healthy_run_keeps_no_second_checkpoint(tmp_path, capsys, every):
    run, _ = trained(tmp_path / "run", Script([0]), replace(PERTURBED, monitor=every))
    assert not (run.folder / runs.HEALTHY).exists()
    assert capsys.readouterr().err == ""


@given(
    examples=st.integers(1, 10**5),
    validation=st.integers(1, 1000),
    epochs=st.integers(1, 1000),
    changes=st.sampled_from([{}, {"steps": 7}, {"clean_weight": 0.5}, {"objective": "penalty"}]),
)
def test_looks_take_a_twentieth_of_the_passes_and_the_last_epoch_has_one_at_least(
    examples, validation, epochs, changes
):
    recipe = replace(PERTURBED, validation=validation, **changes)
    every = stages.epochs_per_check(recipe, examples, epochs)
    assert 1 <= every <= epochs
    # five steps take six gradients, and their logits
    look, epoch = (6 * (3 + 1) + 1) * min(200, validation), recipe.passes * examples
    assert look <= 0.05 * every * epoch or every == epochs
    assert every == 1 or look > 0.05 * (every - 1) * epoch
    assert stages.epochs_per_check(replace(recipe, monitor=3), examples, epochs) == 3
