"""Names of labels in files: those whose meaning is certain, and which option takes one that is not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from atomsieve.errors import UsageError

NAMES: dict[str, tuple[str, ...]] = {
    "energy": ("energy", "REF_energy", "dft_energy", "DFT_energy", "uncorrected_total_energy"),
    "forces": ("forces", "force", "REF_forces", "dft_forces", "dft_force", "DFT_forces"),
    "stress": ("stress", "REF_stress", "dft_stress", "DFT_stress"),
    "virial": ("virial", "virials", "REF_virials", "REF_virial", "dft_virial", "dft_virials", "DFT_virial"),
    "charge": ("charge", "total_charge", "molecular_charge"),
    "spin": ("spin", "multiplicity", "spin_multiplicity", "molecular_multiplicity"),
}
"""Names that are certain; the first that a structure has is taken.

| name | who writes it |
| --- | --- |
| energy, forces, stress | ASE (results of a calculator), fairchem, nequip, MatPES, Alexandria |
| force, virial | GPUMD and NEP; gap_fit's defaults; dpdata for QUIP |
| REF_energy, REF_forces, REF_stress, REF_virials | MACE (its DefaultKeys) |
| REF_virial | autoplex, wfl with gap_fit |
| dft_energy, dft_force(s), dft_virial(s), dft_stress; DFT_ | data sets of GAP and ACE |
| uncorrected_total_energy | MPtrj; what the code gave, without corrections for phase diagrams |
| virials | MACE before its REF_ names |
| charge | fairchem and OMol25, pymatgen, `--total_charge_key` of MACE in practice |
| total_charge | MACE (its DefaultKeys) |
| spin | fairchem and OMol25: the multiplicity |
| multiplicity, spin_multiplicity | pymatgen's molecules, Gaussian, ORCA |
| molecular_charge, molecular_multiplicity | QCSchema |

Not certain, so only offered: `free_energy` (with smearing another quantity than `energy`), `total_energy` (in dynamics
it may hold the kinetic energy), `total_spin` (S or 2S+1), `E`, `F`, and whatever people make up.
"""


@dataclass(frozen=True)
class LabelKeys:
    """Where the labels are found in a file; None: under the `NAMES` that are certain.

    Attributes
    ----------
    energy, forces, stress, virial : names of the total energy, forces, stress, and virial (minus stress times volume).
    charge, spin : names of the total charge and the multiplicity.
    id : name of an integer identity; None numbers the structures in the order of the input.
    none : leave all labels out.
    """

    energy: str | None = None
    forces: str | None = None
    stress: str | None = None
    virial: str | None = None
    charge: str | None = None
    spin: str | None = None
    id: str | None = None
    none: bool = False

    def __post_init__(self) -> None:
        if self.stress in NAMES["virial"]:
            raise UsageError(
                f"{self.stress!r} is the name of a virial, which is minus the stress times the volume: "
                f"--virial-key {self.stress}"
            )
        if self.virial in NAMES["stress"]:
            raise UsageError(f"{self.virial!r} is the name of a stress, not of a virial: --stress-key {self.virial}")

    def names(self, label: str, fixed: Mapping[str, str] | None = None) -> tuple[str, ...]:
        """Return the names under which a label is looked for, the first one first.

        `fixed` are the keys that a data set fixes; they belong to one level of theory. Where the user names another
        key for one of them, the others are not taken either, unless named too.
        """
        given = getattr(self, label)
        if given is not None:
            return (given,)
        if not fixed or any(getattr(self, other) not in (None, key) for other, key in fixed.items()):
            return NAMES[label]
        return (fixed[label], *NAMES[label]) if label in fixed else NAMES[label]

    @property
    def wanted(self) -> tuple[str, ...]:
        """Return the keys that the user names."""
        given = (self.energy, self.forces, self.stress, self.virial, self.charge, self.spin, self.id)
        return tuple(key for key in given if key is not None)


_NO_TOTAL = re.compile(
    r"per_?atom|formation|hull|gap|fermi|kinetic|cohesive|atomi[sz]ation|binding|adsorption|interaction|correction|"
    r"weight|cutoff|_std|sigma|error|delta|zpe|reaction|surface|unit|e0s?$|above|elapsed|max|norm|rms|scale|has_",
    re.IGNORECASE,
)
"""Parts of names that say that a number is no total energy, or no label at all."""

_LOOKS = (
    ("forces", re.compile(r"forc|gradient|(^|_)grad|^f$|_f$|^fx", re.IGNORECASE), ("3 per atom",)),
    ("virial", re.compile(r"virial", re.IGNORECASE), ("3x3", "9 numbers", "6 numbers")),
    ("stress", re.compile(r"stress", re.IGNORECASE), ("3x3", "9 numbers", "6 numbers")),
    ("energy", re.compile(r"energ|^e$|^e_|_e$|^etot|^toten|^u0$", re.IGNORECASE), ("number",)),
    ("charge", re.compile(r"charge|^q$|^qtot", re.IGNORECASE), ("number",)),
    ("spin", re.compile(r"spin|multiplicity|^mult$", re.IGNORECASE), ("number",)),
)


def guess_label(key: str, shape: str) -> str:
    """Return the label that a key looks like by its name and its shape in words, or an empty string.

    This only serves to name the option that would take it; nothing is taken by a guess.
    """
    if _NO_TOTAL.search(key):
        return ""
    return next((label for label, name, shapes in _LOOKS if shape in shapes and name.search(key)), "")


def offer_option(key: str, shape: str) -> str:
    """Return the option that takes a key as the label that it looks like, or an empty string."""
    label = guess_label(key, shape)
    if not label:
        return ""
    word = f"'{key}'" if re.search(r"[^\w.+-]", key) else key
    option = f"--{label}-key {word}"
    if label == "forces" and re.search(r"grad", key, re.IGNORECASE):
        option += " --unit forces=-eV/angstrom"  # a gradient is minus the force
    return option
