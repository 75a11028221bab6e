"""What readers of outputs share: lines of text with their progress, charges from electrons, unconverged steps."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from atomsieve.errors import DataError
from atomsieve.structures.item import BadItem, Item, ReadRequest, Tick, item_from_atoms, open_with_progress
from atomsieve.structures.units import Units

if TYPE_CHECKING:
    from ase import Atoms

log = logging.getLogger(__name__)

UNCONVERGED = "the electronic steps did not converge"
ENDS_WITHIN = "the file ends within a structure"
LARGEST_STEP = 256 << 20
"""Bytes of text that one ionic step may have."""
TICK_LINES = 5000


def units_by_ase(name: str) -> Units:
    """Return the units of a format that ASE reads and converts."""
    return Units("ev", "angstrom", "ev/angstrom", "ev/angstrom^3", None, 1, f"format {name}, converted by ASE")


@contextmanager
def open_lines(request: ReadRequest) -> Iterator[Iterator[str]]:
    """Give the lines of a text file, plain or gzip; they end where a damaged compressed file ends."""
    with open_with_progress(request.path) as (file, fraction):
        yield _lines(file, fraction, request.tick)


def _lines(file: Iterable[bytes], fraction: Callable[[], float], tick: Tick) -> Iterator[str]:
    try:
        for k, line in enumerate(file):
            if k % TICK_LINES == 0:
                tick(fraction())
            yield line.decode("latin-1")
    except (EOFError, OSError) as error:  # the compressed stream ends early or is damaged
        log.debug("the file ends early: %s", error)


class StepText:
    """Lines of one ionic step.

    Raises
    ------
    DataError
        if they become more than any output of the code has.
    """

    def __init__(self, request: ReadRequest, kind: str) -> None:
        self.request, self.kind = request, kind
        self.lines: list[str] = []
        self.size = 0

    def add(self, line: str) -> None:
        """Add a line."""
        self.lines.append(line)
        self.size += len(line)
        if self.size > LARGEST_STEP:
            raise DataError(
                f"{self.request.path}: more than {LARGEST_STEP >> 20} MB without an ionic step of {self.kind}; is it "
                "another kind of file?"
            )

    def take(self) -> list[str]:
        """Return the lines and begin anew."""
        lines, self.lines, self.size = self.lines, [], 0
        return lines


def refuse(request: ReadRequest, kind: str) -> DataError:
    """Return the error for a file in which nothing of a kind was found."""
    return DataError(f"{request.path}: no ionic step of {kind} in it; is it another kind of file?")


def charge_of(valences: Iterable[float], counts: Iterable[int], electrons: float) -> float:
    """Return the total charge: valence electrons of the neutral atoms, less those of the calculation."""
    neutral = sum(valence * count for valence, count in zip(valences, counts, strict=True))
    charge = neutral - electrons
    return 0.0 if abs(charge) < 1e-4 else charge  # printed to four digits or more


def parse_step(parse: Callable[[], Atoms], where: str, units: Units) -> Item | BadItem:
    """Return the structure that a parser of ASE finds in the text of one step; its warnings go to the log."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            atoms = parse()
    except Exception as error:  # a parser of free text fails in every way there is
        log.debug("%s: %s", where, error, exc_info=True)
        return BadItem("not readable", where, f"{type(error).__name__}: {error}")
    for warning in caught:
        log.debug("%s: %s", where, warning.message)
    item = item_from_atoms(atoms, where)
    item.labels = {name: value for name, value in item.labels.items() if value is not None}
    item.arrays = {name: array for name, array in item.arrays.items() if not name.startswith("initial_")}
    item.units = units
    return item


def judge(item: Item | BadItem, converged: bool, request: ReadRequest, detail: str = "") -> Item | BadItem:
    """Return the item, or that its electronic steps did not converge, unless such steps are asked for."""
    if isinstance(item, BadItem) or converged or request.keep_unconverged:
        return item
    return BadItem(UNCONVERGED, item.where, detail)
