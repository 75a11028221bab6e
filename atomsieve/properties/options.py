"""Options of a calculation of properties, checked when they are made."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from atomsieve.errors import UsageError, unknown
from atomsieve.models.precision import check_precision

METHODS = ("eos", "elastic", "phonons")
"""Names of the methods, in the order in which they are done."""
GROUP_ATOMS = {"cpu": 32, "cuda": 1024}
"""Per kind of device: each atom stands for 25 or more, those of the distorted structures."""
WITHOUT_RESULT = ("precision", "device", "threads", "max_atoms", "max_edges", "group_atoms")
"""Options that the settings list elsewhere, or that decide nothing."""


@dataclass(frozen=True)
class PropertyOptions:
    """Options of one calculation of properties.

    Attributes
    ----------
    what : methods, of `METHODS`.
    relax : relax positions and cell first; else the structures are taken as they are given.
    fmax : eV/Angstrom, of this relaxation and of those of the atoms in deformed cells. max_steps : of each relaxation.
    clamped : keep the fractional coordinates in deformed cells, instead of relaxing the atoms there.
    eos_range : largest relative change of the volume; eos_points : number of volumes, evenly spaced.
    norm_strain, shear_strain : largest strain of the six independent ones; each is applied at +-1 and +-1/2 of it.
    supercell_length : Angstrom; phonons are computed in the smallest diagonal supercell whose faces are at least so far
        apart. max_supercell_atoms : a larger supercell is not computed. displacement : Angstrom.
    imaginary : THz; a structure is dynamically stable if no mode lies below minus this value.
    symprec : Angstrom, tolerance of symmetries.
    dispersion : adds D3 to a head whose level of theory lacks it: "auto" or a functional, see
        `atomsieve.predict.dispersion`.
    precision : fp64, fp32 or bf16. device : auto, cpu, cuda or cuda:N. threads : on a CPU.
    max_atoms, max_edges : budget of a batch (edges are estimated); None takes what suits the ensemble.
    group_atoms : structures of about so many atoms are worked on together, and kept together; None takes `GROUP_ATOMS`.
    """

    what: tuple[str, ...] = METHODS
    relax: bool = True
    fmax: float = 0.005
    max_steps: int = 500
    clamped: bool = False
    eos_range: float = 0.06
    eos_points: int = 7
    norm_strain: float = 0.01
    shear_strain: float = 0.06
    supercell_length: float = 10.0
    max_supercell_atoms: int = 500
    displacement: float = 0.01
    imaginary: float = 0.1
    symprec: float = 1e-3
    dispersion: str | None = None
    precision: str = "fp64"
    device: str = "auto"
    threads: int = 1
    max_atoms: int | None = None
    max_edges: int | None = None
    group_atoms: int | None = None

    def __post_init__(self) -> None:
        check_precision(self.precision)
        if not self.what:
            raise UsageError(f"--what names nothing; allowed: {', '.join(METHODS)}")
        for name in self.what:
            if name not in METHODS:
                raise unknown("property", name, METHODS)
        object.__setattr__(self, "what", tuple(name for name in METHODS if name in self.what))
        for name, low, high in LIMITS:
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                word = name.replace("_", "-")
                raise UsageError(f"--{word} must be from {low:g} to {high:g}, got {value:g}")
        if not self.relax and not self.clamped and self.max_steps == 0:
            raise UsageError("--max-steps 0 relaxes no atoms; say --clamped to keep them where a deformation puts them")

    def deciding(self) -> dict[str, Any]:
        """Return the options that decide the results, as plain data."""
        found = {k: list(v) if k == "what" else v for k, v in asdict(self).items() if k not in WITHOUT_RESULT[1:]}
        return {k: v for k, v in found.items() if k != "dispersion" or v is not None}


LIMITS = (
    ("fmax", 1e-6, 1.0),
    ("max_steps", 0, 10**6),
    ("eos_range", 0.005, 0.3),
    ("eos_points", 5, 101),
    ("norm_strain", 1e-4, 0.1),
    ("shear_strain", 1e-4, 0.2),
    ("supercell_length", 0.5, 100.0),
    ("max_supercell_atoms", 1, 10**6),
    ("displacement", 1e-4, 0.2),
    ("imaginary", 0.0, 10.0),
    ("symprec", 1e-8, 0.5),
    ("threads", 1, 1024),
    ("max_atoms", 1, 10**9),
    ("max_edges", 1, 10**12),
    ("group_atoms", 1, 10**9),
)
"""Name, least and greatest value of the numbers."""


def parse_methods(text: str) -> tuple[str, ...]:
    """Return the methods in a text such as `eos,phonons`."""
    return tuple(word.strip() for word in text.split(",") if word.strip())
