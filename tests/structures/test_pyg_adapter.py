"""PyTorch Geometric objects in and out."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from atomsieve.errors import AtomSieveError, DataError
from atomsieve.structures import pyg_adapter
from atomsieve.structures.pyg_adapter import from_pyg, to_pyg
from tests.structures.structure_samples import assert_equal, random_batch


def test_there_and_back() -> None:
    pytest.importorskip("torch_geometric")
    batch = random_batch(20, smallest=1)
    labels = {
        "energy": np.where(batch.has_energy, 1.5, np.nan),
        "forces": np.where(batch.has_forces[batch.structure_of_atom][:, None], 0.5, np.nan) * np.ones((1, 3)),
        "stress": np.where(batch.has_stress[:, None, None], 0.1, np.nan) * np.ones((1, 3, 3)),
    }
    batch = batch.replace(**labels, head=None)
    data = to_pyg(batch)
    assert data[0].pos.shape == (batch.counts[0], 3)
    assert [d.natoms for d in data] == batch.counts.tolist()
    assert_equal(from_pyg(data), batch)


@pytest.fixture
def without_pyg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyg_adapter, "_require_pyg", lambda: None)


@pytest.mark.usefixtures("without_pyg")
def test_objects_of_others() -> None:
    water = SimpleNamespace(z=[8, 1, 1], pos=np.eye(3, dtype=np.float32), energy=-3.0, forces=np.ones((3, 3)))
    atom = SimpleNamespace(atomic_numbers=[[29]], pos=[[0, 0, 0]], cell=np.eye(3)[None], pbc=[True] * 3, charge=1)
    batch = from_pyg([water, atom])
    assert batch.numbers.tolist() == [8, 1, 1, 29]
    assert batch.has_energy.tolist() == [True, False]
    assert batch.energy[0] == -3
    assert np.isnan(batch.energy[1])
    assert np.isnan(batch.charge[0])
    assert batch.charge[1] == 1
    assert batch.id.tolist() == [0, 1]
    assert batch.cell[1].tolist() == np.eye(3).tolist()
    assert batch.pbc.tolist() == [[False] * 3, [True] * 3]
    assert len(from_pyg([])) == 0
    boxed = SimpleNamespace(z=[8], pos=[[0, 0, 0]], cell=np.eye(3)[None])
    with pytest.raises(DataError, match="object 1 has a cell and no pbc that says whether it is periodic; set pbc"):
        from_pyg([water, boxed])
    boxed.cell[:] = 0
    assert not from_pyg([boxed]).pbc.any(), "no cell"
    with pytest.raises(DataError, match="object 1 has no pos"):
        from_pyg([water, SimpleNamespace(z=[1])])
    with pytest.raises(DataError, match="object 0: forces has shape"):
        from_pyg([SimpleNamespace(z=[1], pos=[[0, 0, 0]], forces=np.ones((2, 3)))])


def test_says_which_extra_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_geometric.data", None)
    with pytest.raises(AtomSieveError, match=r"pip install 'atomsieve\[pyg\]'"):
        from_pyg([])
