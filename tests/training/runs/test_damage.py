"""A run whose files are damaged, swapped or a stranger's: refused in one line, or the same result."""

import collections
import errno
import json
import os
import random
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lpfamily
from helpers.commandline import (
    assert_refused,
    begun_with,
    in_process,
    of_an_earlier_version,
    position,
    python,
    small_mnist,
    timeless,
    unchanged,
)
from lpfamily import evaluate
from lpfamily.report import plots
from lpfamily.training import choices, files, load, runs
from lpfamily.training.errors import BadInput
from lpfamily.training.runs import Run, checkpoints

CHECKPOINT, HEALTHY, CONFIG, METRICS, RESULT = (
    *("checkpoint.safetensors", "healthy.safetensors", "config.json", "metrics.jsonl", "result.json"),
)
FLAGS = (
    *("--model", "softmax", "--data", "mnist", "--validation", 5, "--dropout", 0.8, "--batch-size", 10),
    *("--patience", 1, "--epochs", 3, "--second-stage", "continue", "--second-epochs", 2, "--quiet"),
)


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch):
    """Skip what takes the most time and does not matter here."""
    monkeypatch.setattr(plots, "training_curves", lambda *arguments, **more: None)


class Recorded:
    """A run that is trained to its end, and the copies of its folder after every checkpoint."""

    def __init__(self, root, name, *flags):
        self.folder, self.copies, save = root / name, [], Run.save

        def saving(run, *arguments):
            sha256 = save(run, *arguments)
            self.copies.append(shutil.copytree(self.folder, root / f"{name} {len(self.copies)}"))
            return sha256

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(plots, "training_curves", lambda *arguments, **more: None)
            patch.setattr(Run, "save", saving)
            result = in_process(*FLAGS, "--data-dir", root, "--out", self.folder, *flags)
        assert (result.returncode, result.stderr) == (0, ""), result
        self.ended = timeless(self.folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("damage")
    small_mnist(root / "mnist")
    return root


@pytest.fixture(scope="module")
def plain(data):
    found = Recorded(data, "plain", "--seed", 3)
    for copy in found.copies[2:]:
        shutil.copy(found.copies[1] / CHECKPOINT, copy / HEALTHY)
    return found


@pytest.fixture(scope="module")
def other(data):
    return Recorded(data, "other", "--seed", 4)


@pytest.fixture(scope="module")
def choosing(data):
    return Recorded(data, "choosing", "--grid", "lr=0.1/0.01/0.3")


def resumed(folder):
    return in_process("--resume", folder, "--quiet")


def trajectory(folder):
    """Return the results of training, without the config."""
    return {name: value for name, value in timeless(folder).items() if name not in ("files", CONFIG)}


def robustness(folder):
    """Evaluate a run; return how the command ended, and the path of its result."""
    out = folder.parent / f"{folder.name}.json"
    flags = ("--quiet", "--steps", "1", "--sigmas", "1", "--p", "2", "--examples", "9", "--out", str(out))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "_draw", lambda *arguments, **more: None)
        patch.setattr("sys.argv", ["evaluate"])
        result = in_process(str(folder), *flags, command=evaluate.main)
    return result, out


# Any damage


def of_bits(content, rng, at):
    damaged = bytearray(content)
    damaged[at] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def zeroed(content, rng, at):
    half = len(content) // 2
    return bytes(half) + content[half:] if at < half else content[:half] + bytes(len(content) - half)


def truncated(content, rng, at):
    return content[:at]


WRONG = (None, True, "x", [], {}, -1, 10**400, float("inf"), [1], {"a": 1})


def mistyped(content, rng):
    """Put a value of another type somewhere into a JSON file, or into a line of the metrics."""
    lines = content.splitlines(keepends=True)
    whole = content.startswith(b"{\n")
    line = 0 if whole else rng.randrange(len(lines))
    values = json.loads(content if whole else lines[line])
    owner, name = values, rng.choice(sorted(values))
    while isinstance(owner[name], dict) and owner[name] and rng.random() < 0.8:
        owner = owner[name]
        name = rng.choice(sorted(owner))
    owner[name] = rng.choice([wrong for wrong in WRONG if wrong != owner[name]])
    text = json.dumps(values).encode() + b"\n"
    return text if whole else b"".join([*lines[:line], text, *lines[line + 1 :]])


def deciding(name, content):
    """Return the offsets of the bytes of a file that say how the run goes on or what it has found."""
    if name == CHECKPOINT:
        return range(8, len(content))
    if name == METRICS:
        times = {i for found in re.finditer(rb'"seconds": [^,}]*', content) for i in range(*found.span())}
        return [i for i in range(len(content)) if i not in times]
    if name == CONFIG:
        return range(content.index(b'"recipe": {'), content.index(b"}", content.index(b'"recipe": {')))
    if name == RESULT:
        return range(content.index(b"{"), content.index(b'"seconds_per_epoch"'))
    return ()


