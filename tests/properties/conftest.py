"""Properties of three metals, computed once."""

import pytest
from ase.build import bulk, molecule
from ase.io import write

from atomsieve.properties.options import PropertyOptions
from atomsieve.properties.run import run_properties
from tests.properties.emt import METALS, EMTPredictor

OPTIONS = PropertyOptions(fmax=1e-4, supercell_length=6.0)


@pytest.fixture(scope="session")
def metal_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("metals") / "metals.extxyz"
    write(path, [bulk(symbol, "fcc", a=a) for symbol, a in METALS.items()])
    return path


@pytest.fixture(scope="session")
def computed(metal_file, tmp_path_factory):
    """All properties of the metals."""
    out = tmp_path_factory.mktemp("properties") / "out"
    return run_properties(metal_file, OPTIONS, predictor=EMTPredictor(), out=out)


@pytest.fixture(scope="session")
def odd_file(tmp_path_factory):
    """A metal, a molecule, an element that is unseen, a cell whose vectors are dependent, an empty place in one."""
    flat = bulk("Cu", "fcc", a=3.6)
    flat.set_cell([[3, 0, 0], [3, 0, 0], [0, 0, 3]])
    wide = bulk("Cu", "fcc", a=3.6, cubic=True).repeat((1, 1, 1))
    images = [bulk("Cu", "fcc", a=3.6), molecule("N2"), bulk("Fe", "bcc", a=2.8), flat, wide]
    path = tmp_path_factory.mktemp("odd") / "odd.extxyz"
    write(path, images)
    return path
