"""What tests share: laws, libraries and backends under test, models, and the commands run by a test."""

from pathlib import Path

TESTS = Path(__file__).parent.parent
ROOT = TESTS.parent
"""The folder of the repository, with `docs/`, `examples/` and `pyproject.toml`."""
