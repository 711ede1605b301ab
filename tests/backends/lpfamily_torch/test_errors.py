"""Arguments of the torch functions: their names, their docstrings, and the errors for wrong ones."""

import inspect
from types import SimpleNamespace

import pytest
from numpy.testing import assert_allclose, assert_array_equal

from helpers.libraries_under_test import NAMES

if "torch" not in NAMES:
    pytest.skip("torch is not under test", allow_module_level=True)

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import lpfamily
from helpers.torch_models import OUTPUTS, Named, batch, losses_of, network
from lpfamily_torch import ascend, perturb, regularized_loss, robustness

pytestmark = pytest.mark.torch


PACKED = nn.utils.rnn.pack_sequence([torch.ones(3, 6), torch.ones(2, 6)])


ERRORS = [
    (
        {"loss": cross_entropy},
        ValueError,
        r"loss must return one value per example, of shape \(7,\); got \(\).*reduction='none'",
    ),
    ({"loss": lambda z, _: z}, ValueError, r"loss must return .* per example.*got \(7, 3\): .*further axes"),
    ({"loss": lambda *_: 1.0}, ValueError, "loss must return one value per example.*got float"),
    ({"direction": lambda z, _: z}, ValueError, r"direction must return one value per example.*got \(7, 3\)"),
    ({"loss": lambda z, _: z.detach()[:, 0]}, ValueError, "does not depend on what is to be perturbed"),
    ({"x": torch.ones(7, 6, dtype=torch.int64)}, TypeError, "x must be a floating tensor.*int64.*embedding"),
    ({"x": torch.ones(7, 6, dtype=torch.bool)}, TypeError, "x must be a floating tensor.*bool.*embedding"),
    ({"x": torch.ones(7, 6, dtype=torch.uint8)}, TypeError, r"x must be .*uint8.*x.float\(\) / 255"),
    ({"x": torch.ones(7, 6, dtype=torch.complex64)}, TypeError, "x must be .*complex64.*view_as_real"),
    ({"x": torch.tensor(1.0)}, TypeError, r"x must be .*float32 of shape \(\).*x\[None\]"),
    ({"x": PACKED}, TypeError, "x must be .*PackedSequence: pass the padded tensor .* pack inside the model"),
    ({"x": {"a": PACKED}}, TypeError, r"x\['a'\] must be .*PackedSequence: .* pack inside the model"),
    ({"x": (torch.ones(7, 6, dtype=torch.uint8), 3)}, TypeError, r"x\[0\] must be .*uint8.*x.float"),
    ({"x": [1.0]}, TypeError, "x must be a tensor, a tuple .* or a dict .*; got list"),
    ({"x": (torch.ones(7, 6), 3), "leaf": 2}, ValueError, r"leaf must be one of \[0, 1\]; got 2"),
    ({"x": (torch.ones(7, 6), 3), "leaf": 1}, TypeError, r"x\[1\] must be a floating tensor.*int"),
    ({"x": {"a": torch.ones(7, 6)}, "leaf": 0}, ValueError, r"leaf must be one of \['a'\]; got 0"),
    ({"leaf": 0}, ValueError, "x is one tensor, got leaf=0"),
    ({"x": Named(torch.ones(7, 6), 3), "leaf": "c"}, ValueError, r"one of \['a', 'b'\]; got 'c'"),
    ({"x": Named(torch.ones(7, 6), 3), "leaf": 2}, ValueError, r"one of \['a', 'b'\]; got 2"),
    ({"x": Named(torch.ones(7, 6), torch.ones(7))}, ValueError, r"which argument .*\['a', 'b'\]"),
    ({"x": {"a": torch.ones(7, 6), "b": 3}, "leaf": ("a", "b")}, TypeError, r"x\['b'\] must be .*int"),
    (
        {"x": {"a": torch.ones(7, 6)}, "leaf": ("a", "c")},
        ValueError,
        r"leaf must be one of \['a'\]; got \('a', 'c'\): several",
    ),
    ({"x": {"a": torch.ones(7, 6)}, "leaf": ()}, ValueError, r"leaf must be one of \['a'\]; got \(\)"),
    ({"x": {"a": {}}, "leaf": "a"}, ValueError, r"x\['a'\] must hold at least one tensor; got {}"),
    (
        {"x": (torch.ones(7, 6), torch.ones(6, 6)), "leaf": (0, 1), "model": lambda a, b: a[:, :3]},
        ValueError,
        r"of the same examples; .*\(6,\)",
    ),
    ({"sigma": -1.0}, ValueError, "sigma"),
    ({"p": 0.5}, ValueError, r"p must lie in \[1, inf\]"),
    (
        {"direction": "odds"},
        ValueError,
        "direction must be 'loss', 'log-odds', 'binary-log-odds', 'outputs' or a function",
    ),
    ({"direction_dropout": "no"}, ValueError, "direction_dropout must be one of none, same, independent"),
    ({"direction_dtype": "float16"}, ValueError, "direction_dtype must be one of same, bfloat16"),
    ({"batch_norm": "train"}, ValueError, "batch_norm must be one of batch, running; got 'train'"),
    ({"loss": None}, TypeError, "loss must be a function of .outputs, y.; None is for direction='outputs'"),
    (OUTPUTS | {"direction_dtype": "bfloat16"}, ValueError, "a difference of outputs, which rounds away in"),
    ({"steps": 0}, ValueError, "steps must be .*at least 1; got 0"),
    ({"batch_ndim": 0}, ValueError, "batch_ndim must be at least 1.*got 0"),
]


