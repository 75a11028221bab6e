"""Limits on what a relaxation may do to a structure before its result is no longer believed."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.calculators.relax_result import Stop
from atomsieve.calculators.structure_change import StructureChange
from atomsieve.errors import UsageError
from atomsieve.predict import Outside

INFINITE = float("inf")


@dataclass(frozen=True)
class ChangeLimits:
    """Limits on the change of a structure; a structure beyond one ends with a `Stop` of its own, never as CONVERGED.

    The volume is looked at in every step and ends the relaxation at once. All others are looked at where a structure
    would end otherwise: a path may pass through what is no good end.

    Attributes
    ----------
    max_volume_change : factor by which the volume may grow (EXPLODED) or shrink (COLLAPSED); inf: no limit.
    max_gap : Angstrom by which the thickest empty layer may grow (EXPLODED); inf: no limit.
    max_new_fragments : groups of bonded atoms that may be more than before (EXPLODED); inf: no limit.
    min_contact : shortest distance over the sum of covalent radii, where it was longer before (COLLAPSED); 0: no limit.
    stay_in_domain : no reason against the domain of the head that was not there before (LEFT_DOMAIN).
    max_moved : Angstrom, displacement of an atom beyond the deformation of its cell (DRIFTED); inf: no limit.
    max_strain : logarithmic strain of the cell's shape (DRIFTED); inf: no limit.
    min_bonds_kept : share of the bonds at the start that are still there (DRIFTED); 0: no limit.

    Raises
    ------
    UsageError
        for a value out of range.
    """

    max_volume_change: float = 1.5
    max_gap: float = 3.0
    max_new_fragments: float = 0.0
    min_contact: float = 0.6
    stay_in_domain: bool = True
    max_moved: float = 1.5
    max_strain: float = 0.3
    min_bonds_kept: float = 0.5

    def __post_init__(self) -> None:
        ranges = {
            "max_volume_change": (1.0, INFINITE),
            "max_gap": (0.0, INFINITE),
            "max_new_fragments": (0.0, INFINITE),
            "min_contact": (0.0, 1.0),
            "max_moved": (0.0, INFINITE),
            "max_strain": (0.0, INFINITE),
            "min_bonds_kept": (0.0, 1.0),
        }
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            if not least <= value <= most:
                off = "0" if name.startswith("min") else "inf"
                raise UsageError(
                    f"{name.replace('_', '-')} must be {least:g} to {most:g}, got {value:g}; {off} switches it off"
                )

    @classmethod
    def none(cls) -> ChangeLimits:
        """Return limits that are all switched off."""
        return cls(INFINITE, INFINITE, INFINITE, 0.0, False, INFINITE, INFINITE, 0.0)

    @property
    def watched(self) -> bool:
        """Whether any limit is on."""
        return self != ChangeLimits.none()

    def as_dict(self) -> dict[str, Any]:
        """Return the limits that are on, as plain data."""
        off = ChangeLimits.none()
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != getattr(off, f.name)}

    def judge_volumes(self, log_ratio: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return EXPLODED, COLLAPSED or CONVERGED [S] from the logarithms [S] of the volume over that before."""
        width = np.log(self.max_volume_change)
        grown, shrunk = log_ratio > width, log_ratio < -width
        return np.where(grown, Stop.EXPLODED, np.where(shrunk, Stop.COLLAPSED, Stop.CONVERGED)).astype(np.int64)

    def judge_ends(self, change: StructureChange, gained: NDArray[np.uint8]) -> tuple[NDArray[np.int64], list[str]]:
        """Return the `Stop` [S] of structures that end, CONVERGED within all limits, and what was passed, as text.

        gained : [S], `Outside` reasons that were not there before.
        """
        ratio = change.volume_ratio
        opened, parts = change.gap - change.gap_before, change.fragments - change.fragments_before
        limit = self.max_volume_change
        contact = (change.contact < self.min_contact) & ~(change.contact_before < self.min_contact)
        left = (gained > 0) & self.stay_in_domain
        with np.errstate(invalid="ignore"):  # NaN passes no limit
            found: list[tuple[Stop, NDArray[np.bool_], NDArray[Any], str]] = [
                (Stop.EXPLODED, ratio > limit, ratio, "volume {:.3g} times that before"),
                (Stop.COLLAPSED, ratio < 1 / limit, ratio, "volume {:.3g} times that before"),
                (Stop.EXPLODED, opened > self.max_gap, opened, "an empty layer grew by {:.3g} A"),
                (Stop.EXPLODED, parts > self.max_new_fragments, parts, "{:.0f} more fragments"),
                (Stop.COLLAPSED, contact, change.contact, "a distance is {:.2g} of the covalent radii"),
                (Stop.LEFT_DOMAIN, left, gained, "{}"),
                (Stop.DRIFTED, change.moved > self.max_moved, change.moved, "an atom moved by {:.3g} A"),
                (Stop.DRIFTED, change.strain > self.max_strain, change.strain, "shape of the cell strained by {:.2g}"),
                (Stop.DRIFTED, change.bonds_kept < self.min_bonds_kept, change.bonds_kept, "{:.0%} of the bonds kept"),
            ]
        reason = np.full(len(ratio), Stop.CONVERGED, np.int64)
        texts: list[list[str]] = [[] for _ in reason]
        for stop, passed, value, text in found:
            for s in np.flatnonzero(passed).tolist():
                reason[s] = stop if reason[s] == Stop.CONVERGED else reason[s]
                texts[s].append(text.format(describe_reasons(value[s]) if stop == Stop.LEFT_DOMAIN else value[s]))
        return reason, ["; ".join(own) for own in texts]


def describe_reasons(outside: int) -> str:
    """Return the names of `Outside` reasons, in small letters."""
    flags = Outside(int(outside))
    return ", ".join(str(flag.name).lower().replace("_", " ") for flag in Outside if flag in flags)
