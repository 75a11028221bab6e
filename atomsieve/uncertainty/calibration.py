"""Calibration: maps from the spread of an ensemble to standard errors and intervals, per head and property.

Three things are fitted on labelled structures that no member was trained on (`atomsieve.uncertainty.calibration_fit`):

scale : one factor, sigma = scale x spread, that maximises the Gaussian likelihood of the errors.
isotonic : a monotone map spread -> sigma in its place where there are many structures.
conformal : quantiles of |error| / sigma; sigma times the quantile of a level is half the width of the interval that
    holds the truth with this probability, whatever the distribution of the errors.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from atomsieve.errors import DataError, UsageError

SCHEMA: Final = "atomsieve-calibration"
SCHEMA_VERSION: Final = 2
LEVELS = (0.5, 0.68, 0.8, 0.9, 0.95)
"""Probabilities whose quantiles are kept."""
GAUSSIAN = {0.5: 0.674, 0.68: 0.994, 0.8: 1.282, 0.9: 1.645, 0.95: 1.960}
"""Quantiles of |error| / sigma if errors were Gaussian: for a calibration without quantiles of its own."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Quantiles = dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]
"""Quantile of |error| / sigma by level, written as in "0.9"; a level that needs more structures is absent."""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Isotonic(_Strict):
    """Monotone map from spread to sigma: straight between knots, constant below, proportional above the last."""

    spread: list[Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(min_length=2)
    sigma: list[Positive]

    @model_validator(mode="after")
    def _is_monotone(self) -> Isotonic:
        if len(self.spread) != len(self.sigma):
            raise ValueError(f"{len(self.spread)} spreads but {len(self.sigma)} sigmas")
        if (np.diff(self.spread) <= 0).any() or (np.diff(self.sigma) < 0).any() or self.spread[-1] <= 0:
            raise ValueError("spreads must rise and sigmas must not fall")
        return self

    def __call__(self, spread: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return sigma for spreads of any shape; more than was ever seen counts in proportion."""
        inside = np.interp(spread, self.spread, self.sigma)
        return np.asarray(np.where(spread > self.spread[-1], self.sigma[-1] * (spread / self.spread[-1]), inside))


class GroupQuantiles(_Strict):
    """Quantiles of one group of structures, from n errors."""

    n: Annotated[int, Field(ge=1)]
    conformal: Quantiles


class PropertyCalibration(_Strict):
    """The calibration of one property of one head.

    Attributes
    ----------
    n : errors that it was fitted on; structures : that they come from.
    scale : sigma = scale x spread. floor : smaller spreads count as this one: they are rounding, as where symmetry
        makes a force zero. isotonic : in place of the scale, or None where n is too small.
    groups : quantiles by group (`atomsieve.uncertainty.strata`), each over the structures of no finer group among them.
    conformal : quantiles for structures of none of the groups.
    size_edges : structures with at least so many atoms are of the second, of the third class of size.
    coverage : share of errors within the 90 % interval: of the raw spread and of the scale taken as a Gaussian's, and
        of the conformal one, each structure judged by what was fitted on others.
    """

    n: Annotated[int, Field(ge=0)]
    structures: Annotated[int, Field(ge=0)] = 0
    scale: Positive
    floor: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    isotonic: Isotonic | None = None
    conformal: Quantiles = {}
    size_edges: Annotated[list[Annotated[int, Field(ge=0, lt=1 << 53)]], Field(max_length=2)] = []
    groups: dict[str, GroupQuantiles] = {}
    coverage: dict[str, float] = {}

    @model_validator(mode="after")
    def _is_ordered(self) -> PropertyCalibration:
        if self.size_edges != sorted(self.size_edges):
            raise ValueError("size_edges must not fall")
        return self

    def sigma(self, spread: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the standard error for spreads of any shape (NaN stays NaN)."""
        raised = np.maximum(spread, self.floor)
        return raised * self.scale if self.isotonic is None else self.isotonic(raised)

    def quantile(self, level: float, group: str | None = None) -> float:
        """Return half the width of an interval in units of sigma: of a group, or of structures of no group.

        Inf if the level needs more structures than there were; the Gaussian value where no quantiles were fitted.
        """
        if level not in LEVELS:
            raise UsageError(f"level {level} is not calibrated; allowed: {', '.join(map(str, LEVELS))}")
        if not self.conformal:
            return GAUSSIAN[level]
        own = self.groups[group].conformal if group is not None else self.conformal
        return own.get(str(level), float("inf"))


class HeadCalibration(_Strict):
    """The calibration of one head; None where a property is not calibrated.

    Attributes
    ----------
    energy_per_atom : errors and spreads in eV per atom, one per structure.
    force_component : errors in eV/Angstrom, three per atom; the spread of an atom is the root mean square of the
        spreads of its three components, since the spread of one component over few members is mostly noise.
    """

    energy_per_atom: PropertyCalibration | None = None
    force_component: PropertyCalibration | None = None

    @property
    def calibrated(self) -> frozenset[str]:
        """Names of the calibrated properties: "energy", "forces"."""
        kinds = {"energy": self.energy_per_atom, "forces": self.force_component}
        return frozenset(name for name, fit in kinds.items() if fit is not None)


class DataIdentity(_Strict):
    """A file of structures that a calibration was fitted on."""

    name: str
    sha256: str
    structures: int
    part: str = "all"


class Calibration(_Strict):
    """All of calibration.json. Heads that are absent are not calibrated."""

    schema_name: Literal["atomsieve-calibration"] = SCHEMA
    schema_version: Literal[2] = SCHEMA_VERSION
    atomsieve: str = ""
    members: int = 0
    ensemble_kind: str | None = None
    data: list[DataIdentity] = []
    heads: dict[str, HeadCalibration] = {}

    def dumps(self) -> bytes:
        """Return the file's bytes; no calibration at all is `{}`."""
        content = self.model_dump(mode="json", exclude_none=True) if self.heads else {}
        return json.dumps(content, indent=1, sort_keys=True).encode()

    def head(self, name: str) -> HeadCalibration:
        """Return the calibration of a head, an empty one where there is none."""
        return self.heads.get(name, HeadCalibration())


def parse_calibration(content: bytes | dict[str, Any], where: str = "calibration.json") -> Calibration:
    """Read a calibration; one from before it had a schema gives its scales alone.

    Raises
    ------
    DataError
        in one line naming the place, if it is damaged or of a newer schema.
    """
    if isinstance(content, bytes):
        try:
            raw = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where} is not JSON ({error}); calibrate the ensemble again") from error
    else:
        raw = content
    if not isinstance(raw, dict):
        raise DataError(f"{where} holds no calibration; calibrate the ensemble again")
    if "schema_name" not in raw:
        raw = {"heads": _old_heads(raw.get("heads", {}), where)}
    elif (raw["schema_name"], raw.get("schema_version")) != (SCHEMA, SCHEMA_VERSION):
        raise DataError(
            f"{where} is {raw['schema_name']!r} version {raw.get('schema_version')!r}, this program reads {SCHEMA!r} "
            f"version {SCHEMA_VERSION}; calibrate the ensemble again, or install the version that wrote it"
        )
    try:
        return Calibration.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = " ".join(".".join(str(p) for p in first["loc"]).split())  # one line, whatever a head is called
        raise DataError(f"{where}: {place}: {first['msg']}; calibrate the ensemble again") from error


def _old_heads(heads: Any, where: str) -> dict[str, Any]:
    """Return the heads of a file without schema: each property has `scale` and `n`."""
    try:
        return {
            name: {
                kind: {"n": int(fit["n"]), "scale": float(fit["scale"])}
                for kind, fit in entry.items()
                if kind in HeadCalibration.model_fields
            }
            for name, entry in heads.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{where} is damaged ({error!r}); calibrate the ensemble again") from error


@dataclass(frozen=True)
class Residuals:
    """The errors and spreads that one head is calibrated on: S structures, M atoms.

    Attributes
    ----------
    energy_error, energy_spread : [S] eV per atom, NaN where there is no label. natoms : [S]; elements : [S] group of
        elements (`atomsieve.uncertainty.strata.find_element_group`).
    force_error : [M,3] eV/Angstrom; force_spread : [M], root mean square over the components.
    structure : [M] index into S.
    """

    energy_error: NDArray[np.float64]
    energy_spread: NDArray[np.float64]
    natoms: NDArray[np.int64]
    elements: NDArray[np.int64]
    force_error: NDArray[np.float64]
    force_spread: NDArray[np.float64]
    structure: NDArray[np.int64]