def linked(path, rng, outside):
    """Put a link, a pipe or a folder in the place of a file."""
    path.unlink()
    target = rng.choice(["/dev/zero", "nothing", path.name, "a pipe", "a folder", "another run's"])
    if target == "a pipe":
        os.mkfifo(path)
    elif target == "a folder":
        path.mkdir()
    else:
        path.symlink_to(outside if target == "another run's" else target)
    return target


def damaged(path, rng, others):
    """Damage a file of a run; return how, and whether that reaches bytes that decide."""
    content = path.read_bytes()
    offsets = deciding(path.name, content)
    kinds = ["flip", "truncate", "zero half", "swap", "link"] + ["wrong types"] * (
        path.suffix != ".safetensors"
    )
    kind = rng.choice(kinds)
    if kind == "swap":
        path.write_bytes(rng.choice(others).read_bytes())
    elif kind == "wrong types":
        path.write_bytes(mistyped(content, rng))
    elif kind == "link":
        kind = f"link: {linked(path, rng, others[0])}"
    else:
        at = rng.choice(offsets) if len(offsets) and rng.random() < 0.8 else rng.randrange(len(content))
        act = {"flip": of_bits, "truncate": truncated, "zero half": zeroed}[kind]
        path.write_bytes(act(content, rng, at))
        return kind, at in offsets
    return kind, len(offsets) > 0


def overdue(number, frame):
    raise TimeoutError("it hangs")


def test_no_damage_gives_another_result(plain, other, choosing, tmp_path, record_property):
    """Each of 300 damages, drawn with a fixed seed, is refused in one line or has no effect."""
    rng, seen, wrong, decide = random.Random(15), collections.Counter(), [], 0
    result, out = robustness(shutil.copytree(plain.folder, tmp_path / "whole"))
    assert result.returncode == 0, result
    expected = json.loads(out.read_text())
    between = next(copy for copy in choosing.copies if len(list((copy / "grid").iterdir())) == 3)
    others = {"plain": [*plain.copies[:4], other.copies[4]], "finished": [*plain.copies, other.folder]}
    others["choosing"] = [other.copies[4]]
    before = signal.signal(signal.SIGALRM, overdue)
    try:
        for number in range(300):
            subject, copy = rng.choice(
                [("plain", plain.copies[4]), ("finished", plain.folder), ("choosing", between)]
            )
            folder = shutil.copytree(copy, tmp_path / str(number))
            paths = [
                path
                for path in sorted(folder.rglob("*"))
                if path.suffix in (".json", ".jsonl", ".safetensors")
            ]
            path = rng.choice(paths)
            there = [each / path.name for each in others[subject] if (each / path.name).exists()]
            if subject == "choosing" and "grid" in path.parts:
                there += [each for each in path.parent.parent.glob(f"*/{path.name}") if each != path]
            kind, decides = damaged(path, rng, there or [other.folder / RESULT])
            unread = subject == "finished" and path.name == METRICS
            unread |= path.parent.name == "lr=0.01" and path.name in (METRICS, CHECKPOINT)  # it is not chosen
            decide += decides and not unread
            kept = {each: each.read_bytes() for each in there if folder not in each.parents}
            signal.alarm(60)
            result, out = (resumed(folder), None) if subject != "finished" else robustness(folder)
            signal.alarm(0)
            if result.returncode == 2:
                fine = len(result.stderr.splitlines()) == 1 and result.stdout == ""
            elif subject == "finished":
                found = json.loads(out.read_text()) if out.exists() else {}
                fine = result.returncode == 0 and found | {"command": ""} == expected | {"command": ""}
            else:
                ended = {"plain": plain, "choosing": choosing}[subject].ended
                fine = result.returncode == 0 and trajectory(folder).items() <= ended.items()
            fine = fine and all(each.read_bytes() == content for each, content in kept.items())
            name = str(path.relative_to(folder)).replace("grid/", "")
            seen[f"{subject}/{name}", "refused" if result.returncode == 2 else "without effect"] += 1
            if not fine:
                wrong.append(f"{number}: {kind} of {subject}/{name}: {result}")
            shutil.rmtree(folder)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    table = "\n".join(f"{count:4} {name}: {outcome}" for (name, outcome), count in sorted(seen.items()))
    record_property("outcomes", table)
    print(f"{decide} of 300 in bytes that decide\n{table}")
    assert not wrong, "\n".join([table, *wrong])
    assert decide >= 150, decide


