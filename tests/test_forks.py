"""The guard of forked processes, by itself: nothing here computes in a child, so nothing can hang."""

from __future__ import annotations

import os
import select
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from ase.build import bulk
from ase.calculators.calculator import CalculationFailed

from atomsieve import forks
from atomsieve.calculators import GFMCalculator, relax
from atomsieve.errors import UsageError
from atomsieve.forks import check_fork
from atomsieve.predict import Predictor
from atomsieve.structures import StructureBatch
from tests.helpers import tiny_gfm

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="GNU OpenMP is torch's on Linux")
REFUSED = "forked from one that had computed on several threads"


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Sets the number of torch's threads, and begins with a process that has computed nothing."""
    before = torch.get_num_threads()
    monkeypatch.setattr(forks, "_started", forks._Started())
    monkeypatch.setattr(forks, "_has_gnu_openmp", lambda: True)
    yield torch.set_num_threads
    torch.set_num_threads(before)


def in_child(work: Callable[[], object]) -> str:
    """Return the message of the error that work raises in a forked child, "fine" for none; the child ends in 20 s."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work()
            said = "fine"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    ready = select.select([read], [], [], 20.0)[0]
    said = os.read(read, 4096).decode() if ready else "hangs"
    os.close(read)
    if not ready:
        os.kill(child, 9)
    os.waitpid(child, 0)
    return said


def test_a_child_of_a_parent_that_computed_on_threads_is_refused(threads) -> None:
    threads(2)
    check_fork()
    check_fork()
    said = in_child(check_fork)
    assert said.startswith("UsageError: ") and REFUSED in said and "torch uses 2 threads here" in said
    assert "get_context('spawn')" in said and "torch.set_num_threads(1)" in said and "\n" not in said
    check_fork()
    assert in_child(lambda: in_child(check_fork) == said or os._exit(1)) == "fine", "grandchildren are children"


def test_what_works_is_not_refused(threads) -> None:
    """As measured: one thread on either side, another Python thread on either side, nothing computed before."""
    threads(2)
    assert in_child(check_fork) == "fine", "the parent has computed nothing"
    threads(1)
    check_fork()
    assert in_child(lambda: (threads(2), check_fork(), check_fork())) == "fine", "the parent has one thread"
    threads(2)

    def elsewhere() -> None:
        other = threading.Thread(target=check_fork)
        other.start()
        other.join()
        assert not other.is_alive()

    elsewhere()
    assert in_child(check_fork) == "fine", "another thread of the parent has the pool"
    check_fork()
    assert in_child(lambda: (threads(1), check_fork())) == "fine", "the child has one thread"
    assert in_child(elsewhere) == "fine", "a new thread of the child begins anew"
    assert REFUSED in in_child(lambda: (threads(1), check_fork(), threads(2), check_fork()))


def test_other_openmp_libraries_are_not_refused(threads, monkeypatch: pytest.MonkeyPatch) -> None:
    threads(2)
    check_fork()
    monkeypatch.setattr(forks, "_has_gnu_openmp", lambda: False)
    assert in_child(check_fork) == "fine"


def test_the_library_is_found_where_torch_brings_it() -> None:
    assert forks._has_gnu_openmp() == ("libgomp" in Path("/proc/self/maps").read_text())


def test_every_door_is_guarded(threads, tmp_path) -> None:
    folder = tiny_gfm(tmp_path / "gfm")
    predictor = Predictor.load(folder, "metal")
    copper = bulk("Cu")
    copper.calc = GFMCalculator(predictor)
    batch = StructureBatch.from_ase(bulk("Cu"))
    doors: dict[str, Callable[[], object]] = {
        "predictor": lambda: predictor(batch),
        "load": lambda: Predictor.load(folder),
        "submit": lambda: predictor.submit(batch).result(),
        "relax": lambda: relax(predictor, batch),
        "calculator": copper.get_potential_energy,
        "new calculator": lambda: GFMCalculator(folder),
    }
    threads(2)
    check_fork()
    for name, door in doors.items():
        said = in_child(door)
        assert REFUSED in said, (name, said)
    threads(1)
    assert copper.get_potential_energy() < 1e9


def test_the_error_of_a_calculator_is_one_of_ase(threads, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    copper = bulk("Cu")
    copper.calc = GFMCalculator(tiny_gfm(tmp_path / "gfm"), "metal")
    threads(2)
    monkeypatch.setattr(forks._started, "process", os.getpid() + 1)
    with pytest.raises(CalculationFailed, match=REFUSED):
        copper.get_forces()
    with pytest.raises(UsageError, match=REFUSED):
        copper.calc.predictor(StructureBatch.from_ase(copper))
    threads(1)
    copper.get_forces()
