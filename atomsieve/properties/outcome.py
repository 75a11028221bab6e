"""What a method finds for one structure."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.properties.evaluation import Array, spread


class Problem(StrEnum):
    """Why a structure lacks a property, or why one is doubtful; other names are those of `Status`."""

    NOT_PERIODIC = "NOT_PERIODIC"
    NOT_RELAXED = "NOT_RELAXED"
    ATOMS_NOT_RELAXED = "ATOMS_NOT_RELAXED"
    NO_MINIMUM = "NO_MINIMUM"
    ELASTICALLY_UNSTABLE = "ELASTICALLY_UNSTABLE"
    SUPERCELL_TOO_LARGE = "SUPERCELL_TOO_LARGE"
    METHOD_FAILED = "METHOD_FAILED"


@dataclass
class Outcome:
    """Properties of one structure.

    Attributes
    ----------
    values : columns of the table, by name (`columns.COLUMNS`). details : what is only in properties.json.
    problems : a name of `Problem` or `Status`, and a sentence for people.
    """

    values: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)

    def add_number(self, name: str, value: float, members: Array) -> None:
        """Add a number and, as `<name>_std`, its spread over the members [K]."""
        self.values[name] = float(value)
        self.values[f"{name}_std"] = spread(members)

    def add_verdict(self, name: str, value: bool, members: NDArray[np.bool_]) -> None:
        """Add a yes or no and, as `<name>_share`, the share of the members [K] that agree with yes (NaN of none)."""
        self.values[name] = bool(value)
        self.values[f"{name}_share"] = float(np.mean(members)) if len(members) else float("nan")
