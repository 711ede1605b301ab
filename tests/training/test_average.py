"""`--ema`: validation, early stopping and the tested network use the average of the parameters."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file

import lpfamily.training
from helpers.backends_under_test import NAMES
from helpers.commandline import assert_refused, draw_nothing, in_process, unchanged
from lpfamily.training import backends, data, fit
from lpfamily.training.errors import BadInput
from lpfamily.training.networks import at_rest, evaluated, initial_state, parameter_shapes
from lpfamily.training.recipes import continued_rates, default, network_of, rates
from lpfamily.training.runs import CHECKPOINT, Run

DIGITS = data.load("digits").first(400, 100)
RECIPE = replace(
    default("sigmoid-mlp", DIGITS),
    units=(10,), validation=100, batch_size=20, epochs=40, patience=2, second_epochs=2, lr=2.0, ema=0.99,
    second_stage="continue",
)  # fmt: skip
NETWORK = network_of(RECIPE, DIGITS.shape, 10)


def named(state, prefix):
    return {name: state[prefix + name] for name in parameter_shapes(NETWORK)}


def error(parameters, split):
    logits = backends.find("numpy").model(NETWORK, parameters)(split.x)
    return np.mean(logits.argmax(axis=1) != split.labels)


def assert_equal(found, expected):
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("second_stage", ["continue", "scratch", "none"])
def test_the_average_is_validated_tested_and_left_by_a_run(tmp_path, backend, second_stage):
    run, states, kept, measured = Run(tmp_path / "run"), [], [], []
    held_out = DIGITS.train.rows(slice(300, None))

    def look(line):
        state = load_file(run.folder / CHECKPOINT)
        states.append(state)
        measured.append(error(named(state, "average."), held_out))
        if line["stage"] == 1:
            assert line["validation_error"] == pytest.approx(measured[-1])
        else:
            kept.append(state)
        found = lpfamily.training.load(run.folder)
        assert_equal(found.parameters, named(state, "average." if line["stage"] == 2 else "best."))

    recipe = replace(RECIPE, second_stage=second_stage)
    ended = fit(recipe, DIGITS, backend, out=run.folder, callbacks=[look])
    first = len(states) - len(kept)
    assert 2 < first < 40, "patience has ended stage one"
    best = np.argmin(measured[:first])
    assert first == best + 3
    assert_equal(named(states[first - 1], "best."), named(states[best], "average."))
    raw = [error(named(state, ""), held_out) for state in states[:first]]
    assert raw != measured[:first], "the parameters themselves would have been judged otherwise"
    last = named(states[-1], "average." if kept else "best.")
    assert_equal(ended.parameters, last)
    assert ended.result["test_error"]["clean"] == pytest.approx(error(last, DIGITS.test))
    gradients = [each.trainer("numpy").input_gradients(DIGITS.test.x, DIGITS.test.labels)
                 for each in (ended, replace(ended, recipe=replace(recipe, ema=0.0)))]  # fmt: skip
    np.testing.assert_array_equal(*gradients)


@pytest.mark.parametrize("second_stage", ["continue", "scratch"])
def test_the_second_stage_begins_at_rest_with_an_average_of_its_weights(tmp_path, monkeypatch, second_stage):
    saved, save = [], Run.save

    def saving(run, arrays, position, *rest):
        saved.append((arrays, position))
        return save(run, arrays, position, *rest)

    monkeypatch.setattr(Run, "save", saving)
    fit(replace(RECIPE, second_stage=second_stage), DIGITS, "numpy", out=tmp_path / "run")
    fresh = initial_state(NETWORK, RECIPE.seed, RECIPE.dtype, averaged=True)
    assert_equal(saved[0][0], fresh)
    place = next(place for place, (_, position) in enumerate(saved) if position["first"] is not None)
    begun, best = saved[place][0], named(saved[place - 1][0], "best.")
    assert begun.keys() == fresh.keys()
    assert_equal(begun, fresh if second_stage == "scratch" else at_rest(best, averaged=True))
    assert_equal(evaluated(NETWORK, begun), named(begun, ""))


def test_weights_of_another_run_are_its_average_and_so_is_the_first_average(tmp_path):
    source = fit(replace(RECIPE, second_stage="none"), DIGITS, "numpy", out=tmp_path / "source")

    class Stop(Exception):
        pass

    def stop(line):
        raise Stop

    recipe = replace(RECIPE, second_stage="none", lr=1e-30, lr_floor=0.0)
    with pytest.raises(Stop):
        fit(recipe, DIGITS, "numpy", out=tmp_path / "run", init_from=tmp_path / "source", callbacks=[stop])
    first = load_file(tmp_path / "run" / CHECKPOINT)
    assert_equal(named(first, ""), source.parameters)
    assert_equal(named(first, "average."), source.parameters)


@pytest.mark.parametrize("ema", [0.0, 0.15, 0.99])
def test_the_decay_of_the_average_rises_from_a_tenth_to_ema_in_each_stage(ema):
    recipe = replace(RECIPE, ema=ema)
    expected = [1 - min(ema, (1 + t) / (10 + t)) for t in range(3000)]
    stage = [rates(recipe, epoch, 300).mixing for epoch in range(10)]
    np.testing.assert_allclose(np.concatenate(stage), expected, rtol=1e-12)
    for second_lr in "decay", "constant":
        again = replace(recipe, second_lr=second_lr)
        stage = [continued_rates(again, 4, 200, epoch, 300).mixing for epoch in range(10)]
        np.testing.assert_allclose(np.concatenate(stage), expected, rtol=1e-12)


def test_without_ema_a_checkpoint_has_no_average(tmp_path):
    fit(replace(RECIPE, epochs=1, ema=0.0, second_stage="none"), DIGITS, "numpy", out=tmp_path / "run")
    names = load_file(tmp_path / "run" / CHECKPOINT).keys()
    assert {name.partition("layers")[0] for name in names} == {"", "velocity.", "best."}


@pytest.mark.parametrize("value", ["1", "-0.1", "nan", "none"])
def test_an_average_that_never_moves_is_refused(tmp_path, value):
    result = unchanged(tmp_path, lambda: in_process("--ema", value, "--out", tmp_path / "run"))
    assert_refused(result, "--ema", "must be a number from 0, and below 1", value)


def test_ema_is_refused_for_a_backend_that_does_not_average(tmp_path, monkeypatch):
    draw_nothing(monkeypatch)
    known, numpy = backends.find, backends.find("numpy")
    monkeypatch.setattr(backends, "find", lambda name: replace(numpy, options=frozenset()))
    flags = ("--model", "softmax", "--epochs", 1, "--examples", 300, "--validation", 100, "--quiet")
    run = tmp_path / "run"
    with pytest.raises(BadInput, match="does not know --ema"):
        fit(RECIPE, DIGITS, "numpy", out=run)
    assert in_process(*flags, "--out", tmp_path / "without").returncode == 0
    monkeypatch.setattr(backends, "find", known)
    assert in_process(*flags, "--ema", 0.9, "--out", run).returncode == 0
    assert json.loads((run / "config.json").read_text())["recipe"]["ema"] == 0.9
    (run / "result.json").unlink()
    monkeypatch.setattr(backends, "find", lambda name: replace(numpy, options=frozenset()))
    assert_refused(in_process("--resume", run), "does not know --ema")
    trained = lpfamily.training.load(run)  # which is at rest
    assert trained.trainer("numpy").logits(trained.inputs(DIGITS.test.x)).shape == (100, 10)
