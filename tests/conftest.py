"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def find_shared_data() -> Path | None:
    """Return the folder with the real labelled sources, if it is at hand."""
    named = os.environ.get("ATOMSIEVE_SHARED_DATA")
    for folder in (Path(named) if named else None, ROOT.parent / "shared" / "data"):
        if folder is not None and (folder / "README.md").is_file():
            return folder
    return None


LONGEST = (
    "tests/e2e",
    "tests/train/test_ranks.py",
    "tests/export",
    "tests/testing",
    "tests/test_extending.py",
    "tests/models/test_fused_kernels.py",
    "tests/train",
    "tests/calculators",
    "tests/serve",
    "tests/mpi",
)
"""Files and folders that take longest, first: begun last, one would keep a process busy when the others have ended."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bring the longest files to the front; within a file, and among the others, the order stays."""

    def rank(item: pytest.Item) -> int:
        place = item.path.relative_to(ROOT).as_posix()
        return next((k for k, begin in enumerate(LONGEST) if place.startswith(begin)), len(LONGEST))

    items.sort(key=rank)


def pytest_configure() -> None:
    """Let tests interrupt programs even where this process was started in the background, with SIGINT ignored."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what the programs remember between runs away from the user's own."""
    before = os.environ.get("XDG_STATE_HOME")
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))
    yield
    if before is None:
        del os.environ["XDG_STATE_HOME"]
    else:
        os.environ["XDG_STATE_HOME"] = before


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the real labelled sources; the test is skipped where it is absent."""
    folder = find_shared_data()
    if folder is None:
        pytest.skip("real data not found: set ATOMSIEVE_SHARED_DATA to the folder that holds it")
    return folder
