"""The public names of the package, and its imports."""

import ast
import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
import typing
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import lpfamily
from helpers import ROOT, TESTS
from helpers.backends_under_test import NAMES
from lpfamily._packages import needs
from lpfamily.training import commands, data, recipes, runs
from lpfamily.training.commands import options
from lpfamily.training.protocol import grid, stages
from lpfamily.training.runs import configs, trained

PUBLIC = [
    "ascend",
    "binary_error_log_odds",
    "certify",
    "cross_entropy",
    "dual_exponent",
    "epsilon",
    "error_log_odds",
    "norm",
    "penalty",
    "project",
    "robustness",
    "sample",
]


def loaded_after(statement):
    """Return the names of the modules that a fresh interpreter holds after a statement."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_all_is_the_public_surface():
    assert lpfamily.__all__ == PUBLIC
    modules = {name.partition(".")[2] for name in sys.modules if name.startswith("lpfamily.")}
    shown = {name for name in vars(lpfamily) if not name.startswith("_")} - modules
    assert shown == set(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_each_public_function_documents_its_arguments(name):
    function = getattr(lpfamily, name)
    for part in "Parameters", "Raises", *function.__annotations__.keys() - {"return"}:
        assert part in function.__doc__ or "As in `" in function.__doc__


@pytest.mark.parametrize(
    "name", [name for name in PUBLIC if name not in ("certify", "dual_exponent", "robustness", "sample")]
)
def test_a_type_checker_knows_the_type_of_array_that_comes_back(name):
    """It is the type of the array that is given: one type variable stands for both."""
    hints = typing.get_type_hints(getattr(lpfamily, name))
    array = next(hints[argument] for argument in ("grad", "v", "logits", "x") if argument in hints)
    assert isinstance(array, typing.TypeVar)
    assert hints["return"] is array


def test_importing_the_mathematics_needs_three_packages():
    before = loaded_after("import numpy, scipy, scipy.special, array_api_compat, importlib.metadata")
    after = loaded_after(
        "import lpfamily, pkgutil\n"
        "for module in pkgutil.iter_modules(lpfamily.__path__):\n"
        "    if module.name not in ('training', 'train', 'evaluate', 'reproduce', 'runs', 'report'):\n"
        "        __import__('lpfamily.' + module.name)"
    )
    foreign = {name.partition(".")[0] for name in after - before} - sys.stdlib_module_names
    assert foreign == {"lpfamily"}


@pytest.mark.parametrize(
    "statement",
    ["import lpfamily", "import lpfamily, numpy; lpfamily.epsilon(numpy.ones((2, 3)), 1.5, 1.0)"],
    ids=["import", "call"],
)
def test_an_import_loads_no_framework(statement):
    heavy = {"torch", "jax", "sklearn", "matplotlib", "tqdm", "safetensors", "lpfamily_torch", "lpfamily_jax"}
    assert not loaded_after(statement) & heavy


@pytest.mark.parametrize("backend", NAMES)
def test_a_backend_loads_no_more_of_training_than_its_contract(backend):
    loaded = loaded_after(f"import lpfamily_{backend}")
    assert {f"lpfamily_{backend}.trainer", "lpfamily.training.backends"} <= loaded
    of_runs = {
        module.__name__ for module in (commands, configs, data, grid, options, recipes, runs, stages, trained)
    }
    assert not loaded & of_runs
    assert not {name.partition(".")[0] for name in loaded} & {"matplotlib", "safetensors", "sklearn"}


LACKING = """
import importlib, sys
module, package = sys.argv[1:]
sys.modules[package] = None
try:
    importlib.import_module(module)
except ModuleNotFoundError as cause:
    print(cause.name, "|", cause)
if module.count("_"):
    from lpfamily.training import backends
    try:
        backends.find(module.partition("_")[2])
    except backends.BadInput as cause:
        print(cause)
