"""What is read from the texts by which sources state their levels of theory."""

import pytest

from atomsieve.structures.level_of_theory import read_level

TEXTS = {
    "PBE/def2-SVP": ("PBE", False, None, None),
    "PBE/PBE+U_VASP-PAW_MaterialsProject": ("PBE", True, None, None),
    "PBE_QuantumESPRESSO-USPP": ("PBE", False, None, None),
    "PBEsol_VASP-PAW_520eV": ("PBEsol", False, None, 520.0),
    "AM05_VASP-PAW_520eV": ("AM05", False, None, 520.0),
    "LDA_VASP-PAW_520eV": ("LDA", False, None, 520.0),
    "wB97X/6-31G(d)": ("wB97X", False, None, None),
    "ωB97M-V/def2-TZVPD": ("wB97M", False, "VV10", None),
    "B3LYP": ("B3LYP", False, None, None),
    "PBE0+TS": ("PBE0", False, "TS", None),
    "PBE-D3(BJ), 400 eV": ("PBE", False, "D3", 400.0),
    "RPBE_D3": ("RPBE", False, "D3", None),
    "SCAN+rVV10": ("SCAN", False, "VV10", None),
    "r²SCAN": ("r2SCAN", False, None, None),
    "PBE54": ("PBE", False, None, None),
    "BEEF-vdW": (None, False, "vdW-DF", None),
    "CCSD(T)": (None, False, "CCSD(T)", None),
    "GGA_plane-wave_slab_functional-unstated": (None, False, None, None),
    "PBE and r2SCAN": (None, False, None, None),
    "a mixture of those of the heads": (None, False, None, None),
    "": (None, False, None, None),
}


@pytest.mark.parametrize("text", TEXTS)
def test_nothing_is_guessed(text):
    level = read_level(text)
    assert (level.functional, level.hubbard, level.dispersion, level.cutoff) == TEXTS[text]
    assert bool(level.why) == (level.functional is None)
