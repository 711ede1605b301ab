"""Backends from other distributions: found by name, imported when chosen, refused with a remedy."""

import json

import pytest

from helpers.commandline import ENVIRONMENT, SOFTMAX, assert_refused, train

WORKING = "from lpfamily_numpy import backend\n"


@pytest.fixture
def install(tmp_path):
    """install(project, module, code) lays out a distribution that registers the backend `strange`.

    It returns the environment in which that, and what was installed before, can be imported.
    """

    def lay_out(project="strange", module="strange_backend", code=WORKING, metadata="", target="backend"):
        (tmp_path / f"{module}.py").write_text(code)
        info = tmp_path / f"{project}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0\n{metadata}")
        (info / "entry_points.txt").write_text(f"[lpfamily.backends]\nstrange = {module}:{target}\n")
        before = ENVIRONMENT.get("PYTHONPATH")
        return {"PYTHONPATH": f"{tmp_path}:{before}" if before else str(tmp_path)}

    return lay_out


def test_a_backend_is_listed_without_being_imported(install, tmp_path):
    environment = install(code="raise SystemExit('imported')")
    result = train("--help", cwd=tmp_path, **environment)
    assert (result.returncode, result.stderr) == (0, "")
    assert "one of jax, numpy, strange, torch" in " ".join(result.stdout.split())


def test_a_backend_of_another_distribution_trains(install, tmp_path):
    environment = install()
    flags = ("--backend", "strange", *SOFTMAX, "--out", "run", "--quiet")
    result = train(*flags, cwd=tmp_path, **environment)
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["backend"] == "strange"
    assert json.loads((tmp_path / "run" / "result.json").read_text())["test_error"]["clean"] < 0.9


@pytest.mark.parametrize(
    ("metadata", "remedy"),
    [
        ("Provides-Extra: strange\n", 'pip install "strange[strange]"'),
        ("", "install what strange needs"),
    ],
)
def test_a_missing_requirement_is_named_with_the_remedy(install, tmp_path, metadata, remedy):
    environment = install(code="import framework_that_is_not_there\n", metadata=metadata)
    result = train("--backend", "strange", cwd=tmp_path, **environment)
    assert_refused(result, "'strange'", "No module named 'framework_that_is_not_there'", remedy)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        pytest.param('raise ImportError("libstrange.so\\nis missing")', "libstrange.so", id="two lines"),
        pytest.param('raise OSError("libstrange.so: cannot open")', "libstrange.so", id="a library"),
        pytest.param("", "backend", id="no backend in it"),
        pytest.param(
            "class backend:\n    layers = direction_dtypes = trainer = model = check_device = None\n",
            "it lacks compile_problem, join",
            id="half a backend in it",
        ),
    ],
)
def test_a_backend_that_cannot_be_loaded_is_refused_in_one_line(install, tmp_path, code, reason):
    result = train("--backend", "strange", cwd=tmp_path, **install(code=code))
    assert_refused(result, "'strange'", reason, "install what strange needs")


def test_two_backends_of_one_name_are_both_reported(install, tmp_path):
    install()
    environment = install(project="stranger", module="stranger_backend")
    result = train("--backend", "strange", cwd=tmp_path, **environment)
    assert_refused(result, "strange_backend:backend of strange", "stranger_backend:backend of stranger")


def test_the_error_for_an_unknown_name_lists_the_backends(install, tmp_path):
    result = train("--backend", "stranger", cwd=tmp_path, **install())
    assert_refused(result, "'stranger'", "jax", "numpy", "torch")
    loadable = result.stderr.rstrip().partition("installed: ")[2].partition(";")[0].split(", ")
    assert {"numpy", "strange"} <= {*loadable}


def test_the_error_for_an_unknown_name_says_what_other_backends_lack(install, tmp_path):
    environment = install(code="import framework_that_is_not_there\n")
    result = train("--backend", "stranger", cwd=tmp_path, **environment)
    assert_refused(
        result,
        "backend 'strange' cannot be loaded (No module named 'framework_that_is_not_there'); install what",
    )
    loadable = result.stderr.partition("installed: ")[2].partition(";")[0].split(", ")
    assert "numpy" in loadable
    assert "strange" not in loadable


def test_a_layer_that_the_backend_does_not_train_is_named(install, tmp_path):
    code = (
        "from dataclasses import replace\n"
        "import lpfamily_numpy\n"
        "backend = replace(lpfamily_numpy.backend, layers=frozenset())\n"
    )
    result = train("--backend", "strange", "--out", "run", cwd=tmp_path, **install(code=code))
    assert_refused(result, "'strange'", "does not train Dense layers")
    assert not (tmp_path / "run").exists()
