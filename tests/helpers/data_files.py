"""Files of data sets, written and damaged, and a web server on this machine that serves them."""

import gzip
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lpfamily.training import data


def write(folder: Path, contents: dict[str, bytes]) -> Path:
    """Write files below a folder, which is made and returned."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return folder


def assert_same(a: data.Dataset, b: data.Dataset) -> None:
    """Raise unless both data sets hold the same arrays."""
    for split, other in ((a.train, b.train), (a.test, b.test)):
        np.testing.assert_array_equal(split.x, other.x)
        np.testing.assert_array_equal(split.labels, other.labels)


def flipped(content: bytes, index: int) -> bytes:
    """Return the bytes with all bits of one of them changed."""
    damaged = bytearray(content)
    damaged[index] ^= 0xFF
    return bytes(damaged)


def listing(folder: Path) -> list[str]:
    """Return the names in a folder, sorted."""
    return sorted(path.name for path in folder.iterdir())


class Mirror:
    """A web server on this machine, with the pages that it serves and the paths that were requested."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes | Callable[[BufferedIOBase], None]] = {}
        self.asked: list[str] = []
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mirror.asked.append(self.path)
                page = mirror.pages.get(self.path)
                if page is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.end_headers()
                if callable(page):
                    page(self.wfile)
                else:
                    self.wfile.write(page)

            def log_message(self, *_args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


COUNTS = {"train": 5, "t10k": 3}


def idx(array: NDArray[np.integer], magic: bytes | None = None) -> bytes:
    """Return an array as an IDX file of unsigned bytes, optionally with another magic number."""
    magic = bytes((0, 0, 8, array.ndim)) if magic is None else magic
    return (
        magic + b"".join(size.to_bytes(4, "big") for size in array.shape) + array.astype(np.uint8).tobytes()
    )


def mnist_files() -> dict[str, bytes]:
    """Return a small MNIST by file name, not compressed."""
    rng = np.random.default_rng(7)
    contents = {}
    for prefix, count in COUNTS.items():
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        contents[f"{prefix}-images-idx3-ubyte"] = idx(images)
        contents[f"{prefix}-labels-idx1-ubyte"] = idx(rng.integers(0, 10, count, dtype=np.uint8))
    return contents