OF_THE_LOSS = [
    ({"beta": 1.0}, ValueError, "beta weighs a divergence between outputs; this objective has none"),
    (
        OUTPUTS,
        ValueError,
        "beta, the weight .* must be a number of at least 0; got None: TRADES has 6",
    ),
    (OUTPUTS | {"beta": -1.0}, ValueError, "must be a number of at least 0; got -1.0"),
    (
        OUTPUTS | {"beta": 1.0, "objective": "penalty"},
        ValueError,
        "no penalty, as the divergence has no gradient",
    ),
    (OUTPUTS | {"beta": 1.0, "clean_weight": 0.5}, ValueError, "L.x. . beta KL.*no clean_weight"),
    ({"objective": "plain"}, ValueError, "objective must be 'perturb' or 'penalty'; got 'plain'"),
    ({"clean_weight": 2}, ValueError, r"clean_weight must lie in \[0, 1\]; got 2"),
    ({"objective": "penalty", "steps": 2}, ValueError, "steps and start belong to objective='perturb'"),
    ({"objective": "penalty", "direction_dropout": "same"}, ValueError, "direction_dropout, .* belong to"),
    ({"penalty_by": "hand"}, ValueError, "penalty_by must be .*; got 'hand'"),
    ({"penalty_by": "difference"}, ValueError, "penalty_by='difference' belongs to objective='penalty'"),
    ({"difference_step": 0.1}, ValueError, "difference_step belongs to penalty_by='difference'"),
    ({"difference_step": 0}, ValueError, "difference_step must be a finite number above 0; got 0"),
]


@pytest.mark.parametrize(
    ("function", "options", "error", "message"),
    [(regularized_loss, *case) for case in ERRORS + OF_THE_LOSS] + [(perturb, *case) for case in ERRORS],
)
def test_torch_an_error_says_what_was_given(function, options, error, message):
    x, y = batch()
    options = {"model": network(), "loss": losses_of, "x": x, "y": y, "sigma": 0.5} | options
    with pytest.raises(error, match=message):
        function(**options)


