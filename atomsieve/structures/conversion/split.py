"""Divides structures among named sets by a hash of their content, independent of their order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from math import gcd

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import DataError, UsageError, unknown
from atomsieve.structures.batch import StructureBatch
from atomsieve.structures.conversion.validation import ValidBlock

WAYS = ("structure", "formula", "group")


@dataclass(frozen=True)
class Split:
    """Named sets with their fractions, and the rule which structures stay together.

    `by` is "structure" (equal structures stay together; single free atoms are in "train" or the largest set),
    "formula" (a reduced formula is on one side only), or "group:KEY" (structures with the same value of a key in the
    file stay together).
    """

    fractions: dict[str, float]
    by: str = "structure"
    seed: int = 0

    def __post_init__(self) -> None:
        way, _, key = self.by.partition(":")
        if way not in WAYS or (way == "group") != bool(key):
            raise unknown("way to split", self.by, ("structure", "formula", "group:KEY"))
        for name, fraction in self.fractions.items():
            if not name.replace("_", "").replace("-", "").isalnum():
                raise UsageError(f"the name of a set must be letters, digits, - and _, got {name!r}")
            if not 0 < fraction < 1 and self.fractions != {name: 1.0}:
                raise UsageError(f"the fraction of {name!r} must be between 0 and 1, got {fraction:g}")
        total = sum(self.fractions.values())
        if abs(total - 1) > 1e-6:
            raise UsageError(f"the fractions of the split must add up to 1, got {total:g}")

    @staticmethod
    def parse(text: str, by: str = "structure", seed: int = 0) -> Split:
        """Return the split that `train=0.9,val=0.1` describes."""
        fractions: dict[str, float] = {}
        for word in text.split(","):
            name, _, value = word.strip().partition("=")
            try:
                number = float(value)
            except ValueError:
                raise UsageError(f"a split reads like train=0.9,val=0.1, got {text!r}") from None
            if name in fractions:
                raise UsageError(f"the split names {name!r} twice")
            fractions[name] = number
        return Split(fractions, by, seed)

    def choose(self, valid: ValidBlock) -> list[str]:
        """Return the name of the set to which each structure of a block belongs.

        Where structures are divided one by one, single free atoms all belong to the set "train", or to the
        largest one: a head that never saw one would be judged by it.
        """
        names = [self._place(key) for key in self._keys(valid)]
        if self.by == "structure":
            home = "train" if "train" in self.fractions else max(self.fractions, key=lambda name: self.fractions[name])
            for k in np.flatnonzero(valid.free).tolist():
                names[k] = home
        return names

    def _place(self, key: bytes) -> str:
        digest = hashlib.sha256(f"{self.seed}:".encode() + key).digest()
        place = int.from_bytes(digest[:8], "big") / 2.0**64
        for name, fraction in self.fractions.items():
            place -= fraction
            if place < 0:
                return name
        return name

    def _keys(self, valid: ValidBlock) -> Iterator[bytes]:
        way, _, key = self.by.partition(":")
        batch = valid.batch
        if way == "group":
            for value, k in zip(valid.values_of(key), valid.kept.tolist(), strict=True):
                if value is None:
                    there = ", ".join(sorted(valid.block.info)[:12])
                    raise DataError(f"{valid.block.places[k]} has no {key!r} to split by; its keys: {there}")
                yield str(value).encode()
            return
        for s, (start, stop) in enumerate(zip(batch.ptr[:-1].tolist(), batch.ptr[1:].tolist(), strict=True)):
            numbers = batch.numbers[start:stop]
            if way == "structure":
                parts = (numbers, batch.positions[start:stop], batch.cell[s], batch.pbc[s])
                yield b"".join(np.ascontiguousarray(part).tobytes() for part in parts)
            else:
                yield format_reduced_formula(numbers).encode()


def reduce_compositions(content: NDArray[np.integer]) -> NDArray[np.integer]:
    """Divide the atoms of each element [S,Z] by their greatest common divisor in each structure."""
    divisor = np.maximum(np.gcd.reduce(content.astype(np.int64), axis=1), 1)
    return content // divisor[:, None].astype(content.dtype)


def group_by_formula(batch: StructureBatch) -> NDArray[np.int64]:
    """Return a number for the reduced formula of each structure, [S]; the numbers are 0, 1, ... without gaps."""
    content = np.zeros((len(batch), 256), np.int64)
    np.add.at(content, (batch.structure_of_atom, batch.numbers), 1)
    groups = np.unique(reduce_compositions(content), axis=0, return_inverse=True)[1]
    return np.asarray(groups, np.int64).reshape(-1)


def format_reduced_formula(numbers: NDArray[np.integer]) -> str:
    """Return the composition divided by its greatest common divisor, as `Z:count` sorted by Z, e.g. `8:2 22:1`."""
    elements, counts = np.unique(numbers, return_counts=True)
    divisor = reduce(gcd, counts.tolist(), 0) or 1
    return " ".join(f"{z}:{n // divisor}" for z, n in zip(elements.tolist(), counts.tolist(), strict=True))
