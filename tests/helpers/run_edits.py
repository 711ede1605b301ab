"""Edits of the files of a run: each function here returns a function that edits a run folder."""

import json
from dataclasses import asdict

import numpy as np
from safetensors.numpy import load, load_file, save, save_file

from helpers.commandline import begun_with
from lpfamily.training import runs
from lpfamily.training.runs.positions import Position


def changed(recipe=(), without=(), **values):
    """Return an edit that makes a run look as if it had begun with another config."""

    def edit(config):
        config["recipe"] |= dict(recipe)
        config |= values
        for name in without:
            owner = config if name in config else config["recipe"]
            del owner[name]

    return lambda folder: begun_with(folder, edit)


def rewritten(name, content):
    """Return an edit that replaces a file of a run, by bytes or by a function of its bytes."""

    def edit(folder):
        path = folder / name
        path.write_bytes(content(path.read_bytes()) if callable(content) else content)

    return edit


def arrays(change, without=(), **position):
    """Return an edit of a checkpoint's arrays and position; the position is after epoch 2 by default."""
    values = {"epoch": 2} | position
    kept = {name: value for name, value in (asdict(Position()) | values).items() if name not in without}

    def edit(folder):
        state = change(load_file(folder / "checkpoint.safetensors"))
        text = json.dumps(runs.sealed(kept, runs.Run(folder).decisive, state))
        save_file(state, folder / "checkpoint.safetensors", {"lpfamily": text})

    return edit


def annotated(text):
    """Return an edit that replaces the position of a checkpoint by a text."""
    return rewritten("checkpoint.safetensors", lambda content: save(load(content), {"lpfamily": text}))


def unchanged_arrays(state):
    return state


def retyped(dtype, size):
    """Return an edit that replaces a checkpoint's arrays by zeros of a dtype that NumPy may not have."""

    def convert(content):
        length = int.from_bytes(content[:8], "little")
        header, end = json.loads(content[8 : 8 + length]), 0
        for name in sorted(header.keys() - {"__metadata__"}):
            begin, end = end, end + size * int(np.prod(header[name]["shape"]))
            header[name] |= {"dtype": dtype, "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + bytes(end)

    return rewritten("checkpoint.safetensors", convert)


def removed(name):
    return lambda folder: (folder / name).unlink()


def made_a_folder(name):
    def edit(folder):
        (folder / name).unlink()
        (folder / name).mkdir()

    return edit
