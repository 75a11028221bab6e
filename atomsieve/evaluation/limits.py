"""The thresholds by which numbers become words, in one table; docs/evaluation.md shows the same."""

from __future__ import annotations

from dataclasses import dataclass

MILLI = 1e3
RELAXED = 0.1
"""eV/Angstrom: a structure no atom of which has a larger labelled force counts as relaxed."""


@dataclass(frozen=True)
class Limit:
    """A threshold: its value with unit, and what it decides."""

    value: float
    unit: str
    meaning: str


LIMITS: dict[str, Limit] = {
    "few_structures": Limit(20, "structures", "fewer, kept from training, do not say how good a head is"),
    "few_taught": Limit(100, "structures", "a head that learnt from fewer is called small"),
    "few_compositions": Limit(5, "compositions", "with fewer, energies are compared within compositions, not between"),
    "energy_good": Limit(0.2, "of the baseline", "energy error up to which a ranking is good"),
    "energy_fair": Limit(0.5, "of the baseline", "energy error up to which a first, coarse ranking is of use"),
    "rank_good": Limit(0.9, "correlation", "rank correlation from which a ranking is good"),
    "rank_fair": Limit(0.6, "correlation", "rank correlation from which a coarse ranking is of use"),
    "hull": Limit(50, "meV/atom", "distances to the convex hull that decide about stability are often smaller"),
    "coarse": Limit(100, "meV/atom", "between compositions, no ranking with a larger energy error is called good"),
    "force_good": Limit(0.15, "of zero forces", "force error up to which relaxations and dynamics are good"),
    "force_fair": Limit(0.4, "of zero forces", "force error up to which relaxations are of use, with a check"),
    "like_zero": Limit(0.95, "of zero forces", "force error from which nothing was learnt"),
    "force_stop": Limit(50, "meV/A", "relaxations usually stop at a largest force of this size"),
    "force_small": Limit(20, "meV/A", "labelled force components smaller on average are those of relaxed structures"),
    "few_relaxed": Limit(10, "structures", "so many relaxed ones are needed to speak about their forces"),
    "coverage_off": Limit(
        0.04, "of the errors", "90 % intervals that hold so many more or fewer, and 2 standard errors"
    ),
    "coverage_far": Limit(0.1, "of the errors", "up to this they are called a little too narrow or wide"),
    "outside": Limit(0.1, "of the structures", "more outside of the domain are mentioned"),
    "few_epochs": Limit(5, "epochs", "fewer over the training structures are called short"),
    "few_steps": Limit(1000, "steps", "fewer are called short"),
    "falling": Limit(0.05, "of the loss", "a larger fall when the steps doubled, and 2 standard errors: still falling"),
}


def limit(name: str) -> float:
    """Return the value of a threshold."""
    return LIMITS[name].value


def format_limits() -> str:
    """Return the thresholds as a Markdown table."""
    lines = ["| threshold | value | what it decides |", "| --- | --- | --- |"]
    lines += [f"| `{name}` | {one.value:g} {one.unit} | {one.meaning} |" for name, one in LIMITS.items()]
    return "\n".join(lines)
