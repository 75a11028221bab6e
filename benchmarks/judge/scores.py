"""The arithmetic of the judge: ratios to a base run, counts of heads, z-scores of coverage, means over seeds.

A result is what a run's result.json holds: `heads` maps the name of a head to its numbers (see `judge.training`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LEVEL = 0.9
"""Probability of the intervals that are judged."""
FORCED = 50.0
"""Heads are judged by forces where predicting zero is wrong by more than this, meV/Angstrom."""
FIFTH = 0.2

Heads = Mapping[str, Mapping[str, Any]]


def geometric_mean(values: Iterable[float]) -> float:
    """Return the geometric mean; NaN of nothing.

    Raises
    ------
    ValueError
        for a value that is not positive and finite, since the mean would say nothing.
    """
    found = list(values)
    bad = [v for v in found if not (math.isfinite(v) and v > 0)]
    if bad:
        raise ValueError(f"a geometric mean wants positive numbers, got {bad[0]!r}")
    return math.exp(math.fsum(math.log(v) for v in found) / len(found)) if found else math.nan


def ratios(heads: Heads, base: Heads, key: str, names: Iterable[str]) -> list[float]:
    """Return `key` of a run over that of the base, for the heads `names` that have it in both."""
    pairs = [(heads[n].get(key), base[n].get(key)) for n in names if n in heads and n in base]
    return [own / other for own, other in pairs if own is not None and other is not None]


def list_forced(base: Heads) -> list[str]:
    """Return the heads that are judged by forces: zero forces are wrong by more than `FORCED` there."""
    return [name for name, row in base.items() if (row.get("force_baseline") or 0.0) > FORCED]


def coverage_z(coverage: float, n: int, calibrated_on: int | None = None, level: float = LEVEL) -> float:
    """Return how many standard deviations a coverage of n errors lies from the level, of either sign.

    Right intervals hold each error with probability `level`, so the share has the variance level (1 - level) / n
    (binomial). With `calibrated_on`, the number of errors that the intervals were fitted to, its variance
    level (1 - level) / calibrated_on is added: of right intervals this z has a standard deviation near one.
    """
    variance = level * (1 - level) * (1 / n + (1 / calibrated_on if calibrated_on else 0.0))
    return (coverage - level) / math.sqrt(variance)


def worst(values: Iterable[float | None]) -> float | None:
    """Return the value farthest from zero, with its sign; None of nothing."""
    return max((v for v in values if v is not None), key=abs, default=None)


def compare(heads: Heads, base: Heads) -> dict[str, Any]:
    """Return the judgement of a run against the base.

    energy, force : geometric means of the ratios of mean absolute errors; energies of all heads with energies, forces
        of the heads of `list_forced`. energies, forces : numbers of heads behind them.
    fifth : heads whose energy error is below a fifth of the references alone. crps : heads with a lower CRPS of
        energies than the base, of `crps_of` heads that have one in both. z, z_fitted : the worst of the heads.
    """
    energy = ratios(heads, base, "energy_mae", base)
    force = ratios(heads, base, "force_mae", list_forced(base))
    crps = ratios(heads, base, "crps", base)
    return {
        "energy": geometric_mean(energy),
        "energies": len(energy),
        "force": geometric_mean(force),
        "forces": len(force),
        "fifth": sum(r["energy_mae"] < FIFTH * r["energy_baseline"] for r in heads.values() if r.get("energy_mae")),
        "crps": sum(r < 1 for r in crps) if crps else None,
        "crps_of": len(crps),
        "z": worst(r.get("z") for r in heads.values()),
        "z_fitted": worst(r.get("z_fitted") for r in heads.values()),
    }


@dataclass(frozen=True)
class OverSeeds:
    """A number over runs that differ by their seed: mean, sample standard deviation (None of one run), runs."""

    mean: float
    deviation: float | None
    runs: int

    def format(self, form: str) -> str:
        """Return the mean, with the deviation where there are several runs."""
        if math.isnan(self.mean):
            return "-"
        return format(self.mean, form) + ("" if self.deviation is None else f" ± {format(self.deviation, form)}")


def over_seeds(values: Sequence[float | None]) -> OverSeeds | None:
    """Return mean and spread; None if a value is lacking."""
    known = [float(v) for v in values if v is not None]
    if len(known) < len(values) or not known:
        return None
    mean = math.fsum(known) / len(known)
    if len(known) == 1:
        return OverSeeds(mean, None, 1)
    return OverSeeds(mean, math.sqrt(math.fsum((v - mean) ** 2 for v in known) / (len(known) - 1)), len(known))