def test_a_checkpoint_of_another_epoch_than_the_result_is_refused(plain, tmp_path):
    folder = shutil.copytree(plain.folder, tmp_path / "run")
    shutil.copy(plain.copies[2] / CHECKPOINT, folder / CHECKPOINT)
    result, _ = robustness(folder)
    assert result.returncode == 2, result
    line = f"python -m lpfamily.evaluate: {folder / CHECKPOINT}: is of another epoch or run than result.json"
    assert result.stderr.startswith(line)
    (folder / RESULT).unlink()
    assert load(folder).epoch == 1, "of an unfinished run it is as good as any"


@pytest.mark.parametrize("damage", [of_bits, zeroed, truncated])
def test_a_damaged_combination_is_named_and_nothing_of_it_is_taken_over(choosing, tmp_path, damage):
    at = max(n for n, copy in enumerate(choosing.copies) if not (copy / CHECKPOINT).exists())
    folder = shutil.copytree(choosing.copies[at], tmp_path / "run")
    chosen = folder / "grid" / "lr=0.1" / CHECKPOINT
    whole = chosen.read_bytes()
    chosen.write_bytes(damage(whole, random.Random(1), len(whole) - 99))
    before = {name: (folder / name).read_bytes() for name in (CONFIG, METRICS) if (folder / name).exists()}
    for _ in range(2):
        assert_refused(resumed(folder), chosen, "restore")
        assert not (folder / CHECKPOINT).exists()
        assert all((folder / name).read_bytes() == content for name, content in before.items())
    chosen.write_bytes(whole)
    assert resumed(folder).returncode == 0
    assert trajectory(folder).items() <= choosing.ended.items()


# A run of another person


@pytest.mark.parametrize(
    "name", ["absolute", "../../evil", "..", ".", "", "a/b", "a\\b", "c:a", "x" * 256, "a\0b", "\ud800"]
)
@pytest.mark.parametrize("earlier", [False, True])
def test_a_combination_whose_name_leads_to_another_folder_is_refused(choosing, tmp_path, name, earlier):
    inside = tmp_path / "a" / "b"
    folder = shutil.copytree(choosing.copies[0], inside / "run")
    shutil.rmtree(folder / "grid")
    config = Run(folder).config
    config["grid"] = {str(tmp_path / "evil") if name == "absolute" else name: {"lr": 1.0}}
    if earlier:
        (folder / CONFIG).write_text(json.dumps(config))
    else:
        Run(folder).write(CONFIG, config)
    result = unchanged(tmp_path, lambda: resumed(folder))
    assert result.returncode == 2, result
    assert f"{folder / CONFIG}: not the config of a run" in result.stderr
    assert "cannot be the name" in result.stderr or "surrogates" in result.stderr


def test_nothing_is_written_through_a_link(plain, choosing, tmp_path):
    outside, precious = tmp_path / "outside", b"precious"
    outside.write_bytes(precious)
    folder = shutil.copytree(plain.copies[2], tmp_path / "run")
    for name in (CONFIG, METRICS, CHECKPOINT, HEALTHY, RESULT):
        (folder / f".{name}.new").symlink_to(outside)
    for name in ("curves.png", HEALTHY, RESULT):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(tmp_path / "not there" if name == RESULT else outside)
    link = tmp_path / "link"
    link.symlink_to(folder)  # the run's folder itself may be one
    assert resumed(link).returncode == 0
    assert trajectory(folder).items() <= plain.ended.items()
    assert not (folder / RESULT).is_symlink()
    with pytest.raises(OSError, match="symbolic link"):
        files.append(link_to(outside, tmp_path / METRICS), b"more")
    files.replace(link_to(outside, tmp_path / "there"), b"new")
    assert outside.read_bytes() == precious

    for what in "grid", "grid/lr=0.1":
        folder = shutil.copytree(choosing.copies[1], tmp_path / what.replace("/", " "))
        elsewhere = Path(shutil.move(folder / what, tmp_path / f"elsewhere {len(what)}"))
        (folder / what).symlink_to(elsewhere)
        result = unchanged(elsewhere, lambda folder=folder: resumed(folder))
        assert_refused(result, folder / what, "is a link")


def link_to(path, link):
    link.symlink_to(path)
    return link


