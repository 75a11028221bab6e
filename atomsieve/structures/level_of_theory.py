"""Levels of theory, read from the text by which a source states its own: functional, Hubbard U, dispersion, cutoff.

read_level("PBE/PBE+U_VASP-PAW_MaterialsProject")   Level(functional="PBE", hubbard=True, ...)
read_level("PBE0+TS")                               Level(functional="PBE0", dispersion="TS", ...)
"""

from __future__ import annotations

import re
from dataclasses import dataclass

FUNCTIONALS: dict[str, str] = {
    "LDA": r"lda|lsda|pw-?lda|pz",
    "PBE": r"pbe(?:[ _]?5[24]|[ _]?64)?",
    "PBEsol": r"pbe-?sol",
    "RPBE": r"rpbe",
    "revPBE": r"revpbe",
    "AM05": r"am05",
    "BLYP": r"blyp",
    "BP86": r"bp86",
    "B97": r"b97",
    "TPSS": r"tpss",
    "SCAN": r"scan",
    "rSCAN": r"rscan",
    "r2SCAN": r"r2-?scan",
    "M06-L": r"m06-?l",
    "PBE0": r"pbe0|pbeh",
    "HSE06": r"hse-?(?:06)?",
    "B3LYP": r"b3lyp",
    "TPSSh": r"tpssh",
    "wB97X": r"wb97x",
    "wB97M": r"wb97m",
}
"""Names of functionals, and how sources write them (a regular expression, small letters)."""
WAVE_FUNCTION = r"ccsd(?:\(t\))?|ccsdt|mp[234]|dlpno|fci|caspt2|qmc|dmc|rpa"
DISPERSION: dict[str, str] = {
    "D2": r"d2|grimme-?2006|dft-?d2",
    "D3": r"d3(?:-?\(?(?:bj|zero|0|op)\)?|m(?:\(?bj\)?)?)?|dft-?d3",
    "D4": r"d4|dft-?d4",
    "TS": r"ts|ts-?vdw|vdw-?ts|tkatchenko-?scheffler",
    "MBD": r"mbd(?:[-@]?\w+)?|many-?body dispersion",
    "XDM": r"xdm",
    "VV10": r"r?vv10|nl",
    "vdW-DF": r"(?:rev-?)?vdw-?df\w*|opt(?:b88|b86b|pbe)(?:-?vdw)?|beef-?vdw|c09",
    "D": r"dispersion|vdw",
}
"""Names of descriptions of dispersion, and how sources write them."""


@dataclass(frozen=True)
class Level:
    """A level of theory.

    Attributes
    ----------
    text : as the source states it.
    functional : a name of `FUNCTIONALS`; None where the text names none, several, or a method without one.
    hubbard : some elements have a Hubbard U. dispersion : a name of `DISPERSION`, or of the method that includes it.
    cutoff : eV, of plane waves; None where the text states none. why : one line why there is no functional.
    """

    text: str
    functional: str | None
    hubbard: bool = False
    dispersion: str | None = None
    cutoff: float | None = None
    why: str = ""


def read_level(text: str) -> Level:
    """Return what the text of a level of theory states; nothing is guessed."""
    plain = text.lower().replace("ω", "w").replace("²", "2")
    found = [name for name, pattern in FUNCTIONALS.items() if _holds(plain, pattern)]
    method = re.search(_bounded(WAVE_FUNCTION), plain)
    dispersion = next((name for name, pattern in DISPERSION.items() if _holds(plain, pattern)), None)
    if dispersion is None and (tail := re.search(r"(?:b97\w?|pbe0?|blyp|lyp|m06)-(d|v)(?![a-z0-9])", plain)):
        dispersion = {"d": "D", "v": "VV10"}[tail.group(1)]
    if dispersion is None and method:
        dispersion = method.group(0).upper()
    cutoff = re.search(r"(?<![\d.])(\d{3,4})(?:\.\d+)? ?ev(?![a-z/])", plain)
    why = ""
    if method:
        why = f"{method.group(0).upper()} is no density functional"
    elif not found:
        why = "it names no functional that is known here"
    elif len(found) > 1:
        why = f"it names several functionals: {', '.join(found)}"
    return Level(
        text,
        None if why else found[0],
        hubbard=re.search(r"\+ ?u(?![a-z0-9])", plain) is not None,
        dispersion=dispersion,
        cutoff=None if cutoff is None else float(cutoff.group(1)),
        why=why,
    )


def _bounded(pattern: str) -> str:
    """Return a pattern for a whole word: `pbe` is not in `rpbe` or `pbe0`."""
    return rf"(?<![a-z0-9])(?:{pattern})(?![a-z0-9])"


def _holds(text: str, pattern: str) -> bool:
    return re.search(_bounded(pattern), text) is not None