"""


@pytest.mark.parametrize(
    ("module", "package", "remedy"),
    [
        ("lpfamily_numpy", "threadpoolctl", 'pip install "lpfamily[train]"'),
        ("lpfamily_torch", "torch", 'pip install "lpfamily[torch]"'),
        ("lpfamily_jax", "jax", 'pip install "lpfamily[jax]"'),
        ("lpfamily.ecosystem.sklearn", "sklearn", 'pip install "lpfamily[train]"'),
        ("lpfamily.ecosystem.foolbox", "eagerpy", "pip install foolbox"),
        ("lpfamily.ecosystem.art", "art", "pip install adversarial-robustness-toolbox"),
    ],
)
def test_an_import_that_lacks_a_package_says_how_to_install_it(module, package, remedy):
    done = subprocess.run(
        [sys.executable, "-c", LACKING, module, package], capture_output=True, text=True, check=True
    )
    said = f"{package} is not installed; {remedy}"
    expected = [f"{package} | {said}"]
    if "_" in module:
        expected.append(f"backend {module.partition('_')[2]!r} cannot be loaded: {said}")
    assert done.stdout.splitlines() == expected


def test_a_module_missing_inside_a_package_is_not_a_missing_package():
    with pytest.raises(ModuleNotFoundError, match="other") as caught, needs("pip install this", "this"):
        raise ModuleNotFoundError("no module named other", name="other.this")
    assert type(caught.value) is ModuleNotFoundError


@pytest.fixture
def installed(tmp_path):
    """Return the folder of another installation, of the same sources."""
    for name in "lpfamily", "lpfamily_numpy":
        folder = Path(importlib.util.find_spec(name).origin).parent
        shutil.copytree(folder, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


MEETING = """
import sys, lpfamily
sys.path.insert(0, sys.argv[1])
import lpfamily_numpy
print(lpfamily.__file__, lpfamily_numpy.__file__, sep="\\n")
"""


@pytest.mark.parametrize("changed", ["", "lpfamily/norms.py", "lpfamily_numpy/model.py", "lpfamily/new.py"])
def test_packages_of_two_versions_warn_when_they_are_used_together(installed, changed):
    if changed:
        with (installed / changed).open("a") as file:
            file.write("# another version\n")
    done = subprocess.run(
        [sys.executable, "-c", MEETING, str(installed)], capture_output=True, text=True, check=True
    )
    core, backend = map(Path, done.stdout.splitlines())
    assert backend == installed / "lpfamily_numpy" / "__init__.py"
    here = core.parent.parent
    assert here != installed
    line = (
        f"UserWarning: lpfamily is loaded from {here} and lpfamily_numpy from {installed}, and their versions"
    )
    assert (f"{line} differ; run `pip install .`" in done.stderr) == bool(changed)
    assert bool(done.stderr) == bool(changed)


def imported_by(source, modules):
    """Return which of the modules a source imports: at the top, inside a function, or by `import_module`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (name.value for name in node.args if getattr(name, "value", None) in modules)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module in modules:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                if name != "lpfamily.__version__":  # which is there before what the package imports
                    yield name if name in modules else node.module


def arrows():
    """Return by the name of each file the names of those that it imports."""
    root = Path(lpfamily.__file__).parent
    paths = list(root.rglob("*.py"))
    parts = [path.relative_to(root.parent).with_suffix("").parts for path in paths]
    modules = dict(zip((".".join(p).removesuffix(".__init__") for p in parts), paths, strict=True))
    return {name: {*imported_by(path.read_text(), modules)} for name, path in modules.items()}


def test_imports_point_one_way():
    """Files that import each other in a circle raise a CycleError here."""
    found = arrows()
    assert "lpfamily.libraries" in found["lpfamily.steepest"]
    assert "lpfamily.report.robust" in found["lpfamily.measured"]
    TopologicalSorter(found).prepare()


def test_imports_between_packages_of_training_point_one_way():
    """A room is a module of training, or a package of it with all that is inside."""
    rooms = {}
    for name, imported in arrows().items():
        room, *others = (".".join(each.split(".")[:3]) for each in (name, *imported))
        if room.startswith("lpfamily.training."):
            rooms.setdefault(room, set()).update(others)
    assert "lpfamily.training.runs" in rooms["lpfamily.training.protocol"]
    TopologicalSorter({room: others & rooms.keys() - {room} for room, others in rooms.items()}).prepare()


def test_no_test_module_imports_another():
    """A program in a string, which a test runs in another process, does not either."""
    importing = re.compile(r"\b(?:from|import)\s[\w., ]*?\b(?:test_\w+|conftest)\b")
    sources = {path: path.read_text() for path in TESTS.rglob("*.py")}
    assert len(sources) > 50
    found = {str(path): match[0] for path, text in sources.items() if (match := importing.search(text))}
    assert found == {}
    name = "test_noise"
    assert importing.search(f'CODE = "import sys, {name}"')
    assert importing.search(f"    from {name} import means")


@pytest.mark.parametrize(("name", "word"), [("torch", "torch"), ("jax", "JAX")])
def test_a_module_for_one_library_has_its_mark(name, word):
    """Without it the environment of that library would leave the tests out."""
    sources = {path: path.read_text() for path in TESTS.rglob("test_*.py")}
    skipping = f'    pytest.skip("{word} is not under test", allow_module_level=True)\n'
    modules = {path: text for path, text in sources.items() if skipping in text}
    assert len(modules) > 3
    mark = re.compile(rf"^pytestmark = \[?\s*pytest\.mark\.{name}\b", re.MULTILINE)
    assert [path for path, text in modules.items() if not mark.search(text)] == []


def test_each_folder_of_tests_is_about_a_folder_of_the_project():
    """Mathematics and commands are modules at the top of the package."""
    folders = {path.parent.relative_to(TESTS) for path in TESTS.rglob("test_*.py")}
    folders -= {Path(), Path("mathematics"), Path("commands")}
    assert Path("training/runs") in folders
    for folder in folders:
        assert any((root / folder).is_dir() for root in (ROOT, ROOT / "lpfamily")), folder


def test_the_lowest_environment_installs_the_lowest_versions():
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = pyproject["project"]
    asked = [
        *project["dependencies"],
        *project["optional-dependencies"]["train"],
        *pyproject["dependency-groups"]["test"],
    ]
    lowest = [re.sub(r"(\[\w+\])?>=", "==", requirement) for requirement in asked]
    _, *given = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    assert given == lowest