@pytest.mark.parametrize("name", [CONFIG, METRICS, CHECKPOINT])
def test_numbers_beyond_floats_are_refused(plain, tmp_path, name):
    """Of an earlier version, whose files say nothing else of themselves."""
    folder = of_an_earlier_version(shutil.copytree(plain.copies[2], tmp_path / "run"))
    for number in str(10**400), "1e400", "NaN", "-Infinity":
        content = (folder / name).read_text(errors="surrogateescape")
        key = {CONFIG: '"lr"', METRICS: '"loss"', CHECKPOINT: r'\\"best_error\\"'}[name]
        changed, count = re.subn(f"({key}: )[^,}}]*", rf"\g<1>{number}", content, count=1)
        assert count == 1
        if name == CHECKPOINT:
            state, where = load_file(folder / name), position(folder)
            text = json.dumps(where).replace(json.dumps(where["best_error"]), number)
            save_file(state, tmp_path / name, {"lpfamily": text})
            changed = (tmp_path / name).read_text(errors="surrogateescape")
        damaged = shutil.copytree(folder, tmp_path / number[:9])
        (damaged / name).write_text(changed, errors="surrogateescape")
        result = unchanged(damaged, lambda damaged=damaged: resumed(damaged))
        assert (result.returncode, result.stdout) == (2, ""), result
        *_, line = result.stderr.splitlines()
        assert str(damaged / name) in line
        assert "is not finite" in line


def test_a_file_that_is_too_large_is_refused_unread(plain, tmp_path):
    for name in (CONFIG, METRICS, CHECKPOINT):
        folder = shutil.copytree(plain.copies[2], tmp_path / name)
        os.truncate(folder / name, 1 << 42)  # a hole, which takes no room on the disk
        assert_refused(resumed(folder), folder / name, "restore")
    header = json.dumps({
        "__metadata__": {"lpfamily": json.dumps(position(plain.copies[2]))},
        "layers.0.weight": {"dtype": "F32", "shape": [1 << 38], "data_offsets": [0, 1 << 40]},
    }).encode()  # fmt: skip
    (folder / CHECKPOINT).write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(folder / CHECKPOINT, 8 + len(header) + (1 << 40))
    assert_refused(resumed(folder), folder / CHECKPOINT, "of another network")


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("name", [CONFIG, METRICS, CHECKPOINT])
def test_an_error_of_the_system_is_named_and_nothing_is_lost(plain, tmp_path, monkeypatch, name, number):
    folder = shutil.copytree(plain.copies[2], tmp_path / "run")
    opened = os.open

    def refused(path, *arguments, **more):
        if Path(os.fsdecode(path)) == folder / name:
            raise OSError(number, os.strerror(number), path)
        return opened(path, *arguments, **more)

    monkeypatch.setattr(os, "open", refused)
    result = unchanged(tmp_path, lambda: resumed(folder))
    assert_refused(result, folder / name, os.strerror(number), "try again")
    assert "new run" not in result.stderr
    assert "restore" not in result.stderr
    if name == CHECKPOINT:
        assert Run(folder).checkpoint_in_words == "the checkpoint is as it was"


# Versions


def test_a_run_of_an_earlier_version_goes_on_after_a_notice(plain, choosing, tmp_path):
    for recorded, at in (plain, 2), (choosing, 1), (plain, -1):
        folder = of_an_earlier_version(
            shutil.copytree(recorded.copies[at], tmp_path / f"{at} {id(recorded)}")
        )
        for child in folder.glob("grid/*"):
            of_an_earlier_version(child)
        result = resumed(folder)
        assert result.returncode == 0, result
        for line in result.stderr.splitlines():
            assert re.fullmatch(r"warning: .*/config.json: an earlier version began this run .*", line)
        assert f"warning: {folder / CONFIG}: an earlier" in result.stderr
        found, expected = trajectory(folder), recorded.ended
        assert found[METRICS] == expected[METRICS]
        assert found[RESULT] | {"checkpoint": ""} == expected[RESULT] | {"checkpoint": ""}
        for name, array in load_file(folder / CHECKPOINT).items():
            np.testing.assert_array_equal(array, load_file(recorded.folder / CHECKPOINT)[name])


def test_a_file_that_lost_its_checksum_is_not_one_of_an_earlier_version(plain, tmp_path):
    for name in (METRICS, CHECKPOINT, RESULT):
        folder = shutil.copytree(plain.folder, tmp_path / name)
        earlier = of_an_earlier_version(shutil.copytree(plain.folder, tmp_path / f"earlier {name}"))
        shutil.copy(earlier / name, folder / name)
        result, _ = robustness(folder)
        assert result.returncode == (0 if name == METRICS else 2)
        assert name == METRICS or f"{folder / name}: lacks a checksum" in result.stderr


