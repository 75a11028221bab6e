"""Reference sets as files, candidates, and prototypes."""

from __future__ import annotations

import numpy as np
import pytest

from atomsieve.errors import AtomSieveError, DataError
from atomsieve.stability.candidates import (
    candidates_path,
    keep_lowest,
    read_stored_candidates,
    strip_labels,
    write_candidates,
)
from atomsieve.stability.phases import read_references, references_path, require_weights, write_references
from atomsieve.stability.prototypes import list_prototypes
from tests.helpers import copper_oxides
from tests.stability.phase_fakes import random_set


def test_a_set_is_read_back(tmp_path):
    found = random_set()
    path = write_references(tmp_path, found)
    again = read_references(tmp_path, "pbe")
    assert again.content == found.content == path.read_bytes() and again.digest == found.digest
    assert again.elements == found.elements and again.names == found.names and again.has_compounds
    assert read_references(tmp_path, "scan") is None
    require_weights(again, "w" * 64, "gfm")
    with pytest.raises(AtomSieveError, match="another ensemble"):
        require_weights(again, "v" * 64, "gfm")


def test_a_head_with_an_odd_name(tmp_path):
    assert references_path(tmp_path, "../pbe/u").parent == tmp_path / "references"


@pytest.mark.parametrize("harm", ["cut", "flip", "other", "empty", "text"])
def test_a_damaged_set_is_one_line(tmp_path, harm):
    path = write_references(tmp_path, random_set())
    data = bytearray(path.read_bytes())
    if harm == "cut":
        data = data[:-100]
    elif harm == "flip":
        data[8 + data[8:].index(b"ptr") + 1] ^= 1
    elif harm == "other":
        path.rename(references_path(tmp_path, "scan"))
        with pytest.raises(DataError, match=r"is of head 'pbe', not 'scan'"):
            read_references(tmp_path, "scan")
        return
    else:
        data = bytearray(b"" if harm == "empty" else b"{" * 500)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"is no reference set .*make it anew") as error:
        read_references(tmp_path, "pbe")
    assert "\n" not in str(error.value)


def test_the_lowest_of_each_formula_is_kept(tmp_path):
    batch = copper_oxides(30)
    batch = strip_labels(batch.replace(energy=np.linspace(-1, 1, 30) * batch.counts))
    kept = keep_lowest(batch)
    numbers = [batch.numbers[batch.ptr[k] : batch.ptr[k + 1]] for k in range(30)]
    share = [round(float((z == 8).mean()), 6) for z in numbers]
    first = sorted({s: k for k, s in reversed(list(enumerate(share)))}.values())
    assert kept.id.tolist() == batch.id[first].tolist()
    write_candidates(tmp_path, "metal", kept)
    again = read_stored_candidates(tmp_path, "metal")
    assert all(np.array_equal(getattr(again, n), getattr(kept, n)) for n in ("ptr", "numbers", "positions", "energy"))
    assert read_stored_candidates(tmp_path, "organic") is None
    candidates_path(tmp_path, "metal").write_bytes(b"no")
    with pytest.raises(DataError, match="holds no candidates"):
        read_stored_candidates(tmp_path, "metal")


@pytest.mark.parametrize("symbol", ["H", "O", "Fe", "Te", "B", "Pm", "He", "Mn"])
def test_every_element_has_a_prototype_of_sound_distances(symbol):
    for _, atoms in list_prototypes(symbol):
        assert set(atoms.get_chemical_symbols()) == {symbol} and atoms.pbc.all()
        repeated = atoms.repeat((2, 2, 2)) if len(atoms) < 5 else atoms
        near = repeated.get_all_distances(mic=True)
        assert near[near > 0].min() > 0.7