def test_torch_outputs_that_are_no_logits_need_a_function():
    def model(x):
        return {"logits": x[:, :3]}

    def loss(outputs, y):
        return losses_of(outputs["logits"], y)

    x, y = batch()
    with pytest.raises(TypeError, match=r"outputs must be a tensor of logits, or .* got dict: pass a model"):
        perturb(model, loss, x, y, sigma=0.5, direction="log-odds")
    odds = perturb(
        model, loss, x, y, sigma=0.5, direction=lambda z, y: lpfamily.error_log_odds(z["logits"], y)
    )
    assert_allclose(odds, perturb(model, loss, x, y, sigma=0.5), rtol=1e-9)


@pytest.mark.parametrize("direction", ["log-odds", "binary-log-odds", "outputs"])
def test_torch_logits_may_be_an_attribute_of_the_outputs(direction):
    """As in Hugging Face's models."""
    model, (x, y) = network(), batch()
    y = y if direction != "binary-log-odds" else torch.nn.functional.one_hot(y, model(x).shape[1]).double()

    def loss(outputs, y):
        logits = getattr(outputs, "logits", outputs)
        return cross_entropy(logits, y, reduction="none")

    def named(x):
        return SimpleNamespace(loss=None, logits=model(x))

    for scaler in None, torch.amp.GradScaler("cpu"):
        options = {"sigma": 0.5, "direction": direction, "scaler": scaler, "start": torch.full_like(x, 0.1)}
        found, expected = (perturb(each, loss, x, y, **options) for each in (named, model))
        assert torch.equal(found, expected)
        assert found.norm(dim=1).min() > 0.49
    if direction == "log-odds":
        found, expected = (robustness(each, x, y, p=2, sigma=0.5, progress=False) for each in (named, model))
        assert_array_equal(found.smallest(2), expected.smallest(2))


SIGNATURES = {
    regularized_loss: "(model, loss, x, y, *, p=2.0, sigma, objective='perturb', clean_weight=0.0, "
    "bounds=None, mask=None, scale=None, batch_ndim=1, leaf=None, joint=True, direction='loss', "
    "ignore_index=-100, steps=1, start=None, direction_dropout='none', direction_dtype='same', "
    "batch_norm='batch', penalty_by='gradient', difference_step=None, scaler=None, beta=None, "
    "return_outputs=False)",
    perturb: "(model, loss, x, y, *, p=2.0, sigma, bounds=None, mask=None, scale=None, batch_ndim=1, "
    "leaf=None, joint=True, direction='loss', ignore_index=-100, steps=1, start=None, "
    "direction_dropout='none', direction_dtype='same', batch_norm='batch', scaler=None)",
    ascend: "(model, loss, x, y, *, p=2.0, sigma, steps=10, step_size=None, start=None, bounds=None, "
    "mask=None, scale=None, method=None, restarts=0, stop_above=None, leaf=None, direction='loss', "
    "ignore_index=-100, direction_dropout='none', direction_dtype='same', batch_norm='batch', scaler=None)",
}


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__name__)
def test_torch_each_function_names_its_arguments(function):
    signature = inspect.signature(function)
    bare = [each.replace(annotation=inspect.Parameter.empty) for each in signature.parameters.values()]
    assert str(inspect.Signature(bare)) == SIGNATURES[function]


def said_of_arguments(function):
    """Return what a docstring says of each argument, in the order in which it names them."""
    _, _, after = inspect.getdoc(function).partition("Parameters\n----------\n")
    said, names = {}, []
    for line in after.partition("\n\n")[0].splitlines():
        if line.startswith(" "):
            said |= {name: f"{said[name]}{line}\n" for name in names}
        else:
            names = line.split(", ")
            assert not said.keys() & names
            said |= dict.fromkeys(names, "")
    return said


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__name__)
def test_torch_each_function_says_what_its_arguments_are(function):
    said, whole = said_of_arguments(function), said_of_arguments(regularized_loss)
    assert said.keys() == inspect.signature(function).parameters.keys()
    of_ascent = {"steps", "step_size", "start", "method", "restarts", "stop_above"}
    of_ascent = of_ascent if function is ascend else set()
    for name in said.keys() - of_ascent:
        assert said[name] == whole[name]
    assert "As in `regularized_loss`" not in inspect.getdoc(function)