def test_fields_that_came_later_have_their_defaults(plain, data, tmp_path, monkeypatch):
    """A version without them is played by one that writes none of them."""
    to_json, later = choices.to_json, ("direction_dtype", "penalty_by", "ema")
    with monkeypatch.context() as patch:
        patch.setattr(
            choices, "to_json",
            lambda recipe: {name: value for name, value in to_json(recipe).items() if name not in later},
        )  # fmt: skip
        earlier = Recorded(data, "without some fields", "--seed", 3)
    folder = shutil.copytree(earlier.copies[2], tmp_path / "run")
    assert not Run(folder).config["recipe"].keys() & set(later)
    result = resumed(folder)
    assert (result.returncode, result.stderr) == (0, "")
    assert timeless(folder)[METRICS] == plain.ended[METRICS]
    assert (folder / CHECKPOINT).read_bytes() == (earlier.folder / CHECKPOINT).read_bytes()


def test_a_config_without_a_checksum_must_have_all_fields(plain, tmp_path):
    folder = of_an_earlier_version(shutil.copytree(plain.copies[2], tmp_path / "run"))
    config = json.loads((folder / CONFIG).read_text())
    del config["recipe"]["lr"]
    (folder / CONFIG).write_text(json.dumps(config))
    result = unchanged(tmp_path, lambda: resumed(folder))
    assert result.returncode == 2
    assert f"{folder / CONFIG}: not the config of a run" in result.stderr
    assert "it lacks lr" in result.stderr


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda config: config.update(momentum_of_mind=1), "'momentum_of_mind'"),
        (lambda config: config["recipe"].update(temperature=3), "'temperature'"),
    ],
)
def test_unknown_fields_are_refused_with_the_versions(plain, tmp_path, edit, words):
    folder = shutil.copytree(plain.copies[2], tmp_path / "run")

    def later(config):
        config["versions"]["lpfamily"] = "97.1"
        edit(config)

    begun_with(folder, later)
    result = unchanged(tmp_path, lambda: resumed(folder))
    assert_refused(result, folder / CONFIG, words, f"lpfamily {lpfamily.__version__}", "97.1")


@pytest.mark.parametrize("name", [CONFIG, CHECKPOINT, RESULT])
def test_a_later_format_is_refused_with_the_versions(plain, tmp_path, monkeypatch, name):
    folder = shutil.copytree(plain.folder, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(runs, "FORMAT", 2)
        run, state, where = Run(folder), load_file(folder / CHECKPOINT), position(folder)
        if name == CHECKPOINT:
            run.save(state, where, run.decisive)
        else:
            run.write(
                name, run.config if name == CONFIG else run.result, None if name == CONFIG else run.decisive
            )
    with pytest.raises(
        BadInput, match=rf"{name}: is of format 2, and lpfamily \S+ reads up to 1; go on with"
    ):
        load(folder)


# The layout of checkpoints

SHORT_OF_MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np
from lpfamily.training import commands
from lpfamily.training.runs import checkpoints

def limit(room):
    used = resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (used + room, resource.RLIM_INFINITY))

def write_and_read():
    arrays = {"weight": np.zeros(10**7, np.float32)}
    limit(10**7)
    checkpoints.write(Path("checkpoint"), arrays, {"epoch": 1})
    checkpoints.read(Path("checkpoint"), lambda values, kinds: None)

sys.exit(commands.run("it", write_and_read))
"""


def test_memory_that_is_short_is_one_line_and_a_checkpoint_is_written_without_any(tmp_path):
    result = python(SHORT_OF_MEMORY, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (1, ""), result
    assert re.fullmatch(r"it: Unable to allocate .* float32\n", result.stderr)
    assert load_file(tmp_path / "checkpoint")["weight"].shape == (10**7,)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_checkpoints_are_safetensors_files(tmp_path, dtype):
    rng = np.random.default_rng(0)
    state = {"b": rng.normal(size=(3, 4)), "a": np.zeros((0, 2)), "\u00e9": np.ones(())}
    state = {name: array.astype(dtype).T for name, array in state.items()}
    values = {"epoch": 3, "text": '"\n\u00e9'}
    checkpoints.write(tmp_path / CHECKPOINT, state, values)
    assert position(tmp_path) == values
    contiguous = {name: np.array(array, order="C") for name, array in state.items()}
    save_file(contiguous, tmp_path / "theirs", {"lpfamily": json.dumps(values)})
    for path in tmp_path / CHECKPOINT, tmp_path / "theirs":
        ours, found = checkpoints.read(path, lambda values, kinds: None)
        assert found == values
        for read in ours, load_file(path):
            assert read.keys() == state.keys()
            for name, array in state.items():
                assert (read[name].dtype, read[name].shape) == (array.dtype, array.shape)
                np.testing.assert_array_equal(read[name], array)
