"""Counts of what was taken from files and what was left, over all blocks and processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields

from atomsieve.structures.labels.names import guess_label, offer_option
from atomsieve.structures.units import Units
from atomsieve.text import pluralize

KEYS_KEPT = 1000


@dataclass
class LabelTally:
    """What was taken and what was left, over all blocks. Every value counts structures.

    Attributes
    ----------
    taken : by label and by the key that it was taken from.
    passed : by label, key taken, key passed over, and whether its values are the same.
    left : by key that was not taken, with its shape in words (`3 per atom`, `number`, `3x3`, `text`).
    missed : by key that was looked at but could not serve, and why.
    units : by quantity, unit, and who stated it.
    overruled : by quantity, the unit of the user, and another one that the file states.
    doubts : by what is odd about a charge or a multiplicity; `first` is the place of the first of each.
    """

    taken: Counter[tuple[str, str]] = field(default_factory=Counter)
    passed: Counter[tuple[str, str, str, bool]] = field(default_factory=Counter)
    left: Counter[tuple[str, str]] = field(default_factory=Counter)
    missed: Counter[tuple[str, str]] = field(default_factory=Counter)
    units: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    overruled: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    doubts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def leave(self, key: str, shape: str, count: int) -> None:
        """Count a key that was not taken; of the first thousand names."""
        if (key, shape) in self.left or len(self.left) < KEYS_KEPT:
            self.left[key, shape] += count

    def doubt(self, what: str, count: int, place: str) -> None:
        """Count something odd about a charge or a multiplicity."""
        self.doubts[what] += count
        self.first.setdefault(what, place)

    def merge(self, other: LabelTally) -> None:
        """Add the counts of another part of the input, which comes after this one."""
        for entry in fields(self):
            own, more = getattr(self, entry.name), getattr(other, entry.name)
            if isinstance(own, Counter):
                own.update(more)
            else:
                own.update({key: value for key, value in more.items() if key not in own})

    def common_units(self) -> Units | None:
        """Return the units in which all labels were, None where they were in different ones."""
        found: dict[str, str] = {}
        counted: Counter[str] = Counter()
        for (quantity, unit, _), count in self.units.items():
            if found.setdefault(quantity, unit) != unit:
                return None
            counted[quantity] += count
        taken: Counter[str] = Counter()
        for (label, key), count in self.taken.items():
            taken["virial" if key.startswith("-") else label] += count
        if any(counted[q] != taken[q] for q in ("energy", "forces", "stress") if counted[q]):
            return None
        sign = {"ASE": 1, "opposite to ASE": -1}.get(found.pop("stress sign", ""))
        return Units(**found, stress_sign=sign)  # type: ignore[arg-type]

    # -- in words ----------------------------------------------------------------------------------------------------

    def describe_taken(self) -> Iterator[str]:
        """Yield `energy from REF_energy (1,204)` for each label and key."""
        for (label, key), count in self.taken.items():
            yield f"{label} from {key} ({count:,})"

    def describe_units(self) -> Iterator[str]:
        """Yield `energy hartree, length bohr (stated by the file)` for each origin of units."""
        by_origin: dict[str, list[str]] = {}
        for quantity, unit, origin in self.units:
            by_origin.setdefault(origin, []).append(f"{quantity} {unit}")
        for origin, words in by_origin.items():
            yield f"{', '.join(dict.fromkeys(words))} ({_name_origin(origin)})"

    def list_offers(self, known: Iterable[str] = (), settled: Iterable[str] = ()) -> list[tuple[str, str, int, str]]:
        """Return key, shape, structures and option for each key that was left but looks like a label.

        known : keys that serve for something else. settled : labels whose key the user gave.
        """
        skip, closed = set(known), set(settled)
        return [
            (key, shape, count, offer_option(key, shape))
            for (key, shape), count in self.left.items()
            if key not in skip and (label := guess_label(key, shape)) and label not in closed
        ]

    def list_others(self, known: Iterable[str] = (), settled: Iterable[str] = ()) -> list[str]:
        """Return the keys that no field of a dataset can hold, sorted."""
        skip = {*known, *(key for key, *_ in self.list_offers(known, settled)), *(key for key, _ in self.missed)}
        return sorted({key for key, _ in self.left} - skip)

    def list_notes(self, known: Iterable[str] = (), settled: Iterable[str] = ()) -> Iterator[str]:
        """Yield a sentence for each thing that a user should know about the labels that were taken or left."""
        skip = set(known)
        for label in ("energy", "forces", "stress"):
            keys = {key: count for (name, key), count in self.taken.items() if name == label}
            if len(keys) > 1:
                words = ", ".join(f"{key} ({count:,})" for key, count in keys.items())
                yield f"{label} comes from several keys, so it may mix quantities: {words}; --{label}-key takes one"
        for (label, key, other, same), count in self.passed.items():
            if not same and other not in skip:
                yield (
                    f"{_structures_with(count)} {key} and {other}, with different values: {key} was taken as {label}; "
                    f"--{_option_label(label, other)}-key {other} takes the other"
                )
        for (key, why), count in self.missed.items():
            if key not in skip:
                yield f"{_structures_with(count)} {key}, not taken: {why}"
        for key, shape, count, option in self.list_offers(known, settled):
            kind = "an array" if shape.endswith("per atom") else "a key"
            why = "; with smearing, forces belong to it" if key == "free_energy" else ""
            yield f"{_structures_with(count)} {kind} {key} ({shape}), not taken{why}: {option}"
        for (quantity, given, stated), count in self.overruled.items():
            yield f"--unit says {quantity} in {given}, {_structures_with(count, 'state')} {stated}; --unit was taken"
        for what, count in self.doubts.items():
            yield f"{pluralize(count, 'structure')} with {what}, first {self.first[what]}; kept as the file says"

    def manifest_notes(self) -> dict[str, str]:
        """Return what a manifest records: from which keys labels came, which were left, and units that were applied."""
        out: dict[str, str] = {}
        if self.taken:
            out["label keys"] = "; ".join(self.describe_taken())
        if offers := self.list_offers():
            out["labels not taken"] = "; ".join(f"{key} ({shape}, {count:,})" for key, shape, count, _ in offers)
        if self.units:
            out["units in the files"] = "; ".join(self.describe_units())
        return out


def _option_label(label: str, key: str) -> str:
    """Return the label whose option takes a key: a virial may serve as the stress."""
    return "virial" if label == "stress" and "virial" in key.lower() else label


def _structures_with(count: int, verb: str = "have") -> str:
    one = {"have": "has", "state": "states"}[verb]
    return f"1 structure {one}" if count == 1 else f"{count:,} structures {verb}"


def _name_origin(origin: str) -> str:
    return origin if origin.startswith("-") else f"stated by {origin}" if origin else "stated by the file"
